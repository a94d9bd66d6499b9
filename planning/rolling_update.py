"""What replicas go through while a Deployment takes up a new version: who serves meanwhile, and whether it ever ends.

A simulation of the Deployment controller and the scheduler on whole GPUs, for all models of a stack at once, since they
share nodes. Source of its rules: pkg/controller/deployment of kubernetes/kubernetes (`sync.go`: a change of `replicas`
first scales what is there; `rolling.go`: `reconcileNewReplicaSet`, `reconcileOldReplicaSets`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """A model's replicas, as they are or as they shall be. `gpus` is of one replica."""

    pool: str
    count: int
    gpus: int
    max_surge: int = 0
    max_unavailable: int = 1


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Nodes that replicas find during the update; the autoscaler's most where it may add some."""

    nodes: int
    gpus_per_node: int


@dataclass(frozen=True, kw_only=True)
class Course:
    """What an update is for one model."""

    fewest_ready: int  # at any moment between the old version and the new one
    stuck: bool  # replicas wait for GPUs that nobody gives back: the update fails when Pulumi's time is over


@dataclass(eq=False)
class _Pod:
    model: str
    new: bool
    pool: str
    gpus: int
    node: int | None = None
    ready: bool = False


@dataclass
class _World:
    pools: Mapping[str, Pool]
    pods: list[_Pod] = field(default_factory=list)

    def of(self, model: str, *, new: bool | None = None) -> list[_Pod]:
        return [pod for pod in self.pods if pod.model == model and new in (None, pod.new)]

    def schedule(self) -> bool:
        """Give every waiting pod the emptiest node that holds it, as the spread asks for; whether one got a node."""
        moved = False
        for pod in self.pods:
            if pod.node is not None:
                continue
            free = self._free(pod.pool)
            fitting = [node for node, left in enumerate(free) if left >= pod.gpus]
            if fitting:
                pod.node = max(fitting, key=free.__getitem__)
                moved = True
        return moved

    def _free(self, pool: str) -> list[int]:
        there = self.pools[pool]
        free = [there.gpus_per_node] * there.nodes
        for pod in self.pods:
            if pod.pool == pool and pod.node is not None:
                free[pod.node] -= pod.gpus
        return free

    def add(self, model: str, replicas: Replicas, count: int, *, new: bool) -> None:
        self.pods += [_Pod(model, new, replicas.pool, replicas.gpus) for _ in range(count)]

    def remove(self, candidates: list[_Pod], count: int) -> None:
        """Those that do not serve first, then those that share their node with most of their kind."""

        def rank(pod: _Pod) -> tuple[bool, int]:
            return pod.ready, -sum(other.node == pod.node for other in candidates)

        for pod in sorted(candidates, key=rank)[:count]:
            self.pods.remove(pod)


def simulate(
    before: Mapping[str, Replicas],
    after: Mapping[str, Replicas],
    rolled: Collection[str],
    pools: Mapping[str, Pool],
) -> dict[str, Course]:
    """The course of every model of `after`. `rolled` names those whose pods change; the others are scaled only.

    Models that are in `before` alone keep their GPUs to the end: Pulumi deletes last.
    """
    world = _World(pools)
    for name, replicas in before.items():
        world.add(name, replicas, replicas.count, new=False)
    world.schedule()
    for pod in world.pods:
        pod.ready = pod.node is not None
    fewest = {name: sum(pod.ready for pod in world.of(name)) for name in after}
    # A change of `replicas` scales the version that is there, before any replica of the new one exists.
    for name, wanted in after.items():
        if name in before:
            surplus = len(world.of(name)) - wanted.count
            world.remove(world.of(name), surplus)
            world.add(name, before[name], -surplus, new=False)
        else:
            world.add(name, wanted, wanted.count, new=True)
    moved = True
    while moved:
        moved = False
        for name, wanted in after.items():
            if name in rolled and name in before:
                moved |= _step(world, name, wanted)
            fewest[name] = min(fewest[name], sum(pod.ready for pod in world.of(name)))
        moved |= world.schedule()
        for pod in world.pods:
            pod.ready = pod.node is not None
    return {
        name: Course(
            fewest_ready=fewest[name],
            stuck=sum(pod.ready for pod in world.of(name, new=name in rolled or name not in before)) < wanted.count,
        )
        for name, wanted in after.items()
    }


def _step(world: _World, name: str, wanted: Replicas) -> bool:
    """One turn of the controller: more of the new version as far as the surge allows, then fewer of the old."""
    old, new = world.of(name, new=False), world.of(name, new=True)
    room = min(wanted.count + wanted.max_surge - len(old) - len(new), wanted.count - len(new))
    if room > 0:
        world.add(name, wanted, room, new=True)
        return True
    least = wanted.count - wanted.max_unavailable
    spare = len(old) + len(new) - least - sum(not pod.ready for pod in new)
    if not old or spare <= 0:
        return False
    waiting = [pod for pod in old if not pod.ready][:spare]
    for pod in waiting:
        world.pods.remove(pod)
    surplus = sum(pod.ready for pod in world.of(name)) - least
    world.remove(world.of(name, new=False), max(0, surplus))
    return bool(waiting) or surplus > 0
