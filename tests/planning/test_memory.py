"""Memory against what vLLM itself printed, and properties that hold for every model and card.

The rows are vLLM start-up logs: public server logs with version, card and limits. Lengths and tokens are exact given
the available KV cache, which logs print to two decimals; terms before it are compared within their stated error.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planning import catalogue
from planning.architecture import Architecture, from_hf_config
from planning.memory import (
    GIB,
    EngineOptions,
    LayoutError,
    MemoryPlan,
    constants,
    memory_plan,
    stage_layers,
    valid_tensor_parallel_sizes,
)
from tests.planning.startup_logs import rows

LLAMA_70B = catalogue.preset("llama-3.3-70b-instruct").architecture
QWEN_8B = catalogue.preset("qwen3-8b").architecture
LOGS = rows()
H100 = catalogue.gpu("H100-80GB")


def dense(
    family: str, layers: int, hidden: int, heads: int, kv: int, mlp: int, vocab: int, context: int, **more: Any
) -> Architecture:
    """A dense model by its numbers."""
    config = {
        "architectures": [family],
        "torch_dtype": "bfloat16",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "max_position_embeddings": context,
    }
    return from_hf_config(config | more)


LLAMA_8B = dense("LlamaForCausalLM", 32, 4096, 32, 8, 14336, 128256, 131072)
LLAMA_3_8B = dense("LlamaForCausalLM", 32, 4096, 32, 8, 14336, 128256, 8192)
QWEN3_4B = dense("Qwen3ForCausalLM", 36, 2560, 32, 8, 9728, 151936, 40960, head_dim=128, tie_word_embeddings=True)
QWEN25_3B = dense("Qwen2ForCausalLM", 36, 2048, 16, 2, 11008, 151936, 32768, tie_word_embeddings=True)
QWEN25_32B = dense("Qwen2ForCausalLM", 64, 5120, 40, 8, 27648, 152064, 32768)
DISTILL_14B = dense("Qwen2ForCausalLM", 48, 5120, 40, 8, 13824, 152064, 131072)


@pytest.mark.parametrize(
    ("model", "tensor", "loaded"),
    [(LLAMA_3_8B, 1, 14.9595), (QWEN3_4B, 1, 7.5551), (QWEN25_32B, 4, 15.3921), (DISTILL_14B, 2, 13.9514)],
)
def test_weights_carry_the_rotary_table_and_the_allocators_rounding(
    model: Architecture, tensor: int, loaded: float
) -> None:
    plan = memory_plan(model, H100, tensor_parallel_size=tensor)
    assert plan.weights_gib == pytest.approx(loaded, abs=0.0001)


KNOWN = [name for name, row in LOGS.items() if row.has_known_inputs]
#: Unified memory: this log shows 1.8 GiB more non-torch memory than any card with its own.
BEYOND = {"gpt-oss-20b, GB10, 0.25"}


@pytest.mark.parametrize("name", KNOWN)
def test_available_memory_is_within_the_error_that_the_plan_states(name: str) -> None:
    row = LOGS[name]
    plan = row.plan()
    within = abs(plan.available_kv_gib - row.logged["available"]) <= plan.error_gib
    assert within == (name not in BEYOND), "a row that has come within its error leaves BEYOND"


@pytest.mark.parametrize("name", KNOWN)
def test_the_verdict_is_the_one_of_the_log(name: str) -> None:
    assert LOGS[name].plan().verdict == ("refused" if LOGS[name].data.get("refused") else "fits")


def test_a_rank_with_less_memory_decides_for_all() -> None:
    plan = memory_plan(
        DISTILL_14B, H100, tensor_parallel_size=2, engine_version="0.10.2", available_kv_gib=81536 * 98304 / GIB
    )
    assert (plan.kv_bytes_per_token, plan.kv_cache_tokens, plan.verdict) == (98304, 81536, "refused")


@pytest.mark.parametrize(
    ("model", "tensor", "dtype", "token_bytes"),
    [
        (LLAMA_70B, 1, None, 320 * 1024),
        (LLAMA_70B, 4, None, 80 * 1024),
        (LLAMA_70B, 4, "fp8", 40 * 1024),
        (LLAMA_70B, 16, None, 40 * 1024),
        (QWEN_8B, 1, None, 144 * 1024),
    ],
)
def test_bytes_of_a_token_per_gpu(model: Architecture, tensor: int, dtype: str | None, token_bytes: int) -> None:
    plan = memory_plan(model, H100, tensor_parallel_size=tensor, options=EngineOptions(kv_cache_dtype=dtype))
    assert plan.kv_bytes_per_token == token_bytes


@pytest.mark.parametrize(
    ("version", "model", "tokens", "seqs", "peak"),
    [("0.10.2", QWEN3_4B, 8192, 1024, 5.59), ("0.10.2", QWEN25_3B, 2048, 1, 0.17)],
)
def test_the_activation_peak_is_the_profiled_one(
    version: str, model: Architecture, tokens: int, seqs: int, peak: float
) -> None:
    options = EngineOptions(max_num_batched_tokens=tokens, max_num_seqs=seqs)
    plan = memory_plan(model, H100, tensor_parallel_size=1, options=options, engine_version=version)
    assert plan.activation_gib == pytest.approx(peak, abs=0.01)


@pytest.mark.parametrize(
    ("gpu", "options", "expected"),
    [
        ("H100-80GB", {}, (1024, 8192)),
        ("H200", {}, (1024, 8192)),
        ("B300", {}, (1024, 16384)),
        ("A100-80GB", {}, (256, 2048)),
        ("A100-80GB-PCIE", {}, (256, 2048)),
        ("GB10", {}, (256, 2048)),
        ("L40S", {}, (256, 2048)),
        ("H100-80GB", {"max_num_seqs": 4, "max_model_len": 1024}, (4, 4096)),
        ("H100-80GB", {"max_num_batched_tokens": 512}, (512, 512)),
    ],
)
def test_scheduler_limits_are_vllms_defaults_for_the_card(
    gpu: str, options: dict[str, Any], expected: tuple[int, int]
) -> None:
    plan = memory_plan(QWEN_8B, catalogue.gpu(gpu), tensor_parallel_size=1, options=EngineOptions(**options))
    assert (plan.max_num_seqs, plan.max_num_batched_tokens) == expected


def test_the_proposal_leaves_what_a_replica_of_llama_70b_needs() -> None:
    plan = memory_plan(LLAMA_70B, H100, tensor_parallel_size=4, options=EngineOptions(max_model_len=16384))
    assert plan.verdict == "fits"
    assert plan.gpu_memory_utilization == 0.92
    assert 32.85 < plan.weights_gib < 32.95, "141.1 GB in four parts"
    assert 420_000 < plan.kv_cache_tokens < 500_000, "453 thousand by the published yardstick"
    assert plan.longest_max_model_len == 131072
    assert plan.trust["weights_gib"] == "exact"
    assert plan.trust["cuda_graph_gib"] == "loose"


@pytest.mark.parametrize(
    ("options", "tensor", "words", "remedy"),
    [
        ({}, 1, "The weights take 131.45 GiB per GPU", "more GPUs"),
        ({}, 2, "needs 20.00 GiB of KV cache per GPU, 3.08 GiB are available: at most 20,176", "fp8.*max-num-seqs 256"),
        ({"gpu_memory_utilization": 0.8}, 2, "exceed the budget of 63.34 GiB per GPU", "max-num-seqs 256 frees"),
        ({"gpu_memory_utilization": 1.0}, 4, "utilization 1 asks for 79.18 GiB", "Set it to 0.99"),
        ({"max_model_len": 131073}, 4, "131,073 is above the model's 131,072", "Set it to 131072"),
    ],
)
def test_a_refusal_says_why_with_numbers_and_what_to_do(
    options: dict[str, Any], tensor: int, words: str, remedy: str
) -> None:
    plan = memory_plan(LLAMA_70B, H100, tensor_parallel_size=tensor, options=EngineOptions(**options))
    assert plan.verdict == "refused"
    assert words in plan.findings[0].message
    assert re.search(remedy, plan.findings[0].remedy)


def test_a_verdict_inside_the_error_of_the_estimates_says_so() -> None:
    fits = memory_plan(LLAMA_70B, H100, tensor_parallel_size=2, options=EngineOptions(max_model_len=20176))
    assert fits.verdict == "fits"
    assert "The verdict is close" in fits.findings[0].message
    clear = memory_plan(LLAMA_70B, H100, tensor_parallel_size=4, options=EngineOptions(max_model_len=16384))
    assert not clear.findings, "18 GiB beyond one request are no reason to warn"


def test_heads_that_are_kept_twice_are_told() -> None:
    plan = memory_plan(LLAMA_70B, H100, tensor_parallel_size=16)
    assert "each is kept 2 times" in plan.findings[-1].message


@pytest.mark.parametrize(
    ("tensor", "stages", "options", "key"),
    [
        (3, 1, {}, "vllm.tensor-parallel-size"),
        (0, 1, {}, "vllm.tensor-parallel-size"),
        (1, 81, {}, "vllm.pipeline-parallel-size"),
        (4, 1, {"max_model_len": 0}, "max-model-len"),
        (4, 1, {"max_num_seqs": -1}, "vllm.max-num-seqs"),
        (4, 1, {"block_size": 0}, "vllm.block-size"),
        (4, 1, {"max_num_seqs": 512, "max_num_batched_tokens": 256}, "vllm.max-num-seqs"),
        (4, 1, {"gpu_memory_utilization": 1.5}, "vllm.gpu-memory-utilization"),
        (4, 1, {"kv_cache_dtype": "int3"}, "vllm.kv-cache-dtype"),
    ],
)
def test_what_works_on_no_gpu_is_an_error_with_its_setting(
    tensor: int, stages: int, options: dict[str, Any], key: str
) -> None:
    with pytest.raises(LayoutError) as caught:
        memory_plan(
            LLAMA_70B,
            H100,
            tensor_parallel_size=tensor,
            pipeline_parallel_size=stages,
            options=EngineOptions(**options),
        )
    assert caught.value.key == key
    assert caught.value.remedy


@pytest.mark.parametrize("version", ["0.34.0", "0.5.5", "nightly"])
def test_a_version_without_facts_is_refused(version: str) -> None:
    with pytest.raises(LayoutError, match="vllm-version"):
        constants(version)


def test_older_versions_follow_their_own_rules() -> None:
    assert constants("0.33.0").utilization == constants("0.22.1").utilization == 0.92
    assert constants("0.19.0").utilization == 0.9
    assert (constants("0.32.0").null_blocks, constants("0.31.0").null_blocks) == (1, 0)
    assert [constants(v).graphs["dense"]["value"] for v in ("0.21.0", "0.20.0")] == [1.1, 0]
    assert (constants("0.17.0").sampler_per_logit, constants("0.10.2").sampler_per_logit) == (14, 38.2)


def test_the_token_line_of_the_log_changed_its_meaning() -> None:
    options = EngineOptions(max_model_len=1000)
    new, old = (
        memory_plan(QWEN_8B, H100, tensor_parallel_size=1, options=options, engine_version=v, available_kv_gib=1)
        for v in ("0.33.0", "0.19.0")
    )
    assert new.num_blocks == old.num_blocks == 455
    assert old.kv_cache_tokens == 455 * 16
    assert new.kv_cache_tokens == int(455 / 63 * 1000), "a request of 1000 tokens takes 63 whole blocks"


def test_eager_mode_reserves_no_graphs() -> None:
    eager = memory_plan(QWEN_8B, H100, tensor_parallel_size=1, options=EngineOptions(enforce_eager=True))
    assert eager.cuda_graph_gib == 0


@given(st.integers(1, 200), st.integers(1, 16))
def test_pipeline_stages_hold_every_layer_once(layers: int, stages: int) -> None:
    assume(stages <= layers)
    counts = stage_layers(layers, stages)
    assert sum(counts) == layers
    assert max(counts) - min(counts) <= 1
    assert stages == 1 or counts[-1] == min(counts), "the last stage holds the output layer"


def test_a_replica_in_stages_has_the_tokens_of_its_tightest_stage() -> None:
    whole = memory_plan(LLAMA_70B, H100, tensor_parallel_size=4)
    staged = memory_plan(LLAMA_70B, H100, tensor_parallel_size=4, pipeline_parallel_size=2)
    assert staged.kv_bytes_per_token == whole.kv_bytes_per_token // 2, "40 of 80 layers"
    assert staged.kv_cache_tokens > 2 * whole.kv_cache_tokens, "half the layers, and half the weights make room"


def test_the_tightest_stage_is_the_one_with_more_layers_where_the_sampler_is_small() -> None:
    odd = dense("LlamaForCausalLM", 81, 8192, 64, 8, 28672, 128256, 131072)
    options = EngineOptions(max_num_seqs=1)
    plan = memory_plan(odd, H100, tensor_parallel_size=1, pipeline_parallel_size=2, options=options)
    assert plan.kv_bytes_per_token == 41 * 4096, "the first stage holds 41 layers, the last 40"
    assert plan.non_torch_gib == 0.55, "only the last stage keeps the sampler's tables"


def test_key_value_heads_are_on_every_gpu_at_least_once() -> None:
    layer = 8192 * (4 + 1 + 1 + 4) * 128 + 3 * 8192 * 28672 // 16 + 2 * 8192
    tables = 2 * 128256 // 16 * 8192 + 8192
    plan = memory_plan(LLAMA_70B, H100, tensor_parallel_size=16)
    rope = 131072 * 128
    assert plan.weights_gib == pytest.approx((80 * layer + tables + rope) * 2 / GIB, abs=0.002)


def test_the_vocabulary_is_padded_before_it_is_split() -> None:
    odd, even = (dense("LlamaForCausalLM", 32, 4096, 32, 8, 14336, size, 131072) for size in (1_000_001, 1_000_064))
    options = EngineOptions(max_num_seqs=1)
    odd_plan, even_plan = (memory_plan(m, H100, tensor_parallel_size=2, options=options) for m in (odd, even))
    assert odd_plan.weights_gib == even_plan.weights_gib


@pytest.mark.parametrize("asked", [16, 512, None])
def test_the_longest_context_allows_for_the_batch_that_grows_with_it(asked: int | None) -> None:
    def plan(length: int | None) -> MemoryPlan:
        options = EngineOptions(max_num_seqs=1, max_model_len=length)
        return memory_plan(QWEN_8B, H100, tensor_parallel_size=1, options=options, weights_gib=72.04)

    longest = plan(asked).longest_max_model_len
    assert 512 < longest < 8192, "where one request of the whole context is less than vLLM's own batch"
    fits, refused = plan(longest), plan(longest + 16)
    assert (fits.verdict, refused.verdict) == ("fits", "refused")
    assert longest // 16 + 1 <= fits.num_blocks, "one block is vLLM's own"
    assert longest // 16 + 1 + 1 > refused.num_blocks


@st.composite
def models(draw: st.DrawFn) -> Architecture:
    kv = draw(st.sampled_from([1, 2, 4, 8]))
    heads = kv * draw(st.sampled_from([1, 2, 5, 8]))
    head_dim = draw(st.sampled_from([64, 128]))
    return dense(
        draw(st.sampled_from(["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])),
        draw(st.integers(1, 100)),
        heads * head_dim,
        heads,
        kv,
        draw(st.integers(1, 512)) * 64,
        draw(st.integers(1000, 200_000)),
        draw(st.sampled_from([2048, 40960, 131072])),
        head_dim=head_dim,
        tie_word_embeddings=draw(st.booleans()),
    )


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of memory_plan that it accepts."""
    model = draw(models())
    options = EngineOptions(
        gpu_memory_utilization=draw(st.none() | st.floats(0.1, 0.99)),
        max_model_len=draw(st.none() | st.integers(1, model.native_context)),
        max_num_seqs=draw(st.none() | st.integers(1, 16)),
        kv_cache_dtype=draw(st.sampled_from([None, "auto", "fp8"])),
        block_size=draw(st.sampled_from([None, 16, 32, 128])),
    )
    return {
        "architecture": model,
        "gpu": catalogue.gpu(draw(st.sampled_from(catalogue.gpu_names()))),
        "tensor_parallel_size": draw(st.sampled_from(valid_tensor_parallel_sizes(model, 16))),
        "pipeline_parallel_size": draw(st.integers(1, min(4, model.layers))),
        "options": options,
    }


FAST = settings(max_examples=150, deadline=None)


@FAST
@given(runs())
def test_the_terms_add_up_to_the_budget(run: dict[str, Any]) -> None:
    plan = memory_plan(**run)
    terms = plan.weights_gib + plan.activation_gib + plan.non_torch_gib + plan.cuda_graph_gib + plan.available_kv_gib
    assert terms == pytest.approx(plan.gpu_memory_gib * plan.gpu_memory_utilization, abs=1e-6)


@FAST
@given(runs(), st.floats(0, 100))
def test_more_memory_never_holds_fewer_tokens(run: dict[str, Any], more: float) -> None:
    less = memory_plan(**run)
    larger = memory_plan(**run, gpu_memory_gib=less.gpu_memory_gib + more)
    assert larger.kv_cache_tokens >= less.kv_cache_tokens
    assert larger.longest_max_model_len >= less.longest_max_model_len
    assert less.verdict == "refused" or larger.verdict == "fits"


@FAST
@given(runs())
def test_the_longest_context_fits_and_one_block_more_does_not(run: dict[str, Any]) -> None:
    options = replace(run.pop("options"), gpu_memory_utilization=0.9)
    longest = memory_plan(**run, options=options).longest_max_model_len

    def verdict(length: int) -> str:
        return memory_plan(**run, options=replace(options, max_model_len=length)).verdict

    block = options.block_size or 16
    assert longest == 0 or verdict(longest) == "fits"
    assert verdict(longest + block) == "refused"
    if longest:
        blocks = memory_plan(**run, options=replace(options, max_model_len=longest)).num_blocks
        assert -(-longest // block) + 1 <= blocks, "one block is vLLM's own"


@FAST
@given(runs())
def test_a_longer_context_never_turns_a_refusal_into_a_fit(run: dict[str, Any]) -> None:
    options = run.pop("options")
    verdicts = [
        memory_plan(**run, options=replace(options, max_model_len=length)).verdict for length in (1, 16, 1000, 2048)
    ]
    assert verdicts == sorted(verdicts), "fits, then refused"


@FAST
@given(runs())
def test_an_fp8_cache_holds_twice_the_tokens(run: dict[str, Any]) -> None:
    options = run.pop("options")
    whole, half = (memory_plan(**run, options=replace(options, kv_cache_dtype=kind)) for kind in ("auto", "fp8"))
    assert half.kv_bytes_per_token * 2 == whole.kv_bytes_per_token
    assert half.num_blocks - 2 * whole.num_blocks in (0, 1), "the half block that did not count may count now"


@FAST
@given(runs())
def test_a_wider_split_never_puts_more_weights_on_a_gpu(run: dict[str, Any]) -> None:
    model, gpu = run["architecture"], run["gpu"]
    sizes = valid_tensor_parallel_sizes(model, 16)
    weights = [memory_plan(model, gpu, tensor_parallel_size=size).weights_gib for size in sizes]
    slack = model.layers * 4 / 1024 + 0.01  # four tensors of a layer, rounded up by at most one MiB each
    assert all(wide <= narrow + slack for narrow, wide in itertools.pairwise(weights))
