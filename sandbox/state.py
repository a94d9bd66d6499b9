"""What the engine knows about a stack, in one file that survives a kill at any moment.

`.sandbox/<stack>/state.json` is replaced whole (write, fsync, rename) after every step. Secret values are encrypted
with a key that lies beside it, readable by the owner alone: the file may be shown to others, the key may not.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sandbox.values import Secret, Value

#: Pulumi's own marks of a secret in a deployment file (pulumi/pulumi, sdk/go/common/resource/sig).
SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET_SIGNATURE = "1b47061264138c4ac30d75fd1eb44270"  # noqa: S105 (a marker, not a credential)


class UnreadableStateError(Exception):
    """A state or key file that cannot be used; the message names the file and the remedy."""


class StackBusyError(Exception):
    """Another engine works on the stack."""


def write_atomically(path: Path, text: str) -> None:
    """Replace the file's content as a whole; readers see the old or the new text, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class Vault:
    """Encrypts secret values (Fernet: AES-128-CBC with HMAC-SHA256); the key is made on first use, mode 0600."""

    def __init__(self, key_file: Path) -> None:
        self._key_file = key_file
        self._fernet: Any = None

    def key(self) -> bytes:
        """The key itself, for deriving other stable secrets of this stack from it."""
        if not self._key_file.exists():
            from cryptography.fernet import Fernet

            # mkstemp creates the file with mode 0600, before a byte of the key is in it.
            write_atomically(self._key_file, Fernet.generate_key().decode())
        return self._key_file.read_bytes().strip()

    def encode(self, value: Value) -> Any:
        """The value as JSON data, secrets encrypted."""
        match value:
            case Secret():
                plain = json.dumps(self.encode(value.value)).encode()
                return {SIGNATURE: SECRET_SIGNATURE, "ciphertext": self._cipher().encrypt(plain).decode()}
            case dict():
                return {key: self.encode(item) for key, item in value.items()}
            case list():
                return [self.encode(item) for item in value]
            case None | bool() | int() | float() | str():
                return value
        raise TypeError(f"{value!r} cannot be stored")

    def decode(self, data: Any) -> Value:
        """The value that `encode` was given.

        Raises UnreadableStateError when the key does not fit.
        """
        if isinstance(data, dict):
            if data.get(SIGNATURE) == SECRET_SIGNATURE:
                from cryptography.fernet import InvalidToken

                try:
                    plain = self._cipher().decrypt(data["ciphertext"].encode())
                except InvalidToken:
                    raise UnreadableStateError(
                        f"{self._key_file}: this key does not open the stack's secrets; restore the key, or remove the "
                        "stack with `python -m sandbox destroy`"
                    ) from None
                return Secret(self.decode(json.loads(plain)))
            return {key: self.decode(item) for key, item in data.items()}
        if isinstance(data, list):
            return [self.decode(item) for item in data]
        return data

    def _cipher(self) -> Any:
        if self._fernet is None:
            from cryptography.fernet import Fernet

            try:
                self._fernet = Fernet(self.key())
            except ValueError:
                raise UnreadableStateError(
                    f"{self._key_file}: not a key; restore it, or remove the stack with `python -m sandbox destroy`"
                ) from None
        return self._fernet


@dataclass(kw_only=True)
class ResourceState:
    """One resource as last seen."""

    urn: str
    type: str
    custom: bool
    id: str = ""  # empty while the provider has not answered
    parent: str = ""
    provider: str = ""  # `<urn>::<id>` of an explicit provider; empty = the package's default
    declared: dict[str, Value] = field(default_factory=dict)  # as the program gave them
    inputs: dict[str, Value] = field(default_factory=dict)  # as the provider's check completed them
    outputs: dict[str, Value] = field(default_factory=dict)
    protect: bool = False
    retain_on_delete: bool = False
    deleted_with: str = ""
    replace_with: list[str] = field(default_factory=list)
    dependencies: list[str] = field(default_factory=list)
    property_dependencies: dict[str, list[str]] = field(default_factory=dict)
    timeouts: dict[str, float] = field(default_factory=dict)  # seconds, by operation
    replacement_trigger: Value = None
    pending: str = ""  # creating | updating | deleting: begun, not known to have ended
    delete: bool = False  # replaced by its namesake, still to be deleted

    @property
    def name(self) -> str:
        """The logical name."""
        return self.urn.rsplit("::", 1)[1]


_FIELDS = tuple(item.name for item in fields(ResourceState))
_VALUES = ("declared", "inputs", "outputs", "replacement_trigger")


class Store:
    """The folder of one stack."""

    FORMAT = 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vault = Vault(folder / "key")
        self.file = folder / "state.json"
        self._written: dict[str, tuple[tuple[Any, ...], str]] = {}  # URN -> what was encoded, and its text

    def load(self) -> list[ResourceState]:
        """The resources of the stack, dependencies first; none when the stack does not exist.

        Raises UnreadableStateError.
        """
        try:
            data = json.loads(self.file.read_text())
            if data["format"] != self.FORMAT:
                raise KeyError("format")
            return [self._resource(entry) for entry in data["resources"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise UnreadableStateError(
                f"{self.file}: not a state file of this version ({type(problem).__name__}); remove the stack with "
                "`python -m sandbox destroy`"
            ) from None

    def save(self, resources: Sequence[ResourceState]) -> None:
        """Replace the state. Only what has changed since the last time is encoded again."""
        texts = [self._text(resource) for resource in resources]
        write_atomically(self.file, f'{{"format": {self.FORMAT}, "resources": [\n' + ",\n".join(texts) + "\n]}\n")

    def _text(self, resource: ResourceState) -> str:
        # Values are replaced, never changed in place, so that equal identities mean equal values.
        shown = tuple(getattr(resource, name) for name in _FIELDS)
        key = f"{resource.urn}{' (replaced)' if resource.delete else ''}"
        known = self._written.get(key)
        if known is None or any(a is not b for a, b in zip(known[0], shown, strict=True)):
            entry = dict(zip(_FIELDS, (self.vault.encode(value) for value in shown), strict=True))
            known = self._written[key] = shown, json.dumps(entry)
        return known[1]

    def _resource(self, entry: Mapping[str, Any]) -> ResourceState:
        return ResourceState(**{k: self.vault.decode(v) if k in _VALUES else v for k, v in entry.items()})

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the stack; a second engine is turned away at once.

        Raises StackBusyError.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StackBusyError(
                    f"another command is working on stack {self.folder.name}; wait for it to end, then try again"
                ) from None
            yield
