"""How updates and drains replace replicas, and what is said about it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planning import catalogue, rollout, startup
from planning.parallelism import Layout
from planning.rollout import RolloutPlan

VM = catalogue.vm_size("Standard_ND96isr_H100_v5")
LAYOUT = Layout(
    vm_size=VM.name,
    pool=VM.pool,
    tensor_parallel_size=4,
    pipeline_parallel_size=1,
    replicas=2,
    gpus_per_replica=4,
    replicas_per_node=2,
    reason="",
)
BUDGET = startup.budget(catalogue.preset("llama-3.3-70b-instruct").architecture, VM, LAYOUT)


def _plan(*, replicas: int = 2, nodes: int = 1, per_node: int = 2, tokens: int = 8192) -> RolloutPlan:
    layout = replace(LAYOUT, replicas=replicas, replicas_per_node=per_node)
    return rollout.plan_rollout(layout, nodes=nodes, startup=BUDGET, max_answer_tokens=tokens)


def test_two_replicas_on_one_node_keep_serving_in_an_update_and_not_in_a_drain() -> None:
    plan = _plan()
    assert (plan.max_surge, plan.max_unavailable) == (0, 1), "a surge pod would wait for GPUs that nobody frees"
    assert plan.update_outage_minutes == 0
    assert "keeps serving" in plan.update_consequence or "keep serving" in plan.update_consequence
    assert plan.pdb_max_unavailable == 2, "the first pod evicted stays Pending, and a budget of 1 would block the drain"
    assert plan.drain_outage_minutes == math.ceil(BUDGET.total_seconds / 60)
    assert f"outage of about {plan.drain_outage_minutes} minutes" in plan.drain_consequence


def test_two_replicas_on_two_nodes_keep_serving_in_both() -> None:
    plan = _plan(nodes=2)
    assert plan.pdb_max_unavailable == 1
    assert plan.update_outage_minutes == plan.drain_outage_minutes == 0
    assert "keep serving" in plan.drain_consequence


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_single_replica_is_an_outage_whatever_happens_and_it_is_said(nodes: int) -> None:
    plan = _plan(replicas=1, nodes=nodes)
    assert plan.update_outage_minutes == math.ceil(BUDGET.restart_seconds / 60)
    assert f"outage of about {plan.update_outage_minutes} minutes" in plan.update_consequence
    assert plan.drain_outage_minutes > 0
    assert plan.pdb_max_unavailable == 1, "a budget of 0 would block every drain"


@given(replicas=st.integers(1, 40), nodes=st.integers(1, 20), per_node=st.integers(1, 8))
def test_every_node_can_be_drained_and_no_more_is_taken_at_once_than_needed(
    replicas: int, nodes: int, per_node: int
) -> None:
    """Evicts one node's pods as the eviction API does: a pod without a place elsewhere stays unavailable."""
    if replicas > nodes * per_node:
        return
    plan = _plan(replicas=replicas, nodes=nodes, per_node=per_node)
    here = min(replicas, per_node)  # the fullest that a node may be
    free = (nodes - 1) * per_node - (replicas - here)
    waiting = here - min(here, free)  # pods that wait for this node to come back
    assert waiting <= plan.pdb_max_unavailable, "the drain would stop there, and the node pool's update with it"
    assert plan.pdb_max_unavailable == max(1, waiting), "more would take replicas that could go on serving"
    assert (plan.drain_outage_minutes > 0) == (plan.pdb_max_unavailable >= replicas)


@pytest.mark.parametrize(("tokens", "seconds"), [(8192, 274), (1, 1), (30, 1), (31, 2), (1_000_000, 33_334)])
def test_the_longest_answer_may_finish_before_the_kubelet_kills(tokens: int, seconds: int) -> None:
    plan = _plan(tokens=tokens)
    assert plan.shutdown_timeout_seconds == seconds, "tokens at 30 a second, rounded up"
    assert plan.pre_stop_seconds == 40, "the cluster's DNS may name a replica for 30 seconds after it has left"
    assert plan.termination_grace_seconds == 40 + seconds + 40 == rollout.termination_grace_seconds(tokens)


def test_consequences_are_sentences() -> None:
    for plan in (_plan(), _plan(replicas=1), _plan(nodes=3), _plan(replicas=4, nodes=2)):
        for text in (plan.update_consequence, plan.drain_consequence):
            assert text[0].isupper(), text
            assert text.endswith("."), text
