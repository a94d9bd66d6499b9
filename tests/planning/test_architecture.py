"""From config.json to a shape: exact where modelled, words where not."""

from __future__ import annotations

from typing import Any

import pytest

from planning.architecture import NotModelledError, from_hf_config

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 131072,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
}
LLAMA_405B = LLAMA_8B | {
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
}
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "dtype": "bfloat16",
    "max_position_embeddings": 40960,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "sliding_window": None,
}
QWEN25_32B = {
    "architectures": ["Qwen2ForCausalLM"],
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 32768,
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 131072,
}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (LLAMA_8B, 8_030_261_248),
        (LLAMA_405B, 405_853_388_800),
        (QWEN3_06B, 596_049_920),
        (QWEN25_32B, 32_763_876_352),
    ],
    ids=["llama-3.1-8b", "llama-3.1-405b", "qwen3-0.6b", "qwen2.5-32b"],
)
def test_parameters_are_those_of_the_published_checkpoint(config: dict[str, Any], parameters: int) -> None:
    assert from_hf_config(config).parameters == parameters


def test_the_head_dimension_follows_from_the_hidden_size_unless_the_config_gives_it() -> None:
    assert from_hf_config(LLAMA_8B).head_dim == 128
    assert from_hf_config(QWEN3_06B).head_dim == 128, "1024 / 16 heads would be 64"


def test_without_key_value_heads_every_head_has_its_own() -> None:
    config = {key: value for key, value in LLAMA_8B.items() if key != "num_key_value_heads"}
    assert from_hf_config(config).kv_heads == 32


def test_a_window_that_is_switched_off_does_not_count() -> None:
    assert from_hf_config(QWEN25_32B).layers == 64, "use_sliding_window is false"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"quantised weights \(bitsandbytes\)"),
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"n_routed_experts": 256, "kv_lora_rank": 512}, "mixture of experts; multi-head latent attention"),
        ({"index_topk": 2048}, "indexer"),
        ({"linear_num_key_heads": 16}, "layers with a state"),
        ({"attention_chunk_size": 8192}, "chunked attention"),
        ({"vision_config": {"depth": 1}, "text_config": {"num_hidden_layers": 32}}, "multimodal"),
        ({"architectures": ["Step3p7FlashForCausalLM"]}, "no class of that name"),
        (
            {"layer_types": ["linear_attention", "full_attention"] * 16},
            r"layers other than attention \(linear_attention\)",
        ),
        ({"rope_scaling": {"type": "longrope", "factor": 4}}, "rotary scaling longrope"),
        ({"torch_dtype": "float32"}, "dtype float32"),
        ({"architectures": ["PhiForCausalLM"]}, "PhiForCausalLM is not modelled yet: its tensors"),
        ({"architectures": None}, "unnamed architecture"),
        ({"hidden_size": None}, "hidden_size = None, a positive whole number"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers = '32'"),
    ],
)
def test_what_is_not_modelled_is_said_in_words(change: dict[str, Any], words: str) -> None:
    with pytest.raises(NotModelledError, match=words):
        from_hf_config(LLAMA_8B | change)


def test_a_quantisation_written_beside_the_config_counts() -> None:
    shape = from_hf_config(
        LLAMA_8B,
        {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}},
    )
    assert (shape.quantization, shape.kv_cache_dtype) == ("fp8", "fp8")
