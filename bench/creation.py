"""How long it takes to make a stack, against the longest chain of what waits for each other, and against the sum.

Azure is simulated with the durations below, a second for each two minutes. They are of the right order, so that the
order of creation shows; they are no promise.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pulumi.provider.experimental import provider as sdk

from bench.figure import Figure
from planning.diff_update import CLUSTER_SECONDS
from planning.plan import read_and_decide
from planning.stack_file import from_pulumi
from sandbox.state import ResourceState
from tests.components.harness import TOKEN_KEY, stack_config
from tests.sandbox.faulty import Passing, World

#: Seconds of Azure for one of ours.
FASTER = 120
#: Seconds until a resource exists. The cluster's is docs/deploy.md's; the pool's and the replicas' are the plan's own
#: start-up budget; the others are assumed.
ASSUMED = {
    "NatGateway": 30,
    "PublicIPAddress": 10,
    "VirtualNetwork": 15,
    "MaintenanceConfiguration": 10,
    "edge-deployment": 30,
    "edge-service": 60,
}
OTHERS = 3

STACKS: Mapping[str, Mapping[str, object]] = {
    "one model": {},
    "two models, two pools": {
        "preset": None,
        "models": {"chat": {"preset": "llama-3.3-70b-instruct"}, "small": {"preset": "qwen3-8b"}},
    },
    "weights in a storage account": {"weights": {"source": "azure-blob"}},
}


@dataclass
class _Slow(Passing):
    """Every creation takes its time, and tells how long it took."""

    seconds: Mapping[str, float]
    taken: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    async def create(self, request: sdk.CreateRequest) -> sdk.CreateResponse:
        if request.preview:
            return await self.provider.create(request)
        begun = time.monotonic()
        name = request.urn.rsplit("::", 1)[1]
        await asyncio.sleep(self.seconds.get(name, self.seconds.get(_kind(request.urn), OTHERS)) / FASTER)
        response = await self.provider.create(request)
        with self._lock:
            self.taken[request.urn] = time.monotonic() - begun
        return response


def figures() -> list[Figure]:
    """For each stack the wall time over its longest chain."""
    return [_measured(name, settings) for name, settings in STACKS.items()]


def _measured(name: str, settings: Mapping[str, object]) -> Figure:
    config = stack_config(settings)
    plan = read_and_decide(from_pulumi(config, [TOKEN_KEY], "test"))
    budget = max((model.startup for model in plan.models), key=lambda each: each.total_seconds)
    seconds = {
        **ASSUMED,
        "ManagedCluster": CLUSTER_SECONDS,
        "AgentPool": budget.node_seconds,
        "Deployment": budget.total_seconds - budget.node_seconds,
        "Job": budget.upload_seconds,
    }
    taken: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), config=config, through=lambda provider: _Slow(provider, seconds, taken))
        world.run("preview")  # what is imported then is not measured
        begun = time.monotonic()
        world.run("up")
        wall = time.monotonic() - begun
        chain = longest_chain(world.store.load(), taken)
    longest, total = sum(taken[urn] for urn in chain), sum(taken.values())
    minutes = FASTER / 60
    print(f"{name}: {' → '.join(urn.rsplit('::', 1)[1] for urn in chain)}", file=sys.stderr)
    return Figure(
        what=f"making a stack ({name}) over its longest chain",
        command="make bench ARGS=creation",
        value=wall / longest,
        limit=1.25,
        detail=f"{wall * minutes:.0f} min; chain {longest * minutes:.0f}, one after the other {total * minutes:.0f}",
    )


def longest_chain(state: Iterable[ResourceState], taken: Mapping[str, float]) -> list[str]:
    """URNs of the creations that together decide how long it takes, first to last."""
    ends: dict[str, tuple[float, list[str]]] = {}
    for resource in state:  # dependencies come first
        before = [*resource.dependencies, resource.provider.rpartition("::")[0]]
        waited, chain = max((ends[urn] for urn in before if urn in ends), key=lambda end: end[0], default=(0.0, []))
        own = taken.get(resource.urn)
        ends[resource.urn] = (waited, chain) if own is None else (waited + own, [*chain, resource.urn])
    return max(ends.values(), key=lambda end: end[0])[1]


def _kind(urn: str) -> str:
    return urn.split("::")[2].rsplit("$", 1)[-1].rsplit(":", 1)[-1]
