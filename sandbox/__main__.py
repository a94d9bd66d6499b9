"""The sandbox's command line: preview, up, refresh, destroy and status of a stack, on this machine alone.

Everything it writes is in `.sandbox/<stack>/`; `destroy` removes that folder. No tracked file is changed: the stack
file is copied, and `--set` holds for one run. `--engine cli` runs the real Pulumi CLI in the embedded engine's place.
`AKS_VLLM_POD_READY_SECONDS` (default 3) is how long a simulated model pod takes to become ready; `sandbox.azure` says
how to order failures.
"""

# ruff: noqa: E402  the signal handler comes before the imports that take longest
from __future__ import annotations

import os
import signal


def _stop_at_once(*_: object) -> None:
    os.write(2, b"stopped\n")
    os._exit(1)


if __name__ == "__main__":  # while the SDKs are imported, which takes half a second, nothing has begun
    signal.signal(signal.SIGINT, _stop_at_once)
    signal.signal(signal.SIGTERM, _stop_at_once)

import argparse
import contextlib
import hashlib
import hmac
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO
from urllib.parse import urlsplit

import yaml

from sandbox import pulumi_cli, toolchain
from sandbox.azure import CLUSTER, AzureError, SimulatedAzure
from sandbox.cluster_api import ClusterApi, ClusterError
from sandbox.control_plane import ControlPlane, ControlPlaneError
from sandbox.display import Display
from sandbox.engine import RECORDED, STOPPED, Engine, InputRefusedError, Op, Result, RunFailedError
from sandbox.kubernetes import KubernetesProvider
from sandbox.providers import BadReferenceError
from sandbox.pulumi_cli import OPERATION_SECONDS, READY_SECONDS, PulumiCli
from sandbox.state import ResourceState, StackBusyError, Store, UnreadableStateError
from sandbox.values import Value, has_unknown, masked, reveal, show_path

ROOT = Path(__file__).parents[1]
PROJECT = "aks-vllm"
LOCATION = "azure-native:location"
TOKEN, VAULT, KUBECONFIG = (f"{PROJECT}:{key}" for key in ("hf-token", "key-vault", "kubeconfig"))
#: Names what takes the place of an encrypted aks-vllm:kubeconfig; never KUBECONFIG, which may lead anywhere.
KUBECONFIG_FILE = "AKS_VLLM_SANDBOX_KUBECONFIG"
#: A kubeconfig whose API server answers nobody. Port 0 is none: RFC 6335
NOWHERE = """\
clusters: [{name: nowhere, cluster: {server: "https://127.0.0.1:0"}}]
users: [{name: nobody, user: {token: none}}]
contexts: [{name: nowhere, context: {cluster: nowhere, user: nobody}}]
current-context: nowhere
"""
#: What serves models; a DaemonSet belongs to the nodes.
WORKLOADS = {"kubernetes:apps/v1:Deployment": "deployments", "kubernetes:apps/v1:StatefulSet": "statefulsets"}
#: Failures that their message explains; everything else is a defect, and goes to the log with its traceback.
EXPECTED = (
    StackBusyError,
    UnreadableStateError,
    toolchain.ToolchainError,
    ControlPlaneError,
    ClusterError,
    AzureError,
    BadReferenceError,
    OSError,
)


class RefusedError(Exception):
    """The input is wrong; nothing was changed. `answer` is what other programs are told, beside the text."""

    def __init__(self, text: str, answer: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.answer = dict(answer or {})


class _Parser(argparse.ArgumentParser):
    """Its errors are told like all others, as JSON where that was asked for."""

    def error(self, message: str) -> NoReturn:
        raise RefusedError(f"{message} (see `python -m sandbox --help`)")


def parser() -> argparse.ArgumentParser:
    """The options, the same for every command."""
    made = _Parser(
        prog="python -m sandbox",
        description="Run the whole stack on this machine: simulated Azure, real Kubernetes, no GPU.",
        allow_abbrev=False,
    )
    made.add_argument("command", choices=["preview", "up", "refresh", "destroy", "status"])
    made.add_argument("--stack", default="sandbox", help="the stack file stacks/Pulumi.<stack>.yaml (default: sandbox)")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, for this run only")
    made.add_argument(
        "--engine",
        choices=["embedded", "cli"],
        help="cli: the `pulumi` on PATH (default: the one that the stack was made with, else embedded)",
    )
    made.add_argument("--format", choices=["text", "json"], default="text")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 = done, 1 = failed, 2 = the input is wrong."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--format=json" in given or any(pair == ("--format", "json") for pair in pairwise(given))
    display = Display(sys.stderr if as_json else sys.stdout)
    command: Command | None = None
    try:
        options = parser().parse_args(given)
        command = Command(options.stack, options.set, display, as_json=as_json, engine=options.engine)
        answer = command.run(options.command)
        if as_json:
            print(json.dumps(answer))
        return 0
    except RefusedError as refused:
        return _failed(2, [str(refused)], display, as_json, refused.answer)
    except InputRefusedError as refused:
        return _failed(2, refused.problems, display, as_json)
    except RunFailedError as failed:
        problems = [problem for problem in failed.problems if problem not in (STOPPED, RECORDED)]
        if failed.details and command:
            problems.append(f"details are in {command.log(failed.details)}")
        if command and (command.interrupted or RECORDED in failed.problems):
            problems.append(command.how_to_go_on)
        return _failed(1, problems, display, as_json)
    except EXPECTED as failed:
        return _failed(1, [command.clean(str(failed)) if command else str(failed)], display, as_json)
    except KeyboardInterrupt:
        return _failed(1, [command.how_to_go_on if command else "stopped"], display, as_json)
    except Exception as defect:
        where = f"; details are in {command.log(traceback.format_exc())}" if command else ""
        problem = f"this should not have happened: {type(defect).__name__}{where}"
        return _failed(1, [problem], display, as_json)


def _failed(
    code: int, problems: list[str], display: Display, as_json: bool, answer: Mapping[str, Any] | None = None
) -> int:
    display.problems(problems)
    if as_json:
        print(json.dumps({"error": "\n".join(problems), **(answer or {})}))
    return code


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the Pulumi CLI would hand to the program."""

    values: Mapping[str, str]
    secret_keys: tuple[str, ...] = ()


class Command:
    """One command on one stack."""

    def __init__(
        self, stack: str, overrides: Sequence[str], display: Display, *, as_json: bool, engine: str | None = None
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", stack):
            raise RefusedError(f"--stack {stack}: a stack's name has letters, digits, '-', '_' and '.' only")
        self.stack = stack
        self.overrides = overrides
        self.display = display
        self.as_json = as_json
        self.folder = ROOT / ".sandbox" / stack
        self.store = Store(self.folder)
        self.interrupted = False
        self._name = ""
        ready = os.environ.get(READY_SECONDS, "3")
        if not re.fullmatch(r"\d+(\.\d+)?", ready):
            raise RefusedError(f"{READY_SECONDS} = {ready}: must be a number of seconds such as 3")
        self._ready_seconds = float(ready)
        self.plane = self._plane(self.folder)
        self._engine: Engine | PulumiCli | None = None
        self._engine_runs = False
        self._cli = self._made_cli(engine)  # None: the embedded engine

    def run(self, name: str) -> dict[str, Any]:
        """The command's answer as JSON data; text has gone to the display."""
        self._name = name
        if name == "status":
            return self.status()
        if not self.folder.exists() and name in ("destroy", "refresh"):
            self.display.line(f"There is no sandbox {self.stack}: nothing to {name}.")
            return self._changes(Result(steps=()))
        if name in ("preview", "up"):
            self._stack_file()  # a name that is misspelt leaves no folder
        with self._signals(), self.store.locked():
            return {"preview": self.preview, "up": self.up, "refresh": self.refresh, "destroy": self.destroy}[name]()

    @property
    def how_to_go_on(self) -> str:
        """What to tell a person who stopped the command."""
        words = ["python", "-m", "sandbox", self._name, *([] if self.stack == "sandbox" else ["--stack", self.stack])]
        words += ["--engine", "cli"] if self._cli else []
        words += [part for override in self.overrides for part in ("--set", override)]
        return (
            f"{STOPPED if self.interrupted else RECORDED}, and running `{shlex.join(words)}` again goes on from there"
        )

    def clean(self, text: str) -> str:
        """The text without any secret that this run has met."""
        return self._engine.scrubber.clean(text) if self._engine else text

    def log(self, text: str) -> Path:
        """Add to the stack's log, which `destroy` removes; returns where it is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "log"
        with path.open("a") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {self._name}: {self.clean(text)}\n")
        return path

    # The commands.

    def preview(self) -> dict[str, Any]:
        config = self._config()
        self._report(show=False)
        engine = self._make_engine(config)
        result = engine.preview(ROOT / "__main__.py", root=ROOT, config=config.values, secret_keys=config.secret_keys)
        self.display.title(f"Preview of {self.stack}")
        self.display.plan(result.steps)
        self.display.summary(result.changes, done=False)
        return self._changes(result)

    def up(self) -> dict[str, Any]:
        began = time.monotonic()
        config = self._config()
        self._report(show=True)
        self.display.report_shown = True
        if TOKEN in config.secret_keys:
            self.display.line(
                "The sandbox puts a throwaway token in the place of Hugging Face's: nothing is downloaded."
            )
        engine = self._make_engine(config)
        program = ROOT / "__main__.py"
        planned = engine.preview(program, root=ROOT, config=config.values, secret_keys=config.secret_keys)
        self.display.title(f"Preview of {self.stack}")
        self.display.plan(planned.steps)
        self.display.summary(planned.changes, done=False)
        if any(step.type == CLUSTER and step.op is not Op.DELETE for step in planned.steps):
            self.display.title("Control plane")
            with self.display.running():
                toolchain.binaries(self.display.progress)
            self.display.line("    its executables are there; it starts with the cluster")
        self.display.title(f"Updating {self.stack}")
        with self._engine_at_work():
            result = engine.up(program, root=ROOT, config=config.values, secret_keys=config.secret_keys)
        self.display.summary(result.changes, done=True, elapsed=time.monotonic() - began)
        rows = self._workloads(self._state())
        self.display.title("Workloads")
        self.display.workloads(rows)
        self.display.title("Outputs")
        self.display.outputs(result.outputs)
        self.display.title("Next, on this machine")
        for line in self._next_steps():
            self.display.line(f"    {line}")
        readme = result.outputs.get("readme")
        if isinstance(readme, str):
            self.display.title("Next, for real")
            self.display.line(readme)
        return self._changes(result) | {"workloads": rows, "outputs": masked(dict(result.outputs))}

    def refresh(self) -> dict[str, Any]:
        engine = self._make_engine(Config(values={}))  # what is there was configured when it was made
        self._resume()
        with self._engine_at_work():
            result = engine.refresh({})
        self.display.title(f"Drift of {self.stack}")
        self.display.plan(result.steps)
        self.display.summary(result.changes, done=True)
        return self._changes(result)

    def destroy(self) -> dict[str, Any]:
        result = Result(steps=())
        try:
            engine = self._make_engine(Config(values={}))
            self._resume()
            self.display.title(f"Destroying {self.stack}")
            azure = self._azure("")
            if not self._cli and azure.cluster() and not azure.there():
                # As in Azure: whoever deletes a cluster deletes what others have in it.
                self.display.message("warning", f"{azure.cluster()} is gone, and with it what the stack had in it")
            else:
                with self._engine_at_work():
                    result = engine.destroy({})
        except UnreadableStateError as problem:
            # Nothing outside this folder belongs to the stack: without its state it can still be removed.
            self.display.message("warning", self.clean(str(problem)))
        self.plane.stop()
        shutil.rmtree(self.folder)
        with contextlib.suppress(OSError):  # another stack lives there
            self.folder.parent.rmdir()
        self.display.summary(result.changes, done=True)
        self.display.line(f"Nothing is left of {self.stack}.")
        return self._changes(result)

    def status(self) -> dict[str, Any]:
        state = self._state()
        rows = self._workloads(state)
        outputs = next((r.outputs for r in state if r.type == "pulumi:pulumi:Stack"), {})
        pending = [r.name for r in state if r.pending or r.delete]
        if not state:
            self.display.line(f"There is no sandbox {self.stack}; `make up` makes one.")
        else:
            self.display.title(f"{self.stack}: {len(state)} resources")
            if pending:
                self.display.message("warning", f"not finished: {', '.join(pending)}; run `up` to go on")
            self.display.workloads(rows)
            self.display.outputs(outputs)
        return {"stack": self.stack, "resources": len(state), "workloads": rows, "outputs": masked(dict(outputs))}

    # What they are made of.

    def _report(self, *, show: bool) -> None:
        """The plan's own report; its problems are this command's problems.

        A process of its own: the sandbox knows nothing of how plans are made.
        """
        sys.stdout.flush()
        if show:
            done = self._planning("text", sys.stderr if self.as_json else sys.stdout)
        if not show or done.returncode == 2:
            done = self._planning("json", subprocess.PIPE)
        if done.returncode == 2:
            answer = json.loads(done.stdout)
            raise RefusedError(answer["error"], answer)
        if done.returncode != 0:
            where = self.log(done.stderr)
            raise RunFailedError([f"the report failed with exit code {done.returncode}; details are in {where}"])

    def _planning(self, format_: str, out: TextIO | int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "planning", "report", "--stack", self.stack, "--format", format_]
        command += [part for override in self.overrides for part in ("--set", override)]
        return subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True, check=False)

    def _stack_file(self) -> Path:
        file = ROOT / "stacks" / f"Pulumi.{self.stack}.yaml"
        if not file.exists():
            known = ", ".join(sorted(path.stem.removeprefix("Pulumi.") for path in file.parent.glob("Pulumi.*.yaml")))
            raise RefusedError(f"--stack {self.stack}: there is no {file.relative_to(ROOT)}; there are {known}")
        return file

    def _config(self) -> Config:
        """The stack file, copied, with this run's settings over it."""
        file = self._stack_file()
        self.folder.mkdir(parents=True, exist_ok=True)
        copy = shutil.copyfile(file, self.folder / file.name)
        config = read_config(copy, self.overrides, self._throwaway_token(), self._kubeconfig())
        if self._cli and {f"{PROJECT}:existing-cluster", KUBECONFIG} & set(config.values):
            raise RefusedError("--engine cli: only the embedded engine reaches clusters of other stacks")
        return config

    def _kubeconfig(self) -> str:
        """What takes the place of an encrypted one; a preview needs no cluster."""
        if file := os.environ.get(KUBECONFIG_FILE):
            return _kubeconfig(file)
        return NOWHERE if self._name == "preview" else ""

    def _throwaway_token(self) -> str:
        """Stands in for the Hugging Face token; the same for a stack's whole life, so that nothing rolls out twice."""
        digest = hmac.new(self.store.vault.key(), b"hf-token", hashlib.sha256).hexdigest()
        return f"hf_sandbox_{digest[:32]}"

    def _made_cli(self, engine: str | None) -> PulumiCli | None:
        """The CLI where it is asked for, or has made the stack: a stack keeps the engine that it was made with."""
        embedded, cli = (self.folder / "state.json").exists(), (self.folder / pulumi_cli.USED).exists()
        if (engine == "cli" and embedded) or (engine == "embedded" and cli):
            raise RefusedError(
                f"--engine {engine}: the sandbox {self.stack} has the other one; leave --engine out, or remove "
                f"it first: `python -m sandbox destroy --stack {self.stack}`"
            )
        if engine != "cli" and not cli:
            return None
        try:
            installation = pulumi_cli.find(importlib.metadata.version("pulumi_kubernetes"))
        except pulumi_cli.NoCliError as missing:
            raise RefusedError(str(missing)) from None
        return PulumiCli(
            installation=installation,
            project=PROJECT,
            stack=self.stack,
            sandbox=self.folder,
            passphrase=lambda: self.store.vault.key().decode(),
            tools=(self.plane.bin,),
            listener=self.display,
            progress=self.display.progress,
        )

    def _plane(self, folder: Path) -> ControlPlane:
        """The control plane of a stack's folder, this one's or another's."""
        return ControlPlane(
            folder / "control-plane", self.display.progress, pod_ready_delay_seconds=self._ready_seconds
        )

    def _state(self) -> list[ResourceState]:
        return self._cli.state() if self._cli else self.store.load()

    def _resume(self) -> None:
        """The CLI's Kubernetes provider starts no control plane; one that is stopped would look like a lost cluster."""
        if self._cli and self.plane.folder.exists() and not self.plane.running():
            self.plane.start(toolchain.binaries(self.display.progress))

    def _azure(self, location: str) -> SimulatedAzure:
        return SimulatedAzure(
            location=location,
            file=self.folder / "azure.json",
            plane=self.plane,
            neighbour=self._plane,
            binaries=lambda: toolchain.binaries(self.display.progress),
            progress=self.display.progress,
            operation_seconds=OPERATION_SECONDS,
        )

    def _make_engine(self, config: Config) -> Engine | PulumiCli:
        if self._cli:
            self._engine = self._cli
            return self._cli
        azure = self._azure(config.values.get(LOCATION, ""))

        def kubernetes(inputs: Mapping[str, Value]) -> KubernetesProvider | None:
            kubeconfig = inputs.get("kubeconfig")
            if kubeconfig is None or has_unknown(kubeconfig):
                return None
            if azure.cluster() is None:  # the kubeconfig is the stack's own
                return KubernetesProvider(reveal(kubeconfig), None, self.display.progress)
            try:
                folder = azure.resume().folder
            except (AzureError, ControlPlaneError, toolchain.ToolchainError) as problem:
                raise BadReferenceError(str(problem)) from None
            return KubernetesProvider(reveal(kubeconfig), folder / "bin", self.display.progress)

        packages = {"azure-native": lambda _: azure, "kubernetes": kubernetes}
        self._engine = Engine(
            project=PROJECT, stack=self.stack, store=self.store, packages=packages, listener=self.display
        )
        return self._engine

    def _next_steps(self) -> list[str]:
        """What this machine can do; a first answer of the model is not among it, its pods are simulated."""
        stack = "" if self.stack == "sandbox" else f" STACK={self.stack}"
        return [
            f"make status{stack}   # workloads and outputs",
            f'make preview{stack} SET="max-model-len=32768"   # what another setting would change',
            f"make down{stack}   # remove everything, processes and state included",
            f"KUBECONFIG={self._admin()} kubectl get pods -A",
        ]

    def _admin(self) -> str:
        """The kubeconfig, as a person here types it, of the cluster that the stack is in."""
        azure = self._azure("")
        if azure.cluster() is None:
            return os.environ.get(KUBECONFIG_FILE, "")
        file, here = azure.plane().folder / "admin.kubeconfig", ROOT.resolve()
        # Elsewhere it is where a roll-back's checkout borrows another one's state.
        return str(file.relative_to(here) if file.is_relative_to(here) else file)

    def _workloads(self, state: Sequence[ResourceState]) -> list[dict[str, Any]]:
        found = [r for r in state if r.type in WORKLOADS and r.id]
        if not found:
            return []
        api = self._api(state)
        if api is None:
            self.display.message("warning", "the control plane does not run; `python -m sandbox up` starts it again")
        return [workload(api, resource) for resource in found]

    def _api(self, state: Sequence[ResourceState]) -> ClusterApi | None:
        """The API server that the stack's objects are in: its own, or an existing one; None: it does not answer."""
        if self.plane.folder.exists():
            return ClusterApi(self.plane.admin_client()) if self.plane.running() else None
        azure = self._azure("")
        try:
            if azure.cluster() is not None:
                plane = self._plane(azure.plane().folder.parent)
                return ClusterApi(plane.admin_client()) if plane.running() else None
            kubeconfig = next(r.inputs["kubeconfig"] for r in state if r.type == "pulumi:providers:kubernetes")
            api = ClusterApi.connect(reveal(kubeconfig))
            api.request("GET", "/version")
        except (AzureError, ClusterError, StopIteration):
            return None
        return api

    @staticmethod
    def _changes(result: Result) -> dict[str, Any]:
        resources = [
            {"urn": s.urn, "type": s.type, "op": s.op.value, "diff": [show_path(c.path) for c in s.changes]}
            for s in result.steps
        ]
        return {"changes": result.changes, "resources": resources}

    # Stopping.

    @contextlib.contextmanager
    def _engine_at_work(self) -> Generator[None]:
        """Here a signal ends the run between two steps, elsewhere at once."""
        self._engine_runs = True
        try:
            with self.display.running():
                yield
        finally:
            self._engine_runs = False

    @contextlib.contextmanager
    def _signals(self) -> Generator[None]:
        """Ctrl-C and SIGTERM: steps under way end or are recorded as pending, and nothing new begins."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            if self.interrupted:
                os._exit(1)  # asked twice; the state file is whole at any moment
            self.interrupted = True
            self.display.message("warning", "stopping: steps under way end first; once more stops at once")
            if not self._engine_runs or self._engine is None:
                raise KeyboardInterrupt
            threading.Thread(target=self._engine.cancel, daemon=True).start()

        former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def read_config(file: Path, overrides: Sequence[str], token: str, kubeconfig: str = "") -> Config:
    """A stack file as the Pulumi CLI hands it over, with `overrides` over it and stand-ins for its secrets.

    `kubeconfig` stands in for an encrypted one; "" where there is none.

    Raises RefusedError. What the settings mean is not judged here: the report has done that.
    """
    try:
        text = file.read_text()
        typed, written = (yaml.load(text, Loader=loader) or {} for loader in (yaml.SafeLoader, yaml.BaseLoader))  # noqa: S506
        # The CLI hands over scalars as they are written, and maps and lists as JSON.
        as_written = {_full_key(str(key)): value for key, value in written.get("config", {}).items()}
        settings = {_full_key(str(key)): value for key, value in typed.get("config", {}).items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as problem:
        raise RefusedError(f"{file.name}: not a stack file ({type(problem).__name__})") from None
    settings |= {key: as_written[key] for key, value in settings.items() if isinstance(value, str | int | float)}
    for override in overrides:
        _set(settings, override)
    for key, value in settings.items():
        if isinstance(value, Mapping) and set(value) == {"secure"} and key not in (TOKEN, KUBECONFIG):
            raise RefusedError(f"{key} is encrypted for the Pulumi CLI and the sandbox has no key: use --set {key}=...")
    vault = settings.get(VAULT)
    elsewhere = None if isinstance(vault, Mapping) and vault.get("hf-token") else {}
    stand_ins = {TOKEN: token} if isinstance(settings.get(TOKEN, elsewhere), Mapping) else {}
    if isinstance(settings.get(KUBECONFIG), Mapping):
        if not kubeconfig:
            remedy = f"name one of a cluster on this machine in {KUBECONFIG_FILE}"
            raise RefusedError(f"{KUBECONFIG} is encrypted for the Pulumi CLI and the sandbox has no key: {remedy}")
        stand_ins[KUBECONFIG] = kubeconfig
    values = {k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in settings.items() if v is not None}
    return Config(values={**values, **stand_ins}, secret_keys=tuple(stand_ins))


def _kubeconfig(file: str) -> str:
    """The kubeconfig of one of this machine's own clusters, as nothing else may be touched."""
    try:
        text = Path(file).read_text()
        servers = [each["cluster"]["server"] for each in yaml.safe_load(text)["clusters"]]
        local = bool(servers) and all(urlsplit(server).hostname in ("127.0.0.1", "localhost") for server in servers)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as problem:
        raise RefusedError(f"{KUBECONFIG_FILE} = {file}: not a kubeconfig ({type(problem).__name__})") from None
    if not local:
        raise RefusedError(
            f"{KUBECONFIG_FILE} = {file}: its cluster is not on this machine, and the sandbox stays on it"
        )
    return text


def _full_key(key: str) -> str:
    """The CLI puts the project's name before a key that has no namespace."""
    return key if ":" in key else f"{PROJECT}:{key}"


def _set(settings: dict[str, Any], override: str) -> None:
    """`key=value`, where dots lead into maps: `vllm.max-num-seqs=64`, `models.chat.replicas=2`."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RefusedError(f"--set {override}: must be KEY=VALUE, such as max-model-len=32768")
    first, *rest = _full_key(key.strip()).split(".")
    steps = [first, *rest[:2], ".".join(rest[2:])] if first == f"{PROJECT}:models" else [first, ".".join(rest)]
    *path, name = filter(None, steps)
    for step in path:
        inner = settings.get(step)
        settings[step] = dict(inner) if isinstance(inner, Mapping) else {}
        settings = settings[step]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    settings[name] = value if path or isinstance(value, list | dict) else text.strip()


def workload(api: ClusterApi | None, resource: ResourceState) -> dict[str, Any]:
    """One row of the status; zeros where the cluster cannot be asked."""
    namespace, _, name = resource.id.rpartition("/")
    spec = reveal(resource.inputs).get("spec", {})
    gpus = _gpus(spec.get("template", {}).get("spec", {}))
    row = {"name": name, "namespace": namespace, "replicas": spec.get("replicas", 1), "ready": 0}
    row |= {"gpus_per_replica": gpus, "nodes": []}
    if api is None:
        return row
    live = api.get(f"/apis/apps/v1/namespaces/{namespace}/{WORKLOADS[resource.type]}/{name}")
    if live is None:
        return row
    labels = ",".join(f"{key}={value}" for key, value in live["spec"]["selector"]["matchLabels"].items())
    pods = api.request("GET", f"/api/v1/namespaces/{namespace}/pods", query={"labelSelector": labels})["items"]
    nodes = {
        p["spec"]["nodeName"] for p in pods if p["spec"].get("nodeName") and "deletionTimestamp" not in p["metadata"]
    }
    ready = live.get("status", {}).get("readyReplicas", 0)
    return row | {"replicas": live["spec"]["replicas"], "ready": ready, "nodes": sorted(nodes)}


def _gpus(pod: Mapping[str, Any]) -> int:
    limits = [container.get("resources", {}).get("limits", {}) for container in pod.get("containers", [])]
    return sum(int(limit.get("nvidia.com/gpu", 0)) for limit in limits)


if __name__ == "__main__":
    sys.exit(main())
