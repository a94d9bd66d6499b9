"""`make rehearse` whole, on a real control plane: what the comments say, and what runs at the end."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kubernetes import client, config

from gitops.comment import marker
from gitops.rehearse import MISSING
from policy import rules
from sandbox.control_plane import ControlPlane
from tests.sandbox.conftest import ended_in_any_case
from tests.sandbox.managed import say
from tests.sandbox.project import QUICK, ROOT, copied

pytestmark = [pytest.mark.control_plane, pytest.mark.rehearsal]
LIMIT_SECONDS = 900


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal has said, and the stack that it has kept."""

    said: str
    folder: Path

    def comment(self, name: str = "comment.md") -> str:
        return (self.folder / name).read_text()

    def commit(self, revision: str) -> str:
        """A commit of the copy's history: the stack as it is, the change, the bad image, its reversal."""
        words = ["git", "-C", str(self.folder / "project"), "rev-parse", revision]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """One rehearsal, whose sandbox is kept for a look."""
    folder = tmp_path_factory.mktemp("rehearsal")
    plane = ControlPlane(folder / ".rehearsal/project/.sandbox/prod/control-plane", say)
    with copied(folder), ended_in_any_case(plane):
        shutil.copy(ROOT / "requirements-dev.txt", folder)
        for words in (["init", "--quiet"], ["add", "."]):
            subprocess.run(["git", *words], cwd=folder, check=True)
        done = subprocess.run(
            [sys.executable, "-m", "gitops", "rehearse", "--keep"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            env=QUICK,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        yield Rehearsal(f"{done.stdout}\n{done.stderr}", folder / ".rehearsal")
        # The way out that `make rehearse` takes without --keep, last: nothing may be left.
        remove = "from gitops.rehearse import FOLDER, _Copy; _Copy(FOLDER / 'project', 'prod').destroy()"
        subprocess.run([sys.executable, "-c", remove], cwd=folder, check=True, timeout=LIMIT_SECONDS, env=QUICK)
        assert not (folder / ".rehearsal/project").exists()


def test_the_comment_says_what_the_change_means_for_users_first(rehearsal: Rehearsal) -> None:
    text = rehearsal.comment()
    assert text.startswith(marker("prod"))
    answer, details = text.split("\n### ", 1)
    assert "model: rolling update, one replica keeps serving all the while; up to" in answer
    assert "model: requests may be up to 65,536 tokens long instead of 16,384." in answer
    assert re.search(r"requests of full length at once in all replicas instead of [\d.]+ \(-75%\)", answer)
    assert "1 updated in place" in details
    assert "- --max-model-len 16384\n+ --max-model-len 65536" in details


def test_the_comment_has_every_policy_and_what_it_looked_at(rehearsal: Rehearsal) -> None:
    text = rehearsal.comment()
    for rule in rules.RULES:
        (looked_at,) = re.findall(rf"\| (?:⚠️ )?{rule.name} \| (\d+) \|", text)
        assert int(looked_at), f"{rule.name} has looked at nothing"


def test_the_change_is_rolled_out_while_somebody_serves(rehearsal: Rehearsal) -> None:
    fewest = re.findall(r"model: at every moment of the update (\d) or more of 2 replicas were ready", rehearsal.said)
    assert fewest
    assert min(map(int, fewest)) >= 1
    assert "model: image, command and replicas are as planned" in rehearsal.said


def test_the_bad_image_is_seen_stopped_and_rolled_back(rehearsal: Rehearsal) -> None:
    assert MISSING in rehearsal.comment("comment-bad-image.md")
    good = rehearsal.commit("HEAD~2")[:12]
    steps = ("stopping the update: pod ", f"rolling back to {good}", f"Rolled back to {good}, which runs again.")
    stop, back, done = (rehearsal.said.find(words) for words in steps)
    assert 0 <= stop < back < done, rehearsal.said[-4000:]
    assert "ImagePullBackOff" in rehearsal.said[stop:back], "the kubelet's own reason"


def test_the_workload_serves_the_last_good_revision_in_the_end(rehearsal: Rehearsal) -> None:
    stack = rehearsal.folder / "project" / ".sandbox" / "prod"
    assert (stack / "deployed-commit").read_text().strip() == rehearsal.commit("HEAD~2")
    access = config.new_client_from_config(str(stack / "control-plane" / "admin.kubeconfig"))
    live = access.sanitize_for_serialization(client.AppsV1Api(access).read_namespaced_deployment("model", "vllm"))
    (server,) = live["spec"]["template"]["spec"]["containers"]
    assert MISSING not in server["image"]
    assert server["args"][server["args"].index("--max-model-len") + 1] == "65536", "the change is still deployed"
    assert live["status"]["readyReplicas"] == live["status"]["updatedReplicas"] == live["spec"]["replicas"] == 2
