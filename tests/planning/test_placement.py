"""Replicas of several models on the nodes of a pool: whatever the scheduler does first, all find room."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planning.placement import Demand, Place, Way, nodes_needed, places, pool_placement, way

NODE = 8  # GPUs


def demands(*models: tuple[int, int]) -> list[Demand]:
    """Models a, b, ... by (GPUs of a replica, replicas)."""
    return [Demand(name="abcdefgh"[at], gpus=gpus, replicas=count) for at, (gpus, count) in enumerate(models)]


def contents(nodes: int, *models: tuple[int, int]) -> list[dict[str, int]]:
    """What each node holds, the fullest kinds first as the plan writes them."""
    placed = pool_placement("pool", NODE, nodes, demands(*models))
    return [dict(kind.replicas) for kind in placed.nodes for _ in range(kind.count)]


def schedule(nodes: int, pods: Sequence[Demand], how: Way, choice: random.Random) -> list[str]:
    """Names of the replicas that find no node: any node that a rule allows may be taken, pods in the order given."""
    free = [NODE] * nodes
    held: list[list[Demand]] = [[] for _ in range(nodes)]
    waiting = list(pods)
    stuck: list[str] = []
    while waiting:
        pod = waiting.pop(0)
        counts = [sum(other.name == pod.name for other in node) for node in held]
        allowed = range(nodes)
        if how is Way.EVENLY:
            allowed = [node for node in allowed if counts[node] == min(counts)]
        fitting = [node for node in allowed if free[node] >= pod.gpus]
        if not fitting and how is Way.LARGEST_FIRST:
            # Preemption: smaller replicas leave a node, as few as make room, and wait again.
            reach = [free[node] + sum(p.gpus for p in held[node] if p.gpus < pod.gpus) for node in range(nodes)]
            fitting = [node for node in range(nodes) if reach[node] >= pod.gpus]
            if fitting:
                node = choice.choice(fitting)
                smaller = sorted((p for p in held[node] if p.gpus < pod.gpus), key=lambda p: p.gpus)
                while free[node] < pod.gpus:
                    victim = smaller.pop(0)
                    held[node].remove(victim)
                    free[node] += victim.gpus
                    waiting.append(victim)
                fitting = [node]
        if not fitting:
            stuck.append(pod.name)
            continue
        node = choice.choice(fitting)
        held[node].append(pod)
        free[node] -= pod.gpus
    return stuck


some_models = st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 5)), min_size=1, max_size=4)
any_models = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4)), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(any_models, st.integers(0, 3), st.randoms(use_true_random=False))
def test_every_replica_finds_a_node_in_any_order(
    models: list[tuple[int, int]], more: int, choice: random.Random
) -> None:
    """The scheduler is played by chance: any order, any node that the rules allow."""
    wanted = demands(*models)
    nodes = nodes_needed(NODE, wanted) + more
    how = way(NODE, nodes, wanted)
    if how is None:
        return  # a node more may take one way away and open another: the plan then adds nodes
    pods = [each for each in wanted for _ in range(each.replicas)]
    choice.shuffle(pods)
    assert schedule(nodes, pods, how, choice) == [], f"{how} on {nodes} nodes"


def test_the_scheduler_that_plays_by_chance_does_strand_replicas_without_a_rule() -> None:
    """Or the test above could not fail."""
    models = demands((8, 1), (4, 2))
    small_first = [models[1], models[1], models[0]]
    chances = [random.Random(seed) for seed in range(20)]  # noqa: S311  nothing secret
    outcomes = {bool(schedule(2, small_first, Way.ANYWHERE, chance)) for chance in chances}
    assert outcomes == {True, False}, "apart on two nodes, the small replicas leave no whole node"
    for chance in chances:
        assert not schedule(2, small_first, Way.LARGEST_FIRST, chance)


@given(some_models)
def test_replicas_of_power_of_two_sizes_leave_no_gap(models: list[tuple[int, int]]) -> None:
    assert nodes_needed(NODE, demands(*models)) == -(-sum(gpus * count for gpus, count in models) // NODE)


def test_a_replica_never_spans_nodes() -> None:
    assert nodes_needed(NODE, demands((3, 4))) == 2, "12 GPUs, but only two threes fit on eight"
    assert nodes_needed(NODE, demands((3, 5))) == 3


def test_sizes_that_do_not_divide_each_other_get_nodes_until_no_order_can_strand_one() -> None:
    assert nodes_needed(NODE, demands((3, 2), (5, 2))) == 2, "a five and a three on each node: evenly"
    assert nodes_needed(NODE, demands((3, 2), (5, 1))) == 2
    assert nodes_needed(NODE, demands((3, 3), (5, 1))) == 3, "two threes on each of two nodes would leave no five room"


@pytest.mark.parametrize(
    ("nodes", "models", "how", "held"),
    [
        (1, [(4, 2)], Way.ANYWHERE, [{"a": 2}]),
        (2, [(4, 2)], Way.ANYWHERE, [{"a": 1}] * 2),
        (2, [(4, 2), (4, 2)], Way.EVENLY, [{"a": 1, "b": 1}] * 2),
        (2, [(4, 2), (2, 4)], Way.EVENLY, [{"a": 1, "b": 2}] * 2),
        (2, [(8, 1), (4, 1)], Way.ANYWHERE, [{"a": 1}, {"b": 1}]),
        (2, [(8, 1), (4, 2)], Way.LARGEST_FIRST, [{"a": 1}, {"b": 2}]),
        (3, [(4, 4), (8, 1)], Way.LARGEST_FIRST, [{"b": 1}, {"a": 2}, {"a": 2}]),
        (2, [(4, 3), (2, 2)], Way.LARGEST_FIRST, [{"a": 2}, {"a": 1, "b": 2}]),
        (3, [(8, 1), (4, 2)], Way.ANYWHERE, [{"a": 1}, {"b": 1}, {"b": 1}]),
    ],
)
def test_the_plan_says_which_replicas_share_a_node(
    nodes: int, models: list[tuple[int, int]], how: Way, held: list[dict[str, int]]
) -> None:
    assert way(NODE, nodes, demands(*models)) is how
    assert contents(nodes, *models) == held


@settings(max_examples=200, deadline=None)
@given(any_models, st.integers(0, 2))
def test_the_nodes_of_the_plan_hold_every_replica_and_nothing_twice(models: list[tuple[int, int]], more: int) -> None:
    wanted = demands(*models)
    nodes = nodes_needed(NODE, wanted) + more
    if way(NODE, nodes, wanted) is None:
        return
    placed = pool_placement("pool", NODE, nodes, wanted)
    assert sum(kind.count for kind in placed.nodes) == nodes
    for each in wanted:
        assert sum(kind.count * kind.replicas.get(each.name, 0) for kind in placed.nodes) == each.replicas
    gpus = {each.name: each.gpus for each in wanted}
    for kind in placed.nodes:
        assert kind.idle_gpus == NODE - sum(gpus[name] * count for name, count in kind.replicas.items())
        assert kind.idle_gpus >= 0


def _places(nodes: int, *models: tuple[int, int]) -> list[Place]:
    return list(places(NODE, nodes, demands(*models)).values())


def test_a_free_place_counts_once_whoever_shares_the_pool() -> None:
    assert [place.spare for place in _places(1, (4, 1))] == [True]
    assert [place.spare for place in _places(1, (4, 2))] == [False], "8 of 8 GPUs"
    assert [place.spare for place in _places(1, (2, 1), (2, 1), (2, 1))] == [True, False, False], "2 GPUs are free"
    assert [place.spare for place in _places(2, (4, 2), (2, 2))] == [False, True], "2 free on each node"
    assert [place.spare for place in _places(2, (8, 1), (4, 2))] == [False, False]


@settings(max_examples=200, deadline=None)
@given(some_models, st.integers(0, 2), st.randoms(use_true_random=False))
def test_spare_places_are_there_for_all_at_once(
    models: list[tuple[int, int]], more: int, choice: random.Random
) -> None:
    """Every model that was promised one surges in the same update, in any order."""
    wanted = demands(*models)
    nodes = nodes_needed(NODE, wanted) + more
    how = way(NODE, nodes, wanted)
    if how is None:
        return
    granted = places(NODE, nodes, wanted)
    pods = [each for each in wanted for _ in range(each.replicas + granted[each.name].spare)]
    choice.shuffle(pods)
    assert schedule(nodes, pods, how, choice) == []


@pytest.mark.parametrize(
    ("nodes", "models", "down"),
    [
        (1, [(4, 2)], [2]),  # the first evicted waits for the node, and a budget of 1 would block the second
        (2, [(4, 2)], [1]),
        (2, [(4, 3)], [1]),  # one of two goes to the other node, the next waits
        (2, [(4, 2), (4, 2)], [1, 1]),  # both nodes are full: evicted replicas wait, those on the other node stay
        (1, [(4, 1), (2, 2)], [1, 2]),
        (2, [(8, 1), (4, 2)], [1, 2]),  # the large one comes for the places of both small ones
        (3, [(8, 2), (4, 2)], [1, 2]),
        (3, [(8, 1), (4, 2)], [1, 1]),
    ],
)
def test_a_drain_takes_at_most_what_the_other_nodes_cannot_hold(
    nodes: int, models: list[tuple[int, int]], down: list[int]
) -> None:
    assert [place.down_in_drain for place in _places(nodes, *models)] == down


@settings(max_examples=200, deadline=None)
@given(some_models, st.integers(0, 2), st.randoms(use_true_random=False))
def test_no_disruption_budget_blocks_a_drain(models: list[tuple[int, int]], more: int, choice: random.Random) -> None:
    """Evicts a node's replicas as the eviction API does, wherever chance has put them, and lets them find a place."""
    wanted = demands(*models)
    nodes = nodes_needed(NODE, wanted) + more
    how = way(NODE, nodes, wanted)
    if how is None:
        return
    granted = places(NODE, nodes, wanted)
    held = _placed_by_chance(nodes, wanted, how, choice)
    drained = held.pop(choice.randrange(nodes))
    waiting = dict.fromkeys((each.name for each in wanted), 0)
    leaving = list(drained)
    choice.shuffle(leaving)
    for pod in leaving:
        assert waiting[pod.name] < granted[pod.name].down_in_drain, f"{how}: {pod.name} cannot be evicted, for ever"
        for homeless in _settle(pod, held, how, choice):
            waiting[homeless.name] += 1
    for each in wanted:
        assert granted[each.name].down_in_drain <= each.replicas


def _settle(pod: Demand, held: list[list[Demand]], how: Way, choice: random.Random) -> list[Demand]:
    """Who waits for the drained node once an evicted replica has looked for a place on the others."""

    def room(node: list[Demand]) -> int:
        return NODE - sum(other.gpus for other in node if how is not Way.LARGEST_FIRST or other.gpus >= pod.gpus)

    fitting = [node for node in held if room(node) >= pod.gpus] if how is not Way.EVENLY else []
    if not fitting:
        return [pod]
    node = choice.choice(fitting)
    node.append(pod)
    victims = []
    while sum(other.gpus for other in node) > NODE:
        victims.append(min(node, key=lambda other: other.gpus))
        node.remove(victims[-1])
    return [homeless for victim in victims for homeless in _settle(victim, held, how, choice)]


def _placed_by_chance(nodes: int, wanted: Sequence[Demand], how: Way, choice: random.Random) -> list[list[Demand]]:
    held: list[list[Demand]] = [[] for _ in range(nodes)]
    pods = sorted((each for each in wanted for _ in range(each.replicas)), key=lambda each: -each.gpus)
    if how is not Way.LARGEST_FIRST:
        choice.shuffle(pods)
    for pod in pods:
        counts = [sum(other.name == pod.name for other in node) for node in held]
        fitting = [
            node
            for node in range(nodes)
            if sum(other.gpus for other in held[node]) + pod.gpus <= NODE
            and (how is not Way.EVENLY or counts[node] == min(counts))
        ]
        held[choice.choice(fitting)].append(pod)
    return held
