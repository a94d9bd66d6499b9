"""A model's shape, from its Hugging Face `config.json`: a list of layers, each with the caches and tensors it keeps.

A family is known here by its class in vLLM 0.33. Anything else, and every field that is missing or of an unknown kind,
raises `NotModelledError` with words; a guess would look like an answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from planning.kv_cache import Cache
from planning.weights import BF16, Format, FormatError, Quantization, Tensor, quantization

DTYPE_BYTES = {"bfloat16": 2, "float16": 2}

#: Rotary embeddings whose table has a row for each of max_position_embeddings.
PLAIN_ROPE = {None, "default", "llama3", "proportional"}


#: Beyond these a config is damaged: no model has such numbers, and loops over them would not end.
MOST, MOST_PARTS = 2**53, 8192
_PARTS = re.compile(r"(layers|depth|heads|experts)$")

#: What reading a field of another kind than in published configs raises.
BROKEN = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


#: Fields that count layers for drafting, and families that have them anyway. Source: vLLM 0.33.0's SpeculativeConfig.
DRAFTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
DRAFTING = ("MiMoV2Flash", "MiniMaxM3")


class NotModelledError(Exception):
    """The text says what the planner does not model, and where to go from there."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the decoder, in words, caches and tensors."""

    attention: str  # full | sliding | chunked | latent | sparse | linear | state-space | none
    mlp: str  # dense | experts | none
    caches: tuple[Cache, ...] = ()
    tensors: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """A decoder. Sizes count elements; `parameters` counts every weight that the engine loads, once."""

    hf_architecture: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int  # of the layer with the most
    head_dim: int
    intermediate_size: int  # of dense layers; where there are none, of the experts that a token sees together
    vocab_size: int
    parameters: int
    dtype: str
    dtype_bytes: int
    native_context: int  # tokens the model was made for
    tied_embeddings: bool  # one table serves as embedding and output layer
    stack: tuple[Layer, ...]
    embedding: Tensor
    output: Tensor
    last: tuple[Tensor, ...]  # norms behind the last layer
    encoder: tuple[Tensor, ...] = ()  # vision and audio towers with their projectors
    rope_bytes: int = 0  # rotary tables over the context, whole on every GPU
    multimodal_rope: bool = False  # positions have three parts; older engines keep longer tables for them
    experts: int = 0
    experts_per_token: int = 0
    moe_intermediate_size: int = 0
    quantization: str = ""  # formats in words; empty where everything is 16 bits
    kv_cache_dtype: str = "auto"  # what the checkpoint declares for `auto`
    whole_units: tuple[int, ...] = ()  # counts that tensor parallelism must divide, where others may be copied
    everywhere: str = ""  # what every pipeline stage holds of "embedding output norm", as vLLM's class builds it
    packed_blocks: bool = False  # pages of different sizes lie side by side (DeepSeek V4)
    drafts: bool = False  # has layers of its own that predict further tokens, for vLLM's method `mtp`
    kernel: str = "attention"  # row of the block-size rules in the engine's memory.yaml
    weights_trust: str = "exact"
    encoder_trust: str = "exact"

    @cached_property
    def caches(self) -> tuple[Cache, ...]:
        """Every cache of every layer."""
        return tuple(cache for layer in self.stack for cache in layer.caches)

    @cached_property
    def checkpoint_bytes(self) -> int:
        """Bytes of the weights that the engine loads, in the checkpoint's formats."""
        tables = [self.embedding] if self.tied_embeddings else [self.embedding, self.output]
        rest = (*tables, *self.last, *self.encoder)
        return sum(t.bytes() for layer in self.stack for t in layer.tensors) + sum(t.bytes() for t in rest)


def from_hf_config(config: Mapping[str, Any], quantization_beside: Mapping[str, Any] | None = None) -> Architecture:
    """The shape behind a `config.json`; `quantization_beside` is the content of a `hf_quant_config.json` next to it.

    Raises NotModelledError for kinds of models that are not modelled, and for a config without the needed fields.
    """
    named = config.get("architectures")
    family = str(named[0]) if isinstance(named, list) and named else "an unnamed architecture"
    from planning.families import ABSENT, FAMILIES, FEATURES  # the families are built from the classes here

    build, features = FAMILIES.get(family, (None, ""))
    if build is None:
        why = ABSENT.get(family, f"its tensors are not known (known are {', '.join(FAMILIES)})")
        raise NotModelledError(f"{family} is not modelled yet: {why}.")
    inner = config.get("text_config")
    text = {**config, **inner} if isinstance(inner, Mapping) else config
    _plausible(family, config)
    try:
        formats = quantization(config, quantization_beside)
    except FormatError as error:
        raise NotModelledError(f"{family} is not modelled yet: {error}.") from None
    except BROKEN as error:
        raise _broken(family, "quantization_config", error) from None
    foreign = [
        words
        for name, (words, keys) in FEATURES.items()
        if name not in features.split() and any(text.get(key) for key in keys)
    ]
    if foreign:
        raise NotModelledError(f"{family} is not modelled yet: {'; '.join(foreign)}.")
    c = Config(family, text, formats, config)
    try:
        found = build(c)
    except BROKEN as error:
        raise _broken(family, c.asked, error) from None
    if not max(found.parameters, found.native_context, found.rope_bytes) <= MOST:
        raise NotModelledError(f"{family} cannot be planned: config.json comes to more than any model has.")
    return found


def _plausible(family: str, config: Mapping[str, Any]) -> None:
    """Raises NotModelledError for numbers that no model has, at any depth."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _plausible(family, value)
        numbers = value if isinstance(value, list) else [value]
        most = MOST_PARTS if _PARTS.search(str(key)) else MOST
        for number in numbers:
            if isinstance(number, int) and abs(number) > most:
                shown = str(number) if abs(number) < 10**100 else "a number of more than 100 digits"
                raise NotModelledError(f"{family} cannot be planned: config.json has {key} = {shown}; no model does.")


def _broken(family: str, field: str, error: Exception) -> NotModelledError:
    said = f"{type(error).__name__}: {error}"[:200]
    return NotModelledError(
        f"{family} cannot be planned: config.json lacks a field, or has one of another kind than published models do "
        f"(near {field}; {said})."
    )


class Config:
    """The fields of a config, read with the errors that name them."""

    def __init__(self, family: str, text: Mapping[str, Any], formats: Quantization, outer: Mapping[str, Any]) -> None:
        self.family, self.text, self.formats, self.outer = family, text, formats, outer
        self.asked = "architectures"  # the field that was read last, for the message
        dtype = text.get("torch_dtype") or text.get("dtype") or outer.get("torch_dtype") or outer.get("dtype")
        self.dtype = str(dtype or "bfloat16")  # vLLM's own choice where the config names none
        if self.dtype not in DTYPE_BYTES:
            self.refuse(f"dtype {self.dtype} (known are {', '.join(DTYPE_BYTES)})")
        self.hidden = self.size("hidden_size")
        self.heads = self.size("num_attention_heads")

    def refuse(self, why: str) -> None:
        raise NotModelledError(f"{self.family} is not modelled yet: {why}.")

    def get(self, key: str, default: Any = None) -> Any:
        self.asked = key
        value = self.text.get(key)
        return default if value is None else value

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number; null counts as missing."""
        self.asked = key
        value = self.text.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise NotModelledError(
                f"{self.family} cannot be planned: config.json has {key} = {value!r}, "
                "a positive whole number is needed."
            )
        return value

    def count(self, key: str) -> int:
        """A whole number that may be missing or 0."""
        value = self.get(key, 0)
        return self.size(key) if value else 0

    def per_layer(self, key: str, layers: int) -> list[Any]:
        """A list with an entry for each layer, at least."""
        value = self.get(key)
        if not isinstance(value, (list, str)) or len(value) < layers:
            found = len(value) if isinstance(value, (list, str)) else value
            raise NotModelledError(
                f"{self.family} cannot be planned: config.json has {found!r} entries of {key} for {layers} layers."
            )
        return list(value[:layers])

    def rope(self) -> Mapping[str, Any]:
        scaling, parameters = self.get("rope_scaling"), self.get("rope_parameters")
        rope = {**(parameters or {}), **(scaling or {})}
        return rope if isinstance(rope, Mapping) else {}

    def context(self) -> int:
        """Tokens the model was made for, as vLLM derives them."""
        rope = self.rope()
        kind = rope.get("rope_type") or rope.get("type")
        length = self.size("max_position_embeddings")
        if kind in ("yarn", "deepseek_yarn"):
            original = rope.get("original_max_position_embeddings") or length
            return int(original * float(rope.get("factor") or 1))
        if kind not in PLAIN_ROPE:
            self.refuse(f"rotary scaling {kind}, which changes the native context")
        return length

    def format(self, *names: str, experts: bool = False) -> Format:
        """Of the modules that vLLM fuses into one; the first is asked, they agree in every checkpoint known."""
        return self.formats.format(names[0], experts=experts)


def assemble(
    c: Config,
    stack: Sequence[Layer],
    *,
    kv_heads: int,
    head_dim: int,
    rope_dims: Sequence[int],
    experts: int = 0,
    expert_width: int = 0,
    experts_per_token: int = 0,
    kernel: str = "attention",
    packed_blocks: bool = False,
    everywhere: str = "",
    whole_units: tuple[int, ...] = (),
    last: tuple[Tensor, ...] = (),
    encoder: tuple[Tensor, ...] = (),
    encoder_trust: str = "exact",
) -> Architecture:
    """What every family has: tables, the last norm, and the sums."""
    same: dict[Layer, Layer] = {}
    stack = [same.setdefault(layer, layer) for layer in stack]
    vocabulary, context = c.size("vocab_size"), c.context()
    tied = bool(c.get("tie_word_embeddings", c.family.startswith("Gemma")))
    embedding = Tensor("embedding", ((vocabulary, 1),), c.hidden, "rows")
    output = Tensor("output", ((vocabulary, 1),), c.hidden, "rows", c.format("lm_head") if c.formats.special else BF16)
    last = (Tensor("norm", ((1, c.hidden),), 1), *last)
    per_token = (experts_per_token or _experts_per_token(c)) if experts else 0
    wide = per_token * expert_width
    tensors = [tensor for layer in stack for tensor in layer.tensors]
    everything = [*tensors, embedding, *([] if tied else [output]), *last, *encoder]
    formats = list(dict.fromkeys(tensor.format for tensor in tensors if tensor.format.name not in ("bf16", "fp32")))
    trusts = {form.trust for form in formats}
    return Architecture(
        hf_architecture=c.family,
        layers=len(stack),
        hidden_size=c.hidden,
        heads=c.heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=int(c.get("intermediate_size") or wide or c.hidden),
        vocab_size=vocabulary,
        parameters=sum(tensor.parameters for tensor in everything),
        dtype=c.dtype,
        dtype_bytes=DTYPE_BYTES[c.dtype],
        native_context=context,
        tied_embeddings=tied,
        stack=tuple(stack),
        embedding=embedding,
        output=output,
        last=last,
        encoder=encoder,
        rope_bytes=context * sum(rope_dims) * DTYPE_BYTES[c.dtype],
        multimodal_rope="mrope_section" in c.rope(),
        experts=experts,
        experts_per_token=per_token,
        moe_intermediate_size=expert_width if experts else 0,
        quantization=", ".join(form.name for form in formats),
        kv_cache_dtype=c.formats.kv_cache,
        packed_blocks=packed_blocks,
        everywhere=everywhere,
        whole_units=whole_units,
        drafts=any(c.get(key) for key in DRAFTS) or c.family.startswith(DRAFTING),
        kernel=kernel,
        weights_trust=next((trust for trust in ("loose", "fitted") if trust in trusts), "exact"),
        encoder_trust=encoder_trust,
    )


def _experts_per_token(c: Config) -> int:
    for key in ("num_experts_per_tok", "experts_per_token", "top_k_experts", "num_experts_per_token"):
        if c.get(key):
            return c.size(key)
    c.refuse("experts without a number of them per token")
    raise AssertionError
