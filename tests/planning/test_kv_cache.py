"""The KV cache against what vLLM printed, on layers by hand, and properties that hold for every model.

`tests/engine` compares with vLLM's own planner; the rows here are start-up logs of older versions and of cards that a
machine without a GPU cannot show.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planning import catalogue
from planning.architecture import from_hf_config
from planning.kv_cache import (
    Cache,
    CacheError,
    Request,
    block_size_of,
    layout_of,
    specs_of,
    state_bytes,
    token_bytes,
)
from planning.memory import GIB, EngineOptions, LayoutError, MemoryPlan, memory_plan
from tests import hf_configs
from tests.planning.startup_logs import rows

H100 = catalogue.gpu("H100-80GB")
LOGS = rows()
ONE_BATCH = Request(tokens_in_flight=8192, state_blocks=1)


def plan(name: str, tensor: int = 8, stages: int = 1, gpu: str = "H100-80GB", **options: Any) -> MemoryPlan:
    """A model of the archive with 30 GiB for its cache."""
    return memory_plan(
        from_hf_config(*hf_configs.load(name)),
        catalogue.gpu(gpu),
        tensor_parallel_size=tensor,
        pipeline_parallel_size=stages,
        options=EngineOptions(**options),
        available_kv_gib=30,
    )


@pytest.mark.parametrize("name", [name for name, row in LOGS.items() if "tokens" in row.logged])
def test_tokens_and_concurrency_are_vllms_own_given_the_available_memory(name: str) -> None:
    row = LOGS[name]
    low, high = (row.plan(available_kv_gib=row.logged["available"] + rounding) for rounding in (-0.005, 0.005))
    assert low.kv_cache_tokens <= row.logged["tokens"] <= high.kv_cache_tokens
    if concurrency := row.logged.get("concurrency"):
        assert round(low.max_concurrency, 2) <= concurrency <= round(high.max_concurrency, 2)


@pytest.mark.parametrize("name", [name for name, row in LOGS.items() if "longest" in row.logged])
def test_a_refused_start_estimates_the_length_that_the_log_estimates(name: str) -> None:
    row = LOGS[name]
    low, high = (row.plan(available_kv_gib=row.logged["available"] + rounding) for rounding in (-0.005, 0.005))
    assert low.longest_max_model_len <= row.logged["longest"] <= high.longest_max_model_len


def test_gemma_3_pads_short_groups_and_keeps_a_page_more_for_each_window() -> None:
    """gemma-3-27b, 0.11: 10 whole and 52 sliding layers, 109.86 GiB; the log has 205,696 tokens and 50.05 requests."""
    caches = [Cache("full", 16, 256)] * 10 + [Cache("sliding", 16, 256, window=1024)] * 52
    layout = layout_of(specs_of(caches, 1, 2, block_size=16))
    assert [len(group.layers) for group in layout.groups] == [10, 9, 9, 9, 9, 8, 8]
    assert layout.bytes_per_block == (10 * 16 * 8192,)
    assert layout.request_blocks(4096, ONE_BATCH) == 256 + 6 * 257
    blocks = layout.blocks([109.86 * GIB])
    assert blocks // 7 * 16 == pytest.approx(205696, abs=32)
    assert blocks / 1798 == pytest.approx(50.05, abs=0.005)


def test_gpt_oss_counts_windows_for_every_batch_in_flight() -> None:
    layout = layout_of(
        specs_of([Cache("full", 8, 128), Cache("sliding", 8, 128, window=128)] * 12, 1, 2, block_size=16)
    )
    assert layout.bytes_per_block == (393216,)
    assert layout.request_blocks(8192, Request(tokens_in_flight=2048, state_blocks=1)) == 512 + 137
    assert layout.request_blocks(8192, Request(tokens_in_flight=4096, state_blocks=1)) == 512 + 265


def test_a_latent_cache_is_whole_on_every_gpu() -> None:
    """Mistral-Small-4 on two H100 NVL: with 17.39 GiB vLLM estimated 810,208 tokens, which 36 whole latents are."""
    caches = [Cache("latent", 1, 320)] * 36
    layout = layout_of(specs_of(caches, 2, 2, block_size=16))
    longest = [layout.longest(layout.blocks([(17.39 + r) * GIB]), ONE_BATCH, 1 << 20) for r in (-0.005, 0.005)]
    assert longest[0] <= 810208 <= longest[1]
    assert plan("deepseek-ai--DeepSeek-V3", 8).kv_bytes_per_token == 61 * 576 * 2
    assert plan("deepseek-ai--DeepSeek-V3", 16).kv_bytes_per_token == 61 * 576 * 2


def test_a_state_is_its_convolution_and_its_recurrence() -> None:
    caches = from_hf_config(*hf_configs.load("Qwen--Qwen3.5-27B")).caches
    assert {state_bytes(cache, 4) for cache in caches if cache.kind == "state"} == {801792}, "of a start-up log"


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("Qwen--Qwen3.5-27B", 4), ("Qwen--Qwen3.5-397B-A17B", 8), ("nvidia--Nemotron-H-56B-Base-8K", 8)],
)
def test_attentions_block_grows_until_it_covers_a_state(name: str, tensor: int) -> None:
    caches = from_hf_config(*hf_configs.load(name)).caches
    state = max(state_bytes(cache, tensor) for cache in caches if cache.kind == "state")
    size = block_size_of(caches, tensor, 2, block_size=16)
    step = 64 if name.startswith("Qwen") else 16  # the grid of the checkpoints that an H100's kernel exports
    token = token_bytes(next(cache for cache in caches if cache.kind == "full"), tensor, 2)
    assert size % step == 0
    assert size * token >= state > (size - step) * token
    assert len({spec.page for spec in specs_of(caches, tensor, 2, block_size=size)}) == 1, "states are padded"


@pytest.mark.parametrize(("gpu", "states"), [("H100-80GB", 3), ("A100-80GB", 2)])
def test_prefix_caching_keeps_a_second_state_and_on_newer_gpus_a_checkpoint(gpu: str, states: int) -> None:
    cached, plain = (plan("Qwen--Qwen3.5-27B", 4, gpu=gpu, enable_prefix_caching=on) for on in (True, False))
    assert cached.request_blocks - plain.request_blocks == 3 * (states - 1), "three groups of states"


def test_indexers_ride_in_the_blocks_of_sparse_attention() -> None:
    sparse = plan("deepseek-ai--DeepSeek-V3.2")
    assert sparse.block_size == 64
    assert sparse.bytes_per_block == 61 * 64 * (1152 + 132)
    packed = plan("deepseek-ai--DeepSeek-V3.2", kv_cache_dtype="fp8")
    assert packed.bytes_per_block == 61 * 64 * (656 + 132), "an H100's kernel stores 8-bit entries with their scales"


def test_glm_5_2_indexes_in_every_fourth_layer() -> None:
    layers = from_hf_config(*hf_configs.load("zai-org--GLM-5.2")).stack
    assert sum(len(layer.caches) == 2 for layer in layers) == 21
    assert len(layers) == 78


def test_deepseek_v4_packs_pages_of_several_sizes_into_a_block() -> None:
    flash = plan("deepseek-ai--DeepSeek-V4-Flash", 4)
    assert flash.verdict == "fits"
    assert flash.max_model_len == 1048576
    assert flash.block_size == 256
    assert flash.kv_bytes_per_token < 8000, "the whole context is kept compressed by 4 or by 128"


def test_deepseek_v4_takes_its_own_blocks_only() -> None:
    with pytest.raises(LayoutError, match="blocks of 256 tokens"):
        plan("deepseek-ai--DeepSeek-V4-Flash", 4, block_size=64)


def test_llama_4_keeps_a_chunk_of_most_layers_and_all_of_some() -> None:
    scout = plan("meta-llama--Llama-4-Scout-17B-16E-Instruct", max_model_len=131072, max_num_batched_tokens=8192)
    assert scout.bytes_per_block == 12 * 16 * 2 * 128 * 2
    assert scout.request_blocks == 131072 // 16 + 3 * (8192 + 2 * 8192) // 16
    architecture = from_hf_config(*hf_configs.load("meta-llama--Llama-4-Scout-17B-16E-Instruct"))
    old = memory_plan(architecture, H100, tensor_parallel_size=8, engine_version="0.19.0", available_kv_gib=30)
    assert old.kv_bytes_per_token == 48 * 2 * 128 * 2, "older engines charged all layers as whole"


def test_mimo_v2_gives_the_narrower_layers_more_tokens_in_a_block() -> None:
    caches = from_hf_config(*hf_configs.load("XiaomiMiMo--MiMo-V2-Flash")).caches
    specs = layout_of(specs_of(caches, 1, 2, block_size=16)).groups
    assert {(group.kind, group.block_size) for group in specs} == {("full", 32), ("sliding", 16)}
    assert len({page for group in specs for page in group.pages}) == 1


def test_decode_context_parallelism_divides_a_request() -> None:
    whole, part = (plan("deepseek-ai--DeepSeek-V3", decode_context_parallel_size=size) for size in (None, 8))
    assert part.num_blocks == whole.num_blocks
    assert part.max_concurrency == pytest.approx(8 * whole.max_concurrency, rel=0.001)
    assert part.kv_bytes_per_token == pytest.approx(whole.kv_bytes_per_token / 8, abs=1)


@pytest.mark.parametrize(("name", "size"), [("Qwen--Qwen3-8B", 2), ("Qwen--Qwen3-30B-A3B", 4)])
def test_decode_context_parallelism_divides_only_copies(name: str, size: int) -> None:
    with pytest.raises(LayoutError, match=f"decode-context-parallel-size = {size}: at most") as caught:
        plan(name, decode_context_parallel_size=size)
    assert caught.value.remedy


def test_decode_context_parallelism_does_not_go_with_windows() -> None:
    with pytest.raises(LayoutError, match=r"decode-context-parallel-size = 2: .*sliding-window") as caught:
        plan("XiaomiMiMo--MiMo-V2-Flash", 16, decode_context_parallel_size=2)
    assert caught.value.remedy


def test_pages_that_cannot_share_a_pool_are_refused() -> None:
    with pytest.raises(CacheError, match="cannot share"):
        layout_of(specs_of([Cache("latent", 1, 96), Cache("sliding", 1, 256, window=8)], 1, 2, block_size=16))


def test_a_stage_needs_only_the_pages_of_its_layers() -> None:
    caches = [Cache("full", 8, 256)] * 4
    specs = specs_of(caches, 1, 2, block_size=16)
    layout = layout_of(specs, [[0], [1, 2, 3]])
    assert layout.bytes_per_block == (16 * 4096, 3 * 16 * 4096)
    assert layout.blocks([30.0 * 16 * 4096, 30.0 * 16 * 4096]) == 10, "the stage with the fewest decides"


kinds = st.sampled_from(
    [
        Cache("full", 8, 256),
        Cache("full", 4, 256),
        Cache("sliding", 8, 256, window=1024),
        Cache("sliding", 4, 512, window=128),
        Cache("chunked", 8, 256, window=8192),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(kinds, min_size=1, max_size=40), st.sampled_from([1, 2, 4, 8]), st.sampled_from([16, 64]))
def test_every_layer_is_in_one_group_and_groups_fill_their_blocks(caches: list[Cache], tensor: int, block: int) -> None:
    layout = layout_of(specs_of(caches, tensor, 2, block_size=block))
    members = sorted(layer for group in layout.groups for layer in group.layers)
    assert members == list(range(len(caches)))
    assert layout.bytes_per_block[0] == max(sum(group.pages) for group in layout.groups)


@settings(max_examples=150, deadline=None)
@given(st.lists(kinds, min_size=1, max_size=40), st.integers(0, 100_000))
def test_the_longest_request_fits_and_a_longer_one_does_not(caches: list[Cache], blocks: int) -> None:
    layout = layout_of(specs_of(caches, 1, 2, block_size=16))
    longest = layout.longest(blocks, ONE_BATCH, 1 << 18)
    assert longest == 0 or layout.request_blocks(longest, ONE_BATCH) <= blocks
    assert longest == 1 << 18 or layout.request_blocks(longest + 1, ONE_BATCH) > blocks


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(hf_configs.names()), st.sampled_from([1, 2, 4, 8]), st.sampled_from([None, "fp8"]))
def test_wider_splits_and_smaller_elements_never_take_more_of_a_gpu(name: str, tensor: int, dtype: str | None) -> None:
    from planning.architecture import NotModelledError

    try:
        narrow = plan(name, tensor, kv_cache_dtype=dtype, max_model_len=4096)
        wide = plan(name, 2 * tensor, kv_cache_dtype=dtype, max_model_len=4096)
        small = plan(name, tensor, kv_cache_dtype="fp8", max_model_len=4096)
    except (NotModelledError, LayoutError):
        return
    assert wide.max_concurrency >= 0.95 * narrow.max_concurrency, "blocks of states may round up"
    assert small.max_concurrency >= 0.95 * narrow.max_concurrency
