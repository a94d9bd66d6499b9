"""What a model of the stack will serve under its workload: rate, cost, and the layouts beside the decided one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planning import serving_rate, sizing
from planning.architecture import Architecture
from planning.catalogue import VmSize
from planning.findings import Finding, Severity
from planning.memory import EngineOptions
from planning.parallelism import Layout
from planning.serving_rate import Workload
from planning.sizing import Served

#: Without a workload: a chat, in tokens, with few enough users for any layout.
CHAT = Workload(input_tokens=1024, output_tokens=512, users=32)


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """One model under a load; `decided` is None, and `not_modelled` says why, where there is no answer."""

    workload: Workload
    asked: bool  # False: the default chat
    decided: Served | None
    layouts: tuple[Served, ...]  # of the VM size, tensor parallel size ascending; the decided one among them
    recommended: Served | None  # lowest cost per token, with the replicas asked for, else with as many as it takes
    not_modelled: str
    to_measure: str  # vLLM's own command
    basis: str
    notes: tuple[str, ...]


def chat_of(context: int) -> Workload:
    """The default load, shortened where the context is."""
    inputs, outputs = min(CHAT.input_tokens, context * 2 // 3), min(CHAT.output_tokens, context // 3)
    return Workload(input_tokens=max(1, inputs), output_tokens=max(1, outputs), users=CHAT.users)


def serving_plan(
    architecture: Architecture,
    vm: VmSize,
    layout: Layout,
    options: EngineOptions,
    *,
    asked_replicas: int | None,
    workload: Workload | None,
    not_modelled: str,
    model: str,
    price_per_hour: float | None,
) -> ServingPlan:
    """Of a decided layout, whose context stands in `options`; `model` is the name that clients use."""
    assert options.max_model_len is not None
    load = workload or chat_of(options.max_model_len)
    decided: Served | None = None
    tensor, price = layout.tensor_parallel_size, price_per_hour
    memories = [] if not_modelled else sizing.fitting(architecture, vm, options)
    layouts: list[Served] = []
    if memories:
        layouts = sizing.layouts(
            architecture, vm, memories, load, options, replicas=asked_replicas, price_per_hour=price
        )
        own = next(memory for memory in memories if memory.tensor_parallel_size == tensor)
        decided = sizing.serve(architecture, vm, own, load, options, replicas=layout.replicas, price_per_hour=price)
    best = sizing.best(layouts, alone=asked_replicas == 1)
    if best is None and asked_replicas is not None and decided:
        best = sizing.best(sizing.layouts(architecture, vm, memories, load, options, price_per_hour=price))
    return ServingPlan(
        workload=load,
        asked=workload is not None,
        decided=decided,
        layouts=tuple(
            decided if decided and each.tensor_parallel_size == decided.tensor_parallel_size else each
            for each in layouts
        ),
        recommended=best,
        not_modelled=not_modelled,
        to_measure=serving_rate.to_measure(load, model),
        basis=serving_rate.BASIS,
        notes=tuple(serving_rate.notes(decided.rate, decided.tensor_parallel_size)) if decided else (),
    )


def findings(serving: ServingPlan, model: str) -> Iterator[Finding]:
    """What is wrong with a load that was asked for; the default one has no say."""
    if not serving.asked:
        return
    if serving.decided is None:
        yield Finding(
            severity=Severity.NOTE,
            subject=model,
            message=f"What it serves under the workload is not modelled: {serving.not_modelled}.",
            remedy=f"Measure it: {serving.to_measure}",
        )
        return
    decided, best = serving.decided, serving.recommended
    size = decided.tensor_parallel_size
    if decided.lacks:
        yield Finding(
            severity=Severity.WARNING,
            subject=model,
            message=f"{decided.replicas} × tensor parallel size {size} does not serve the workload: {decided.lacks}.",
            remedy=_remedy(serving),
        )
    elif best is not None and best.tensor_parallel_size != size:
        more = sizing.cost_of(decided) / sizing.cost_of(best) - 1
        if more > sizing.TIE:
            yield Finding(
                severity=Severity.NOTE,
                subject=model,
                message=f"Tensor parallel size {best.tensor_parallel_size} would serve the workload for less: {size} "
                f"costs about {more:.0%} more per token.",
                remedy="Leave vllm.tensor-parallel-size and replicas out to have it chosen.",
            )


def _remedy(serving: ServingPlan) -> str:
    best, nearest = serving.recommended, sizing.closest(serving.layouts)
    if best is not None:
        nodes = f"{best.nodes} node{'s' if best.nodes > 1 else ''}"
        return f"{best.replicas} × tensor parallel size {best.tensor_parallel_size} on {nodes} does."
    assert nearest is not None
    return (
        f"No layout of {nearest.vm_size} does; closest is tensor parallel size {nearest.tensor_parallel_size}: "
        f"{nearest.lacks}. Allow more time or fewer users, or choose another vm-size or preset."
    )
