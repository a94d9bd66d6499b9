"""What vLLM 0.33.0 itself makes of a model's memory: its own model classes and KV-cache planner, without a GPU.

Runs inside the environment that `environment.py` makes and prints one JSON document. Every model of `hf-configs.zip`
is built on the meta device as rank 0 of each pipeline stage, on a platform that says it is an H100; vLLM's planner
then divides a given number of bytes. The weights' quantisation is left out where it cannot be built and the KV cache's
kept.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import pretend_h100  # noqa: E402

from tests import hf_configs  # noqa: E402

GIB = 1 << 30
TENSOR_PARALLEL_SIZES = (1, 2, 4, 8, 16)
SEQS = 256


def variants(tensor: int) -> Iterator[tuple[dict[str, Any], tuple[tuple[int | None, int, int], ...]]]:
    """What is built, and the (max_model_len, max_num_batched_tokens, available bytes) planned with each build."""
    yield {}, ((None, 8192, 30 * GIB + 12_345_678), (8192, 2048, 4 * GIB), (4096, 8192, 200 * GIB + 1))
    yield {"kv_cache_dtype": "fp8"}, ((None, 8192, 30 * GIB + 12_345_678), (32768, 2048, 10 * GIB - 1))
    yield {"block_size": 64}, ((16384, 8192, 20 * GIB + 4095),)
    if tensor <= 8:
        yield {"pipeline_parallel_size": 2}, ((None, 8192, 30 * GIB + 12_345_678), (8192, 2048, 4 * GIB))
    if tensor == 4:
        yield {"pipeline_parallel_size": 3}, ((8192, 8192, 10 * GIB),)
    if tensor == 8:
        yield {"decode_context_parallel_size": 2}, ((None, 8192, 30 * GIB + 12_345_678),)
        yield {"decode_context_parallel_size": 8}, ((32768, 8192, 30 * GIB),)


class Group:
    """vLLM's view of one communication group from one of its ranks; nothing is ever sent."""

    def __init__(self, size: int, rank: int = 0) -> None:
        self.world_size, self.rank_in_group, self.rank, self.local_rank = size, rank, rank, 0
        self.ranks = list(range(size))
        self.is_first_rank, self.is_last_rank = rank == 0, rank == size - 1
        self.first_rank, self.last_rank = 0, size - 1
        self.device_group = self.cpu_group = self.device_communicator = self.mq_broadcaster = None
        self.unique_name = "group"
        self.use_custom_op_call = False

    def barrier(self) -> None: ...

    def all_reduce(self, tensor: Any) -> Any:
        return tensor


def distribute(*, tensor: int, stages: int, stage: int, context: int) -> None:
    """Make this process rank 0 of a stage's tensor parallel group."""
    from vllm.distributed import parallel_state as state

    state._TP, state._PP, state._DCP = Group(tensor), Group(stages, stage), Group(context)
    state._PCP, state._DP, state._EP = Group(1), Group(1), Group(tensor)
    state._WORLD = state._INNER_DP_WORLD = Group(tensor * stages, stage * tensor)
    state._ETP, state._EPLB, state._ENGRAM_DP = Group(tensor), None, None
    state._NODE_COUNT = 1


def configure(folder: Path, options: dict[str, Any]) -> Any:
    """vLLM's own configuration for a folder with a `config.json`, as its server would make it."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    arguments = AsyncEngineArgs(
        model=str(folder), skip_tokenizer_init=True, load_format="dummy", max_num_seqs=SEQS, **options,
    )  # fmt: skip
    return arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)


def build(config: Any) -> Any:
    import torch
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    with set_default_torch_dtype(config.model_config.dtype), torch.device("meta"):
        return initialize_model(config)


def layer_specs(config: Any) -> tuple[dict[str, Any], list[str], list[str]]:
    """Each layer's KV-cache spec, the layouts and the attention backends, as a worker reports them."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed.kv_transfer.kv_connector.utils import get_current_attn_backends
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts
    from vllm.v1.worker.gpu.attn_utils import get_kv_cache_spec
    
    with set_current_vllm_config(config):
        current_platform.update_block_size_for_backend(config)
        backends = list(get_current_attn_backends(config))
        layouts = [layout.name for layout in get_supported_kv_cache_layouts(backends)]
        return get_kv_cache_spec(config), layouts, sorted({each.get_name() for each in backends})


def prepare(core: Any, stages: list[dict[str, Any]], layouts: list[list[str]]) -> Any:
    """The engine core's steps between the workers' specs and the division of memory; returns the groups."""
    from vllm.v1.attention.backends.utils import resolve_kv_cache_layout
    from vllm.v1.core.kv_cache_planning import get_global_kv_cache_groups
    from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs

    register_all_kvcache_specs(core)
    if any(getattr(spec, "non_causal", False) for specs in stages for spec in specs.values()):
        core.scheduler_config.enable_chunked_prefill = False
        core.cache_config.enable_prefix_caching = False
    resolve_kv_cache_layout(core, layouts, [spec for specs in stages for spec in specs.values()])
    groups = get_global_kv_cache_groups(core, stages)
    core.adjust_dcp_kv_cache_interleave_size(groups)
    return groups


def plan(
    config: Any, stages: list[dict[str, Any]], groups: Any, length: int | None, tokens: int, available: int
) -> dict[str, Any]:
    """vLLM's division of `available` bytes per GPU, and the longest context that would fit."""
    from vllm.v1.core import kv_cache_planning as planning
    from vllm.v1.core.kv_cache_config_builder import get_kv_cache_config_builder
    from vllm.v1.core.kv_cache_utils import generate_scheduler_kv_cache_config, get_kv_cache_capacity

    native = config.model_config.max_model_len
    config.scheduler_config.max_num_batched_tokens = tokens
    builder = get_kv_cache_config_builder(config)
    projected = [planning._project_kv_cache_groups_to_worker(groups, specs) for specs in stages]
    per_block = [planning._pool_bytes_per_block_from_builder(builder, config, each) for each in projected]
    longest = min(
        planning._estimate_max_model_len_from_groups(builder, config, each, available - block)
        for each, block in zip(projected, per_block, strict=True)
    )
    asked = length or native
    result: dict[str, Any] = {
        "max_model_len": asked,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "max_num_batched_tokens": tokens,
        "available_bytes": available,
        "longest_max_model_len": longest,
        "fits": asked <= longest,
        "bytes_per_block": max(per_block),
    }
    try:
        config.model_config.max_model_len = min(asked, longest) or 1
        if longest:
            configs = planning.get_kv_cache_configs(config, stages, [available] * len(stages), groups)
            config.model_config.max_model_len = asked
            scheduled = generate_scheduler_kv_cache_config(configs)
            capacity, concurrency = get_kv_cache_capacity(config, scheduled)
            result |= {
                "num_blocks": scheduled.num_blocks,
                "tokens": capacity,
                "max_concurrency": concurrency,
                "groups": [_group(config, group) for group in scheduled.kv_cache_groups],
            }
    finally:
        config.model_config.max_model_len = native
    return result


def _group(config: Any, group: Any) -> dict[str, Any]:
    spec = group.kv_cache_spec
    blocks = -(-spec.max_memory_usage_bytes(config) // spec.page_size_bytes)
    return {
        "layers": len(group.layer_names),
        "kind": type(spec).__name__,
        "block_size": spec.block_size,
        "page_bytes": spec.page_size_bytes,
        "blocks_per_request": blocks,
    }


def layer_kinds(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The distinct layer specs with their counts, readable."""
    counts: dict[str, int] = {}
    for specs in stages:
        for spec in specs.values():
            counts[repr(spec)] = counts.get(repr(spec), 0) + 1
    return [{"spec": spec, "layers": count} for spec, count in counts.items()]


def stripped(config: dict[str, Any]) -> dict[str, Any]:
    """Without the weights' quantisation, at every depth."""
    return {
        key: stripped(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in ("quantization_config", "compression_config")
    }


def write(folder: Path, config: dict[str, Any], quantization: dict[str, Any] | None) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    beside = folder / "hf_quant_config.json"
    beside.unlink(missing_ok=True)
    if quantization:
        beside.write_text(json.dumps(quantization))
    return folder


def parameter_bytes(model: Any) -> dict[str, int]:
    """Bytes of the parameters and of the buffers (rotary tables), each tensor once."""
    parameters = {id(each): each for each in model.parameters()}
    buffers = {id(each): each for each in model.buffers()}
    return {
        "parameter_bytes": sum(each.numel() * each.element_size() for each in parameters.values()),
        "buffer_bytes": sum(each.numel() * each.element_size() for each in buffers.values()),
    }


def one_model(name: str) -> dict[str, Any]:
    config, quantization = hf_configs.load(name)
    cases, weights, refused = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        for quantised in (True, False) if stripped(config) != config or quantization else (True,):
            folder = write(Path(temporary), config if quantised else stripped(config), quantization if quantised else None)
            for tensor in TENSOR_PARALLEL_SIZES:
                for options, planned in variants(tensor):
                    layout = {"tensor_parallel_size": tensor, "pipeline_parallel_size": 1, **options}
                    key = {"model": name, "quantised": quantised, **layout}
                    try:
                        stages, layouts = [], []
                        for stage in range(layout["pipeline_parallel_size"]):
                            distribute(
                                tensor=tensor, stages=layout["pipeline_parallel_size"], stage=stage,
                                context=layout.get("decode_context_parallel_size", 1),
                            )  # fmt: skip
                            built = configure(folder, layout)
                            model = build(built)
                            if not options.keys() - {"pipeline_parallel_size"}:
                                weights.append({**key, "stage": stage, **parameter_bytes(model)})
                            specs, supported, backends = layer_specs(built)
                            stages.append(specs)
                            layouts.append(supported)
                            del model
                        # Processes of their own have configurations of their own.
                        core = configure(folder, layout) if built.parallel_config.world_size > 1 else built
                        groups = prepare(core, stages, layouts)
                        default_tokens = core.scheduler_config.max_num_batched_tokens
                        resolved = {
                            "resolved_kv_cache_dtype": built.cache_config.cache_dtype,
                            "resolved_block_size": built.cache_config.block_size,
                            "native_context": core.model_config.max_model_len,
                            "kv_cache_layout": core.cache_config.kv_cache_layout,
                            "concurrent_batches": core.max_concurrent_batches,
                            "default_num_batched_tokens": default_tokens,
                            "attention_backends": backends,
                            "layer_kinds": layer_kinds(stages),
                        }
                        for length, tokens, available in planned:
                            if length and length > core.model_config.max_model_len:
                                continue
                            cases.append({**key, **plan(core, stages, groups, length, tokens, available), **resolved})
                    except Exception as error:  # noqa: BLE001 - vLLM's refusals are of every class, and are the result
                        refused.append({**key, "reason": f"{type(error).__name__}: {error}"[:600]})
                        if os.environ.get("GROUND_TRUTH_RAISE"):
                            raise
                    gc.collect()
    return {"cases": cases, "weights": weights, "refused": refused}


def main(place: Path, names: list[str]) -> None:
    inputs = b"".join((HERE / each).read_bytes() for each in ("ground_truth.py", "pretend_h100.py"))
    digest = hashlib.sha256(inputs + hf_configs.ARCHIVE.read_bytes()).hexdigest()[:12]
    document = place / f"ground-truth-{digest}.json"
    parts = place / f"ground-truth-{digest}"
    parts.mkdir(exist_ok=True)
    started = time.monotonic()
    pretend_h100.install()
    for name in names or hf_configs.names():
        part = parts / f"{name}.json"
        if part.exists() and not names:
            continue
        begun = time.monotonic()
        found = {**one_model(name), "seconds": round(time.monotonic() - begun, 1)}
        partial = part.with_suffix(".partial")
        partial.write_text(json.dumps(found))
        partial.rename(part)
        print(
            f"{name}: {len(found['cases'])} cases, {len(found['refused'])} refused, {found['seconds']} s",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    whole: dict[str, Any] = {"vllm": "0.33.0", "platform": "H100", "cases": [], "weights": [], "refused": []}
    for part in sorted(parts.glob("*.json")):
        for key, value in json.loads(part.read_text()).items():
            if key in whole:
                whole[key] += value
    document.write_text(json.dumps(whole))
    print(document)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
