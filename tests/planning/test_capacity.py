"""Pools, quota and price."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from planning import catalogue
from planning.capacity import GpuPoolPlan, cost, gpu_pool, quota_needs
from planning.parallelism import LayoutError
from planning.placement import Demand
from planning.settings import GpuNodes

H100X8 = catalogue.vm_size("Standard_ND96isr_H100_v5")
PAIR = Demand(name="model", gpus=4, replicas=2)


def pool(
    demands: list[Demand] | None = None,
    least: int | None = None,
    most: int | None = None,
    subnet: str = "",
    **settings: Any,
) -> GpuPoolPlan:
    # Unvalidated, so that the pool's own limits are seen too.
    nodes = GpuNodes().model_copy(update={"min": least, "max": most, **settings})
    return gpu_pool(H100X8, demands or [PAIR], nodes=nodes, subnet=subnet, drain_timeout_minutes=60)


def test_the_proposals_model_needs_one_node_that_no_autoscaler_touches() -> None:
    plan = pool()
    assert (plan.count, plan.min_count, plan.max_count, plan.autoscale) == (1, 1, 1, False)
    assert (plan.name, plan.gpus_per_node, plan.drain_timeout_minutes) == ("h100x8", 8, 60)
    assert (plan.max_surge, plan.max_unavailable) == ("0", "1"), "a surge would need a spare node and its quota"
    assert plan.taints == ("nvidia.com/gpu=present:NoSchedule",)
    assert plan.labels == {"aks-vllm/pool": "h100x8"}
    assert plan.os_disk_size_gb <= 1024, "an ephemeral disk above the temporary disk is refused"


@pytest.mark.parametrize(
    ("least", "most", "bounds"),
    [(None, None, (2, 2)), (1, 3, (1, 3)), (0, 4, (0, 4)), (3, None, (3, 3)), (None, 5, (2, 5)), (2, 2, (2, 2))],
)
def test_bounds_decide_whether_the_autoscaler_owns_the_count(
    least: int | None, most: int | None, bounds: tuple[int, int]
) -> None:
    plan = pool([PAIR, replace(PAIR, name="other")], least, most)
    assert (plan.min_count, plan.max_count) == bounds
    assert plan.autoscale == (bounds[0] != bounds[1])
    assert max(2, bounds[0]) == plan.count <= plan.max_count, "the models need two nodes from the start"


def test_models_that_do_not_fit_say_how_many_nodes_they_need() -> None:
    with pytest.raises(LayoutError, match=r"6 replicas with 24 GPUs need 3 nodes.*set max to 3") as caught:
        pool([replace(PAIR, replicas=6)], 1, 2)
    assert caught.value.key == "gpu-nodes"


@pytest.mark.parametrize(("least", "most"), [(3, 2), (-1, 2), (1, 1001)])
def test_bounds_that_cannot_be_are_refused(least: int, most: int) -> None:
    with pytest.raises(LayoutError, match="0 <= min <= max <= 1000"):
        pool(None, least, most)


def test_quota_covers_the_pool_at_its_largest() -> None:
    (need,) = quota_needs([pool(None, 1, 3)])
    assert (need.family, need.vcpus, need.nodes) == ("standardNDSH100v5Family", 288, 3)


def test_the_cost_is_that_of_the_nodes_at_list_price() -> None:
    plan, findings = cost([pool()], "eastus")
    assert (plan.gpu_pools_per_hour, plan.gpu_pools_per_month) == (98.32, 71773.6)
    assert (plan.price_date, plan.price_region) == ("2026-11-09", "eastus")
    assert findings == ()


def test_an_autoscaled_pool_says_what_it_may_grow_to() -> None:
    plan, findings = cost([pool(None, 1, 3)], "eastus")
    assert plan.gpu_pools_per_hour == 98.32
    assert "294.96 instead of 98.32" in findings[0].message


def test_an_unknown_price_is_none_with_the_file_that_would_hold_it() -> None:
    unpriced = replace(pool(), name="h200x8", vm_size="Standard_ND96isr_H200_v5")
    plan, findings = cost([pool(), unpriced], "eastus")
    assert (plan.gpu_pools_per_hour, plan.gpu_pools_per_month) == (None, None), "half a sum would pass for the whole"
    assert "Standard_ND96isr_H200_v5 in eastus is not known" in findings[0].message
    assert "presets/vm-sizes.yaml" in findings[0].remedy


def test_an_undated_price_has_no_date() -> None:
    undated = replace(pool(), vm_size="Standard_ND96amsr_A100_v4")
    assert cost([undated], "eastus")[0].price_date == "unknown"


@pytest.mark.parametrize("change", [{"zones": ["1"]}, {"spot": True}, {"subnet": "/subscriptions/x/subnets/aks"}])
def test_what_azure_cannot_change_on_a_pool_makes_another_pool(change: dict[str, Any]) -> None:
    """A pool of another name can stand beside the old one; one of the same name has to go first."""
    before, after = pool(), pool(**change)
    assert before.agent_pool_name != after.agent_pool_name
    assert before.name == after.name, "the logical name is the pool's identity in state"
    for each in (before, after):
        assert re.fullmatch(r"[a-z][a-z0-9]{0,11}", each.agent_pool_name), "AKS's rule for names of pools"


def test_every_size_has_a_pool_name_of_its_own() -> None:
    names = {
        gpu_pool(
            catalogue.vm_size(size), [], nodes=GpuNodes(min=1, max=1), subnet="", drain_timeout_minutes=60
        ).agent_pool_name
        for size in catalogue.vm_size_names()
    }
    assert len(names) == len(catalogue.vm_size_names())


@pytest.mark.parametrize(("quota", "first"), [(None, False), (96, False), (191, False), (192, True)])
def test_a_new_pool_comes_before_the_old_one_goes_exactly_where_quota_holds_both(
    quota: int | None, first: bool
) -> None:
    assert pool(vcpu_quota=quota).create_first is first


def test_a_quota_that_is_too_small_is_refused_with_what_is_needed() -> None:
    with pytest.raises(
        LayoutError, match="2 nodes of Standard_ND96isr_H100_v5 need 192 vCPUs of standardNDSH100v5Family"
    ):
        pool(None, 1, 2, vcpu_quota=96)


def test_spot_nodes_declare_what_aks_sets_on_them() -> None:
    """Undeclared, every update would want to take them away (pulumi-azure-native#959)."""
    plan = pool(spot=True)
    assert "kubernetes.azure.com/scalesetpriority=spot:NoSchedule" in plan.taints
    assert plan.labels["kubernetes.azure.com/scalesetpriority"] == "spot"
