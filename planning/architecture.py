"""A model's shape, from its Hugging Face `config.json`: what memory, layout and start-up time depend on.

Modelled: dense decoders with grouped-query attention over the whole context, at 16 bits. Anything else raises
`NotModelledError` with words; a guess would look like an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DTYPE_BYTES = {"bfloat16": 2, "float16": 2}

#: Families whose tensors are known here: (q, k, v bias; norms of q and k). Llama's biases follow its config.
#: Source: the tensor names of their checkpoints.
FAMILIES: Mapping[str, tuple[bool, bool]] = {
    "LlamaForCausalLM": (False, False),
    "MistralForCausalLM": (False, False),
    "Qwen2ForCausalLM": (True, False),
    "Qwen3ForCausalLM": (False, True),
}

#: Rotary embeddings that keep the table at max_position_embeddings rows.
PLAIN_ROPE = {None, "default", "llama3"}


class NotModelledError(Exception):
    """The text says what the planner does not model yet, and where to go from there."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A dense decoder. Sizes count elements; `parameters` counts every weight of the checkpoint once."""

    hf_architecture: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    parameters: int
    dtype: str
    dtype_bytes: int
    native_context: int  # tokens the model was made for
    tied_embeddings: bool  # one table serves as embedding and output layer
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool


def from_hf_config(config: Mapping[str, Any], quantization: Mapping[str, Any] | None = None) -> Architecture:
    """The shape behind a `config.json`; `quantization` is the content of a `hf_quant_config.json` beside it.

    Raises NotModelledError for kinds of models that are not modelled yet, and for a config without the needed fields.
    """
    architectures = config.get("architectures")
    family = str(architectures[0]) if isinstance(architectures, list) and architectures else "an unnamed architecture"
    reasons = _not_modelled(config, quantization)
    if family not in FAMILIES and not reasons:
        reasons = [f"its tensors (known are {', '.join(FAMILIES)})"]
    if reasons:
        raise NotModelledError(f"{family} is not modelled yet: {'; '.join(reasons)}.")

    qkv_bias, qk_norm = FAMILIES[family]
    biased = bool(config.get("attention_bias", False))
    heads = _size(config, family, "num_attention_heads")
    hidden = _size(config, family, "hidden_size")
    shape = {
        "layers": _size(config, family, "num_hidden_layers"),
        "hidden_size": hidden,
        "heads": heads,
        "kv_heads": _size(config, family, "num_key_value_heads", heads),
        "head_dim": _size(config, family, "head_dim", hidden // heads),
        "intermediate_size": _size(config, family, "intermediate_size"),
        "vocab_size": _size(config, family, "vocab_size"),
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
        "qkv_bias": qkv_bias or biased,
        "output_bias": biased,
        "mlp_bias": bool(config.get("mlp_bias", False)),
        "qk_norm": qk_norm,
    }
    dtype = str(_dtype(config))
    return Architecture(
        hf_architecture=family,
        parameters=_parameters(**shape),
        dtype=dtype,
        dtype_bytes=DTYPE_BYTES[dtype],
        native_context=_size(config, family, "max_position_embeddings"),
        **shape,
    )


def _not_modelled(config: Mapping[str, Any], quantization: Mapping[str, Any] | None) -> list[str]:
    """Everything in the config that this module would get wrong."""
    inner = config.get("text_config")
    text = {**config, **inner} if isinstance(inner, Mapping) else config
    reasons = []
    if "vision_config" in config or "audio_config" in config or isinstance(inner, Mapping):
        reasons.append("multimodal inputs and their encoders")
    quantized = config.get("quantization_config") or text.get("quantization_config") or quantization
    if quantized:
        details = quantized.get("quantization") or quantized if isinstance(quantized, Mapping) else {}
        method = details.get("quant_method") or details.get("quant_algo") or "of an unnamed kind"
        reasons.append(f"quantised weights ({method})")
    experts = ("num_experts", "num_local_experts", "n_routed_experts", "num_routed_experts", "moe_num_experts")
    if any(text.get(key) for key in experts):
        reasons.append("mixture of experts")
    if text.get("kv_lora_rank"):
        reasons.append("multi-head latent attention (MLA)")
    layer_types = text.get("layer_types") or text.get("layers_block_type") or []
    other = sorted({str(kind) for kind in layer_types} - {"full_attention", "sliding_attention"})
    if other or text.get("hybrid_override_pattern") or text.get("linear_num_key_heads"):
        reasons.append(f"layers other than attention ({', '.join(other) or 'state-space or linear'})")
    window = text.get("sliding_window") and text.get("use_sliding_window", True)
    if window or "sliding_attention" in layer_types or text.get("attention_chunk_size"):
        reasons.append("sliding-window or chunked attention")
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kind = rope.get("rope_type") or rope.get("type")
    if kind not in PLAIN_ROPE:
        reasons.append(f"rotary scaling {kind}, which changes the native context")
    if not reasons and _dtype(text) not in DTYPE_BYTES:
        reasons.append(f"dtype {_dtype(text)} (known are {', '.join(DTYPE_BYTES)})")
    return reasons


def _dtype(config: Mapping[str, Any]) -> object:
    return config.get("torch_dtype") or config.get("dtype")


def _size(config: Mapping[str, Any], family: str, key: str, default: int | None = None) -> int:
    """A positive whole number of the config; null counts as missing."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise NotModelledError(
            f"{family} cannot be planned: config.json has {key} = {value!r}, a positive whole number is needed."
        )
    return value


def _parameters(
    *,
    layers: int,
    hidden_size: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    intermediate_size: int,
    vocab_size: int,
    tied_embeddings: bool,
    qkv_bias: bool,
    output_bias: bool,
    mlp_bias: bool,
    qk_norm: bool,
) -> int:
    """Every weight of the checkpoint, once."""
    queries, keys = heads * head_dim, kv_heads * head_dim
    attention = hidden_size * (2 * queries + 2 * keys)
    attention += (queries + 2 * keys) * qkv_bias + hidden_size * output_bias + 2 * head_dim * qk_norm
    mlp = 3 * hidden_size * intermediate_size + (2 * intermediate_size + hidden_size) * mlp_bias
    tables = vocab_size * hidden_size * (1 if tied_embeddings else 2)
    return layers * (attention + mlp + 2 * hidden_size) + tables + hidden_size
