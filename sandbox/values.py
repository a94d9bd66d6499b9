"""Property values as the engine holds them: plain Python data, with secrets and unknowns marked.

Between the program, the providers and the state file the same value has four shapes (protobuf, `PropertyValue`, plain
data, JSON). This module is the only place that knows all of them but the last (see `state`).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.struct_pb2 import Struct  # ty: ignore[missing-module-member]  (made at run time)
from pulumi.provider.experimental.property_value import PropertyValue, ResourceReference
from pulumi.runtime import rpc

Value = Any
"""None, bool, int, float, str, list, dict, `Secret` around one of them, or `UNKNOWN`."""


class _Unknown:
    """A value that only an update can tell, such as the id of a resource that does not exist yet."""

    def __repr__(self) -> str:
        return "UNKNOWN"

    def __copy__(self) -> _Unknown:
        return self

    def __deepcopy__(self, memo: object) -> _Unknown:
        return self


UNKNOWN = _Unknown()


@dataclass(frozen=True)
class Secret:
    """A value that may be shown to providers and to nobody else."""

    value: Value

    def __repr__(self) -> str:
        return "[secret]"


def reveal(value: Value) -> Value:
    """The value without any secret marks, nested ones included."""
    match value:
        case Secret():
            return reveal(value.value)
        case dict():
            return {key: reveal(item) for key, item in value.items()}
        case list():
            return [reveal(item) for item in value]
    return value


def masked(value: Value) -> Value:
    """The value as people may see it: secrets as `[secret]`, unknowns as `[unknown]`."""
    match value:
        case Secret():
            return "[secret]"
        case _Unknown():
            return "[unknown]"
        case dict():
            return {key: masked(item) for key, item in value.items()}
        case list():
            return [masked(item) for item in value]
    return value


def has_unknown(value: Value) -> bool:
    """Whether the value or anything inside it is unknown."""
    match value:
        case _Unknown():
            return True
        case Secret():
            return has_unknown(value.value)
        case dict():
            return any(has_unknown(item) for item in value.values())
        case list():
            return any(has_unknown(item) for item in value)
    return False


def secret_strings(value: Value, inside_secret: bool = False) -> Iterator[str]:
    """Every string that is secret, by itself or as part of a secret whole."""
    match value:
        case Secret():
            yield from secret_strings(value.value, True)
        case dict():
            for item in value.values():
                yield from secret_strings(item, inside_secret)
        case list():
            for item in value:
                yield from secret_strings(item, inside_secret)
        case str() if inside_secret:
            yield value


class Scrubber:
    """Removes known secret values, also when base64-encoded, from text that people will see."""

    #: Shorter strings ("yes", "8000") would blank out unrelated words.
    SHORTEST = 6

    def __init__(self) -> None:
        self._known: set[str] = set()

    def learn(self, value: Value) -> None:
        """Remember every secret string inside the value."""
        for text in secret_strings(value):
            self.learn_text(text)

    def learn_text(self, text: str) -> None:
        """Remember one secret string."""
        if len(text) >= self.SHORTEST:
            self._known |= {text, base64.b64encode(text.encode()).decode()}

    def clean(self, text: str) -> str:
        """The text with every known secret replaced by `[secret]`."""
        for secret in sorted(self._known, key=len, reverse=True):
            text = text.replace(secret, "[secret]")
        return text


def from_property(value: PropertyValue) -> Value:
    """A provider's value in plain form; whole numbers become `int`."""
    inner = value.value
    plain: Value
    if isinstance(inner, str):
        plain = UNKNOWN if inner == rpc.UNKNOWN else inner
    elif inner is None or isinstance(inner, bool):
        plain = inner
    elif isinstance(inner, float):
        plain = int(inner) if inner.is_integer() else inner
    elif isinstance(inner, Mapping):
        plain = {key: from_property(item) for key, item in inner.items()}
    elif isinstance(inner, Sequence):
        plain = [from_property(item) for item in inner]
    elif isinstance(inner, ResourceReference):
        reference = inner.resource_id and from_property(inner.resource_id)
        plain = reference or inner.urn
    else:
        raise TypeError(f"the embedded engine does not carry {type(inner).__name__} values; run this on the Pulumi CLI")
    return Secret(plain) if value.is_secret and not isinstance(plain, Secret) else plain


def to_property(value: Value) -> PropertyValue:
    """A plain value as providers of the Pulumi SDK take it."""
    match value:
        case Secret():
            return to_property(value.value).with_secret(True)
        case _Unknown():
            # `PropertyValue.computed()` cannot be marshalled; the SDK's own sentinel can.
            return PropertyValue(rpc.UNKNOWN)
        case bool() | None | str():
            return PropertyValue(value)
        case int() | float():
            return PropertyValue(float(value))
        case list() | tuple():
            return PropertyValue([to_property(item) for item in value])
        case dict():
            return PropertyValue({str(key): to_property(item) for key, item in value.items()})
    raise TypeError(f"{type(value).__name__} is not a property value")


def from_properties(values: Mapping[str, PropertyValue] | None) -> dict[str, Value]:
    """A provider's property map in plain form."""
    return {key: from_property(value) for key, value in (values or {}).items()}


def to_properties(values: Mapping[str, Value]) -> dict[str, PropertyValue]:
    """A plain property map as providers take it."""
    return {key: to_property(value) for key, value in values.items()}


def from_struct(struct: Struct) -> dict[str, Value]:
    """The properties of a request of the program, in plain form."""
    return from_properties(PropertyValue.unmarshal_map(struct))


def to_struct(values: Mapping[str, Value]) -> Struct:
    """A plain property map as the program's SDK expects it in an answer."""
    return PropertyValue.marshal_map(to_properties(values))


# Property paths, in Pulumi's syntax: `spec.replicas`, `containers[0].image`, `metadata["a.b/c"]`, `*`, `[*]`.

_STEP = re.compile(r"""\[(?P<index>\d+|\*)\]|\["(?P<quoted>(?:[^"\\]|\\.)*)"\]|\.?(?P<name>[^.\[\]]+)""")
_PLAIN_KEY = re.compile(r"[A-Za-z_$][\w$-]*")

Path = tuple[str | int, ...]


def parse_path(text: str) -> Path:
    """A property path as keys and indexes; `*` stands for all of them."""
    steps: list[str | int] = []
    for match in _STEP.finditer(text):
        index, quoted, name = match["index"], match["quoted"], match["name"]
        if index is not None:
            steps.append(index if index == "*" else int(index))
        else:
            steps.append(quoted.replace('\\"', '"') if quoted is not None else name)
    return tuple(steps)


def show_path(path: Path) -> str:
    """The path in Pulumi's syntax."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f'["{step}"]'
    return text


def covers(pattern: Path, path: Path) -> bool:
    """Whether a change at `path` lies at or below `pattern`, or `pattern` names a part of what changed at `path`."""
    return all(a == "*" or a == b for a, b in zip(pattern, path, strict=False))


@dataclass(frozen=True, kw_only=True)
class Change:
    """One property whose value differs; `old` or `new` is None where the property is absent."""

    path: Path
    old: Value
    new: Value


def differences(old: Value, new: Value, path: Path = (), secret: bool = False) -> list[Change]:
    """The changes that lead from `old` to `new`, as deep in the tree as possible; secret marks alone do not count."""
    secret = secret or isinstance(old, Secret) or isinstance(new, Secret)
    old, new = (side.value if isinstance(side, Secret) else side for side in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [c for key in keys for c in differences(old.get(key), new.get(key), (*path, key), secret)]
    if isinstance(old, list) and isinstance(new, list):
        changes = []
        for index in range(max(len(old), len(new))):
            before = old[index] if index < len(old) else None
            after = new[index] if index < len(new) else None
            changes += differences(before, after, (*path, index), secret)
        return changes
    if not has_unknown(new) and reveal(old) == reveal(new) and isinstance(old, bool) == isinstance(new, bool):
        return []
    wrap = Secret if secret else lambda side: side
    return [Change(path=path, old=old if old is None else wrap(old), new=new if new is None else wrap(new))]


def with_old_values(new: Value, old: Value, ignored: Iterable[Path]) -> Value:
    """`new` with the old value wherever an ignored path points; what is absent in `old` is removed."""
    for path in ignored:
        new = _keep_old(new, old, path)
    return new


def _keep_old(new: Value, old: Value, path: Path) -> Value:
    if isinstance(new, Secret) or isinstance(old, Secret):
        kept = _keep_old(*(side.value if isinstance(side, Secret) else side for side in (new, old)), path)
        return kept if isinstance(kept, Secret) else Secret(kept)
    if not path:
        return old
    head, rest = path[0], path[1:]
    if isinstance(new, list) and isinstance(old, list):
        indexes = range(min(len(new), len(old))) if head == "*" else [head]
        return [
            _keep_old(item, old[at], rest) if at in indexes and at < len(old) else item for at, item in enumerate(new)
        ]
    if not isinstance(new, dict) or not isinstance(old, dict | None):
        return new
    before = old or {}
    kept = dict(new)
    for key in {**new, **before} if head == "*" else [head]:
        if not rest and key not in before:
            kept.pop(key, None)
        elif key in before and (not rest or key in kept):
            kept[key] = _keep_old(kept.get(key), before[key], rest)
    return kept


def with_secrets_of(outputs: dict[str, Value], inputs: Mapping[str, Value], extra: Iterable[str]) -> dict[str, Value]:
    """The outputs, secret wherever the inputs are secret at the same place, and wherever `extra` names a property."""
    marked = _mark_like(outputs, inputs)
    return {
        key: Secret(value) if key in set(extra) and not isinstance(value, Secret) else value
        for key, value in marked.items()
    }


def _mark_like(output: Value, model: Value) -> Value:
    if isinstance(output, Secret) or isinstance(model, Secret):
        return output if isinstance(output, Secret) else Secret(output)
    if isinstance(output, dict) and isinstance(model, dict):
        return {key: _mark_like(value, model.get(key)) for key, value in output.items()}
    if isinstance(output, list) and isinstance(model, list):
        tail = [None] * (len(output) - len(model))
        return [_mark_like(value, like) for value, like in zip(output, [*model, *tail], strict=False)]
    return output
