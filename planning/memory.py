"""GPU memory: weights, KV cache, activations and overheads, by vLLM's own accounting.

    requested    = ceil(total x gpu_memory_utilization)
    available KV = requested - weights - activation peak - non-torch - CUDA graph reserve

Every term is per GPU. The constants, with their sources, are in `presets/engines/vllm-<version>/memory.yaml`; sizes of
tensors and caches follow from the architecture. Letters: S = max_num_seqs, T = max_num_batched_tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from planning import kv_cache
from planning.architecture import Architecture
from planning.catalogue import Gpu, deployed_engine
from planning.findings import Finding
from planning.kv_cache import CacheError, Request, bisect
from planning.memory_findings import FEWER_SEQS, GIB, SUBJECT, has_no_kernel, notes, refusals
from planning.memory_rules import Constants, LayoutError, constants, version_key
from planning.weights import split_problem, stage_bytes, stage_layers

__all__ = [
    "GIB",
    "SUBJECT",
    "Constants",
    "EngineOptions",
    "LayoutError",
    "MemoryPlan",
    "check_tensor_parallel_size",
    "constants",
    "highest_utilization",
    "memory_plan",
    "stage_layers",
    "valid_tensor_parallel_sizes",
]

#: Bytes of one KV-cache element by `--kv-cache-dtype`; "auto" is what the checkpoint declares, else the model's dtype.
KV_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}


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
    enable_expert_parallel: bool | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    performance_mode: str | None = None
    decode_context_parallel_size: int | None = None


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
    kv_bytes_per_token: int  # of a long request: what one token more takes
    num_blocks: int
    kv_cache_tokens: int
    max_concurrency: float  # requests of max_model_len tokens at once
    longest_max_model_len: int  # never above the native context
    verdict: str  # fits | refused
    trust: Mapping[str, str]  # term -> exact | fitted | loose
    findings: tuple[Finding, ...]
    error_gib: float = 0.0  # by how much the estimated terms may be off together
    request_blocks: int = 0  # blocks that one request of max_model_len can take, over all groups of layers
    bytes_per_block: int = 0


def valid_tensor_parallel_sizes(architecture: Architecture, limit: int) -> tuple[int, ...]:
    """Tensor parallel sizes up to `limit` that split this model's heads and MLP evenly, ascending."""
    return tuple(size for size in range(1, limit + 1) if not _splits_badly(architecture, size))


def check_tensor_parallel_size(architecture: Architecture, size: int, *, limit: int, expert: int = 1) -> None:
    """Raises LayoutError where the model cannot be split so; the remedy names the sizes up to `limit` that can."""
    if size < 1 or (reason := _splits_badly(architecture, size, expert)):
        sizes = ", ".join(map(str, valid_tensor_parallel_sizes(architecture, limit)))
        raise LayoutError(
            key="vllm.tensor-parallel-size",
            value=size,
            limit="at least 1" if size < 1 else reason,
            remedy=f"use one of {sizes}, or leave it out",
        )


def highest_utilization(gpu_memory_gib: float) -> float:
    """The share of the card that CUDA leaves free before vLLM starts, in hundredths: vLLM refuses to start above it."""
    return math.floor(100 * (1 - constants(deployed_engine()).context_gib / gpu_memory_gib)) / 100


@lru_cache(maxsize=4096)
def _splits_badly(architecture: Architecture, size: int, expert: int = 1) -> str:
    """Why a model cannot be split by this tensor parallel size; empty if it can."""
    if architecture.heads % size:
        return f"{architecture.heads} attention heads do not divide by it"
    for heads in sorted({c.heads for c in architecture.caches if c.kind != "state"}):
        if heads % size and size % heads:
            return f"{heads} key-value heads neither divide by it nor divide it"
    return split_problem(architecture, size, expert)


def memory_plan(
    architecture: Architecture,
    gpu: Gpu,
    *,
    tensor_parallel_size: int,
    pipeline_parallel_size: int = 1,
    options: EngineOptions = EngineOptions(),
    engine_version: str | None = None,
    gpu_memory_gib: float | None = None,
    weights_gib: float | None = None,
    available_kv_gib: float | None = None,
) -> MemoryPlan:
    """Will one replica fit, and what is left for the KV cache.

    `gpu` sets vLLM's defaults, `gpu_memory_gib` replaces its total memory; `weights_gib` and `available_kv_gib` (both
    per GPU) replace the computed values; the version is the one that is deployed unless named. A model that does not
    fit is a verdict with findings. Raises LayoutError for sizes and options that cannot work on any GPU.
    """
    version = engine_version or deployed_engine()
    known = constants(version)
    tensor, stages = tensor_parallel_size, pipeline_parallel_size
    expert = tensor if options.enable_expert_parallel else 1
    total_gib = gpu.memory_gib if gpu_memory_gib is None else gpu_memory_gib
    _check(architecture, tensor, stages, expert, options, total_gib)

    utilization = known.utilization if options.gpu_memory_utilization is None else options.gpu_memory_utilization
    length = options.max_model_len or architecture.native_context
    requested = math.ceil(total_gib * GIB * utilization)
    links = _links(known, gpu, tensor * stages)
    graph = _graph(known, architecture, options)
    kv_dtype = options.kv_cache_dtype or "auto"
    declared = architecture.kv_cache_dtype if kv_dtype == "auto" else kv_dtype
    block, layout = _cache_layout(
        architecture, version, gpu.compute_capability, tensor, stages, declared, options.block_size
    )
    caching = options.enable_prefix_caching is not False

    def request(tokens: int) -> Request:
        return Request(
            tokens_in_flight=tokens * (stages + known.concurrent_batches),
            state_blocks=known.state_blocks if caching else 1,
            decode_context_parallel_size=options.decode_context_parallel_size or 1,
        )

    def divide(length: int) -> _Division:
        """The budget of the stage with the fewest blocks, for one max_model_len."""
        seqs, tokens = _scheduler(known, gpu, options, length)
        tightest: _Division | None = None
        for stage, size in enumerate(layout.bytes_per_block):
            last = stage == stages - 1
            weights = weights_gib
            if weights is None:
                rules = (known.vocabulary_multiple, known.multimodal_rope, known.allocator)
                weights = stage_bytes(architecture, tensor, expert, stage, stages, *rules) / GIB
            activation, tables = _activation(
                known, architecture, tensor, expert, seqs, tokens, length, first=stage == 0, last=last
            )
            non_torch = links["value"] + tables / GIB
            reserve = _reserve(graph, seqs)
            left = requested / GIB - weights - activation / GIB - non_torch - reserve
            available = left if available_kv_gib is None else available_kv_gib
            division = _Division(
                seqs, tokens, weights, activation / GIB, non_torch, reserve, available, size,
                max(0, math.floor(available * GIB / size)),
            )  # fmt: skip
            if tightest is None or division.blocks < tightest.blocks:
                tightest = division
        assert tightest is not None
        return tightest

    def holds(length: int) -> bool:
        division = divide(length)
        return layout.request_blocks(length, request(division.tokens)) <= division.blocks - known.null_blocks

    try:
        here = divide(length)
        wanted = request(here.tokens)
        needed = layout.request_blocks(length, wanted)
        longest = layout.longest(here.blocks - known.null_blocks, wanted, architecture.native_context)
        # With few requests the batch, and the memory it takes, grow with the length.
        if here.tokens != divide(max(longest, block)).tokens:
            longest = bisect(holds, architecture.native_context)
    except CacheError as error:
        raise _impossible(options, error) from None
    concurrency = here.blocks / needed
    per_token = (
        sum(
            here.bytes_per_block / (group.block_size * wanted.decode_context_parallel_size)
            for group in layout.groups
            if group.kind in kv_cache.WHOLE
        )
        or here.bytes_per_block / block
    )
    groups = len(layout.groups)
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
        kv_bytes_per_token=math.ceil(per_token),
        num_blocks=here.blocks,
        kv_cache_tokens=int(concurrency * length)
        if known.tokens_by_concurrency
        else here.blocks // groups * block * wanted.decode_context_parallel_size,
        max_concurrency=concurrency,
        longest_max_model_len=0 if has_no_kernel(architecture, known, gpu) else longest,
        verdict="fits",
        trust=_trust(known, architecture, links, graph, given=weights_gib is not None),
        findings=(),
        error_gib=0.0
        if available_kv_gib is not None
        else links["error"]
        + (graph["error"] if here.graph else 0.0)
        + _model_error(known, architecture, here.weights if weights_gib is None else 0.0),
        request_blocks=needed,
        bytes_per_block=here.bytes_per_block,
    )
    large, small = (
        sum(_activation(known, architecture, tensor, expert, seqs, here.tokens, length, first=True, last=True))
        for seqs in (here.seqs, FEWER_SEQS)
    )
    why = refusals(architecture, known, gpu, plan, (large - small) / GIB)
    return replace(
        plan, verdict="refused" if why else "fits", findings=why + notes(architecture, known, plan, refused=bool(why))
    )


@lru_cache(maxsize=512)
def _cache_layout(
    architecture: Architecture,
    version: str,
    capability: str,
    tensor: int,
    stages: int,
    kv_dtype: str,
    block_size: int | None,
) -> tuple[int, kv_cache.Layout]:
    """The engine's block size and the groups of layers. Raises LayoutError."""
    known = constants(version)
    element = architecture.dtype_bytes if kv_dtype == "auto" else KV_DTYPE_BYTES[kv_dtype]
    row, major = known.kernels[architecture.kernel], capability.partition(".")[0]
    if version_key(version) < version_key(row.get("since", "0")):
        raise LayoutError(
            key="vllm-version",
            value=version,
            limit=f"how it caches {architecture.hf_architecture} is not known",
            remedy=f"use {row['since']} or later",
        )
    if row.get("only") and block_size not in (None, row["default"]):
        raise LayoutError(
            key="vllm.block-size",
            value=block_size,
            limit=f"this model's kernels take blocks of {row['default']} tokens",
            remedy="leave it out",
        )
    fp8 = element == 1
    rule = {**row, **row.get("fp8", {})} if fp8 else row
    block = block_size or rule.get(major, rule["default"])
    packed = row.get("packed", {}).get(major) in ("always", "fp8" if fp8 else "always")
    caches = architecture.caches
    if int(major) < 9 or not known.checkpoints:  # kernels that export a checkpoint need newer GPUs; Mamba's do not
        caches = tuple(
            replace(c, checkpoint_alignment=0) if c.checkpoint_alignment > known.checkpoints else c for c in caches
        )
    block = kv_cache.block_size_of(
        caches, tensor, element, block_size=block, latent_multiple=known.latent_multiple, packed=packed
    )
    positions: list[list[int]] = []
    first = layer = 0
    for count in stage_layers(architecture.layers, stages):
        held = sum(len(each.caches) for each in architecture.stack[layer : layer + count])
        positions.append(list(range(first, first + held)))
        first, layer = first + held, layer + count
    try:
        apart = known.chunks_apart or all(c.kind != "chunked" for c in caches)
        specs = kv_cache.specs_of(caches, tensor, element, block_size=block, packed=packed)
        layout = kv_cache.layout_of(specs, positions, packed_blocks=architecture.packed_blocks, hybrid=apart)
    except CacheError as error:
        raise _impossible(EngineOptions(block_size=block), error) from None
    return block, layout


def _impossible(options: EngineOptions, error: CacheError) -> LayoutError:
    if options.decode_context_parallel_size:
        return LayoutError(
            key="vllm.decode-context-parallel-size",
            value=options.decode_context_parallel_size,
            limit=str(error),
            remedy="leave it out",
        )
    return LayoutError(
        key="vllm.block-size", value=options.block_size, limit=str(error), remedy="leave it out, or use another one"
    )


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
    bytes_per_block: int
    blocks: int


def _check(
    architecture: Architecture, tensor: int, stages: int, expert: int, options: EngineOptions, gpu_memory_gib: float
) -> None:
    """Raises LayoutError for what vLLM would refuse on every GPU."""
    numbers = {
        "vllm.pipeline-parallel-size": stages,
        "max-model-len": options.max_model_len,
        "vllm.max-num-seqs": options.max_num_seqs,
        "vllm.max-num-batched-tokens": options.max_num_batched_tokens,
        "vllm.block-size": options.block_size,
        "vllm.decode-context-parallel-size": options.decode_context_parallel_size,
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
    if options.enable_expert_parallel and not architecture.experts:
        raise LayoutError(
            key="vllm.enable-expert-parallel",
            value=True,
            limit="the model has no experts, and vLLM refuses to deal out none",
            remedy="leave it out",
        )
    check_tensor_parallel_size(architecture, tensor, limit=architecture.heads, expert=expert)
    if stages > architecture.layers:
        raise LayoutError(
            key="vllm.pipeline-parallel-size",
            value=stages,
            limit=f"the model has {architecture.layers} layers to deal out",
            remedy="use fewer stages",
        )
    _check_context_parallel(architecture, tensor, options.decode_context_parallel_size or 1)
    dtype = options.kv_cache_dtype
    if dtype is not None and dtype != "auto" and dtype not in KV_DTYPE_BYTES:
        raise LayoutError(
            key="vllm.kv-cache-dtype",
            value=dtype,
            limit="its bytes per token are not modelled yet",
            remedy=f"use one of auto, {', '.join(KV_DTYPE_BYTES)}",
        )


def _check_context_parallel(architecture: Architecture, tensor: int, size: int) -> None:
    """Raises LayoutError unless the cache has copies to divide: GPUs beyond one for each key-value head."""
    heads = architecture.kv_heads
    most = max(1, tensor // heads)
    if size > most or tensor % size:
        raise LayoutError(
            key="vllm.decode-context-parallel-size",
            value=size,
            limit=f"at most {most}, and a divisor of the tensor parallel size: it divides copies of the cache, and "
            f"{tensor} GPUs keep {most} of each of {heads} key-value heads",
            remedy="leave it out" if most == 1 else f"use {most} or less",
        )


def _scheduler(known: Constants, gpu: Gpu, options: EngineOptions, length: int) -> tuple[int, int]:
    """S and T: as given, else vLLM's default for the card. A default T is cut to S x length, a default S to T.

    Throughput mode doubles the defaults; a default T that must take whole prompts is at least the length. Raises
    LayoutError where an S that was asked for is above T.
    """
    for card in known.scheduler:
        if gpu.memory_gib >= card["min-memory-gib"] and not gpu.name.startswith(tuple(card["except"])):
            break
    else:
        raise AssertionError("the last class of memory.yaml matches every card")
    factor = 2 if options.performance_mode == "throughput" else 1
    seqs = options.max_num_seqs or factor * card["max-num-seqs"]
    whole = length if options.enable_chunked_prefill is False else 0
    tokens = options.max_num_batched_tokens or min(max(factor * card["max-num-batched-tokens"], whole), seqs * length)
    if options.max_num_seqs and seqs > tokens:
        raise LayoutError(
            key="vllm.max-num-seqs",
            value=seqs,
            limit=f"at most max-num-batched-tokens, {tokens}: each running request needs a token in every step",
            remedy="lower it, or raise vllm.max-num-batched-tokens",
        )
    return min(seqs, tokens), tokens


def _activation(
    known: Constants,
    architecture: Architecture,
    tensor: int,
    expert: int,
    seqs: int,
    tokens: int,
    length: int,
    *,
    first: bool,
    last: bool,
) -> tuple[float, float]:
    """Bytes of the profiled peak, and of the sampler's tables. Only the last pipeline stage samples."""
    hidden = architecture.hidden_size
    forward = 0.0
    if any(layer.mlp != "experts" for layer in architecture.stack):
        forward = 2 * tokens * (3 * architecture.intermediate_size / tensor + 5 * hidden)
    if architecture.experts:
        # Experts that are dealt out whole keep their whole width. Source: workspace_shapes of vLLM's fused experts.
        each = 3 * architecture.moe_intermediate_size / (tensor if expert == 1 else 1) + hidden
        forward = max(forward, 2 * tokens * architecture.experts_per_token * each)
    if any(cache.role == "indexer" for cache in architecture.caches):
        forward += known.indexer_bytes * length
    tables = 0.0
    if last:
        logits = seqs * architecture.vocab_size
        forward = max(forward, known.sampler_per_logit * logits + known.sampler_per_hidden * tokens * hidden)
        tables = known.penalty_per_logit * logits
    if first and architecture.encoder:
        forward = max(forward, known.encoder_gib * GIB)
    return forward, tables


def _graph(known: Constants, architecture: Architecture, options: EngineOptions) -> Mapping[str, Any]:
    """The row of what vLLM reserves for CUDA graphs."""
    return known.graphs["eager" if options.enforce_eager else "experts" if architecture.experts else "dense"]


def _reserve(graph: Mapping[str, Any], seqs: int) -> float:
    """GiB that vLLM reserves for CUDA graphs."""
    return graph["few-seqs-value"] if seqs <= graph["few-seqs"] else graph["value"]


def _model_error(known: Constants, architecture: Architecture, weights_gib: float) -> float:
    """GiB by which the terms of the model itself may be off."""
    error = known.format_error[architecture.weights_trust] * weights_gib
    if architecture.experts:
        error += known.experts_error
    if architecture.encoder:
        error += known.encoder_error
    return error


def _trust(
    known: Constants,
    architecture: Architecture,
    links: Mapping[str, Any],
    graph: Mapping[str, Any],
    *,
    given: bool,
) -> dict[str, str]:
    """How far each term can be believed: the loosest of its parts."""
    order = ("exact", "fitted", "loose")
    weights = max(architecture.weights_trust, architecture.encoder_trust, key=order.index)
    activation = known.activation_trust
    if architecture.encoder or any(cache.role == "indexer" for cache in architecture.caches):
        activation = "loose"
    return {
        "weights_gib": "exact" if given else weights,
        "activation_gib": activation,
        "non_torch_gib": links["trust"],
        "cuda_graph_gib": graph["trust"],
        "kv_bytes_per_token": "exact",
    }


def _links(known: Constants, gpu: Gpu, gpus: int) -> Mapping[str, Any]:
    """The row of communication buffers for a replica of so many GPUs; the largest row stands for all above it."""
    rows = known.non_torch[gpu.links]
    return rows[min((size for size in rows if size >= gpus), default=max(rows))]
