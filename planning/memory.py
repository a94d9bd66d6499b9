"""GPU memory: weights, KV cache, activations and overheads, by vLLM's own accounting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planning.findings import Finding


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What one GPU of a replica holds. GiB = 2^30 bytes, per GPU; tokens and concurrency per replica."""

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
    longest_max_model_len: int
    verdict: str  # fits | refused
    trust: Mapping[str, str]  # term -> exact | fitted | loose
    findings: tuple[Finding, ...]
