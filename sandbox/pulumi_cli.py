"""The real Pulumi CLI in the embedded engine's place: the same program, providers as plug-ins, the same answers.

    cli = PulumiCli(find(sdk_version), project=..., stack=..., folder=folder / "cli", ...)
    result = cli.preview(program, root=root, config=config, secret_keys=keys)

Everything it writes lies under `folder`: a home, a file backend, and a project whose `main` is the real one. No account
is asked, nothing is downloaded, and the stack's secrets are encrypted with a passphrase of the sandbox's own. Steps are
read from the CLI's event log, so that both engines are shown and told of in one way.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from sandbox.deployment import Listener, Op, Silent, Step
from sandbox.engine import RECORDED, STOPPED, InputRefusedError, Result, RunFailedError
from sandbox.monitor import STACK_TYPE
from sandbox.state import SECRET_SIGNATURE, SIGNATURE, ResourceState
from sandbox.values import Change, Scrubber, Secret, Value, parse_path

#: In the stack's folder, once an update was begun with it: a preview leaves nothing to go on from.
USED = Path("cli", "used")
#: How the plug-in is told whose sandbox it is: the stack's folder.
FOLDER = "AKS_VLLM_SANDBOX"
#: Seconds until a simulated pod is ready.
READY_SECONDS = "AKS_VLLM_POD_READY_SECONDS"
#: Seconds of each step of a simulated Azure operation: long enough to be seen.
OPERATION_SECONDS = 0.3
PLUGINS = Path(__file__).parent / "bin"
KUBERNETES = "pulumi-resource-kubernetes"
#: The CLI's words for steps; a replacement is three steps in it, told of as one.
OPS = {
    "create": Op.CREATE,
    "update": Op.UPDATE,
    "replace": Op.REPLACE,
    "delete": Op.DELETE,
    "same": Op.SAME,
}
_PARTS_OF_A_REPLACEMENT = {"create-replacement": Op.CREATE, "delete-replaced": Op.DELETE}
#: What the CLI says of plug-ins that are on PATH, once for each.
_KNOWN = re.compile(r"using \S+ from \$PATH|resource plugin \S+ is expected to have version")
#: Made by the CLI for a program that names none; the embedded engine has them without a name.
_DEFAULT_PROVIDER = re.compile(r"::pulumi:providers:[\w-]+::default(_[\w]+)?$")
#: What it says after everything else.
_NO_NEWS = ("update failed", "preview failed")
_CRASHED = "Program failed with an unhandled exception"
EVENT_SECONDS = 0.05


def is_default_provider(urn: str) -> bool:
    """Whether the CLI made this provider for resources that name none."""
    return _DEFAULT_PROVIDER.search(urn) is not None


class NoCliError(Exception):
    """The CLI is not on this machine; the message has the remedy."""


@dataclass(frozen=True, kw_only=True)
class Installation:
    """Where the CLI is, and the Kubernetes provider that it gets."""

    pulumi: Path
    kubernetes: Path  # the real plug-in where this machine has one, else the embedded engine's


def find(kubernetes_version: str) -> Installation:
    """The CLI on PATH, with the Kubernetes provider there, among the CLI's plug-ins, or our own. Raises NoCliError."""
    pulumi, kubernetes = shutil.which("pulumi"), shutil.which(KUBERNETES)
    if pulumi is None:
        raise NoCliError(
            "--engine cli: there is no `pulumi` on PATH; install it (https://www.pulumi.com/docs/install/), or leave "
            "--engine out: the embedded engine runs the same program"
        )
    home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    installed = home / "plugins" / f"resource-kubernetes-v{kubernetes_version}" / KUBERNETES
    own = PLUGINS / "kubernetes" / KUBERNETES
    return Installation(pulumi=Path(pulumi), kubernetes=Path(kubernetes or (installed if installed.exists() else own)))


@dataclass(kw_only=True)
class PulumiCli:
    """The verbs on one stack, as `sandbox.engine.Engine` has them. `tools` are folders that go onto PATH."""

    installation: Installation
    project: str
    stack: str
    sandbox: Path  # the stack's folder: the simulated Azure's file and the control plane are there
    passphrase: Callable[[], str]
    tools: tuple[Path, ...] = ()
    listener: Listener = field(default_factory=Silent)
    progress: Callable[[str], None] = lambda _: None
    scrubber: Scrubber = field(default_factory=Scrubber)
    _process: subprocess.Popen[str] | None = None
    _cancelled: bool = False

    @property
    def folder(self) -> Path:
        """All that the CLI writes."""
        return self.sandbox / "cli"

    def preview(self, program: Path, *, root: Path, config: Mapping[str, str], secret_keys: Collection[str]) -> Result:
        """What `up` would do. Raises RunFailedError, InputRefusedError."""
        self._prepare(program, config, secret_keys)
        return self._run("preview", "--diff")

    def preview_states(
        self, program: Path, *, config: Mapping[str, str], secret_keys: Collection[str]
    ) -> list[Mapping[str, Any]]:
        """What a preview would put into the state of a stack, in Pulumi's own form. Raises RunFailedError."""
        self._prepare(program, config, secret_keys)
        return [step["newState"] for step in json.loads(self._call("preview", "--json"))["steps"] if "newState" in step]

    def up(self, program: Path, *, root: Path, config: Mapping[str, str], secret_keys: Collection[str]) -> Result:
        """Bring the stack to what the program declares. Raises RunFailedError, InputRefusedError."""
        self._prepare(program, config, secret_keys)
        (self.sandbox / USED).touch()
        result = self._run("up", "--yes", "--skip-preview")
        return replace(result, outputs=self.outputs())

    def refresh(self, config: Mapping[str, str]) -> Result:
        """Read every resource and take what it says into the state. Raises RunFailedError."""
        result = self._run("refresh", "--yes", "--skip-preview")
        return replace(result, outputs=self.outputs())

    def destroy(self, config: Mapping[str, str]) -> Result:
        """Delete every resource of the stack. Raises RunFailedError."""
        return self._run("destroy", "--yes", "--skip-preview") if self._stack_file.exists() else Result(steps=())

    def cancel(self) -> None:
        """Let the steps under way end, and begin no other."""
        self._cancelled = True
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)

    def outputs(self) -> dict[str, Value]:
        """The stack's outputs as last recorded; secrets are marked, their values stay in the state."""
        return next((r.outputs for r in self.state() if r.type == STACK_TYPE), {})

    def state(self) -> list[ResourceState]:
        """Every resource that the CLI has recorded."""
        if not self._stack_file.exists():
            return []
        exported = json.loads(self._call("stack", "export"))["deployment"]
        pending = {row["resource"]["urn"]: row["type"] for row in exported.get("pending_operations", [])}
        return [
            ResourceState(
                urn=row["urn"],
                type=row["type"],
                custom=row.get("custom", False),
                id=row.get("id", ""),
                inputs=_marked(row.get("inputs", {})),
                outputs=_marked(row.get("outputs", {})),
                pending=pending.get(row["urn"], ""),
                delete=row.get("delete", False),
            )
            for row in exported.get("resources", [])
        ]

    # What the CLI needs.

    @property
    def _stack_file(self) -> Path:
        return self.folder / "state" / ".pulumi" / "stacks" / self.project / f"{self.stack}.json"

    def _prepare(self, program: Path, config: Mapping[str, str], secret_keys: Collection[str]) -> None:
        """The project and the stack's settings, in files of the sandbox: the CLI writes into the latter."""
        for key in secret_keys:
            self.scrubber.learn_text(config[key])
        for part in ("project", "state", "home"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        options = {"toolchain": "pip", "virtualenv": sys.prefix}
        described = {
            "name": self.project,
            "main": str(program.parent),
            "runtime": {"name": "python", "options": options},
        }
        (self.folder / "project" / "Pulumi.yaml").write_text(yaml.safe_dump(described))
        settings = self.folder / "project" / f"Pulumi.{self.stack}.yaml"
        if not self._stack_file.exists():
            settings.unlink(missing_ok=True)
            self._call("stack", "init")
        kept = yaml.safe_load(settings.read_text()) or {}
        before = kept.get("config", {})
        values = {key: _typed(value) for key, value in config.items() if key not in secret_keys}
        values |= {key: before[key] for key in secret_keys if key in before}
        settings.write_text(yaml.safe_dump({**kept, "config": values}))
        for key in secret_keys:
            if key not in before:  # it is the same for a stack's whole life
                self._call("config", "set", "--secret", key, given=config[key])

    def _environment(self) -> dict[str, str]:
        own = [PLUGINS, *self.tools, self.installation.kubernetes.parent, self.installation.pulumi.parent]
        path = os.pathsep.join([*map(str, own), os.environ.get("PATH", "")])
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PULUMI_", "ARM_", "AZURE_"))}
        kept.pop("KUBECONFIG", None)  # somebody's cluster
        return {
            **kept,
            "PATH": path,
            "PULUMI_HOME": str(self.folder / "home"),
            "PULUMI_BACKEND_URL": f"file://{self.folder / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE": self.passphrase(),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "PULUMI_DEBUG_COMMANDS": "true",  # the event log is one of them
            "AKS_VLLM_PYTHON": sys.executable,
            FOLDER: str(self.sandbox),
        }

    def _command(self, *words: str) -> list[str]:
        return [str(self.installation.pulumi), *words, "--stack", self.stack, "--non-interactive", "--color", "never"]

    def _call(self, *words: str, given: str = "") -> str:
        """A command that changes no resource; what it printed. Raises RunFailedError."""
        command = self._command(*words)
        if words[:2] == ("stack", "init"):
            command = [str(self.installation.pulumi), *words, self.stack, "--non-interactive"]
        done = subprocess.run(
            command,
            cwd=self.folder / "project",
            env=self._environment(),
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RunFailedError([f"`pulumi {' '.join(words)}`: {self.scrubber.clean(done.stderr.strip())}"])
        return done.stdout

    # A run.

    def _run(self, verb: str, *flags: str) -> Result:
        log = self.folder / "events.json"
        log.unlink(missing_ok=True)
        output = self.folder / "output.log"
        run = _Run(self, refreshing=verb == "refresh")
        with output.open("w") as file:
            self._process = subprocess.Popen(
                self._command(verb, *flags, "--suppress-progress", "--event-log", str(log)),
                cwd=self.folder / "project",
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # Ctrl-C arrives here, and is passed on once
            )
            for event in _events(log, self._process):
                run.take(event)
            code = self._process.wait()
        self._process = None
        if code == 0:
            return Result(steps=tuple(run.steps.values()))
        problems = run.problems
        if self._cancelled:
            raise RunFailedError([*problems, STOPPED])
        if not problems:
            problems = [
                self.scrubber.clean(line) for line in output.read_text().splitlines() if line.startswith("error:")
            ]
        if run.refused:
            raise InputRefusedError(problems)
        details = self.scrubber.clean(output.read_text())
        raise RunFailedError([*problems, *([] if verb == "preview" else [RECORDED])], details)


def _events(log: Path, process: subprocess.Popen[str]) -> Iterator[Mapping[str, Any]]:
    """The lines of a log that is being written, to its end."""
    while not log.exists() and process.poll() is None:
        time.sleep(EVENT_SECONDS)
    if not log.exists():
        return
    with log.open() as file:
        rest = ""
        while True:
            ended = process.poll() is not None  # before the last look
            rest += file.read()
            *whole, rest = rest.split("\n")
            for line in whole:
                yield json.loads(line)
            if ended:
                return
            time.sleep(EVENT_SECONDS)


class _Run:
    """What the events of one run come to."""

    def __init__(self, cli: PulumiCli, *, refreshing: bool) -> None:
        self.steps: dict[str, Step] = {}
        self.problems: list[str] = []
        self.refused = False  # by the program alone, in words for people
        self._listener, self._progress, self._scrubber = cli.listener, cli.progress, cli.scrubber
        self._refreshing = refreshing
        self._began: dict[str, float] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        if found := event.get("diagnosticEvent"):
            self._diagnostic(found)
        elif found := event.get("resourcePreEvent"):
            self._begun(found["metadata"], planning=found.get("planning", False))
        elif found := event.get("resOutputsEvent"):
            self._done(found["metadata"], planning=found.get("planning", False))
        elif (found := event.get("resOpFailedEvent")) and (step := self._step(found["metadata"])):
            self._listener.failed(step, "")

    def _diagnostic(self, event: Mapping[str, Any]) -> None:
        severity, urn = event["severity"], event.get("urn", "")
        text = self._scrubber.clean(event["message"].strip())
        if event.get("ephemeral"):
            self._progress(text)
        elif severity == "error" and text not in _NO_NEWS:
            name = urn.rsplit("::", 1)[-1]
            self.problems.append(f"{name}: {text}" if urn and STACK_TYPE not in urn else text)
            of_program = (not urn or STACK_TYPE in urn) and _CRASHED not in text
            self.refused = of_program and (self.refused or len(self.problems) == 1)
        elif severity in ("info", "warning") and not _KNOWN.match(text):
            self._listener.logged(severity, text)

    def _begun(self, row: Mapping[str, Any], *, planning: bool) -> None:
        step = self._step(row)
        if step is None:
            return
        if row["op"] in OPS and not self._refreshing:
            self.steps[step.urn] = step
            self._listener.planned(step)
        if not planning and step.op is not Op.SAME and row["op"] != "replace" and step.custom:
            self._began[step.urn] = time.monotonic()
            self._listener.started(step)

    def _done(self, row: Mapping[str, Any], *, planning: bool) -> None:
        step = self._step(row)
        if step is None:
            return
        if self._refreshing and row["op"] in OPS:
            self.steps[step.urn] = step
        if not planning and step.op is not Op.SAME and row["op"] != "replace":
            began = self._began.pop(step.urn, None)
            self._listener.finished(step, time.monotonic() - began if began else 0.0)

    def _step(self, row: Mapping[str, Any]) -> Step | None:
        op = OPS.get(row["op"]) or _PARTS_OF_A_REPLACEMENT.get(row["op"])
        if op is None or is_default_provider(row["urn"]):
            return None
        state = row.get("new") or row.get("old") or {}
        keys = ", ".join(row.get("keys") or [])
        because = f"{keys} cannot change in place" if op is Op.REPLACE and keys else ""
        return Step(
            urn=row["urn"],
            type=row["type"],
            op=op,
            custom=state.get("custom", False),
            changes=tuple(_changes(row)) if op in (Op.UPDATE, Op.REPLACE) else (),
            because=because,
        )


def _changes(row: Mapping[str, Any]) -> Iterator[Change]:
    old, new = ((row.get(side) or {}).get("inputs") or {} for side in ("old", "new"))
    detailed = row.get("detailedDiff")
    for text in sorted(detailed if detailed else row.get("diffs") or []):
        path = parse_path(text)
        yield Change(path=path, old=_at(old, path), new=_at(new, path))


def _at(value: Any, path: tuple[str | int, ...]) -> Value:
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _typed(text: str) -> Any:
    """A setting as a stack file has it: what the CLI would hand over as JSON is a map or a list there."""
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except ValueError:
            pass
    return text


def _marked(value: Any) -> Value:
    """Exported data with its secrets marked; they are encrypted there."""
    if isinstance(value, dict):
        if value.get(SIGNATURE) == SECRET_SIGNATURE:
            return Secret("[secret]")
        return {key: _marked(item) for key, item in value.items()}
    return [_marked(item) for item in value] if isinstance(value, list) else value
