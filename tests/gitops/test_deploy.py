"""The deploy job against a pretended stack: real commits, real processes, a cluster that is a file."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gitops import cluster, deploy
from gitops.deploy import DeployError
from gitops.tools import Tool
from sandbox.cluster_api import ClusterError

#: What an update does, by the word in its commit: it writes what then runs to the file that is the cluster.
UPDATE = """
import json, os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_DFL)
live, commit = Path(sys.argv[1]), json.loads(Path("commit.json").read_text())
job = os.getppid()

def runs(**values):
    before = json.loads(live.read_text()) if live.exists() else {"image": "", "ready": 0, "stuck": []}
    Path(f"{live}.new").write_text(json.dumps({**before, **values}))
    Path(f"{live}.new").replace(live)

if commit["update"] == "fails":
    sys.exit(3)
if commit["update"] == "not all ready":
    runs(image=commit["image"], ready=1, stuck=[])
elif commit["update"] in ("stuck", "hangs"):
    runs(ready=1, stuck=["model-new"] if commit["update"] == "stuck" else [])
    while os.getppid() == job:  # what the job has started ends with it
        time.sleep(0.02)
else:
    runs(ready=1)
    time.sleep(0.3)  # a moment for whoever watches
    runs(image=commit["image"], ready=2, stuck=[])
"""
MODEL = "kubernetes:apps/v1:Deployment"
POOL = "azure-native:containerservice:AgentPool"


@dataclass
class PretendedTool(Tool):
    """A stack of one model. What a checkout deploys stands in its file commit.json."""

    home: Path
    name = "pretended"
    answers = True

    def preview(self, *, refresh: bool = False) -> dict[str, Any]:
        commit = json.loads((self.folder / "commit.json").read_text())
        if commit["update"] == "refused":
            return {"error": "within-budget refuses it"}
        types = [MODEL, *commit["touches"]]
        urn = "urn:pulumi:prod::aks-vllm::{0}::{0}"
        return {"resources": [{"urn": urn.format(type_), "op": "update", "diff": ["spec"]} for type_ in types]}

    def update(self, settings: Sequence[str] = (), *, refresh: bool = False) -> subprocess.Popen[bytes]:
        with (self.home / "updates").open("a") as log:
            log.write(f"{json.loads((self.folder / 'commit.json').read_text())['image']}\n")
        return subprocess.Popen([sys.executable, "-SEc", UPDATE, str(self.live)], cwd=self.folder)

    @property
    def last_words(self) -> str:
        return "a reason of the tool's"

    def kubeconfig(self) -> str | None:
        return str(self.live) if self.live.exists() else None

    def last_good(self) -> str | None:
        return (self.home / "good").read_text() if (self.home / "good").exists() else None

    def deployed(self, commit: str) -> None:
        (self.home / "good").write_text(commit)

    def at(self, folder: Path) -> PretendedTool:
        return PretendedTool(self.stack, folder, self.home)

    @property
    def live(self) -> Path:
        return self.home / "live.json"


class PretendedApi:
    """Answers as an API server would, from the file."""

    def __init__(self, live: Path) -> None:
        self._live = live

    def request(self, method: str, path: str) -> dict[str, Any]:
        live = json.loads(self._live.read_text())
        if live.get("unreachable"):
            raise ClusterError("the API server at https://pretended cannot be reached")
        if path.endswith("/pods"):
            waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
            status = {"containerStatuses": [{"state": waiting}]}
            return {"items": [{"metadata": {"name": name}, "status": status} for name in live["stuck"]]}
        server = {"name": "vllm", "image": live["image"], "args": []}
        spec = {"replicas": 2, "template": {"spec": {"containers": [server]}}}
        status = {"readyReplicas": live["ready"], "updatedReplicas": 2}
        return {"items": [{"metadata": {"name": "model"}, "spec": spec, "status": status}]}


@dataclass
class Stack:
    """The stack under test, and what was said about it."""

    tool: PretendedTool
    said: list[str]

    def commit(self, image: str, update: str = "works", *touches: str) -> str:
        """A commit; its hash."""
        content = {"image": image, "update": update, "touches": touches}
        (self.tool.folder / "commit.json").write_text(json.dumps(content))
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", image)
        return self.git("rev-parse", "HEAD")

    def git(self, *words: str) -> str:
        who = {f"GIT_{role}_{what}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        done = subprocess.run(
            ["git", *words], cwd=self.tool.folder, env={**os.environ, **who}, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def deploy(self) -> str:
        """What the job says at its end when it fails; nothing when it does not."""
        try:
            deploy.deploy(self.tool, self.said.append, patience=0.2)
        except DeployError as error:
            return str(error)
        return ""

    @property
    def live(self) -> dict[str, Any]:
        return json.loads(self.tool.live.read_text())

    def change_live(self, **values: Any) -> None:
        self.tool.live.write_text(json.dumps({**self.live, **values}))

    @property
    def updates(self) -> list[str]:
        """The images of all updates that were begun."""
        return (self.tool.home / "updates").read_text().split()


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """A repository, and a stack that nobody has deployed."""

    def report(tool: Tool) -> dict[str, Any]:
        commit = json.loads((tool.folder / "commit.json").read_text())
        if commit["update"] == "no plan":
            raise DeployError("The plan does not stand; nothing was changed.")
        model = {"name": "model", "image": {"reference": commit["image"]}, "args": []}
        return {"namespace": "vllm", "models": [model]}

    def ask(self: cluster.Cluster, model: Mapping[str, Any]) -> str:
        if "mute" in model["image"]["reference"]:
            raise ClusterError("gave no answer: Connection refused")
        return "hello"

    monkeypatch.setattr(deploy, "report", report)
    monkeypatch.setattr(deploy, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(deploy, "STOP_SECONDS", 20)
    monkeypatch.setattr(cluster.ClusterApi, "connect", lambda kubeconfig: PretendedApi(Path(kubeconfig)))
    monkeypatch.setattr(cluster.Cluster, "ask", ask)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a killed job leaves its checkout there
    folder = tmp_path / "repository"
    folder.mkdir()
    stack = Stack(PretendedTool("prod", folder, tmp_path), [])
    stack.git("init", "--quiet", "--initial-branch=main")
    return stack


@pytest.fixture
def deployed(stack: Stack) -> Stack:
    """The stack with its first revision running."""
    stack.commit("vllm:1")
    assert stack.deploy() == ""
    stack.said.clear()
    return stack


def test_an_update_that_works_is_verified_asked_and_noted(deployed: Stack) -> None:
    commit = deployed.commit("vllm:2")
    assert deployed.deploy() == ""
    assert deployed.tool.last_good() == commit
    assert "model: image, command and replicas are as planned" in deployed.said
    assert "model answers: 'hello'" in deployed.said
    assert "model: at every moment of the update 1 or more of 2 replicas were ready" in deployed.said


#: What goes wrong with the second revision, and the words for it. The first one comes back each time.
FAILURES = (
    ("vllm:2", "stuck", "pod model-new: ImagePullBackOff: no such image"),
    ("vllm:2", "fails", "the update failed with exit code 3: a reason of the tool's"),
    ("vllm:2", "not all ready", "model: 1 of 2 replicas are ready"),
    ("vllm:mute", "works", "model: gave no answer: Connection refused"),
)


@pytest.mark.parametrize(("image", "update", "says"), FAILURES, ids=["a pod", "the tool", "the replicas", "the answer"])
def test_what_fails_on_workloads_alone_is_put_back(deployed: Stack, image: str, update: str, says: str) -> None:
    good = deployed.tool.last_good()
    assert good
    deployed.commit(image, update)
    told = deployed.deploy()
    assert says in told
    assert told.endswith(f"Rolled back to {good[:12]}, which runs again.")
    assert (deployed.live["image"], deployed.live["ready"]) == ("vllm:1", 2)
    assert deployed.updates == ["vllm:1", image, "vllm:1"]
    assert deployed.tool.last_good() == good
    assert len(deployed.git("worktree", "list").splitlines()) == 1, "the checkout of the roll-back is still there"


def test_an_update_that_touched_the_cluster_is_not_put_back_and_says_so(deployed: Stack) -> None:
    good = deployed.tool.last_good()
    deployed.commit("vllm:mute", "works", POOL)
    told = deployed.deploy()
    assert f"Not rolled back: the update also touched {POOL}" in told
    assert "docs/roll-back.md" in told
    assert deployed.live["image"] == "vllm:mute", "it stays as it is, for somebody to look at"
    assert deployed.updates == ["vllm:1", "vllm:mute"]
    assert deployed.tool.last_good() == good


def test_a_first_deployment_has_nothing_to_go_back_to(stack: Stack) -> None:
    stack.commit("vllm:mute")
    told = stack.deploy()
    assert "gave no answer" in told
    assert "Not rolled back: there is no earlier revision on record." in told
    assert stack.tool.last_good() is None
    assert stack.updates == ["vllm:mute"]


def test_a_last_good_revision_that_fails_when_deployed_again_is_not_put_back_onto_itself(deployed: Stack) -> None:
    deployed.change_live(image="vllm:1")
    (deployed.tool.folder / "commit.json").write_text(
        json.dumps({"image": "vllm:mute", "update": "works", "touches": []})
    )
    assert "Not rolled back: there is no earlier revision on record." in deployed.deploy()
    assert deployed.updates == ["vllm:1", "vllm:mute"]


def test_a_roll_back_that_fails_tells_of_both(stack: Stack) -> None:
    good = stack.commit("vllm:1", "not all ready")
    stack.tool.deployed(good)
    stack.commit("vllm:mute")
    told = stack.deploy()
    assert "gave no answer" in told
    assert f"The roll-back to {good[:12]} failed too:\nmodel: 1 of 2 replicas are ready" in told
    assert "Rolled back to" not in told
    assert stack.updates == ["vllm:mute", "vllm:1"]


@pytest.mark.parametrize("why", ["its plan does not stand", "this clone does not have it"])
def test_a_roll_back_that_cannot_begin_tells_of_both(stack: Stack, why: str) -> None:
    good = stack.commit("vllm:1", "no plan") if why.startswith("its") else "1" * 40
    stack.tool.deployed(good)
    stack.commit("vllm:mute")
    told = stack.deploy()
    assert "gave no answer" in told, "why there was a roll-back at all"
    assert f"The roll-back to {good[:12]} failed too:" in told
    assert ("The plan does not stand" if why.startswith("its") else "git worktree failed") in told
    assert stack.updates == ["vllm:mute"]


@pytest.mark.parametrize("update", ["refused", "no plan"])
def test_what_would_be_refused_changes_nothing(deployed: Stack, update: str) -> None:
    before = deployed.live
    deployed.commit("vllm:2", update)
    assert "nothing was changed" in deployed.deploy()
    assert (deployed.live, deployed.updates) == (before, ["vllm:1"])


def test_pods_that_were_stuck_before_do_not_stop_the_update_that_takes_them_away(deployed: Stack) -> None:
    deployed.change_live(stuck=["model-old"])
    deployed.commit("vllm:2")
    assert deployed.deploy() == ""
    assert deployed.live["image"] == "vllm:2"


def test_a_cluster_that_cannot_be_reached_is_a_failure_and_no_traceback(deployed: Stack) -> None:
    deployed.change_live(unreachable=True)
    deployed.commit("vllm:2")
    told = deployed.deploy()
    assert "model: what runs is unknown: the API server at https://pretended cannot be reached" in told
    assert "failed too" in told


@pytest.mark.parametrize("during", ["update", "roll-back"])
def test_a_job_that_is_killed_can_be_run_again(stack: Stack, during: str) -> None:
    """By SIGKILL, which leaves no time for anything."""
    good = stack.commit("vllm:1", "hangs" if during == "roll-back" else "works")
    stack.tool.deployed(good)
    stack.commit("vllm:2", "hangs" if during == "update" else "fails")
    job = multiprocessing.get_context("fork").Process(target=stack.deploy)
    job.start()
    hanging = 1 if during == "update" else 2
    _until(
        lambda: (stack.tool.home / "updates").exists() and len(stack.updates) == hanging and stack.tool.live.exists()
    )
    job.kill()
    job.join(timeout=20)
    assert job.exitcode == -9
    assert stack.tool.last_good() == good, "what was cut off does not count as deployed"
    commit = stack.commit("vllm:3")
    assert stack.deploy() == ""
    assert (stack.live["image"], stack.tool.last_good()) == ("vllm:3", commit)


def _until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to that within 20 seconds")
