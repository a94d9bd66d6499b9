"""What vLLM 0.33.0 itself makes of a model's memory: its own model classes and KV-cache planner, without a GPU.

Runs inside the environment that `environment.py` makes and prints one JSON document. Every model of `hf-configs.zip`
is built on the meta device as rank 0 of each pipeline stage, on a platform that says it is an H100; vLLM's planner
then divides a given number of bytes. Quantised weights are left out only where vLLM refuses them.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import pretend_h100  # noqa: E402
from environment import VERSION  # noqa: E402

from tests import hf_configs  # noqa: E402

GIB = 1 << 30
TENSOR_PARALLEL_SIZES = (1, 2, 4, 8, 16)
SEQS = 256
MOST_PROCESSES = 8  # of about 2 GB each
BY_HAND = ("mimo", "nemotron-nas")  # model types whose configuration class is written here


def variants(tensor: int) -> Iterator[tuple[dict[str, Any], tuple[tuple[int | None, int, int], ...]]]:
    """What is built, and the (max_model_len, max_num_batched_tokens, available bytes) planned with each build."""
    yield {}, ((None, 8192, 30 * GIB + 12_345_678), (8192, 2048, 4 * GIB), (4096, 8192, 200 * GIB + 1))
    if tensor in (1, 2, 8):
        yield {"kv_cache_dtype": "fp8"}, ((None, 8192, 30 * GIB + 12_345_678), (32768, 2048, 10 * GIB - 1))
    if tensor in (2, 8):
        yield {"enable_expert_parallel": True}, ((None, 8192, 30 * GIB + 12_345_678),)
    if tensor in (1, 4):
        yield {"block_size": 64}, ((16384, 8192, 20 * GIB + 4095),)
    if tensor == 4:
        yield {"pipeline_parallel_size": 3}, ((8192, 8192, 10 * GIB),)
    if tensor == 8:
        yield {"pipeline_parallel_size": 2}, ((None, 8192, 30 * GIB + 12_345_678), (8192, 2048, 4 * GIB))
        yield {"decode_context_parallel_size": 2}, ((None, 8192, 30 * GIB + 12_345_678),)
        yield {"decode_context_parallel_size": 8}, ((32768, 8192, 30 * GIB),)


class Group:
    """vLLM's view of one communication group from one of its ranks; nothing is ever sent."""

    def __init__(self, size: int, rank: int = 0) -> None:
        self.world_size, self.rank_in_group, self.local_rank = size, rank, 0
        self.ranks = list(range(size))
        self.is_first_rank, self.is_last_rank = rank == 0, rank == size - 1
        self.first_rank, self.last_rank = 0, size - 1
        self.device_group = self.cpu_group = self
        self.device_communicator = self.mq_broadcaster = None
        self.unique_name = "group"
        self.use_custom_op_call = False

    def size(self) -> int:
        return self.world_size

    def rank(self) -> int:
        return self.rank_in_group

    def barrier(self) -> None: ...

    def all_reduce(self, tensor: Any) -> Any:
        return tensor

    def broadcast_obj(self, value: Any, src: int = 0) -> Any:
        return value


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


def register_by_hand() -> None:
    """Configurations whose Python lies in the model's repository: the same fields, without that Python."""
    from transformers import AutoConfig, LlamaConfig, Qwen2Config

    class Fields(dict[str, Any]):
        def __getattr__(self, name: str) -> Any:
            if name not in self:
                raise AttributeError(name)
            return self[name]

    def deep(value: Any) -> Any:
        return Fields({key: deep(each) for key, each in value.items()}) if isinstance(value, dict) else value

    class MiMo(Qwen2Config):
        model_type = "mimo"

    class NemotronNas(LlamaConfig):
        model_type = "nemotron-nas"

        def __init__(self, block_configs: Sequence[dict[str, Any]] = (), **fields: Any) -> None:
            self.block_configs = [deep(block) for block in block_configs]
            super().__init__(**{key: value for key, value in fields.items() if value is not None})

    for name, each in zip(BY_HAND, (MiMo, NemotronNas), strict=True):
        AutoConfig.register(name, each)


def build(config: Any) -> Any:
    import torch
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype
    from vllm.v1.worker.workspace import init_workspace_manager, reset_workspace_manager

    reset_workspace_manager()
    init_workspace_manager(torch.device("meta"))
    with set_default_torch_dtype(config.model_config.dtype), pretend_h100.on_meta_device():
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


def sizes(model: Any) -> dict[str, Any]:
    """Bytes of the parameters and of the buffers (rotary tables), each tensor once; [bytes, how many] of each size."""
    parameters = {id(each): each.numel() * each.element_size() for each in model.parameters()}
    buffers = {id(each): each.numel() * each.element_size() for each in model.buffers()}
    return {
        "parameter_bytes": sum(parameters.values()),
        "buffer_bytes": sum(buffers.values()),
        "parameters": sorted(Counter(parameters.values()).items()),
    }


def one_build(folder: Path, layout: dict[str, Any], planned: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The cases of one layout, and the weights of its stages."""
    stages, layouts, weights = [], [], []
    count = layout["pipeline_parallel_size"]
    for stage in range(count):
        context = layout.get("decode_context_parallel_size", 1)
        distribute(tensor=layout["tensor_parallel_size"], stages=count, stage=stage, context=context)
        worker = configure(folder, layout)
        model = build(worker)
        weights.append({"stage": stage, **sizes(model)})
        specs, supported, backends = layer_specs(worker)
        stages.append(specs)
        layouts.append(supported)
        del model
    # Worker processes have configurations of their own.
    core = configure(folder, layout) if worker.parallel_config.world_size > 1 else worker
    tokens = core.scheduler_config.max_num_batched_tokens
    groups = prepare(core, stages, layouts)
    resolved = {
        "resolved_kv_cache_dtype": worker.cache_config.cache_dtype,
        "resolved_block_size": worker.cache_config.block_size,
        "native_context": core.model_config.max_model_len,
        "kv_cache_layout": core.cache_config.kv_cache_layout,
        "concurrent_batches": core.max_concurrent_batches,
        "default_num_batched_tokens": tokens,
        "attention_backends": backends,
        "layer_kinds": layer_kinds(stages),
    }
    cases = [
        {**plan(core, stages, groups, *each), **resolved}
        for each in planned
        if each[0] is None or each[0] <= core.model_config.max_model_len
    ]
    return cases, weights


def one_model(config: dict[str, Any], quantization: dict[str, Any] | None) -> dict[str, Any]:
    """Every layout of one model. A refusal of vLLM is a result as well."""
    cases, weights, refused = [], [], []
    plain = stripped(config)
    forms = (
        [(True, config, quantization), (False, plain, None)]
        if quantization or plain != config
        else [(False, plain, None)]
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for tensor in TENSOR_PARALLEL_SIZES:
            for options, planned in variants(tensor):
                layout = {"tensor_parallel_size": tensor, "pipeline_parallel_size": 1, **options}
                for quantised, form, beside in forms:
                    key = {**layout, "quantised": quantised}
                    try:
                        built, sized = one_build(write(folder, form, beside), layout, planned)
                    except Exception as error:
                        refused.append({**key, "reason": f"{type(error).__name__}: {error}"[:600]})
                        if "for VllmConfig" in str(error):
                            break  # the layout, whatever the weights' format
                        continue
                    finally:
                        gc.collect()
                    by_hand = config.get("model_type") in BY_HAND
                    cases += [{**key, "by_hand": by_hand, **each} for each in built]
                    if not options.keys() - {"pipeline_parallel_size", "enable_expert_parallel"}:
                        weights += [{**key, **each} for each in sized]
                    break
    return {"cases": cases, "weights": weights, "refused": refused}


def clones(names: Sequence[str]) -> dict[str, str]:
    """Each model, and the first one with the same configuration: itself, mostly."""
    first: dict[str, str] = {}
    ignored = ("_name_or_path", "transformers_version", "auto_map")
    return {
        name: first.setdefault(
            json.dumps([{k: v for k, v in config.items() if k not in ignored}, quantization], sort_keys=True), name
        )
        for name in names
        for config, quantization in [hf_configs.load(name)]
    }


def document(place: Path) -> Path:
    """Where the result lies; other inputs are another file."""
    inputs = b"".join((HERE / each).read_bytes() for each in ("ground_truth.py", "pretend_h100.py"))
    digest = hashlib.sha256(inputs + hf_configs.ARCHIVE.read_bytes()).hexdigest()[:12]
    return place / f"ground-truth-{digest}.json"


def main(place: Path) -> None:
    """Make what is missing of the document; an interrupted run is taken up again."""
    result = document(place)
    parts = result.with_suffix("")
    parts.mkdir(exist_ok=True)
    originals = clones(hf_configs.names())
    if missing := [name for name in dict.fromkeys(originals.values()) if not (parts / f"{name}.json").exists()]:
        say(f"vLLM computes the memory of {len(missing)} models")
        in_processes(parts, missing)
    combine(parts, result, originals)
    print(result)


def in_processes(parts: Path, names: Sequence[str]) -> None:
    """One process a core, because vLLM's distributed state is global; each gets its next model when it is done."""
    waiting = iter(names)

    def feed(_: int) -> int:
        worker = [sys.executable, __file__, "--into", str(parts)]
        with subprocess.Popen(worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin and process.stdout
            for name in waiting:
                process.stdin.write(f"{name}\n")
                process.stdin.flush()
                if not process.stdout.readline():
                    break
            process.stdin.close()
        return process.returncode

    count = min(len(os.sched_getaffinity(0)), MOST_PROCESSES, len(names))
    with ThreadPoolExecutor(count) as threads:
        failed = [code for code in threads.map(feed, range(count)) if code]
    if failed:
        sys.exit(f"{len(failed)} of {count} processes failed; what they finished is kept")


def work(parts: Path) -> None:
    """Each model named on standard input; a line on standard output when its file is written."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever vLLM prints is no answer
    pretend_h100.install()
    register_by_hand()
    gc.disable()
    for name in map(str.strip, sys.stdin):
        begun = time.monotonic()
        gc.collect()
        gc.freeze()  # vLLM's own modules: to search them for garbage takes longer than to build a model
        found = one_model(*hf_configs.load(name))
        found["seconds"] = round(time.monotonic() - begun, 1)
        partial = parts / f"{name}.partial"
        partial.write_text(json.dumps(found))
        partial.rename(parts / f"{name}.json")
        say(f"{name}: {len(found['cases'])} cases, {len(found['refused'])} refused, {found['seconds']} s")
        print(name, file=answers, flush=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def combine(parts: Path, result: Path, originals: dict[str, str]) -> None:
    whole: dict[str, Any] = {"vllm": VERSION, "platform": pretend_h100.NAME, "seconds": 0.0, "same_as": originals}
    whole |= {"cases": [], "weights": [], "refused": []}
    for part in sorted(parts.glob("*.json")):
        for key, value in json.loads(part.read_text()).items():
            whole[key] += value if key == "seconds" else [{"model": part.stem, **each} for each in value]
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(whole))
    partial.rename(result)


if __name__ == "__main__":
    if sys.argv[1] == "--into":
        work(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
