"""A stack on a cluster that is not its own: it adds what is its own, and takes nothing else away."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from sandbox.control_plane import ControlPlane
from tests.sandbox.managed import GPU_TAINT
from tests.sandbox.project import QUICK, Project

pytestmark = pytest.mark.control_plane

NAME = "aks-vllm-sandbox"
ID = (
    "/subscriptions/00000000-0000-0000-0000-00000000aaaa/resourceGroups/rg-aks-vllm-sandbox/providers"
    f"/Microsoft.ContainerService/managedClusters/{NAME}"
)
SMALL = {
    "azure-native:location": "eastus",
    "aks-vllm:environment": "development",
    "aks-vllm:preset": "qwen3-8b",
    "aks-vllm:vm-size": "Standard_NC40ads_H100_v5",
}
HOST = ("--set", "preset=qwen3-8b", "--set", "vm-size=Standard_NC40ads_H100_v5")
GUEST = {
    **SMALL,
    "aks-vllm:existing-cluster": {"id": ID, "namespace": "guest", "device-plugin": False},
    "aks-vllm:registry": {"login-server": "myregistry.azurecr.io"},
}


def stack(project: Project, name: str, config: dict[str, Any]) -> None:
    (project.folder / "stacks" / f"Pulumi.{name}.yaml").write_text(yaml.safe_dump({"config": config}))


def done(answer: dict[str, Any], op: str = "create") -> list[str]:
    """Types of what an answer says was created, without components."""
    kinds = [each["type"] for each in answer["resources"] if each["op"] == op]
    return sorted(kind.rpartition(":")[2] for kind in kinds if not kind.startswith(("aks-vllm:", "pulumi:")))


def names(project: Project) -> dict[str, set[str]]:
    """What is in the cluster, past every layer of ours."""
    api = project.api()
    core, apps, scheduling = client.CoreV1Api(api), client.AppsV1Api(api), client.SchedulingV1Api(api)
    deployments: list[Any] = apps.list_deployment_for_all_namespaces().items
    found: dict[str, list[Any]] = {
        "nodes": core.list_node().items,
        "namespaces": core.list_namespace().items,
        "priorities": scheduling.list_priority_class().items,
    }
    return {kind: {item.metadata.name for item in items} for kind, items in found.items()} | {
        "deployments": {f"{each.metadata.namespace}/{each.metadata.name}" for each in deployments}
    }


def test_a_kubeconfig_is_enough_where_the_gpu_nodes_are_there(
    project: Project, control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig = control_plane.folder / "admin.kubeconfig"
    monkeypatch.setitem(QUICK, "AKS_VLLM_SANDBOX_KUBECONFIG", str(kubeconfig))
    labels = {"node.kubernetes.io/instance-type": "Standard_NC40ads_H100_v5"}
    gpu = {"cpu": "40", "memory": "320Gi", "pods": "110", "nvidia.com/gpu": "1"}
    control_plane.add_node("theirs-gpu", labels, [{**GPU_TAINT, "key": "sku", "value": "gpu"}], gpu)
    system = {"cpu": "4", "memory": "16Gi", "pods": "110"}
    control_plane.add_node("theirs-system", {"kubernetes.azure.com/mode": "system"}, [], system)
    stack(project, "keyed", {**SMALL, "aks-vllm:kubeconfig": {"secure": "v1:not-read-here"}})
    core = client.CoreV1Api(control_plane.admin_client())

    def namespaces() -> set[str]:
        found: list[Any] = core.list_namespace().items
        return {item.metadata.name for item in found}

    before = namespaces()
    first = project.run("up", "--stack", "keyed")
    assert not [each for each in first["resources"] if each["type"].startswith("azure-native:")]
    rows = {row["name"]: (row["ready"], row["nodes"]) for row in first["workloads"]}
    assert rows["model"] == (1, ["theirs-gpu"])
    assert namespaces() - before == {"vllm"}
    (key,) = {user["user"]["token"] for user in yaml.safe_load(kubeconfig.read_text())["users"]}
    kept = [path for path in (project.folder / ".sandbox" / "keyed").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if key.encode() in path.read_bytes()], "the kubeconfig lies in clear on disk"
    assert key not in str(first)
    assert set(project.run("up", "--stack", "keyed")["changes"]) == {"same"}
    project.run("destroy", "--stack", "keyed")
    assert namespaces() <= before, "those of other tests may be on their way out"


def test_a_kubeconfig_that_leads_elsewhere_is_not_used(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack(project, "keyed", {**SMALL, "aks-vllm:kubeconfig": {"secure": "v1:not-read-here"}})
    assert "AKS_VLLM_SANDBOX_KUBECONFIG" in project.run("up", "--stack", "keyed", exit_code=2)["error"]
    elsewhere = tmp_path / "kubeconfig"
    elsewhere.write_text(yaml.safe_dump({"clusters": [{"cluster": {"server": "https://cluster.example.com"}}]}))
    monkeypatch.setitem(QUICK, "AKS_VLLM_SANDBOX_KUBECONFIG", str(elsewhere))
    monkeypatch.delitem(QUICK, "AKS_VLLM_SANDBOX_KUBECONFIG", raising=False)
    assert set(project.run("preview", "--stack", "keyed")["changes"]) == {"create"}, "a preview needs no cluster"
    monkeypatch.setitem(QUICK, "AKS_VLLM_SANDBOX_KUBECONFIG", str(elsewhere))
    assert "is not on this machine" in project.run("up", "--stack", "keyed", exit_code=2)["error"]


@pytest.fixture(scope="module")
def host(project: Project) -> Iterator[dict[str, set[str]]]:
    """A cluster that another stack has made, and what is in it."""
    project.run("up", *HOST)
    stack(project, "guest", GUEST)
    yield names(project)
    if (project.folder / ".sandbox" / "guest").exists():
        project.run("destroy", "--stack", "guest")


def test_a_guest_adds_a_pool_and_a_namespace_and_leaves_the_cluster_as_it_was(
    project: Project, host: dict[str, set[str]]
) -> None:
    first = project.run("up", "--stack", "guest")
    assert done(first).count("AgentPool") == 1
    assert not {"ManagedCluster", "ResourceGroup", "VirtualNetwork", "RoleAssignment", "DaemonSet"} & set(done(first))
    assert [(row["namespace"], row["ready"]) for row in first["workloads"] if row["name"] == "model"] == [("guest", 1)]
    both = names(project)
    assert both["namespaces"] - host["namespaces"] == {"guest"}
    assert both["deployments"] - host["deployments"] == {"guest/edge", "guest/model"}
    assert both["priorities"] - host["priorities"] == {"guest"}
    (node,) = both["nodes"] - host["nodes"]
    pods: list[Any] = client.CoreV1Api(project.api()).list_namespaced_pod("guest").items
    placed = {pod.metadata.labels["app.kubernetes.io/name"]: pod.spec.node_name for pod in pods}
    assert placed["vllm"] == node, "its model runs on its own nodes"
    assert placed["vllm-edge"] != node
    images = {each.image for pod in pods for each in [*(pod.spec.init_containers or []), *pod.spec.containers]}
    assert {image.partition("/")[0] for image in images} == {"myregistry.azurecr.io"}, "from its own registry"

    again = project.run("up", "--stack", "guest")
    assert set(again["changes"]) == {"same"}, done(again, "update")
    assert set(project.run("up", *HOST)["changes"]) == {"same"}, "the other stack must see no difference in its cluster"

    project.run("destroy", "--stack", "guest")
    assert names(project) == host
    assert project.run("status")["workloads"], "the other stack still serves"


def test_a_guest_is_told_where_the_cluster_is(project: Project, host: dict[str, set[str]]) -> None:
    command = [part for part in project.command("up", "--stack", "guest") if part not in ("--format", "json")]
    done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True, timeout=240, env=QUICK)
    assert done.returncode == 0, done.stderr
    assert "KUBECONFIG=.sandbox/sandbox/control-plane/admin.kubeconfig kubectl get pods -A" in done.stdout


def test_a_guest_whose_cluster_is_gone_can_still_be_removed(project: Project, host: dict[str, set[str]]) -> None:
    project.run("up", "--stack", "guest")
    project.run("destroy")
    answer = project.run("destroy", "--stack", "guest")
    assert answer["changes"] == {}
    assert not (project.folder / ".sandbox" / "guest").exists()
