"""How many replicas and nodes a workload takes, layout by layout, and what its tokens then cost.

Nodes are paid whole, so they are filled: with `replicas` left open, a layout has as many as its nodes hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planning import serving_rate
from planning.architecture import Architecture
from planning.catalogue import VmSize
from planning.kv_cache import bisect
from planning.memory import EngineOptions, LayoutError, MemoryPlan, memory_plan, valid_tensor_parallel_sizes
from planning.serving_rate import Range, Rate, Workload

#: Costs that differ by less are a tie: the order of layouts is right for three of four pairs, and the loss small.
TIE = 0.10


@dataclass(frozen=True, kw_only=True)
class Served:
    """One layout under the whole load. Prices are US dollars; None where the VM's price is not known."""

    vm_size: str
    gpu: str
    tensor_parallel_size: int
    replicas: int
    replicas_per_node: int
    nodes: int
    users_per_replica: int  # of the busiest
    rate: Rate  # of the busiest replica
    tokens_per_second: Range  # output, of all replicas
    tokens_per_second_per_node: Range
    per_hour: float | None  # whole nodes
    per_million_output_tokens: Range | None  # with the nodes as busy as this load makes them
    per_million_tokens: Range | None  # prompt and answer together
    fastest_token_ms: float  # with a single user on a replica
    lacks: str  # what keeps it from serving the load; empty where nothing does

    @property
    def keeps_serving(self) -> bool:
        """Whether an update leaves a replica."""
        return self.replicas > 1


def serve(
    architecture: Architecture,
    vm: VmSize,
    memory: MemoryPlan,
    workload: Workload,
    options: EngineOptions,
    *,
    replicas: int | None = None,
    price_per_hour: float | None = None,
) -> Served:
    """The load on replicas like `memory`, as many as asked, else as its fewest full nodes hold.

    Ask `serving_rate.not_modelled` first.
    """
    tensor = memory.tensor_parallel_size
    per_node = max(1, vm.gpus // tensor)
    held = serving_rate.users_held(
        architecture,
        vm.gpu,
        tensor_parallel_size=tensor,
        input_tokens=workload.input_tokens,
        output_tokens=workload.output_tokens,
        options=options,
    )

    def at(users: int) -> Rate:
        return serving_rate.rate(
            architecture,
            vm.gpu,
            tensor_parallel_size=tensor,
            workload=replace(workload, users=users),
            capacity=held,
            max_num_seqs=memory.max_num_seqs,
        )

    def too_slow(rate: Rate) -> bool:
        limit = workload.max_tpot_ms
        return limit is not None and rate.time_per_output_token_ms.expected > limit

    fastest = at(1).time_per_output_token_ms.expected
    most = min(int(held), memory.max_num_seqs, serving_rate.most_users())
    each = bisect(lambda users: not too_slow(at(users)), most)
    nodes = -(-(replicas or -(-workload.users // (each or most or 1))) // per_node)
    count = replicas or nodes * per_node
    share = -(-workload.users // min(count, workload.users))
    rate = at(share)
    limit, lacks = workload.max_tpot_ms, ""
    if rate.oversubscribed:
        lacks = f"the KV cache of a replica holds {rate.max_users} users, {share} come"
    elif limit is not None and each == 0:
        lacks = f"an output token takes about {fastest:.2g} ms even for a single user, {limit:g} ms are allowed"
    elif limit is not None and too_slow(rate):
        lacks = (
            f"an output token takes about {rate.time_per_output_token_ms.expected:.2g} ms with {share} users on a "
            f"replica, {limit:g} ms are allowed"
        )
    total = _scaled(rate.tokens_per_second_per_gpu, tensor * workload.users / share)
    hourly = None if price_per_hour is None else price_per_hour * nodes
    per_output = None if hourly is None else _cost(hourly, total)
    both = (workload.input_tokens + workload.output_tokens) / workload.output_tokens
    return Served(
        vm_size=vm.name,
        gpu=vm.gpu.name,
        tensor_parallel_size=tensor,
        replicas=count,
        replicas_per_node=per_node,
        nodes=nodes,
        users_per_replica=share,
        rate=rate,
        tokens_per_second=total,
        tokens_per_second_per_node=_scaled(total, 1 / nodes),
        per_hour=hourly,
        per_million_output_tokens=per_output,
        per_million_tokens=per_output and _scaled(per_output, 1 / both),
        fastest_token_ms=fastest,
        lacks=lacks,
    )


def fitting(architecture: Architecture, vm: VmSize, options: EngineOptions) -> list[MemoryPlan]:
    """Every tensor parallel size that fits on the VM size, ascending."""
    found = []
    for size in valid_tensor_parallel_sizes(architecture, vm.gpus):
        try:
            memory = memory_plan(architecture, vm.gpu, tensor_parallel_size=size, options=options)
        except LayoutError:  # a split that vLLM would refuse
            continue
        if memory.verdict == "fits":
            found.append(memory)
    return found


def layouts(
    architecture: Architecture,
    vm: VmSize,
    memories: Sequence[MemoryPlan],
    workload: Workload,
    options: EngineOptions,
    *,
    replicas: int | None = None,
    price_per_hour: float | None = None,
) -> list[Served]:
    """The load on each of some splits."""
    return [
        serve(architecture, vm, memory, workload, options, replicas=replicas, price_per_hour=price_per_hour)
        for memory in memories
    ]


def best(found: Sequence[Served], *, alone: bool = False) -> Served | None:
    """The cheapest per token of those that serve the load, in a tie the smaller split; None where none serves it.

    Without `alone` a single replica, of which an update is an outage, is the last resort.
    """
    serving = [each for each in found if not each.lacks]
    serving = [each for each in serving if alone or each.keeps_serving] or serving
    if not serving:
        return None
    least = min(map(cost_of, serving))
    return next(each for each in serving if cost_of(each) <= least * (1 + TIE))


def closest(found: Sequence[Served]) -> Served | None:
    """Where none serves the load: the one that could be the fastest."""
    return min(found, key=lambda each: each.fastest_token_ms, default=None)


def cost_of(served: Served) -> float:
    """What orders layouts of one VM size even where its price is not known: nodes per token."""
    return served.nodes / served.tokens_per_second.expected


def _cost(per_hour: float, tokens_per_second: Range) -> Range:
    """US dollars per million tokens."""
    million_per_hour = _scaled(tokens_per_second, 3600 / 1e6)
    return Range(
        low=per_hour / million_per_hour.high,
        expected=per_hour / million_per_hour.expected,
        high=per_hour / million_per_hour.low,
    )


def _scaled(values: Range, by: float) -> Range:
    return Range(low=values.low * by, expected=values.expected * by, high=values.high * by)
