"""Layout: tensor parallel size and replicas, chosen by what the memory plan leaves for the KV cache."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from planning import catalogue, sizing
from planning.architecture import Architecture
from planning.catalogue import VmSize
from planning.findings import Finding, Severity
from planning.memory import (
    GIB,
    SUBJECT,
    EngineOptions,
    LayoutError,
    MemoryPlan,
    check_tensor_parallel_size,
    highest_utilization,
    memory_plan,
    valid_tensor_parallel_sizes,
)
from planning.serving_rate import Workload

__all__ = ["Alternative", "Layout", "LayoutError", "alternatives", "choose_layout", "sizes_that_hold"]

#: Requests of max_model_len that a replica should hold at once: a batch, as a GPU reads all weights for every step.
COMFORTABLE_CONCURRENCY = 8
#: With fewer, a second request waits for the first to end; not even a second replica on the node is worth that.
LEAST_CONCURRENCY = 2

#: A context that is lowered to fit is a multiple of this many tokens, and never less.
CONTEXT_STEP = 1024

#: Stages answer one request no faster than one GPU does, so they stand beside a tensor split of as many GPUs only where
#: that holds no batch, and they this many times its tokens (a tensor split copies a latent KV cache to each GPU).
STAGES_GAIN = 1.1

#: The first compute capability that calculates in fp8: https://docs.nvidia.com/cuda/cuda-programming-guide (Ada)
FP8_CAPABILITY = (8, 9)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a model's replicas go."""

    vm_size: str
    pool: str  # GpuPoolPlan.name
    tensor_parallel_size: int
    pipeline_parallel_size: int
    replicas: int
    gpus_per_replica: int
    replicas_per_node: int  # how many of this model one empty node holds
    reason: str  # one sentence: why this layout


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One way to fill a node with replicas of a model, all of the context that was decided."""

    tensor_parallel_size: int
    pipeline_parallel_size: int
    replicas_per_node: int
    kv_cache_dtype: str
    fits: bool  # at max_model_len; where not, longest_max_model_len would
    max_model_len: int
    kv_cache_tokens: int  # of one replica
    kv_cache_tokens_per_node: int
    max_concurrency: float  # requests of max_model_len in one replica
    max_concurrency_per_node: float
    longest_max_model_len: int
    keeps_serving: bool  # while an update replaces the replicas of a full node
    replica_per_hour: float | None  # US dollars, its share of a full node; None: price not known
    chosen: bool
    trade: str  # one sentence: against the chosen one; of the chosen one, why


def choose_layout(
    architecture: Architecture,
    vm: VmSize,
    *,
    replicas: int | None,
    tensor_parallel_size: int | None,
    pipeline_parallel_size: int | None,
    options: EngineOptions,
    workload: Workload | None = None,
) -> tuple[Layout, MemoryPlan]:
    """The layout on one VM size, and the memory plan of one of its replicas.

    With a `workload` (one that `serving_rate` models): the lowest cost per token that serves it, on full nodes. Where
    there is none, or no layout serves it:

    Tensor parallel size: as asked, else the smallest that holds a batch of requests of the whole context, but not so
    large that the node no longer holds two replicas, where those hold two requests each. Without
    `options.max_model_len` the context is the model's own, or the longest that fits. Replicas: as asked, else two where
    one node holds two. A replica never spans nodes. Raises LayoutError.
    """
    stages = 1 if pipeline_parallel_size is None else pipeline_parallel_size
    _check(architecture, vm, replicas, tensor_parallel_size, stages, options)
    if workload is not None and stages == 1:
        served = _choose_for(architecture, vm, replicas, tensor_parallel_size, options, workload)
        if served is not None:
            return served
    sizes = (
        valid_tensor_parallel_sizes(architecture, vm.gpus // stages)
        if tensor_parallel_size is None
        else (tensor_parallel_size,)
    )
    plans: list[MemoryPlan] = []
    for size in sizes:
        plan = memory_plan(
            architecture, vm.gpu, tensor_parallel_size=size, pipeline_parallel_size=stages, options=options
        )
        plans.append(plan)
        if plan.verdict == "fits" and plan.max_concurrency >= COMFORTABLE_CONCURRENCY:
            break
    pair = replicas != 1 and tensor_parallel_size is None
    chosen = _choose(architecture, vm, plans, options, pair=pair, asked=tensor_parallel_size is not None)
    gpus = chosen.tensor_parallel_size * stages
    per_node = vm.gpus // gpus
    layout = Layout(
        vm_size=vm.name,
        pool=vm.pool,
        tensor_parallel_size=chosen.tensor_parallel_size,
        pipeline_parallel_size=stages,
        replicas=min(2, per_node) if replicas is None else replicas,
        gpus_per_replica=gpus,
        replicas_per_node=per_node,
        reason=_reason(chosen, plans, asked=tensor_parallel_size is not None),
    )
    return layout, chosen


def _choose_for(
    architecture: Architecture,
    vm: VmSize,
    replicas: int | None,
    tensor_parallel_size: int | None,
    options: EngineOptions,
    workload: Workload,
) -> tuple[Layout, MemoryPlan] | None:
    """The layout that serves a workload at the lowest cost per token; None where none serves it."""
    asked = tensor_parallel_size is not None
    plans: dict[int, MemoryPlan] = {}
    for size in (tensor_parallel_size,) if asked else valid_tensor_parallel_sizes(architecture, vm.gpus):
        try:
            plan = memory_plan(architecture, vm.gpu, tensor_parallel_size=size, options=options)
            plan = _choose(architecture, vm, [plan], options, pair=False, asked=asked)
        except LayoutError:
            continue
        if plan.max_model_len >= workload.input_tokens + workload.output_tokens:
            plans[size] = plan
    found = sizing.layouts(architecture, vm, list(plans.values()), workload, options, replicas=replicas)
    best = sizing.best(found, alone=replicas == 1)
    if best is None:
        return None
    size = best.tensor_parallel_size
    layout = Layout(
        vm_size=vm.name,
        pool=vm.pool,
        tensor_parallel_size=size,
        pipeline_parallel_size=1,
        replicas=best.replicas,
        gpus_per_replica=size,
        replicas_per_node=best.replicas_per_node,
        reason=_reason_for(best, found, asked=asked),
    )
    return layout, plans[size]


def _reason_for(best: sizing.Served, found: list[sizing.Served], *, asked: bool) -> str:
    """One sentence with what decided: the load, and the next best."""
    each = f"{best.rate.time_per_output_token_ms.expected:.2g} ms a token"
    load = f"the workload with {best.users_per_replica} users on a replica and about {each}"
    size = best.tensor_parallel_size
    if asked:
        return f"Tensor parallel size {size} as asked; it serves {load}."
    words = f"Tensor parallel size {size} serves {load} at the lowest cost per token"
    others = sorted((other for other in found if other is not best), key=sizing.cost_of)
    compared = []
    for other in others[:2]:
        more = sizing.cost_of(other) / sizing.cost_of(best) - 1
        if other.lacks:
            compared.append(f"{other.tensor_parallel_size} does not serve it")
        elif more > sizing.TIE:
            compared.append(f"{other.tensor_parallel_size} costs {more:.0%} more")
        elif more < -sizing.TIE:
            compared.append(f"{other.tensor_parallel_size} costs {-more:.0%} less, but is a single replica")
        else:
            compared.append(f"{other.tensor_parallel_size} costs about the same")
    return f"{words}; {', '.join(compared)}." if compared else f"{words}: it is the only one that fits."


def alternatives(
    architecture: Architecture,
    vm: VmSize,
    *,
    layout: Layout,
    memory: MemoryPlan,
    options: EngineOptions,
    price_per_hour: float | None,
) -> tuple[Alternative, ...]:
    """What else one node could hold, and what was chosen; GPUs of a replica ascending.

    `layout`, `memory` and `options` as decided; `price_per_hour` of the node in US dollars. Splits that hold no useful
    context are left out, stages where a tensor split of as many GPUs is as good.
    """
    options = replace(options, max_model_len=memory.max_model_len)
    decided = (memory.tensor_parallel_size, memory.pipeline_parallel_size, memory.kv_cache_dtype)
    plans: dict[tuple[int, int, str], MemoryPlan] = {}
    for stages in range(1, min(vm.gpus, architecture.layers) + 1):
        for tensor in valid_tensor_parallel_sizes(architecture, vm.gpus // stages):
            if vm.gpus % (tensor * stages) and (tensor, stages) != decided[:2]:
                continue  # GPUs that no replica could use
            for dtype in _kv_cache_dtypes(architecture, vm, options):
                plan = _try(architecture, vm, tensor, stages, replace(options, kv_cache_dtype=dtype))
                if plan is not None and plan.longest_max_model_len >= CONTEXT_STEP:
                    plans[tensor, stages, plan.kv_cache_dtype] = plan
    plans[decided] = memory
    best: dict[tuple[int, str], MemoryPlan] = {}  # of the fewest stages that are worth it, by GPUs and KV cache dtype
    kept = []
    for (tensor, stages, dtype), plan in sorted(plans.items(), key=lambda item: item[0][1]):
        alike = plans.get((tensor, stages, memory.kv_cache_dtype))
        if alike is not None and alike is not plan and alike.kv_cache_tokens == plan.kv_cache_tokens:
            continue  # attention that stores its own format whatever is asked
        known = best.get((tensor * stages, dtype))
        if known is None or plan is memory or _worth_stages(plan, known):
            best[tensor * stages, dtype] = plan
            kept.append(plan)
    chosen = _alternative(vm, memory, price_per_hour, None, layout.reason)
    found = [
        chosen if plan is memory else _alternative(vm, plan, price_per_hour, chosen, "")
        for plan in sorted(kept, key=lambda plan: _order(plan, memory))
    ]
    return tuple(found)


def _worth_stages(plan: MemoryPlan, fewer: MemoryPlan) -> bool:
    """Whether more stages hold what fewer on as many GPUs do not."""
    return (
        fewer.max_concurrency < COMFORTABLE_CONCURRENCY and plan.kv_cache_tokens >= STAGES_GAIN * fewer.kv_cache_tokens
    )


def _order(plan: MemoryPlan, chosen: MemoryPlan) -> tuple[bool, int, int]:
    """What was decided about the KV cache first, then the others; small replicas before large ones."""
    tensor, stages = plan.tensor_parallel_size, plan.pipeline_parallel_size
    return plan.kv_cache_dtype != chosen.kv_cache_dtype, tensor * stages, stages


def _kv_cache_dtypes(architecture: Architecture, vm: VmSize, options: EngineOptions) -> tuple[str | None, ...]:
    """The dtype as decided, and the other one of auto and fp8, where the GPU calculates in it."""
    dtype = options.kv_cache_dtype
    if architecture.kv_cache_dtype == "fp8" and dtype in (None, "auto"):
        return (dtype,)
    if dtype and dtype.startswith("fp8"):
        return dtype, None
    capability = tuple(map(int, vm.gpu.compute_capability.split(".")))
    return (dtype, "fp8") if capability >= FP8_CAPABILITY else (dtype,)


def _try(architecture: Architecture, vm: VmSize, tensor: int, stages: int, options: EngineOptions) -> MemoryPlan | None:
    """A replica's memory; None for a split that vLLM would refuse on every GPU."""
    try:
        return memory_plan(
            architecture, vm.gpu, tensor_parallel_size=tensor, pipeline_parallel_size=stages, options=options
        )
    except LayoutError:
        return None


def _alternative(
    vm: VmSize, plan: MemoryPlan, price_per_hour: float | None, chosen: Alternative | None, reason: str
) -> Alternative:
    """A full node of such replicas; against `chosen`, or, where that is None, the chosen one itself."""
    per_node = vm.gpus // (plan.tensor_parallel_size * plan.pipeline_parallel_size)
    found = Alternative(
        tensor_parallel_size=plan.tensor_parallel_size,
        pipeline_parallel_size=plan.pipeline_parallel_size,
        replicas_per_node=per_node,
        kv_cache_dtype=plan.kv_cache_dtype,
        fits=plan.verdict == "fits",
        max_model_len=plan.max_model_len,
        kv_cache_tokens=plan.kv_cache_tokens,
        kv_cache_tokens_per_node=plan.kv_cache_tokens * per_node,
        max_concurrency=plan.max_concurrency,
        max_concurrency_per_node=plan.max_concurrency * per_node,
        longest_max_model_len=plan.longest_max_model_len,
        keeps_serving=per_node > 1,
        replica_per_hour=None if price_per_hour is None else round(price_per_hour / per_node, 2),
        chosen=chosen is None,
        trade=reason,
    )
    return found if chosen is None else replace(found, trade=_trade(found, chosen))


def _trade(other: Alternative, chosen: Alternative) -> str:
    """What one would get and give for another layout; both fill a node."""
    if not other.fits:
        return f"Does not hold {other.max_model_len:,} tokens, only {other.longest_max_model_len:,}."
    node = other.kv_cache_tokens_per_node / max(1, chosen.kv_cache_tokens_per_node)
    words = [f"the node holds {node:.2f} × the KV tokens"]
    if other.replicas_per_node != chosen.replicas_per_node:
        words += [
            f"a replica {other.kv_cache_tokens / max(1, chosen.kv_cache_tokens):.2f} ×",
            f"{other.replicas_per_node} replica{'s' if other.replicas_per_node > 1 else ''} instead of "
            f"{chosen.replicas_per_node}",
        ]
    if other.keeps_serving != chosen.keeps_serving:
        words.append("an update keeps serving" if other.keeps_serving else "an update is an outage")
    if other.replica_per_hour != chosen.replica_per_hour:
        words.append(
            f"a replica costs ${other.replica_per_hour:,.2f} an hour instead of ${chosen.replica_per_hour:,.2f}"
        )
    if other.kv_cache_dtype != chosen.kv_cache_dtype and other.kv_cache_dtype.startswith("fp8"):
        words.append("keys and values lose precision")
    text = ", ".join(words)
    return f"{text[0].upper()}{text[1:]}."


def sizes_that_hold(architecture: Architecture, options: EngineOptions) -> tuple[str, ...]:
    """VM sizes that hold one replica, cheapest known price first, sizes without a price last."""

    def holds(vm: VmSize) -> bool:
        return any(
            _held(memory_plan(architecture, vm.gpu, tensor_parallel_size=size, options=options), options)
            for size in reversed(valid_tensor_parallel_sizes(architecture, vm.gpus))
        )

    sizes = [vm for vm in map(catalogue.vm_size, catalogue.vm_size_names()) if holds(vm)]
    sizes.sort(key=lambda vm: (vm.cheapest_price is None, vm.cheapest_price or 0.0))
    return tuple(vm.name for vm in sizes)


def _held(plan: MemoryPlan, options: EngineOptions) -> bool:
    """Whether a plan can be deployed, if need be with a context that nobody asked for lowered."""
    return plan.verdict == "fits" or (options.max_model_len is None and plan.longest_max_model_len >= CONTEXT_STEP)


def _check(
    architecture: Architecture,
    vm: VmSize,
    replicas: int | None,
    tensor_parallel_size: int | None,
    stages: int,
    options: EngineOptions,
) -> None:
    """Raises LayoutError for what no memory plan can mend."""
    if replicas is not None and replicas < 1:
        raise LayoutError(key="replicas", value=replicas, limit="at least 1", remedy="remove the model to serve none")
    length = options.max_model_len
    if length is not None and length > architecture.native_context:
        raise LayoutError(
            key="max-model-len",
            value=length,
            limit=f"the model was made for {architecture.native_context} tokens",
            remedy=f"set it to {architecture.native_context} or lower",
        )
    utilization = options.gpu_memory_utilization
    highest = highest_utilization(vm.gpu.memory_gib)
    if utilization is not None and utilization > highest:
        raise LayoutError(
            key="vllm.gpu-memory-utilization",
            value=utilization,
            limit=f"at most {highest:g}: CUDA takes the rest of the {vm.gpu.memory_gib:g} GiB before vLLM starts",
            remedy=f"set it to {highest:g} or lower, or leave it out",
        )
    if stages < 1 or stages > vm.gpus:
        raise LayoutError(
            key="vllm.pipeline-parallel-size",
            value=stages,
            limit=f"a replica stays on one node, and {vm.name} has {_gpus(vm.gpus)}",
            remedy="leave it out: one node needs no pipeline stages",
        )
    if tensor_parallel_size is not None and tensor_parallel_size * stages > vm.gpus:
        staged = f" in each of {stages} pipeline stages" if stages > 1 else ""
        fitting = valid_tensor_parallel_sizes(architecture, vm.gpus // stages)
        raise LayoutError(
            key="vllm.tensor-parallel-size",
            value=tensor_parallel_size,
            limit=f"{_gpus(tensor_parallel_size)}{staged}, but a replica stays on one node and {vm.name} has {vm.gpus}",
            remedy=f"use one of {', '.join(map(str, fitting))}, or leave it out",
        )
    if tensor_parallel_size is not None:
        check_tensor_parallel_size(architecture, tensor_parallel_size, limit=vm.gpus // stages)


def _choose(
    architecture: Architecture, vm: VmSize, plans: list[MemoryPlan], options: EngineOptions, *, pair: bool, asked: bool
) -> MemoryPlan:
    """The plan to deploy: the widest one tried, or the widest of which a node holds a pair; else a lowered context."""
    fitting = [plan for plan in plans if plan.verdict == "fits"]
    pairs = [plan for plan in fitting if _is_pair(plan, vm)] if pair else []
    if pairs or fitting:
        return (pairs or fitting)[-1]
    best = max(plans, key=lambda plan: plan.longest_max_model_len)
    if _held(best, options):
        # A default must start: it keeps clear of what the estimates may be off by, where that leaves a context at all.
        unsure = math.ceil(best.error_gib * GIB / best.kv_bytes_per_token)
        lowered = max(CONTEXT_STEP, (best.longest_max_model_len - unsure) // CONTEXT_STEP * CONTEXT_STEP)
        plan = memory_plan(
            architecture,
            vm.gpu,
            tensor_parallel_size=best.tensor_parallel_size,
            pipeline_parallel_size=best.pipeline_parallel_size,
            options=replace(options, max_model_len=lowered),
        )
        note = Finding(
            severity=Severity.NOTE,
            subject=SUBJECT,
            message=f"The context is {lowered:,} tokens, not the model's {architecture.native_context:,}: no more fit "
            f"safely on {_gpus(best.tensor_parallel_size * best.pipeline_parallel_size)} of {vm.name}.",
            remedy="Set max-model-len to keep it from changing with the VM size.",
        )
        return replace(plan, findings=(note, *plan.findings))
    raise _does_not_fit(architecture, vm, best, options, asked=asked)


def _is_pair(plan: MemoryPlan, vm: VmSize) -> bool:
    """Whether one node holds two such replicas, and each of them is of use."""
    gpus = plan.tensor_parallel_size * plan.pipeline_parallel_size
    return 2 * gpus <= vm.gpus and plan.max_concurrency >= LEAST_CONCURRENCY


def _does_not_fit(
    architecture: Architecture, vm: VmSize, best: MemoryPlan, options: EngineOptions, *, asked: bool
) -> LayoutError:
    """What to change: the split if that was asked for, the context, or the VM size."""
    sizes = sizes_that_hold(architecture, options)
    why = best.findings[0].message.rstrip(".")
    if asked and vm.name in sizes:
        return LayoutError(
            key="vllm.tensor-parallel-size",
            value=best.tensor_parallel_size,
            limit=f"the model does not fit: {why}",
            remedy=f"leave it out: {vm.name} holds the model with a larger one",
        )
    choose = (
        f"one of the VM sizes that hold it: {', '.join(sizes)}" if sizes else "a smaller model: no VM size holds it"
    )
    if options.max_model_len is not None and best.longest_max_model_len >= CONTEXT_STEP:
        return LayoutError(
            key="max-model-len",
            value=options.max_model_len,
            limit=f"at most {best.longest_max_model_len} tokens fit on {vm.name}: {why}",
            remedy=f"set it to {best.longest_max_model_len} or lower, or use {choose}",
        )
    limit = f"cannot serve the model, with tensor parallel size {best.tensor_parallel_size} at best: {why}"
    return LayoutError(key="vm-size", value=vm.name, limit=limit, remedy=f"use {choose}")


def _reason(chosen: MemoryPlan, plans: list[MemoryPlan], *, asked: bool) -> str:
    """One sentence with the numbers that decided."""
    size = chosen.tensor_parallel_size
    holds = f"holds {chosen.max_concurrency:.1f} requests of {chosen.max_model_len:,} tokens at once"
    if asked:
        return f"Tensor parallel size {size} as asked; it {holds}."
    smaller = [plan for plan in plans if plan.tensor_parallel_size < size]
    larger = [plan for plan in plans if plan.tensor_parallel_size > size]
    if larger:
        return f"Tensor parallel size {size} {holds}; with {larger[-1].tensor_parallel_size} a node has one replica."
    if chosen.max_concurrency < COMFORTABLE_CONCURRENCY:
        return f"Tensor parallel size {size} is the largest that this VM size allows; it {holds}."
    if not smaller:
        return f"Tensor parallel size {size} is enough; it {holds}."
    last = smaller[-1]
    room = f"has room for {last.max_concurrency:.1f}" if last.num_blocks else "has no room for a KV cache"
    return f"Tensor parallel size {size} {holds}; {last.tensor_parallel_size} {room}."


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
