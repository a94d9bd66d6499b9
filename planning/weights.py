"""Weights: the tensors of a model as vLLM keeps them, their number formats, and the bytes of one GPU's share.

A tensor is split over the GPUs of a replica by rows (each GPU computes some of the outputs), by columns (each GPU sees
some of the inputs), or not at all. Experts are split like dense layers, or dealt out whole (expert parallelism).
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planning.architecture import Architecture

MIB = 1 << 20

#: Columns and rows: vLLM cuts the blocks of experts' scales to fit a split, but not smaller. Source: vLLM 0.33.0.
SMALLEST_EXPERT_BLOCK = 32


class FormatError(Exception):
    """A quantisation that is not modelled; the text names it."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a number of a weight is stored: its bits, and what scales it takes."""

    name: str
    bits: int
    block: tuple[int, int] = (0, 0)  # rows x columns that share a scale; 0 is the whole side
    scale_bytes: int = 0
    zero_bits: int = 0  # of the zero point beside each scale
    trust: str = "exact"
    multiple: int = 1  # kernels want a GPU's share of an expert's inner size rounded up to it

    def bytes(self, rows: int, columns: int) -> int:
        """Of one matrix, scales included."""
        high, wide = (part or whole for part, whole in zip(self.block, (rows, columns), strict=True))
        across = columns // wide if high == 1 else math.ceil(columns / wide)  # groups within a row are whole ones
        scales = math.ceil(rows / high) * across if self.scale_bytes else 0
        return rows * columns * self.bits // 8 + scales * self.scale_bytes + scales * self.zero_bits // 8


BF16 = Format("bf16", 16)
FP32 = Format("fp32", 32)
FP8 = Format("fp8", 8, (0, 0), 4)
FP8_BLOCK = Format("fp8, blocks of 128 x 128", 8, (128, 128), 4)
MXFP8 = Format("mxfp8", 8, (1, 32), 1)
NVFP4 = Format("nvfp4", 4, (1, 16), 1, trust="fitted")
#: The multiple is that of the kernel that vLLM chooses on an H100; others pad more, by up to 7 % in logs.
MXFP4 = Format("mxfp4", 4, (1, 32), 1, trust="loose", multiple=64)
_MODELOPT = {"FP8": FP8, "NVFP4": NVFP4, "W4A16_NVFP4": NVFP4, "MXFP8": MXFP8, "FP8_PB_WO": FP8_BLOCK}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One weight of the running engine; vLLM fuses what several tensors of the checkpoint hold."""

    name: str
    rows: tuple[tuple[int, int], ...]  # (units, rows of a unit), split by units: never less than one per GPU
    columns: int
    split: str = "whole"  # rows | columns | whole
    format: Format = BF16
    experts: int = 0  # copies; 0: it is no expert
    multiple: int = 1  # a GPU's share of units or columns is rounded up to it
    whole_unless: int = 0  # where so many do not divide by the GPUs, each keeps the whole tensor
    least: int = 1  # and is never less than this where there are several GPUs

    def share(self, tensor: int, expert: int = 1) -> tuple[int, int, int]:
        """Copies, rows and columns on one GPU of `tensor`, with experts dealt out over `expert` GPUs."""
        copies = max(1, self.experts)
        if self.experts and expert > 1:
            copies, tensor = -(-copies // expert), 1
        if self.whole_unless % tensor:
            tensor = 1
        multiple = max(self.multiple, self.format.multiple if self.experts else 1)
        least = self.least if tensor > 1 else 1
        rows, columns = sum(units * each for units, each in self.rows), self.columns
        if self.split == "rows":
            rows = sum(_round_up(max(least, -(-units // tensor)), multiple) * each for units, each in self.rows)
        elif self.split == "columns":
            columns = _round_up(max(least, -(-columns // tensor)), multiple)
        return copies, rows, columns

    def bytes(self, tensor: int = 1, expert: int = 1) -> int:
        """Of one GPU's share, scales included."""
        copies, rows, columns = self.share(tensor, expert)
        return copies * self._format(1 if self.experts and expert > 1 else tensor).bytes(rows, columns)

    def _format(self, tensor: int) -> Format:
        """Where a GPU's share of an expert cuts through the blocks of its scales, vLLM makes the blocks smaller."""
        inner = self.columns if self.split == "columns" else self.rows[0][0]
        side = self.format.block[0]
        if not self.experts or side <= 1 or not (inner // tensor) % side:
            return self.format
        return replace(self.format, block=(math.gcd(side, inner // tensor),) * 2)

    @property
    def parameters(self) -> int:
        """Numbers in it, scales not counted."""
        copies, rows, columns = self.share(1)
        return copies * rows * columns


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocator:
    """torch's caching allocator does not split off a small remainder: large tensors are rounded up."""

    from_bytes: int
    multiple: int
    at_most: int  # rounded up only if that adds no more bytes than this

    def allocated(self, size: int) -> int:
        """What a tensor of `size` bytes takes."""
        added = -size % self.multiple
        return size + added if size >= self.from_bytes and added <= self.at_most else size


def gpu_bytes(tensors: Iterable[Tensor], tensor: int, expert: int, allocator: Allocator) -> int:
    """Bytes of one GPU's share of some tensors, as the allocator rounds them; scales are tensors of their own."""
    total = 0
    for item in tensors:
        copies, rows, columns = item.share(tensor, expert)
        data = copies * rows * columns * item.format.bits // 8
        total += allocator.allocated(data) + item.bytes(tensor, expert) - data
    return total


@dataclass(frozen=True, slots=True)
class Quantization:
    """The weight format of a checkpoint: which module has which."""

    default: Format = BF16
    experts: Format = BF16
    skipped: Callable[[str], bool] = lambda name: False
    special: Mapping[str, Format] | None = None  # formats by module; modules that are missing stay at 16 bits
    prefixes: tuple[str, ...] = ("model.",)  # in front of `layers.0...` in the checkpoint's names
    kv_cache: str = "auto"

    def format(self, name: str, *, experts: bool = False) -> Format:
        """Of a module, named as in the checkpoint without its prefix (`layers.0.self_attn.q_proj`)."""
        if self.default is BF16 and self.experts is BF16 and self.special is None:
            return BF16
        names = [prefix + name for prefix in self.prefixes]
        if any(self.skipped(full) for full in names):
            return BF16
        if self.special is not None:
            return next((self.special[full] for full in names if full in self.special), BF16)
        return self.experts if experts else self.default


#: What stands in front of a layer's name in published checkpoints.
_PREFIXES = ("model.", "", "backbone.", "model.language_model.", "language_model.model.", "language_model.")


def quantization(config: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> Quantization:
    """The weight format of a `config.json`, or of a `hf_quant_config.json` beside it where that names none.

    Raises FormatError for a format that is not modelled.
    """
    text = config.get("text_config")
    inner = text.get("quantization_config") if isinstance(text, Mapping) else None
    given = config.get("quantization_config") or inner
    if not given:
        given = beside
    if not given or (given is beside and not (given.get("quant_method") or given.get("producer"))):
        return Quantization()  # vLLM knows a file beside the config by its producer
    if not isinstance(given, Mapping):
        raise FormatError(f"quantization_config is {type(given).__name__}, not an object")
    details = given.get("quantization")
    details = {**given, **details} if isinstance(details, Mapping) else given
    algorithm = str(details.get("quant_algo") or "")
    method = str(details.get("quant_method") or ("modelopt" if algorithm else "")).lower()
    ignored = [
        str(item) for key in ("modules_to_not_convert", "ignore", "exclude_modules") for item in details.get(key) or ()
    ]
    skipped = _matcher(ignored)
    if not details.get("quant_method") and given is not beside:
        return Quantization()  # vLLM goes by the method's name, and takes a checkpoint without one for 16 bits
    if method.startswith("modelopt"):
        return _modelopt(details, algorithm, skipped)
    if method == "fp8":
        return _fp8(config, details, skipped)
    if method == "mxfp4":
        return Quantization(BF16, MXFP4, skipped, None, _PREFIXES)
    if method in ("awq", "gptq", "auto-round", "gptq_marlin", "awq_marlin"):
        bits, group = int(details.get("bits") or 4), int(details.get("group_size") or 128)
        zero = bits if method.startswith("awq") else 0
        form = Format(f"{method} {bits}-bit", bits, (1, max(0, group)), 2, zero, "fitted")
        return Quantization(form, form, skipped, None, _PREFIXES)
    if method == "compressed-tensors":
        return _compressed(details, skipped, config.get("architectures"))
    raise FormatError(f"quantised weights ({method or 'of an unnamed kind'})")


def _modelopt(details: Mapping[str, Any], algorithm: str, skipped: Callable[[str], bool]) -> Quantization:
    scheme = details.get("kv_cache_scheme") or details.get("kv_cache_quant_algo")
    if isinstance(scheme, Mapping):
        scheme = "fp8" if scheme.get("num_bits") == 8 else f"{scheme.get('num_bits')} bits"
    kv_cache = str(scheme or "auto").lower()
    if kv_cache not in ("auto", "fp8"):
        raise FormatError(f"a KV cache in {kv_cache}")
    if algorithm == "MIXED_PRECISION":
        special = {}
        for name, one in (details.get("quantized_layers") or {}).items():
            form = _MODELOPT.get(str(one.get("quant_algo")))
            if form is None:
                raise FormatError(f"quantised weights ({one.get('quant_algo')})")
            # Experts share one tensor: the first of them stands for all.
            special[re.sub(r"\.experts\.\d+\..*", ".experts", name)] = form
        return Quantization(BF16, BF16, skipped, special, _PREFIXES, kv_cache)
    form = _MODELOPT.get(algorithm)
    if form is None:
        raise FormatError(f"quantised weights ({algorithm or 'of an unnamed kind'})")
    return Quantization(form, form, skipped, None, _PREFIXES, kv_cache)


def _fp8(config: Mapping[str, Any], details: Mapping[str, Any], skipped: Callable[[str], bool]) -> Quantization:
    block = details.get("weight_block_size")
    # vLLM takes DeepSeek V4's experts for 4-bit ones, and its scales for exponents, unless the config denies it.
    small = config.get("expert_dtype", "fp4" if config.get("model_type") == "deepseek_v4" else "") == "fp4"
    scale = 1 if small else 4
    form = Format(f"fp8, blocks of {block[0]} x {block[1]}", 8, (block[0], block[1]), scale) if block else FP8
    experts = form
    if details.get("moe_quant_algo") == "NVFP4":
        experts = NVFP4
        quantized = skipped

        def only_experts(name: str) -> bool:  # the list is ModelOpt's; everything else is DeepSeek's own fp8
            return quantized(name) and ".experts" in name

        skipped = only_experts
    elif small:
        experts = replace(MXFP4, multiple=128)
    return Quantization(form, experts, skipped, None, _PREFIXES)


def _compressed(details: Mapping[str, Any], skipped: Callable[[str], bool], architectures: Any) -> Quantization:
    groups = list((details.get("config_groups") or {}).values())
    weights = (groups[0].get("weights") or {}) if len(groups) == 1 else {}
    bits, kind, group = weights.get("num_bits"), weights.get("type"), weights.get("group_size")
    block = weights.get("block_structure")
    if "KimiK3ForConditionalGeneration" in (architectures or ()):
        return Quantization(BF16, MXFP4, skipped, None, _PREFIXES)  # vLLM's own class for it packs experts only
    if kind == "int" and bits in (4, 8):
        form = Format(f"int{bits}", bits, (1, group or 0), 2, 0, "fitted")
    elif kind == "float" and bits == 8:
        form = Format("fp8", 8, (block[0], block[1]) if block else (1, group or 0), 4)
    elif kind == "float" and bits == 4:
        form = MXFP4 if group == 32 else NVFP4
    else:
        raise FormatError(f"quantised weights (compressed-tensors, {len(groups)} groups, {bits}-bit {kind})")
    scheme = details.get("kv_cache_scheme")
    kv_cache = "fp8" if isinstance(scheme, Mapping) and scheme.get("num_bits") == 8 else "auto"
    return Quantization(form, form, skipped, None, _PREFIXES, kv_cache)


def _matcher(patterns: list[str]) -> Callable[[str], bool]:
    """Whether a module is in an ignore list: by name, as a part of one, by `*`, or by an expression after `re:`."""
    if not patterns:
        return lambda name: False
    exact, loose = set(), []
    for pattern in patterns:
        if pattern.startswith("re:"):
            loose.append(pattern[3:])
        elif "*" in pattern:
            loose.append(fnmatch.translate(pattern))
        else:
            exact.add(pattern)
    words = {pattern for pattern in exact if "." not in pattern}
    match = re.compile("|".join(f"(?:{one})" for one in loose)).match if loose else lambda name: None

    def skipped(name: str) -> bool:
        if match(name):
            return True
        parts = name.split(".")
        return not words.isdisjoint(parts) or any(".".join(parts[:end]) in exact for end in range(1, len(parts) + 1))

    return skipped


def stage_layers(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each pipeline stage; vLLM deals a remainder out from the last stage but one backwards."""
    counts = [layers // stages] * stages
    for extra in range(layers % stages):
        counts[-2 - extra] += 1
    return tuple(counts)


@lru_cache(maxsize=512)
def stage_bytes(
    architecture: Architecture,
    tensor: int,
    expert: int,
    stage: int,
    stages: int,
    vocabulary_multiple: int,
    multimodal_rope: int,
    allocator: Allocator,
) -> int:
    """Bytes of one GPU's weights in a pipeline stage, with rotary tables and the allocator's rounding.

    The first stage holds the embedding and the encoders, the last one the output layer.
    """
    counts = stage_layers(architecture.layers, stages)
    begin = sum(counts[:stage])
    total = architecture.rope_bytes * (multimodal_rope if architecture.multimodal_rope else 1)
    for layer, number in Counter(architecture.stack[begin : begin + counts[stage]]).items():
        total += number * gpu_bytes(layer.tensors, tensor, expert, allocator)
    first, last = stage == 0, stage == stages - 1
    rest: list[Tensor] = []
    everywhere, tied = architecture.everywhere.split(), architecture.tied_embeddings
    if first or "embedding" in everywhere or (last and tied):
        rest.append(padded(architecture.embedding, vocabulary_multiple))
    if first:
        rest += architecture.encoder
    if last or "norm" in everywhere:
        rest += architecture.last
    if not tied and (last or "output" in everywhere):
        rest.append(padded(architecture.output, vocabulary_multiple))
    return total + gpu_bytes(rest, tensor, expert, allocator)


def padded(table: Tensor, multiple: int) -> Tensor:
    """A table over the vocabulary, whose rows are rounded up before they are split."""
    ((rows, each),) = table.rows
    return replace(table, rows=((_round_up(rows, multiple), each),))


def split_problem(architecture: Architecture, tensor: int, expert: int = 1) -> str:
    """Why some weight cannot be split so; empty if all can."""
    for units in architecture.whole_units:
        if units % tensor:
            return f"the {units} groups of its layers do not divide by it"
    for layer in set(architecture.stack):
        for item in layer.tensors:
            if tensor == 1 or item.split == "whole" or (item.experts and expert > 1):
                continue
            if item.split == "columns":
                if item.columns % tensor and item.multiple == 1:
                    return f"the {item.columns} inputs of {item.name} do not divide by it"
                sizes = [_round_up(item.columns // tensor, item.multiple)]
            else:
                bad = next((units for units, _ in item.rows if units % tensor and tensor % units), None)
                if bad is not None:
                    return f"the {bad} parts of {item.name} do not divide by it"
                sizes = [max(1, units // tensor) * each for units, each in item.rows]
            block = item.format.block[0] if item.format.block[0] > 1 else 0
            if item.experts and block:  # their blocks can be cut, down to a quarter
                block = min(block, SMALLEST_EXPERT_BLOCK)
            fused = item.split == "rows" and len(item.rows) > 1 and not item.experts  # vLLM lets those cut blocks
            if block and not fused and any(size % block for size in sizes):
                return f"parts of {sizes[0]} of {item.name} are no multiple of its format's blocks of {block}"
    return ""
