"""What a person should know about a memory plan: why vLLM would not start, and what could surprise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from planning.architecture import Architecture
from planning.catalogue import Gpu
from planning.findings import Finding, Severity
from planning.memory_rules import Constants

if TYPE_CHECKING:
    from planning.memory import MemoryPlan

GIB = 1 << 30

#: Findings are written before the model has a name in the stack; `decide()` puts that in its place.
SUBJECT = "model"

#: S at which the sampler's share is quoted as a remedy: vLLM's default on smaller cards.
FEWER_SEQS = 256


def has_no_kernel(architecture: Architecture, known: Constants, gpu: Gpu) -> bool:
    """Whether vLLM refuses this model's attention on this generation of GPUs, whatever its memory."""
    return gpu.compute_capability.partition(".")[0] in known.kernels[architecture.kernel].get("absent", ())


def refusals(
    architecture: Architecture, known: Constants, gpu: Gpu, plan: MemoryPlan, freed_gib: float
) -> tuple[Finding, ...]:
    """Why vLLM would not start, in the order in which it would find out; `freed_gib` is what a smaller S would free."""
    free = plan.gpu_memory_gib - known.context_gib
    requested = plan.gpu_memory_gib * plan.gpu_memory_utilization
    overheads = plan.activation_gib + plan.non_torch_gib + plan.cuda_graph_gib
    fewer = f"; max-num-seqs {FEWER_SEQS} frees {freed_gib:.2f} GiB" if freed_gib > 0.1 else ""
    found = []
    if has_no_kernel(architecture, known, gpu):
        found.append(
            _warning(
                f"vLLM has no kernel of this model's attention for compute capability {gpu.compute_capability}.",
                "Choose a VM size with newer GPUs.",
            )
        )
    if requested > free:
        found.append(
            _warning(
                f"gpu-memory-utilization {plan.gpu_memory_utilization:g} asks for {requested:.2f} GiB per GPU, "
                f"but CUDA leaves {free:.2f} of {plan.gpu_memory_gib:.2f} GiB free.",
                f"Set it to {math.floor(100 * free / plan.gpu_memory_gib) / 100:g} or lower.",
            )
        )
    if plan.max_model_len > architecture.native_context:
        found.append(
            _warning(
                f"max-model-len {plan.max_model_len:,} is above the model's {architecture.native_context:,} tokens.",
                f"Set it to {architecture.native_context} or lower.",
            )
        )
    if plan.weights_gib > free:
        found.append(
            _warning(
                f"The weights take {plan.weights_gib:.2f} GiB per GPU at tensor parallel size "
                f"{plan.tensor_parallel_size}, one {plan.gpu} has {free:.2f} GiB free.",
                "Split the model over more GPUs, or choose GPUs with more memory.",
            )
        )
    elif plan.available_kv_gib <= 0:
        found.append(
            _warning(
                f"Nothing is left for the KV cache: weights {plan.weights_gib:.2f} and overheads {overheads:.2f} GiB "
                f"exceed the budget of {requested:.2f} GiB per GPU by {-plan.available_kv_gib:.2f} GiB.",
                f"Split the model over more GPUs, or choose GPUs with more memory{fewer}.",
            )
        )
    elif plan.max_model_len > plan.longest_max_model_len and plan.max_model_len <= architecture.native_context:
        needed = plan.request_blocks * plan.bytes_per_block / GIB
        shorter = plan.longest_max_model_len
        remedy = f"Set max-model-len to {shorter} or lower" if shorter else "Split the model over more GPUs"
        if plan.kv_cache_dtype in ("auto", "bfloat16", "float16"):
            remedy += ", or kv-cache-dtype to fp8, which halves the need"
        found.append(
            _warning(
                f"One request of max-model-len {plan.max_model_len:,} needs {needed:.2f} GiB of KV cache per GPU, "
                f"{plan.available_kv_gib:.2f} GiB are available: at most {shorter:,} tokens fit.",
                f"{remedy}{fewer}.",
            )
        )
    return tuple(found)


def notes(architecture: Architecture, known: Constants, plan: MemoryPlan, *, refused: bool) -> tuple[Finding, ...]:
    """What could surprise a person although the verdict stands."""
    needed = (plan.request_blocks + known.null_blocks) * plan.bytes_per_block / GIB
    spare = plan.available_kv_gib - needed
    error = plan.error_gib
    found = []
    if abs(spare) < error and plan.max_model_len <= architecture.native_context:
        found.append(
            _warning(
                f"The verdict is close: {abs(spare):.2f} GiB per GPU {'are missing' if refused else 'are left over'}, "
                f"and the estimated terms may be off by {error:.2f} GiB.",
                "Leave more room with a shorter max-model-len, or read `Available KV cache memory` in vLLM's log.",
            )
        )
    elif not refused and spare < known.cold_compile_gib and error:
        found.append(
            Finding(
                severity=Severity.NOTE,
                subject=SUBJECT,
                message=f"A start without compile caches has once measured {known.cold_compile_gib:g} GiB more "
                f"activation memory; one request of {plan.max_model_len:,} tokens leaves {spare:.1f} GiB per GPU.",
                remedy="If the first start reports too little KV cache, start again with the caches kept.",
            )
        )
    latent = any(cache.kind == "latent" for cache in architecture.caches)
    if latent and plan.tensor_parallel_size > 1:
        found.append(
            Finding(
                severity=Severity.NOTE,
                subject=SUBJECT,
                message=f"Latent attention keeps its whole cache on each of {plan.tensor_parallel_size} GPUs: a wider "
                "split frees memory of the weights only.",
                remedy="vllm.decode-context-parallel-size divides the cache too.",
            )
        )
    elif plan.tensor_parallel_size > architecture.kv_heads:
        copies = plan.tensor_parallel_size // architecture.kv_heads
        found.append(
            Finding(
                severity=Severity.NOTE,
                subject=SUBJECT,
                message=f"{architecture.kv_heads} key-value heads on {plan.tensor_parallel_size} GPUs: each is kept "
                f"{copies} times, so a token takes as much of every GPU as at {architecture.kv_heads}.",
                remedy=f"Above tensor parallel size {architecture.kv_heads}, replicas serve more than wider splits.",
            )
        )
    return tuple(found)


def _warning(message: str, remedy: str) -> Finding:
    return Finding(severity=Severity.WARNING, subject=SUBJECT, message=message, remedy=remedy)
