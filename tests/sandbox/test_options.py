"""Parts that most stacks are made without, on a real API server: they start, and stay as they are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kubernetes import client

from planning.roles import MONITORING_DATA_READER, VAULT_SECRETS_USER
from sandbox.azure import GRANT
from tests.sandbox.project import OPTIONS, STATE, Project

pytestmark = pytest.mark.control_plane

UP = ("up", *(part for setting in OPTIONS for part in ("--set", setting)))


def pod_monitors(project: Project) -> set[str]:
    kinds = client.CustomObjectsApi(project.api())
    found: Any = kinds.list_namespaced_custom_object("azmonitoring.coreos.com", "v1", "vllm", "podmonitors")
    return {each["metadata"]["name"] for each in found["items"]}


def test_a_stack_with_a_vault_and_with_metrics_comes_up_and_stays_as_it_is(project: Project) -> None:
    done = project.run(*UP)
    (model,) = [row for row in done["workloads"] if row["name"] == "model"]
    assert model["ready"] == model["replicas"] == 2
    assert done["outputs"]["endpoints"]["model"].startswith("https://")
    assert done["outputs"]["grafana"].startswith("https://graf-sandbox-")
    again = project.run(*UP)
    assert set(again["changes"]) == {"same"}, "a second update would change something"

    core = client.CoreV1Api(project.api())
    for name, secret_class in (("vllm", "hugging-face-token"), ("vllm-edge", "edge-certificate")):
        running: Any = core.list_namespaced_pod("vllm", label_selector=f"app.kubernetes.io/name={name}")
        for pod in running.items:
            (mounted,) = [volume.csi for volume in pod.spec.volumes if volume.csi]
            assert mounted.volume_attributes == {"secretProviderClass": secret_class}
    secrets: Any = core.list_namespaced_secret("vllm")
    assert not secrets.items, "the token would be in the cluster, and in the state"
    assert pod_monitors(project) == {"replicas", "edge"}
    azure = json.loads((project.folder / STATE / "azure.json").read_text())["resources"]
    roles = [each["inputs"]["roleDefinitionId"].rpartition("/")[2] for each in azure if each["type"] == GRANT]
    assert roles.count(MONITORING_DATA_READER) == 1 and roles.count(VAULT_SECRETS_USER) == 2


def test_the_token_goes_back_to_the_stack_and_metrics_away_in_place(project: Project) -> None:
    done = project.run("up")
    ops = {each["op"] for each in done["resources"] if "ManagedCluster" in each["type"] or "AgentPool" in each["type"]}
    assert ops <= {"same", "update"}, "the cluster stays"
    assert not pod_monitors(project)
