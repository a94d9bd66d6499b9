"""The main job, as a user does it: a copy of the project, the command line, a real API server."""

from __future__ import annotations

import base64
import json
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from kubernetes import client

from tests.sandbox.project import ROOMS, STATE, Project, drift

pytestmark = pytest.mark.control_plane


@dataclass
class Watch:
    """Counts ready replicas through the API server, until it is told to stop."""

    apps: client.AppsV1Api
    seen: list[int] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _look(self) -> None:
        while not self._stop.wait(0.1):
            status = self.apps.read_namespaced_deployment("model", "vllm").status
            self.seen.append((status.ready_replicas if status else 0) or 0)


@pytest.fixture(scope="module")
def deployed(project: Project) -> dict[str, Any]:
    """What the first `up` of this module said."""
    return project.run("up")


def plain(model: Any) -> Any:
    """What the official client parsed, as the JSON it came from."""
    return client.ApiClient().sanitize_for_serialization(model)


def changed(result: dict[str, Any]) -> dict[str, list[str]]:
    """Type -> changed paths, of everything that is not the same."""
    return {r["type"]: r["diff"] for r in result["resources"] if r["op"] != "same"}


def test_up_places_two_replicas_of_four_gpus_on_one_node(project: Project, deployed: dict[str, Any]) -> None:
    assert set(deployed["changes"]) <= {"create"}, "nothing was there before"
    status = project.run("status")
    assert status["stack"] == "sandbox"
    (workload,) = [each for each in status["workloads"] if each["name"] != "edge"]
    assert (workload["name"], workload["namespace"]) == ("model", "vllm")
    assert (workload["replicas"], workload["ready"], workload["gpus_per_replica"]) == (2, 2, 4)
    assert len(workload["nodes"]) == 1, "both replicas share the only node"
    node = plain(client.CoreV1Api(project.api()).read_node(workload["nodes"][0]))
    assert node["status"]["capacity"]["nvidia.com/gpu"] == "8", "the node is the plan's VM size"


def test_nothing_secret_is_said_or_kept_in_clear(project: Project, deployed: dict[str, Any]) -> None:
    secrets = client.CoreV1Api(project.api()).list_namespaced_secret("vllm").items
    (token,) = {value for secret in secrets for value in (secret.data or {}).values()}
    plain = base64.b64decode(token)
    said = json.dumps([deployed, project.run("status")])
    assert plain.decode() not in said
    # The cluster's own database holds it, as a real one does; nothing else on disk may.
    kept = [
        path
        for path in (project.folder / STATE).rglob("*")
        if path.is_file() and "etcd" not in path.parts and plain in path.read_bytes()
    ]
    assert not kept, "the token lies in clear on disk"


def test_a_second_up_changes_nothing(project: Project, deployed: dict[str, Any]) -> None:
    again = project.run("up")
    assert set(again["changes"]) == {"same"}, changed(again)


def test_a_refresh_finds_no_drift_where_nobody_changed_anything(project: Project, deployed: dict[str, Any]) -> None:
    """A nightly search for drift that finds some every night is switched off."""
    assert drift(project.run("refresh")) == {}
    again = project.run("up")
    assert set(again["changes"]) == {"same"}, changed(again)


def test_a_new_context_length_changes_the_deployment_alone_and_keeps_serving(
    project: Project, deployed: dict[str, Any]
) -> None:
    preview = project.run("preview", "--set", "max-model-len=32768")
    assert set(changed(preview)) == {"kubernetes:apps/v1:Deployment"}, changed(preview)
    with Watch(client.AppsV1Api(project.api())) as watch:
        result = project.run("up", "--set", "max-model-len=32768")
    assert changed(result) == changed(preview), "an update does what its preview said"
    assert min(watch.seen) < 2, "no rollout was seen: the check has proved nothing"
    assert min(watch.seen) >= 1, f"ready replicas during the update: {watch.seen}"
    pods = plain(
        client.CoreV1Api(project.api()).list_namespaced_pod("vllm", label_selector="app.kubernetes.io/name=vllm")
    )["items"]
    arguments = [p["spec"]["containers"][0]["args"] for p in pods if "deletionTimestamp" not in p["metadata"]]
    assert len(arguments) == 2
    for one in arguments:
        assert one[one.index("--max-model-len") + 1] == "32768"


def test_wrong_input_changes_nothing_and_lists_all_problems(project: Project, deployed: dict[str, Any]) -> None:
    before = project.state()
    arguments = ("--set", "vllm.swap-space=4", "--set", "max-model-len=200000", "--set", "replicsa=3")
    refused = project.run("up", *arguments, exit_code=2)
    told = json.dumps(refused)
    for word in ("swap-space", "131072", "replicas"):
        assert word in told, f"{word} is missing: {told}"
    assert project.state() == before


def test_down_leaves_no_process_and_no_state(project: Project, deployed: dict[str, Any]) -> None:
    assert project.processes(), "the search for processes finds none even while they run"
    project.run("destroy")
    assert project.processes() == []
    assert not (project.folder / ".sandbox").exists() or not list((project.folder / ".sandbox").iterdir())
    tracked = {path.name for path in project.folder.iterdir()} - {".sandbox"}
    assert tracked == set(ROOMS), "files were left outside of the sandbox's folder"
