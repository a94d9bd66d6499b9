"""An update as the deploy job runs it: watched, verified, asked a question, and put back where that is safe."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gitops import preview
from gitops.cluster import Cluster, Ready
from gitops.tools import Tool
from planning.words import counted
from sandbox.cluster_api import ClusterError

Say = Callable[[str], None]

#: Seconds that a pod may be unable to start before the update is given up. Registries have bad minutes; the
#: Deployment's own deadline allows for a cold node and would take an hour and more.
PATIENCE_SECONDS = 300
LOOK_SECONDS = 2
#: Seconds for an update to end its steps after it was told to stop.
STOP_SECONDS = 900


class DeployError(Exception):
    """The stack is not as planned; the text says what runs instead."""


@dataclass
class Watch:
    """What was seen while an update was under way."""

    reason: str = ""  # why it failed
    fewest: dict[str, Ready] = field(default_factory=dict)  # by model, the worst moment


def deploy(tool: Tool, say: Say, *, patience: float = PATIENCE_SECONDS) -> None:
    """Bring the stack to this checkout. Raises DeployError where that failed, rolled back or not."""
    plan = report(tool)
    planned = preview.read(tool.preview())
    if planned.problems:
        raise DeployError("\n".join(["The update would be refused; nothing was changed.", *planned.problems]))
    say(f"{tool.stack}: {counted(len(planned.changes), 'resource')} to change with {tool.name}")
    commit = _head(tool.folder)
    watched = update(tool, plan, say, patience=patience)
    reason = watched.reason or "\n".join(verify(tool, plan, say))
    for name, ready in watched.fewest.items():
        say(f"{name}: at every moment of the update {ready.ready} or more of {ready.wanted} replicas were ready")
    if not reason:
        tool.deployed(commit)
        say(f"{tool.stack} is at {commit[:12]}")
        return
    say(f"failed: {reason}")
    raise DeployError(_put_back(tool, planned, commit, reason, say, patience))


def update(tool: Tool, plan: dict[str, Any], say: Say, *, patience: float) -> Watch:
    """Run the update to its end, or stop it when a pod cannot start for `patience` seconds."""
    watch, since = Watch(), dict[str, float]()
    cluster = _connect(tool, plan)
    # Pods of an update that failed before this one are what it takes away.
    former = set(_look(cluster, plan, Watch())) if cluster else set()
    process = tool.update()
    while process.poll() is None:
        time.sleep(LOOK_SECONDS)
        stuck = _look(cluster, plan, watch) if cluster else {}
        since = {pod: since.get(pod, time.monotonic()) for pod in stuck if pod not in former}
        hopeless = [pod for pod, seen in since.items() if time.monotonic() - seen >= patience]
        if hopeless and process.poll() is None:
            watch.reason = f"pod {hopeless[0]}: {stuck[hopeless[0]]}"
            say(f"stopping the update: {watch.reason}")
            _stop(process)
    if process.returncode != 0 and not watch.reason:
        watch.reason = f"the update failed with exit code {process.returncode}: {tool.last_words}"
    return watch


def _connect(tool: Tool, plan: dict[str, Any]) -> Cluster | None:
    """None where there is no cluster yet, or no access to it: then an update goes on unwatched."""
    try:
        kubeconfig = tool.kubeconfig()
        return Cluster(kubeconfig, plan["namespace"]) if kubeconfig else None
    except ClusterError:
        return None


def _look(cluster: Cluster, plan: dict[str, Any], watch: Watch) -> dict[str, str]:
    """Pods that cannot start. An API server that does not answer just now tells of none."""
    try:
        for name, ready in cluster.ready([model["name"] for model in plan["models"]]).items():
            before = watch.fewest.get(name)
            if before is None or ready.ready < before.ready:
                watch.fewest[name] = ready
        return cluster.stuck_pods()
    except ClusterError:
        return {}


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def verify(tool: Tool, plan: dict[str, Any], say: Say) -> Iterator[str]:
    """What runs against what was planned, then a question to every model; what is wrong, in words."""
    kubeconfig = tool.kubeconfig()
    if kubeconfig is None:
        yield "the stack gives out no kubeconfig"
        return
    try:
        cluster = Cluster(kubeconfig, plan["namespace"])
    except ClusterError as error:
        yield str(error)
        return
    for model in plan["models"]:
        try:
            wrong = list(cluster.differences(model))
        except ClusterError as error:
            wrong = [f"{model['name']}: what runs is unknown: {error}"]
        yield from wrong
        if wrong:
            continue
        say(f"{model['name']}: image, command and replicas are as planned")
        if not tool.answers:
            say(f"{model['name']}: no question asked: pods are simulated here, so no model answers")
            continue
        try:
            say(f"{model['name']} answers: {cluster.ask(model)!r}")
        except Exception as error:
            yield f"{model['name']}: {error}"


def _put_back(tool: Tool, planned: preview.Preview, commit: str, reason: str, say: Say, patience: float) -> str:
    """Redeploy the last good revision where nothing but workloads has changed; what to tell people."""
    good = tool.last_good()
    if not planned.workloads_only:
        outside = [
            f"{step.type} {step.name}" for step in planned.changes if not step.type.startswith(preview.WORKLOADS)
        ]
        return (
            f"{reason}\nNot rolled back: the update also touched {', '.join(outside[:5])}, and going back could "
            "replace nodes or the cluster. Look at it: docs/roll-back.md."
        )
    if good is None or good == commit:
        return f"{reason}\nNot rolled back: there is no earlier revision on record. See docs/roll-back.md."
    say(f"rolling back to {good[:12]}")
    try:
        wrong = _again(tool, good, say, patience)
    except (DeployError, OSError, subprocess.CalledProcessError) as error:
        wrong = [str(error)]
    if wrong:
        return "\n".join([reason, f"The roll-back to {good[:12]} failed too:", *wrong])
    return f"{reason}\nRolled back to {good[:12]}, which runs again."


def _again(tool: Tool, good: str, say: Say, patience: float) -> list[str]:
    """Deploy an earlier commit; what is wrong then."""
    with checkout(tool.folder, good) as folder:
        former = tool.at(folder)
        plan = report(former)
        watched = update(former, plan, say, patience=patience)
        wrong = [watched.reason] if watched.reason else list(verify(former, plan, say))
        if not wrong:
            former.deployed(good)
        return wrong


@contextmanager
def checkout(folder: Path, commit: str) -> Generator[Path]:
    """A working tree of another commit, with an environment of its own requirements."""
    with tempfile.TemporaryDirectory(prefix="aks-vllm-") as parent:
        there = Path(parent, "checkout")
        _git(folder, "worktree", "add", "--detach", "--quiet", str(there), commit)
        try:
            _environment(folder, there)
            yield there
        finally:
            _git(folder, "worktree", "remove", "--force", str(there))


def _environment(here: Path, there: Path) -> None:
    """The same requirements: the environments of this checkout. Others: made anew, which takes a minute."""
    for name, requirements in ((".venv", "requirements-dev.txt"), ("policy/venv", "policy/requirements.txt")):
        if not (here / name).exists():
            continue
        if (here / requirements).read_bytes() == (there / requirements).read_bytes():
            (there / name).symlink_to((here / name).resolve(), target_is_directory=True)
            continue
        subprocess.run([sys.executable, "-m", "venv", str(there / name)], check=True)
        pip = [str(there / name / "bin" / "python"), "-m", "pip", "install", "--quiet", "--require-hashes"]
        subprocess.run([*pip, "--requirement", str(there / requirements)], check=True)


def report(tool: Tool) -> dict[str, Any]:
    """The plan of a checkout, by its own planner. Raises DeployError where it does not stand."""
    command = [sys.executable, "-m", "planning", "report", "--stack", tool.stack, "--format", "json"]
    done = subprocess.run(command, cwd=tool.folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DeployError(f"The plan does not stand; nothing was changed.\n{done.stderr.strip()}")
    return json.loads(done.stdout)


def _head(folder: Path) -> str:
    return _git(folder, "rev-parse", "HEAD").strip()


def _git(folder: Path, *words: str) -> str:
    git = shutil.which("git") or "git"
    done = subprocess.run([git, *words], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DeployError(f"git {words[0]} failed: {done.stderr.strip()}")
    return done.stdout
