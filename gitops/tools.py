"""What previews and updates a stack: the Pulumi CLI on Azure, or the sandbox on this machine. Both behind one face."""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from planning import stack_file
from planning.findings import without_tokens

PREVIEW_MINUTES = 30  # a preview asks every provider; refreshing reads all of Azure


@dataclass
class Tool(ABC):
    """Previews and updates one stack from one checkout."""

    stack: str
    folder: Path
    name: ClassVar[str]
    answers: ClassVar[bool]  # whether a model answers: the sandbox's pods are simulated

    @abstractmethod
    def preview(self, *, refresh: bool = False) -> dict[str, Any]:
        """A JSON document for `gitops.preview.read`. `refresh`: against what is really there, not the state alone."""

    @abstractmethod
    def update(self, settings: Sequence[str] = (), *, refresh: bool = False) -> subprocess.Popen[bytes]:
        """The update, under way. `settings`, as key=value, are for it alone; `refresh`: what is there is read first."""

    @property
    @abstractmethod
    def last_words(self) -> str:
        """Why an update failed, as far as it has said."""

    @abstractmethod
    def kubeconfig(self) -> str | None:
        """How to reach the cluster; None before the first update has ended."""

    @abstractmethod
    def last_good(self) -> str | None:
        """The commit of the newest update that succeeded."""

    @abstractmethod
    def deployed(self, commit: str) -> None:
        """Note that a commit was deployed and verified."""

    @abstractmethod
    def at(self, folder: Path) -> Tool:
        """The same stack from another checkout."""


@dataclass
class PulumiCli(Tool):
    """`pulumi`, signed in to its backend. It notes the commit of every update in the stack's history by itself."""

    name = "pulumi"
    answers = True

    def preview(self, *, refresh: bool = False) -> dict[str, Any]:
        """Its JSON digest, or {"error": ...}."""
        words = ["preview", "--json", "--non-interactive", *(["--refresh"] if refresh else [])]
        return _document(["pulumi", *words, "--stack", self.stack], self.folder)

    def update(self, settings: Sequence[str] = (), *, refresh: bool = False) -> subprocess.Popen[bytes]:
        # With --json the CLI says that policies refuse, and not which: previews show them by `gitops.policies`.
        words = ["up", "--yes", "--skip-preview", "--non-interactive", "--color", "never", "--policy-pack", "policy"]
        words += ["--refresh"] if refresh else []
        words += ["--config-file", str(self._with(settings))] if settings else []
        return subprocess.Popen(["pulumi", *words, "--stack", self.stack], cwd=self.folder)

    def _with(self, settings: Sequence[str]) -> Path:
        """A copy of the stack file: `--config` would write them into the file itself."""
        file = self.folder / "stacks" / f"Pulumi.{self.stack}.yaml"
        # The rest of it, too: by it the secrets are read.
        document = {**yaml.safe_load(file.read_text()), "config": stack_file.config_of(file, settings)}
        folder = tempfile.mkdtemp(prefix="aks-vllm-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # the update outlives this call, not this process
        copy = Path(folder) / file.name
        copy.write_text(yaml.safe_dump(document))
        return copy

    @property
    def last_words(self) -> str:
        """Pulumi's own are in the job's log already."""
        return "its words are above"

    def kubeconfig(self) -> str | None:
        """Of the last finished update; it holds no credential, kubelogin gets one."""
        words = ["stack", "output", "kubeconfig", "--show-secrets", "--stack", self.stack]
        done = _run(["pulumi", *words], self.folder)
        return done.stdout if done.returncode == 0 else None

    def last_good(self) -> str | None:
        """The commit of the newest update that succeeded, from the backend's history."""
        done = _run(["pulumi", "stack", "history", "--json", "--stack", self.stack], self.folder)
        try:
            updates = json.loads(done.stdout)
        except ValueError:
            return None
        good = [each for each in updates if each.get("kind") == "update" and each.get("result") == "succeeded"]
        commits = [each.get("environment", {}).get("git.head") for each in good]
        return next(filter(None, commits), None)

    def deployed(self, commit: str) -> None:
        """Nothing: the history has it."""

    def at(self, folder: Path) -> PulumiCli:
        return PulumiCli(self.stack, folder)


@dataclass
class Sandbox(Tool):
    """`python -m sandbox` of the checkout, in the state of `home`: a rolled back stack is the same stack."""

    home: Path
    name = "sandbox"
    answers = False

    def preview(self, *, refresh: bool = False) -> dict[str, Any]:
        """Its JSON. `refresh` reads what is there into the state first, which on a sandbox harms nobody."""
        if refresh:
            return _document(self._command("refresh"), self.folder)
        return _document(self._command("preview"), self.folder)

    def update(self, settings: Sequence[str] = (), *, refresh: bool = False) -> subprocess.Popen[bytes]:
        self._share_state()
        if refresh:
            _document(self._command("refresh"), self.folder)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            words = [part for setting in settings for part in ("--set", setting)]
            return subprocess.Popen(
                [*self._command("up"), *words], cwd=self.folder, stdout=subprocess.DEVNULL, stderr=log
            )

    @property
    def last_words(self) -> str:
        """Its report and every step are in a file; the end of it says why."""
        lines = self._log.read_text("utf-8").splitlines() if self._log.exists() else []
        return " ".join([line for line in lines if line.startswith("error: ")][:2]) or "it gave no reason"

    def kubeconfig(self) -> str | None:
        """The control plane's own, of an administrator."""
        file = self.home / ".sandbox" / self.stack / "control-plane" / "admin.kubeconfig"
        return file.read_text() if file.exists() else None

    def last_good(self) -> str | None:
        """As noted by `deployed`."""
        return self._note.read_text().strip() if self._note.exists() else None

    def deployed(self, commit: str) -> None:
        """Note the commit of an update that succeeded, as Pulumi's backends do."""
        self._note.write_text(f"{commit}\n")

    def at(self, folder: Path) -> Sandbox:
        return Sandbox(self.stack, folder, self.home)

    def _command(self, verb: str) -> list[str]:
        return [sys.executable, "-m", "sandbox", verb, "--stack", self.stack, "--format", "json"]

    @property
    def _log(self) -> Path:
        return self.home / ".sandbox" / self.stack / "update.log"

    @property
    def _note(self) -> Path:
        return self.home / ".sandbox" / self.stack / "deployed-commit"

    def _share_state(self) -> None:
        if self.folder != self.home and not (self.folder / ".sandbox").exists():
            (self.folder / ".sandbox").symlink_to(self.home / ".sandbox", target_is_directory=True)


def of(name: str, stack: str, folder: Path) -> Tool:
    """By the word of the command line."""
    return PulumiCli(stack, folder) if name == "pulumi" else Sandbox(stack, folder, folder)


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=PREVIEW_MINUTES * 60, check=False
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} is not installed")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"{command[0]} took more than {PREVIEW_MINUTES} minutes")


def _document(command: Sequence[str], folder: Path) -> dict[str, Any]:
    """One JSON document from a command, or {"error": its last words}."""
    done = _run(command, folder)
    try:
        document = json.loads(done.stdout)
    except ValueError:
        document = None
    if not isinstance(document, Mapping):
        words = " ".join(done.stderr.split()[-60:]) or "it said nothing"
        return {"error": without_tokens(f"{' '.join(command[:3])} gave no JSON (exit code {done.returncode}): {words}")}
    if done.returncode != 0 and not (document.get("diagnostics") or "error" in document):
        document = {**document, "error": without_tokens(f"exit code {done.returncode}: {done.stderr.strip()[-400:]}")}
    return dict(document)
