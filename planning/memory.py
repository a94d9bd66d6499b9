"""GPU memory: weights, KV cache, activations and overheads, by vLLM's own accounting.

    requested    = ceil(total x gpu_memory_utilization)
    available KV = requested - weights - activation peak - non-torch - CUDA graph reserve

Every term is per GPU. The constants, with their sources, are in `presets/engines/vllm-<version>/memory.yaml`; sizes of
tensors follow from the architecture. Letters: S = max_num_seqs, T = max_num_batched_tokens.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from planning import catalogue
from planning.architecture import Architecture
from planning.catalogue import Gpu
from planning.findings import Finding, Severity

GIB = 1 << 30
MIB = 1 << 20

#: Bytes of one KV-cache element by `--kv-cache-dtype`; "auto" is the model's own dtype.
KV_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}

#: S at which the sampler's share is quoted as a remedy: vLLM's default on smaller cards.
FEWER_SEQS = 256


#: Findings are written before the model has a name in the stack; `decide()` puts that in its place.
SUBJECT = "model"


class LayoutError(Exception):
    """A layout or engine option that cannot work; `key` is the setting to change (without the project's namespace)."""

    def __init__(self, *, key: str, value: object, limit: str, remedy: str) -> None:
        self.key, self.value, self.limit, self.remedy = key, value, limit, remedy
        super().__init__(f"{key} = {value}: {limit}; {remedy}")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The engine options that decide memory; None is vLLM's own default."""

    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_dtype: str | None = None
    block_size: int | None = None
    enforce_eager: bool | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What one GPU of a replica holds. GiB = 2^30 bytes, per GPU; tokens and concurrency per replica.

    With pipeline parallelism the numbers are those of the stage with the fewest blocks: it decides for all.
    """

    gpu: str
    gpu_memory_gib: float
    gpu_memory_utilization: float
    tensor_parallel_size: int
    pipeline_parallel_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_dtype: str
    block_size: int
    weights_gib: float
    activation_gib: float
    non_torch_gib: float
    cuda_graph_gib: float
    available_kv_gib: float  # negative when weights and overheads alone exceed the budget
    kv_bytes_per_token: int
    num_blocks: int
    kv_cache_tokens: int
    max_concurrency: float  # requests of max_model_len tokens at once
    longest_max_model_len: int  # never above the native context
    verdict: str  # fits | refused
    trust: Mapping[str, str]  # term -> exact | fitted | loose
    findings: tuple[Finding, ...]
    error_gib: float = 0.0  # by how much the estimated terms may be off together


@dataclass(frozen=True, kw_only=True)
class Constants:
    """One engine version's numbers; units and sources are in its `memory.yaml`."""

    utilization: float
    block_size: int
    null_blocks: int
    tokens_by_concurrency: bool
    vocabulary_multiple: int
    allocator_from: int  # bytes
    allocator_multiple: int
    allocator_at_most: int
    context_gib: float
    sampler_per_logit: float
    sampler_per_hidden: float
    penalty_per_logit: float
    graph_gib: float
    graph_few_seqs: int
    graph_few_seqs_gib: float
    graph_error: float
    cold_compile_gib: float
    scheduler: Sequence[Mapping[str, Any]]
    non_torch: Mapping[str, Mapping[int, Mapping[str, Any]]]
    trust: Mapping[str, str]


@cache
def constants(version: str) -> Constants:
    """The constants of a vLLM version: a folder's own, or its rules for the versions before it.

    Raises LayoutError for a version that is newer than every folder, older than its rules, or no version.
    """
    asked = _version(version)
    covered = [known for known in catalogue.engine_versions() if asked <= _version(known)]
    data = catalogue.engine_memory(covered[0]) if covered else {}
    if not data or asked < _version(data["oldest"]):
        raise LayoutError(
            key="vllm-version",
            value=version,
            limit=f"the memory of vLLM is known up to {catalogue.engine_versions()[-1]}, and not of every old version",
            remedy=f"use one of {', '.join(catalogue.engine_versions())}, or make engine-contract VERSION={version}",
        )
    changed: dict[str, Any] = {}
    for change in data["changes"]:  # newest first, so that the oldest rule that applies wins
        if asked < _version(change["before"]):
            changed |= change

    def value(key: str) -> Any:
        return changed.get(key, data[key]["value"])

    graph = data["cuda-graph-gib"]
    subtracted = "cuda-graph-gib" not in changed
    return Constants(
        utilization=value("gpu-memory-utilization"),
        block_size=value("block-size"),
        null_blocks=value("null-blocks"),
        tokens_by_concurrency=value("tokens-by-concurrency"),
        vocabulary_multiple=value("vocabulary-multiple"),
        allocator_from=data["allocator"]["from-mib"] * MIB,
        allocator_multiple=data["allocator"]["multiple-mib"] * MIB,
        allocator_at_most=data["allocator"]["at-most-mib"] * MIB,
        context_gib=value("context-gib"),
        sampler_per_logit=value("sampler-bytes-per-logit"),
        sampler_per_hidden=value("sampler-bytes-per-hidden"),
        penalty_per_logit=value("penalty-bytes-per-logit"),
        graph_gib=value("cuda-graph-gib"),
        graph_few_seqs=graph["few-seqs"],
        graph_few_seqs_gib=graph["few-seqs-value"] if subtracted else 0.0,
        graph_error=graph["error"] if subtracted else 0.0,
        cold_compile_gib=value("cold-compile-gib"),
        scheduler=data["scheduler"]["classes"],
        non_torch=data["non-torch-gib"],
        trust={
            "weights_gib": data["allocator"]["trust"],
            "activation_gib": data["sampler-bytes-per-logit"]["trust"],
            "cuda_graph_gib": graph["trust"] if subtracted else "exact",
            "kv_bytes_per_token": "exact",
        },
    )


def _version(text: str) -> tuple[int, int, int]:
    """Comparable; what is no version compares as newer than all."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (sys.maxsize, 0, 0)


def valid_tensor_parallel_sizes(architecture: Architecture, limit: int) -> tuple[int, ...]:
    """Tensor parallel sizes up to `limit` that split this model's heads and MLP evenly, ascending."""
    return tuple(size for size in range(1, limit + 1) if not _splits_badly(architecture, size))


def check_tensor_parallel_size(architecture: Architecture, size: int, *, limit: int) -> None:
    """Raises LayoutError where the model cannot be split so; the remedy names the sizes up to `limit` that can."""
    if size < 1 or (reason := _splits_badly(architecture, size)):
        sizes = ", ".join(map(str, valid_tensor_parallel_sizes(architecture, limit)))
        raise LayoutError(
            key="vllm.tensor-parallel-size",
            value=size,
            limit="at least 1" if size < 1 else reason,
            remedy=f"use one of {sizes}, or leave it out",
        )


def highest_utilization(gpu_memory_gib: float, engine_version: str = "0.33.0") -> float:
    """The share of the card that CUDA leaves free before vLLM starts, in hundredths: vLLM refuses to start above it."""
    return math.floor(100 * (1 - constants(engine_version).context_gib / gpu_memory_gib)) / 100


def _splits_badly(architecture: Architecture, size: int) -> str:
    """Why a model cannot be split by this tensor parallel size; empty if it can."""
    kv_heads = architecture.kv_heads
    if architecture.heads % size:
        return f"{architecture.heads} attention heads do not divide by it"
    if kv_heads % size and size % kv_heads:
        return f"{kv_heads} key-value heads neither divide by it nor divide it"
    if architecture.intermediate_size % size:
        return f"the MLP's {architecture.intermediate_size} columns do not divide by it"
    return ""


def stage_layers(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each pipeline stage; vLLM deals a remainder out from the last stage but one backwards."""
    counts = [layers // stages] * stages
    for extra in range(layers % stages):
        counts[-2 - extra] += 1
    return tuple(counts)


@lru_cache(maxsize=256)
def _weight_bytes(architecture: Architecture, tensor: int, layers: int, first: bool, last: bool, version: str) -> int:
    """Bytes of one GPU's weights in a pipeline stage, with the rotary table and the allocator's rounding."""
    known = constants(version)
    hidden, dtype_bytes = architecture.hidden_size, architecture.dtype_bytes

    def allocated(elements: int) -> int:
        size = elements * dtype_bytes
        added = -size % known.allocator_multiple
        return size + added if size >= known.allocator_from and added <= known.allocator_at_most else size

    queries = architecture.heads // tensor * architecture.head_dim
    keys = max(1, architecture.kv_heads // tensor) * architecture.head_dim
    mlp = architecture.intermediate_size // tensor
    layer = (
        allocated((queries + 2 * keys) * hidden)
        + allocated(queries * hidden)
        + allocated(2 * mlp * hidden)
        + allocated(mlp * hidden)
    )
    small = 2 * hidden  # two norms, on every rank
    small += (queries + 2 * keys) * architecture.qkv_bias + hidden * architecture.output_bias
    small += (2 * mlp + hidden) * architecture.mlp_bias + 2 * architecture.head_dim * architecture.qk_norm
    total = layers * (layer + small * dtype_bytes)

    multiple = known.vocabulary_multiple
    rows = -(-architecture.vocab_size // multiple) * multiple
    table = allocated(-(-rows // tensor) * hidden)
    tables = int(first) + int(last)
    if architecture.tied_embeddings and first and last:
        tables = 1
    total += tables * table + hidden * dtype_bytes * last
    rope = architecture.native_context * architecture.head_dim * dtype_bytes  # one table for all layers, on every rank
    return total + rope


def memory_plan(
    architecture: Architecture,
    gpu: Gpu,
    *,
    tensor_parallel_size: int,
    pipeline_parallel_size: int = 1,
    options: EngineOptions = EngineOptions(),
    engine_version: str = "0.33.0",
    gpu_memory_gib: float | None = None,
    weights_gib: float | None = None,
    available_kv_gib: float | None = None,
) -> MemoryPlan:
    """Will one replica fit, and what is left for the KV cache.

    `gpu` sets vLLM's defaults, `gpu_memory_gib` replaces its total memory; `weights_gib` and `available_kv_gib` (both
    per GPU) replace the computed values. A model that does not fit is a verdict with findings. Raises LayoutError for
    sizes and options that cannot work on any GPU.
    """
    known = constants(engine_version)
    tensor, stages = tensor_parallel_size, pipeline_parallel_size
    total_gib = gpu.memory_gib if gpu_memory_gib is None else gpu_memory_gib
    _check(architecture, tensor, stages, options, total_gib)

    utilization = known.utilization if options.gpu_memory_utilization is None else options.gpu_memory_utilization
    block = options.block_size or known.block_size
    kv_dtype = options.kv_cache_dtype or "auto"
    kv_bytes = architecture.dtype_bytes if kv_dtype == "auto" else KV_DTYPE_BYTES[kv_dtype]
    length = options.max_model_len or architecture.native_context
    requested = math.ceil(total_gib * GIB * utilization)
    token_bytes = 2 * max(1, architecture.kv_heads // tensor) * architecture.head_dim * kv_bytes  # of one layer
    links = _links(known, gpu, tensor * stages)
    counts = stage_layers(architecture.layers, stages)

    def divide(length: int) -> _Division:
        """The budget of the stage with the fewest blocks, for one max_model_len."""
        seqs, tokens = _scheduler(known, gpu, options, length)
        tightest: _Division | None = None
        for index, layers in enumerate(counts):
            last = index == stages - 1
            weights = (
                _weight_bytes(architecture, tensor, layers, index == 0, last, engine_version) / GIB
                if weights_gib is None
                else weights_gib
            )
            activation, tables = _activation(known, architecture, tensor, seqs, tokens, last)
            non_torch = links["value"] + tables / GIB
            graph = _graph(known, options, seqs)
            left = requested / GIB - weights - activation / GIB - non_torch - graph
            available = left if available_kv_gib is None else available_kv_gib
            division = _Division(
                seqs, tokens, weights, activation / GIB, non_torch, graph, available, layers,
                max(0, math.floor(available * GIB / (layers * token_bytes * block))),
            )  # fmt: skip
            if tightest is None or division.blocks < tightest.blocks:
                tightest = division
        assert tightest is not None
        return tightest

    def holds(length: int) -> bool:
        return -(-length // block) <= divide(length).blocks - known.null_blocks

    here = divide(length)
    longest = min(architecture.native_context, max(0, here.blocks - known.null_blocks) * block)
    # With few requests the batch, and the memory it takes, grow with the length.
    if here.tokens != divide(max(longest, block)).tokens:
        longest = _bisect(holds, architecture.native_context)

    needed = -(-length // block)
    concurrency = here.blocks / needed
    plan = MemoryPlan(
        gpu=gpu.name,
        gpu_memory_gib=total_gib,
        gpu_memory_utilization=utilization,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=stages,
        max_model_len=length,
        max_num_seqs=here.seqs,
        max_num_batched_tokens=here.tokens,
        kv_cache_dtype=kv_dtype,
        block_size=block,
        weights_gib=here.weights,
        activation_gib=here.activation,
        non_torch_gib=here.non_torch,
        cuda_graph_gib=here.graph,
        available_kv_gib=here.available,
        kv_bytes_per_token=here.layers * token_bytes,
        num_blocks=here.blocks,
        kv_cache_tokens=int(concurrency * length) if known.tokens_by_concurrency else here.blocks * block,
        max_concurrency=concurrency,
        longest_max_model_len=longest,
        verdict="fits",
        trust={**known.trust, "non_torch_gib": links["trust"]},
        findings=(),
        error_gib=links["error"] + (known.graph_error if here.graph else 0.0) if available_kv_gib is None else 0.0,
    )
    refusals = _refusals(architecture, known, plan)
    notes = _notes(architecture, known, plan, refused=bool(refusals))
    return replace(plan, verdict="refused" if refusals else "fits", findings=refusals + notes)


@dataclass(frozen=True, slots=True)
class _Division:
    """One pipeline stage's budget, GiB per GPU."""

    seqs: int
    tokens: int
    weights: float
    activation: float
    non_torch: float
    graph: float
    available: float
    layers: int
    blocks: int


def _check(architecture: Architecture, tensor: int, stages: int, options: EngineOptions, gpu_memory_gib: float) -> None:
    """Raises LayoutError for what vLLM would refuse on every GPU."""
    numbers = {
        "vllm.pipeline-parallel-size": stages,
        "max-model-len": options.max_model_len,
        "vllm.max-num-seqs": options.max_num_seqs,
        "vllm.max-num-batched-tokens": options.max_num_batched_tokens,
        "vllm.block-size": options.block_size,
    }
    for key, number in numbers.items():
        if number is not None and number < 1:
            raise LayoutError(key=key, value=number, limit="at least 1", remedy="set a positive whole number")
    if gpu_memory_gib <= 0:
        raise LayoutError(key="gpu-memory-gib", value=gpu_memory_gib, limit="above 0", remedy="set GiB per GPU")
    utilization = options.gpu_memory_utilization
    if utilization is not None and not 0 < utilization <= 1:
        raise LayoutError(
            key="vllm.gpu-memory-utilization",
            value=utilization,
            limit="a share above 0 and at most 1",
            remedy="leave it out for vLLM's own default",
        )
    check_tensor_parallel_size(architecture, tensor, limit=architecture.heads)
    if stages > architecture.layers:
        raise LayoutError(
            key="vllm.pipeline-parallel-size",
            value=stages,
            limit=f"the model has {architecture.layers} layers to deal out",
            remedy="use fewer stages",
        )
    dtype = options.kv_cache_dtype
    if dtype is not None and dtype != "auto" and dtype not in KV_DTYPE_BYTES:
        raise LayoutError(
            key="vllm.kv-cache-dtype",
            value=dtype,
            limit="its bytes per token are not modelled yet",
            remedy=f"use one of auto, {', '.join(KV_DTYPE_BYTES)}",
        )


def _scheduler(known: Constants, gpu: Gpu, options: EngineOptions, length: int) -> tuple[int, int]:
    """S and T: as given, else vLLM's default for the card. A default T is cut to S x length, a default S to T.

    Raises LayoutError where an S that was asked for is above T.
    """
    for card in known.scheduler:
        if gpu.memory_gib >= card["min-memory-gib"] and not gpu.name.startswith(tuple(card["except"])):
            break
    else:
        raise AssertionError("the last class of memory.yaml matches every card")
    seqs = options.max_num_seqs or card["max-num-seqs"]
    tokens = options.max_num_batched_tokens or min(card["max-num-batched-tokens"], seqs * length)
    if options.max_num_seqs and seqs > tokens:
        raise LayoutError(
            key="vllm.max-num-seqs",
            value=seqs,
            limit=f"at most max-num-batched-tokens, {tokens}: each running request needs a token in every step",
            remedy="lower it, or raise vllm.max-num-batched-tokens",
        )
    return min(seqs, tokens), tokens


def _activation(
    known: Constants, architecture: Architecture, tensor: int, seqs: int, tokens: int, last: bool
) -> tuple[float, float]:
    """Bytes of the profiled peak, and of the sampler's tables. Only the last pipeline stage samples."""
    hidden = architecture.hidden_size
    forward = 2 * tokens * (3 * architecture.intermediate_size / tensor + 5 * hidden)
    if not last:
        return forward, 0.0
    logits = seqs * architecture.vocab_size
    sampler = known.sampler_per_logit * logits + known.sampler_per_hidden * tokens * hidden
    return max(forward, sampler), known.penalty_per_logit * logits


def _graph(known: Constants, options: EngineOptions, seqs: int) -> float:
    """GiB that vLLM reserves for CUDA graphs."""
    if options.enforce_eager:
        return 0.0
    return known.graph_few_seqs_gib if seqs <= known.graph_few_seqs else known.graph_gib


def _links(known: Constants, gpu: Gpu, gpus: int) -> Mapping[str, Any]:
    """The row of communication buffers for a replica of so many GPUs; the largest row stands for all above it."""
    rows = known.non_torch[gpu.links]
    return rows[min((size for size in rows if size >= gpus), default=max(rows))]


def _bisect(holds: Callable[[int], bool], most: int) -> int:
    """The largest length up to `most` that holds; 0 if none does. What holds at a length holds at every shorter one."""
    least = 0
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if holds(middle) else (least, middle - 1)
    return least


def _refusals(architecture: Architecture, known: Constants, plan: MemoryPlan) -> tuple[Finding, ...]:
    """Why vLLM would not start, in the order in which it would find out."""
    free = plan.gpu_memory_gib - known.context_gib
    requested = plan.gpu_memory_gib * plan.gpu_memory_utilization
    overheads = plan.activation_gib + plan.non_torch_gib + plan.cuda_graph_gib
    fewer = _fewer_seqs(architecture, known, plan)
    found = []
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
        needed = -(-plan.max_model_len // plan.block_size) * plan.block_size * plan.kv_bytes_per_token / GIB
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


def _notes(architecture: Architecture, known: Constants, plan: MemoryPlan, *, refused: bool) -> tuple[Finding, ...]:
    """What could surprise a person although the verdict stands."""
    block_gib = plan.block_size * plan.kv_bytes_per_token / GIB
    needed = (-(-plan.max_model_len // plan.block_size) + known.null_blocks) * block_gib
    spare = plan.available_kv_gib - needed
    error = plan.error_gib
    found = []
    if abs(spare) < error and plan.max_model_len <= architecture.native_context:
        found.append(
            _warning(
                f"The verdict is close: {abs(spare):.2f} GiB per GPU {'are missing' if refused else 'are left over'}, "
                f"and the estimates of communication buffers and CUDA graphs may be off by {error:.2f} GiB.",
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
    if plan.tensor_parallel_size > architecture.kv_heads:
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


def _fewer_seqs(architecture: Architecture, known: Constants, plan: MemoryPlan) -> str:
    """What a smaller S would free, as the end of a remedy; empty where it frees little."""
    tokens = plan.max_num_batched_tokens
    small = _activation(known, architecture, plan.tensor_parallel_size, FEWER_SEQS, tokens, True)
    large = _activation(known, architecture, plan.tensor_parallel_size, plan.max_num_seqs, tokens, True)
    freed = (sum(large) - sum(small)) / GIB
    return f"; max-num-seqs {FEWER_SEQS} frees {freed:.2f} GiB" if freed > 0.1 else ""


def _warning(message: str, remedy: str) -> Finding:
    return Finding(severity=Severity.WARNING, subject=SUBJECT, message=message, remedy=remedy)
