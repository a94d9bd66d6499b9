"""Weights per GPU against what vLLM said that loading took, published checkpoints, and the formats' arithmetic."""

from __future__ import annotations

from typing import Any

import pytest

from planning import catalogue
from planning.architecture import Architecture, NotModelledError, from_hf_config
from planning.memory import GIB, EngineOptions, LayoutError, constants, memory_plan, valid_tensor_parallel_sizes
from planning.weights import (
    BF16,
    FP8_BLOCK,
    MXFP4,
    NVFP4,
    FormatError,
    Tensor,
    quantization,
    stage_bytes,
)
from tests import hf_configs
from tests.planning.startup_logs import rows

H100 = catalogue.gpu("H100-80GB")
LOGS = rows()


def architecture(name: str) -> Architecture:
    return from_hf_config(*hf_configs.load(name))


def weights_gib(name: str, tensor: int, **options: Any) -> float:
    plan = memory_plan(
        architecture(name), H100, tensor_parallel_size=tensor, options=EngineOptions(**options), available_kv_gib=1
    )
    return plan.weights_gib


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, row in LOGS.items()
        if row.logged.get("weights") and not row.data.get("weights-given") and row.data["gpu"] != "GB10"
    ],
)
def test_weights_are_what_model_loading_took(name: str) -> None:
    logged = LOGS[name].logged["weights"]
    rough = round(logged, 2) == logged  # printed to two decimals or fewer
    quantised = LOGS[name].architecture.quantization
    assert LOGS[name].plan().weights_gib == pytest.approx(logged, abs=0.07 if quantised or rough else 0.005)


def test_a_kernel_that_pads_more_stays_within_the_error_that_the_plan_states() -> None:
    row = LOGS["gpt-oss-20b, GB10, 0.25"]
    assert row.plan().weights_gib == pytest.approx(row.logged["weights"], rel=0.07)
    assert row.plan().trust["weights_gib"] == "loose"


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen--Qwen3-30B-A3B", 30.532),
        ("mistralai--Mixtral-8x7B-v0.1", 46.703),
        ("deepseek-ai--DeepSeek-V3", 671.026),
        ("openai--gpt-oss-20b", 20.915),
        ("openai--gpt-oss-120b", 116.829),
        ("meta-llama--Meta-Llama-3.1-405B", 405.853),
        ("nvidia--Llama-3_3-Nemotron-Super-49B-v1", 49.867),
        ("MiniMaxAI--MiniMax-M2.5", 228.690),
        ("moonshotai--Kimi-K2-Instruct", 1026.408),
        ("nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 31.578),
    ],
)
def test_parameters_are_those_of_the_published_checkpoint(name: str, billions: float) -> None:
    assert architecture(name).parameters / 1e9 == pytest.approx(billions, abs=0.001)


def test_every_configuration_is_modelled_or_says_why_not() -> None:
    missing = {}
    for name in hf_configs.names():
        try:
            shape = architecture(name)
        except NotModelledError as error:
            missing[name] = str(error)
            continue
        assert shape.parameters > 1e8
        assert len(shape.stack) == shape.layers
    assert set(missing) == {
        "MiniMaxAI--MiniMax-M3",
        "stepfun-ai--Step-3.7-Flash",
        "stepfun-ai--Step-3.7-Flash-FP8",
        "sgl-project--DeepSeek-V4-Flash-FP8",
        "sgl-project--DeepSeek-V4-Pro-FP8",
    }, missing
    assert all("vLLM 0.33" in words for words in missing.values()), "vLLM itself refuses them"


@pytest.mark.parametrize(
    ("form", "rows", "columns", "size"),
    [
        (BF16, 10, 3, 60),
        (FP8_BLOCK, 256, 300, 256 * 300 + 2 * 3 * 4),
        (NVFP4, 8, 64, 8 * 32 + 8 * 4),
        (MXFP4, 8, 64, 8 * 32 + 8 * 2),
    ],
)
def test_a_format_counts_its_scales(form: Any, rows: int, columns: int, size: int) -> None:
    assert form.bytes(rows, columns) == size


def test_experts_are_split_or_dealt_out() -> None:
    up = Tensor("experts.up", ((768, 1), (768, 1)), 2048, "rows", BF16, 128)
    assert up.bytes(8) == up.bytes() // 8
    assert up.bytes(8, expert=8) == up.bytes() // 8
    assert up.share(8) == (128, 2 * 96, 2048)
    assert up.share(8, expert=8) == (16, 2 * 768, 2048)


def test_blocks_of_scales_become_smaller_where_a_share_cuts_through_them() -> None:
    down = Tensor("experts.down", ((1, 4096),), 1536, "columns", FP8_BLOCK, 1)
    assert down.bytes(8) == 4096 * 192 + (4096 // 64) * (192 // 64) * 4, "192 columns: blocks of 64"
    assert down.bytes(4) == 4096 * 384 + 32 * 3 * 4


def test_an_fp8_checkpoint_of_experts_can_be_dealt_out_where_it_cannot_be_split() -> None:
    dealt = weights_gib("Qwen--Qwen3-235B-A22B-FP8", 8, enable_expert_parallel=True)
    assert dealt == pytest.approx(27.67, abs=0.05)


def test_what_is_not_quantised_stays_at_16_bits() -> None:
    shape = architecture("nvidia--Kimi-K2.5-NVFP4")
    formats = {tensor.name: tensor.format.name for layer in shape.stack for tensor in layer.tensors}
    assert formats["experts.up"] == "nvfp4"
    assert formats["qkv_a"] == formats["kv_b"] == formats["router"] == "bf16", "self_attn* is in the ignore list"
    assert shape.output.format is BF16


def test_layers_of_a_mixed_checkpoint_have_their_own_formats() -> None:
    shape = architecture("nvidia--Qwen3.6-27B-NVFP4")
    formats = {(layer.attention, t.name): t.format.name for layer in shape.stack for t in layer.tensors}
    assert formats["full", "qkv"] == "fp8"
    assert formats["linear", "in"] == "fp8"
    assert formats["linear", "up"] == "nvfp4"
    assert formats["linear", "ba"] == "bf16"
    assert shape.output.format.name == "nvfp4", "lm_head is in the list"


def test_expressions_and_words_of_an_ignore_list_are_followed() -> None:
    formats = quantization(
        {
            "quantization_config": {
                "quant_method": "fp8",
                "modules_to_not_convert": ["gate", "re:.*indexer.*", "model.layers.3.*", "model.layers.4.mlp"],
            }
        }
    )
    assert formats.format("layers.0.mlp.up_proj").bits == 8
    skipped = ("layers.0.mlp.gate", "layers.0.self_attn.indexer.wq_b", "layers.3.mlp.up_proj", "layers.4.mlp.up_proj")
    assert all(formats.format(name).bits == 16 for name in skipped)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {}, "b": {}}}, "2 groups"),
        ({"quant_method": "modelopt", "quant_algo": "W9A9"}, "W9A9"),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"}, "KV cache in nvfp4"),
    ],
)
def test_a_format_that_is_not_known_is_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        quantization({"quantization_config": config})


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("Qwen--Qwen3-30B-A3B-FP8", 16, "parts of 48 of experts.up"),
        ("nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 16, "8 groups"),
        ("openai--gpt-oss-20b", 16, "8 groups"),
        ("Qwen--Qwen3.5-27B", 16, "24 attention heads"),
    ],
)
def test_splits_that_vllm_refuses_are_refused_with_the_number(name: str, tensor: int, words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        weights_gib(name, tensor)


def test_a_split_through_a_blocks_scales_is_refused_for_dense_layers() -> None:
    odd = from_hf_config(
        {
            "architectures": ["Qwen3ForCausalLM"],
            "hidden_size": 1024,
            "intermediate_size": 1536,
            "num_hidden_layers": 2,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 1000,
            "max_position_embeddings": 2048,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        }
    )
    with pytest.raises(LayoutError, match="192 of down are no multiple of its format's blocks of 128"):
        memory_plan(odd, H100, tensor_parallel_size=8)
    assert valid_tensor_parallel_sizes(odd, 8) == (1, 2, 4)


@pytest.mark.parametrize(
    "name", [n for n in hf_configs.names() if not n.startswith(("stepfun", "sgl", "MiniMaxAI--MiniMax-M3"))]
)
def test_stages_hold_every_weight_and_splits_leave_none_out(name: str) -> None:
    shape = architecture(name)
    known = constants("0.33.0")

    def total(tensor: int, stages: int) -> int:
        return sum(
            stage_bytes(
                shape, tensor, 1, stage, stages, known.vocabulary_multiple, known.multimodal_rope, known.allocator
            )
            for stage in range(stages)
        )

    whole, halves = total(1, 1), total(1, 2)
    tables = shape.embedding.bytes() + shape.output.bytes()
    assert whole <= halves <= whole + shape.rope_bytes + tables + GIB // 64
    assert total(2, 1) * 2 >= 0.999 * whole
