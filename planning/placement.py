"""Which replicas stand on which node of a pool, and what the scheduler is told so that it comes out like that.

The scheduler places pods one by one, in whatever order they are made, and never moves one. Where models with replicas
of several sizes share nodes, small ones can take the last whole node from a large one for ever. Each way of placing
below is one that cannot end like that, whatever the order; the first that holds is taken.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise


class Way(StrEnum):
    """How the replicas of a pool find their nodes."""

    #: Room is left however badly the others stand. Replicas of a model stand apart where they can.
    ANYWHERE = "anywhere"
    #: Every node holds as many of a model as every other, or one more: nobody takes a place that another model needs.
    EVENLY = "evenly"
    #: Replicas fill nodes up, and a large one that finds no node takes the place of smaller ones, which move on.
    LARGEST_FIRST = "largest-first"


@dataclass(frozen=True, kw_only=True)
class Demand:
    """A model's replicas; each needs `gpus` of one node."""

    name: str
    gpus: int
    replicas: int


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """So many nodes of a pool hold the same."""

    count: int
    replicas: Mapping[str, int]  # by model
    idle_gpus: int


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one model can count on in its pool."""

    way: Way
    on_one_node: int  # replicas that one node may come to hold
    down_in_drain: int  # of them, at most so many are down at once while a node is emptied
    spare: bool  # there is a free place for one more replica, whatever the other models do


@dataclass(frozen=True, kw_only=True)
class PoolPlacement:
    """A pool's replicas, node by node."""

    pool: str
    way: Way
    nodes: tuple[Nodes, ...]  # as a first deployment fills them


def nodes_needed(gpus_per_node: int, demands: Sequence[Demand]) -> int:
    """The fewest nodes that are sure to hold every replica, in whatever order the scheduler meets them."""
    nodes = len(_fill(gpus_per_node, demands))
    while way(gpus_per_node, nodes, demands) is None:
        nodes += 1
    return nodes


def way(gpus_per_node: int, nodes: int, demands: Sequence[Demand]) -> Way | None:
    """How these replicas are placed on so many nodes; None where no way is sure to find room for all."""
    if nodes > 1 and len(demands) > 1 and _evenly(gpus_per_node, nodes, demands):
        return Way.EVENLY
    if _anywhere(gpus_per_node, nodes, demands):
        return Way.ANYWHERE
    return Way.LARGEST_FIRST if _largest_first(gpus_per_node, nodes, demands) else None


def _evenly(gpus_per_node: int, nodes: int, demands: Sequence[Demand]) -> bool:
    """Every node has room for as many of each model as the fullest node may hold."""
    return sum(-(-each.replicas // nodes) * each.gpus for each in demands) <= gpus_per_node


def _anywhere(gpus_per_node: int, nodes: int, demands: Sequence[Demand]) -> bool:
    """The other models cannot take every place that a replica fits into."""
    if nodes == 1:
        return sum(each.replicas * each.gpus for each in demands) <= gpus_per_node
    return all(each.replicas <= _left(gpus_per_node, nodes, each, demands) for each in demands)


def _left(gpus_per_node: int, nodes: int, model: Demand, demands: Sequence[Demand]) -> int:
    """Places for a model's replicas that all others leave at worst: each of them may spoil as many as it touches."""
    others = (each for each in demands if each.name != model.name)
    spoilt = sum(each.replicas * -(-each.gpus // model.gpus) for each in others)
    return max(0, nodes * (gpus_per_node // model.gpus) - spoilt)


def _largest_first(gpus_per_node: int, nodes: int, demands: Sequence[Demand]) -> bool:
    """Sizes that divide one another leave gaps of whole places only, once smaller replicas give way."""
    sizes = sorted({each.gpus for each in demands})
    if any(larger % smaller for smaller, larger in pairwise(sizes)):
        return False
    return all(
        sum(each.replicas * each.gpus // size for each in demands if each.gpus >= size)
        <= nodes * (gpus_per_node // size)
        for size in sizes
    )


def places(gpus_per_node: int, nodes: int, demands: Sequence[Demand]) -> dict[str, Place]:
    """What each model can count on, by name. `nodes` hold the demands (see `nodes_needed`)."""
    how = way(gpus_per_node, nodes, demands)
    if how is None:
        raise ValueError(f"{nodes} nodes of {gpus_per_node} GPUs are not sure to hold {demands}")
    spare: set[str] = set()
    grown = list(demands)
    for at, each in enumerate(demands):
        # A replica more of this model, beside those that were granted before it.
        tried = [*grown[:at], replace(each, replicas=each.replicas + 1), *grown[at + 1 :]]
        if how is not Way.LARGEST_FIRST and way(gpus_per_node, nodes, tried) is how:
            spare.add(each.name)
            grown = tried
    return {each.name: _place(how, gpus_per_node, nodes, each, demands, spare=each.name in spare) for each in demands}


def _place(how: Way, gpus_per_node: int, nodes: int, model: Demand, demands: Sequence[Demand], *, spare: bool) -> Place:
    if how is Way.EVENLY:
        # They wait for their node to come back: elsewhere they would stand where another model's have to.
        fullest = down = -(-model.replicas // nodes)
        return Place(way=how, on_one_node=fullest, down_in_drain=down, spare=spare)
    fullest = min(model.replicas, gpus_per_node // model.gpus)
    if how is Way.LARGEST_FIRST:
        rivals = [each for each in demands if each.gpus >= model.gpus]
        if any(each.gpus > model.gpus for each in demands):
            # Larger replicas of the node that is emptied may come for the places of all.
            return Place(way=how, on_one_node=fullest, down_in_drain=model.replicas, spare=spare)
    else:
        rivals = list(demands)
    # A pod that was evicted and finds no place counts against the disruption budget until its node is back: whatever
    # the other nodes may have no room for must be allowed to be down, or the drain stops there for ever.
    elsewhere = _left(gpus_per_node, nodes - 1, model, rivals)
    homeless = model.replicas - elsewhere
    return Place(way=how, on_one_node=fullest, down_in_drain=min(max(1, homeless), model.replicas), spare=spare)


def pool_placement(pool: str, gpus_per_node: int, nodes: int, demands: Sequence[Demand]) -> PoolPlacement:
    """What each node of a pool holds after a first deployment."""
    how = way(gpus_per_node, nodes, demands) or Way.ANYWHERE
    filled = _fill(gpus_per_node, demands) if how is Way.LARGEST_FIRST else _spread(gpus_per_node, nodes, demands)
    filled += [{} for _ in range(nodes - len(filled))]
    gpus = {each.name: each.gpus for each in demands}
    alike: dict[tuple[tuple[str, int], ...], int] = {}
    for node in filled:
        held = tuple((each.name, node[each.name]) for each in demands if node.get(each.name))
        alike[held] = alike.get(held, 0) + 1
    return PoolPlacement(
        pool=pool,
        way=how,
        nodes=tuple(
            Nodes(
                count=count,
                replicas=dict(held),
                idle_gpus=gpus_per_node - sum(gpus[name] * replicas for name, replicas in held),
            )
            for held, count in alike.items()
        ),
    )


def _fill(gpus_per_node: int, demands: Sequence[Demand]) -> list[dict[str, int]]:
    """Replicas on as few nodes as they need: the largest first, each on the first node with room."""
    free: list[int] = []
    held: list[dict[str, int]] = []
    for each in sorted(demands, key=lambda demand: -demand.gpus):
        node = 0  # those of one size that found no room on a node need not ask there again
        for _ in range(each.replicas):
            while node < len(free) and free[node] < each.gpus:
                node += 1
            if node == len(free):
                free.append(gpus_per_node)
                held.append({})
            free[node] -= each.gpus
            held[node][each.name] = held[node].get(each.name, 0) + 1
    return held


def _spread(gpus_per_node: int, nodes: int, demands: Sequence[Demand]) -> list[dict[str, int]]:
    """Replicas apart: the largest first, each on the node with the fewest of its kind, then with the most room."""
    held: list[dict[str, int]] = [{} for _ in range(nodes)]
    free = [gpus_per_node] * nodes
    for each in sorted(demands, key=lambda demand: -demand.gpus):
        queue = [(0, -free[node], node) for node in range(nodes) if free[node] >= each.gpus]
        heapq.heapify(queue)
        for _ in range(each.replicas):
            kind, _room, node = heapq.heappop(queue)
            free[node] -= each.gpus
            held[node][each.name] = kind + 1
            if free[node] >= each.gpus:
                heapq.heappush(queue, (kind + 1, -free[node], node))
    return held
