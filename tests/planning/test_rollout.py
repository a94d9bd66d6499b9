"""How updates and drains replace replicas, and what is said about it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planning import catalogue, rollout, startup
from planning.parallelism import Layout
from planning.placement import Demand, places
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


def _plan(
    *, replicas: int = 2, nodes: int = 1, gpus: int = 4, answer: int = 274, beside: tuple[tuple[int, int], ...] = ()
) -> RolloutPlan:
    """Of a model beside others, given as (GPUs of a replica, replicas)."""
    layout = replace(LAYOUT, replicas=replicas, gpus_per_replica=gpus, replicas_per_node=8 // gpus)
    demands = [Demand(name="model", gpus=gpus, replicas=replicas)]
    demands += [Demand(name=f"other-{at}", gpus=size, replicas=count) for at, (size, count) in enumerate(beside)]
    place = places(8, nodes, demands)["model"]
    return rollout.plan_rollout(layout, place=place, nodes=nodes, startup=BUDGET, answer_seconds=answer)


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
    assert "keeps serving" in plan.drain_consequence


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_single_replica_on_full_nodes_is_an_outage_whatever_happens_and_it_is_said(nodes: int) -> None:
    plan = _plan(replicas=1, nodes=nodes, gpus=8, beside=((8, 1),) if nodes == 2 else ())
    assert plan.update_outage_minutes == math.ceil(BUDGET.restart_seconds / 60)
    assert f"outage of about {plan.update_outage_minutes} minutes" in plan.update_consequence
    assert plan.drain_outage_minutes > 0
    assert plan.pdb_max_unavailable == 1, "a budget of 0 would block every drain"


@given(replicas=st.integers(1, 40), nodes=st.integers(1, 20), gpus=st.sampled_from([1, 2, 4, 8]))
def test_every_node_can_be_drained_and_no_more_is_taken_at_once_than_needed(
    replicas: int, nodes: int, gpus: int
) -> None:
    """Evicts one node's pods as the eviction API does: a pod without a place elsewhere stays unavailable."""
    per_node = 8 // gpus
    if replicas > nodes * per_node:
        return
    plan = _plan(replicas=replicas, nodes=nodes, gpus=gpus)
    here = min(replicas, per_node)  # the fullest that a node may be
    free = (nodes - 1) * per_node - (replicas - here)
    waiting = here - min(here, free)  # pods that wait for this node to come back
    assert waiting <= plan.pdb_max_unavailable, "the drain would stop there, and the node pool's update with it"
    assert plan.pdb_max_unavailable == max(1, waiting), "more would take replicas that could go on serving"
    assert plan.min_available_during_drain == replicas - plan.pdb_max_unavailable
    assert (plan.drain_outage_minutes > 0) == (plan.min_available_during_drain == 0)


def test_a_free_place_is_used_by_the_new_replica_before_the_old_one_goes() -> None:
    plan = _plan(replicas=1)
    assert (plan.max_surge, plan.max_unavailable) == (1, 0), "4 of 8 GPUs are free"
    assert (plan.min_available_during_update, plan.update_outage_minutes) == (1, 0)
    assert "before an old one stops: the only replica keeps serving" in plan.update_consequence


def test_a_place_that_another_model_holds_is_not_free() -> None:
    plan = _plan(replicas=1, beside=((4, 1),))
    assert (plan.max_surge, plan.max_unavailable) == (0, 1)
    assert (plan.min_available_during_update, plan.update_outage_minutes > 0) == (0, True)


def test_models_that_share_full_nodes_keep_serving_while_one_is_drained() -> None:
    plan = _plan(nodes=2, beside=((4, 2),))
    assert (plan.pdb_max_unavailable, plan.min_available_during_drain) == (1, 1)
    assert "one replica keeps serving" in plan.drain_consequence


def test_a_model_whose_gpus_a_larger_one_may_take_is_promised_nothing() -> None:
    plan = _plan(nodes=2, beside=((8, 1),))
    assert plan.min_available_during_drain == 0
    assert plan.pdb_max_unavailable == 2, "a budget that counted on the replica that was taken would block for ever"
    assert "larger models" in plan.drain_consequence


def test_a_drain_waits_for_what_the_node_before_it_has_made_start() -> None:
    """AKS drains the second node as soon as the first is Ready: its replicas need their whole start-up then."""
    start = 2 * (BUDGET.image_seconds + BUDGET.restart_seconds) + rollout.MIN_READY_SECONDS
    grace = _plan().termination_grace_seconds
    assert _plan().drain_limit_seconds == grace, "on the only node nothing is waited for"
    assert _plan(nodes=2, beside=((4, 2),)).drain_limit_seconds == grace + start
    assert _plan(nodes=2).drain_limit_seconds == 2 * (grace + start), "both may stand on one node, and go one by one"


@pytest.mark.parametrize(
    ("tokens", "context", "seconds"),
    [
        (8192, 131_072, 274),
        (1, 4096, 1),
        (30, 4096, 1),
        (31, 4096, 2),
        (1_000_000, 1_048_576, 33_334),
        (8192, 3000, 100),  # an answer is never longer than the context
    ],
)
def test_the_longest_answer_may_finish_before_the_kubelet_kills(tokens: int, context: int, seconds: int) -> None:
    answer = rollout.longest_answer_seconds(tokens, context)
    assert answer == seconds, "tokens at 30 a second, rounded up"
    plan = _plan(answer=answer)
    assert plan.shutdown_timeout_seconds == seconds
    assert plan.pre_stop_seconds == 40, "the cluster's DNS may name a replica for 30 seconds after it has left"
    assert plan.termination_grace_seconds == 40 + seconds + 40 == rollout.termination_grace_seconds(answer)


def test_consequences_are_sentences() -> None:
    for plan in (
        _plan(),
        _plan(replicas=1),
        _plan(nodes=3),
        _plan(replicas=4, nodes=2),
        _plan(nodes=2, beside=((8, 1),)),
    ):
        for text in (plan.update_consequence, plan.drain_consequence):
            assert text[0].isupper(), text
            assert text.endswith("."), text
