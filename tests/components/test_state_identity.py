"""Names in state, protection and replacement: what must not vanish because a setting changed."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from sandbox.engine import Recording
from tests.components.harness import (
    AGENT_POOL,
    BLOB_CONTAINER,
    CLUSTER,
    DEPLOYMENT,
    NETWORK,
    RESOURCE_GROUP,
    ROOT,
    STORAGE_ACCOUNT,
    Record,
)

#: Azure/AKS refuses to change these on an existing pool (pulumi-azure-native#959 and the AKS API), and the provider
#: does not know it.
IMMUTABLE_AT_THE_API = {
    "availabilityZones",
    "enableFIPS",
    "enableUltraSSD",
    "gpuProfile",
    "kubeletDiskType",
    "maxPods",
    "nodePublicIPPrefixID",
    "osDiskSizeGB",
    "osDiskType",
    "osType",
    "proximityPlacementGroupID",
    "scaleSetEvictionPolicy",
    "scaleSetPriority",
    "spotMaxPrice",
    "type",
    "vnetSubnetID",
    "capacityReservationGroupID",
}


def _urns(recording: Recording) -> set[str]:
    """Of everything that holds something: a policy that is made anew has lost nothing."""
    return {r.urn for r in recording.registrations if "index:NetworkPolicies$" not in r.urn}


@pytest.mark.parametrize(
    "setting",
    [
        {"max_model_len": 4096},
        {"location": "westus"},
        {"environment": "production"},
        {"weights": {"storage-class": "local"}},
        {"protect": True},
        {"gpu_nodes": {"min": 1, "max": 3}},
        {"vllm": {"max-num-seqs": 32}},
        {"kubelogin": "workloadidentity"},
        {"api_server_access": "private"},
        {"network": {"pod-cidr": "10.100.0.0/16"}},
        {"gpu_nodes": {"zones": ["1"], "spot": True}},
        {
            "add_ons": [
                "azure-policy",
                "defender",
                "image-cleaner",
                "log-analytics",
                "managed-prometheus",
                "managed-grafana",
            ]
        },
        {"maintenance": {"day": "Monday"}},
        {"budget": {"usd-per-month": 10, "contacts": ["a@b.c"], "first-month": "2026-12"}},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_no_setting_renames_anything_in_state(recorded: Record, setting: dict[str, Any]) -> None:
    assert _urns(recorded()) <= _urns(recorded(**setting)), f"{setting} would delete and recreate what it renames"


def test_another_source_of_weights_adds_what_it_needs_and_renames_nothing(recorded: Record) -> None:
    downloaded, streamed = (_urns(recorded(weights={"source": source})) for source in ("hugging-face", "azure-blob"))
    assert downloaded < streamed
    assert all("::weight" in urn for urn in streamed - downloaded)


def test_another_preset_replaces_no_part_of_the_cluster(recorded: Record) -> None:
    changed = _urns(recorded()) ^ _urns(recorded(preset="qwen3-8b"))
    assert not [urn for urn in changed if "index:Cluster" in urn or "index:KubernetesAccess" in urn]


def test_the_key_of_a_model_is_the_only_part_of_a_setting_in_a_name(recorded: Record) -> None:
    model = {"preset": "llama-3.3-70b-instruct"}
    one, other = (_urns(recorded(preset=None, models={key: model})) for key in ("chat", "code"))
    assert {urn.replace("::chat", "::code") for urn in one} == other
    assert all("index:ModelServer" in urn for urn in one - other)


def test_the_selector_is_two_labels_whatever_the_settings(recorded: Record) -> None:
    for settings in ({}, {"max_model_len": 4096}, {"environment": "production"}):
        spec = recorded(**settings).one(DEPLOYMENT, "model-deployment").inputs["spec"]
        expected = {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": "model"}
        assert spec["selector"] == {"matchLabels": expected}, "a changed selector replaces every replica"
        assert expected.items() <= spec["template"]["metadata"]["labels"].items(), "the selector finds no pod"


@pytest.mark.parametrize(
    ("settings", "protected"),
    [
        ({"environment": "production"}, True),
        ({"environment": "development"}, False),
        ({"environment": "production", "protect": False}, False),
        ({"environment": "development", "protect": True}, True),
    ],
    ids=str,
)
def test_production_protects_cluster_group_network_and_weights_and_nothing_else(
    recorded: Record, settings: dict[str, Any], protected: bool
) -> None:
    found = {r.type for r in recorded(weights={"source": "azure-blob"}, **settings).registrations if r.protect}
    expected = {CLUSTER, RESOURCE_GROUP, NETWORK, STORAGE_ACCOUNT, BLOB_CONTAINER}
    assert found == (expected if protected else set()), "protected pools could not be replaced"


@pytest.mark.parametrize(
    ("nodes", "ignored"), [({"min": 1, "max": 1}, ()), ({"min": 1, "max": 3}, ("count",))], ids=str
)
def test_the_pool_count_is_ignored_exactly_where_the_autoscaler_owns_it(
    recorded: Record, nodes: dict[str, int], ignored: tuple[str, ...]
) -> None:
    pool = recorded(gpu_nodes=nodes).one(AGENT_POOL)
    assert pool.ignore_changes == ignored
    assert pool.inputs["count"] >= 1, "the API wants a count even where the autoscaler owns it"
    assert ("maxCount" in pool.inputs) == bool(ignored), "bounds without an autoscaler are refused by the API"


def test_a_pool_is_replaced_for_every_immutable_property_it_sets_and_for_no_misspelt_one(recorded: Record) -> None:
    group = f"/subscriptions/{UUID(int=0)}/resourceGroups/r/providers/Microsoft.Compute/capacityReservationGroups/h100"
    nodes = ({"zones": ["1"], "spot": True}, {"capacity-reservation-group": group})
    pools = [recorded(gpu_nodes=each).one(AGENT_POOL) for each in nodes]
    set_ = {name for pool in pools for name in pool.inputs}
    for pool in pools:
        assert set(pool.replace_on_changes) == IMMUTABLE_AT_THE_API & set_, "a wrong wire name never matches"


@pytest.mark.parametrize(("quota", "first"), [(None, False), (192, True)])
def test_a_pool_goes_before_its_replacement_comes_unless_quota_holds_both(
    recorded: Record, quota: int | None, first: bool
) -> None:
    nodes = {} if quota is None else {"gpu_nodes": {"vcpu-quota": quota}}
    assert recorded(**nodes).one(AGENT_POOL).delete_before_replace is not first


def test_pools_of_the_cluster_are_ignored_as_a_whole(recorded: Record) -> None:
    cluster = recorded().one(CLUSTER)
    assert set(cluster.ignore_changes) <= set(cluster.inputs), "a wrong wire name never matches"
    assert cluster.ignore_changes == ("agentPoolProfiles",)


def _resources_in_apply(source: str) -> list[int]:
    """Lines of calls with `opts=` inside what `.apply` is given; a name is followed to its function."""
    tree = ast.parse(source)
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    applied: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "apply":
            applied += [functions.get(arg.id, arg) if isinstance(arg, ast.Name) else arg for arg in node.args]
    calls = (node for root in applied for node in ast.walk(root) if isinstance(node, ast.Call))
    return sorted(call.lineno for call in calls if any(keyword.arg == "opts" for keyword in call.keywords))


@pytest.mark.parametrize("path", sorted((ROOT / "components").glob("*.py")), ids=lambda path: path.stem)
def test_no_resource_is_declared_inside_apply(path: Path) -> None:
    assert _resources_in_apply(path.read_text()) == [], "what depends on an unknown value is missing from the preview"


def test_the_search_for_resources_inside_apply_finds_them() -> None:
    source = "def f(x):\n    return A(x, opts=o)\ncluster.id.apply(f)\ncluster.id.apply(lambda x: B(x, opts=o))\n"
    assert _resources_in_apply(source) == [2, 4]
