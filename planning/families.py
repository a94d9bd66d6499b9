"""Families of models: what each class of vLLM 0.33 keeps in its layers, from the fields of its `config.json`.

Sizes and splits are those of the class's own modules; names of modules are those of published checkpoints, because
lists of what is not quantised use them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from planning.architecture import Architecture, Config, Layer, NotModelledError, assemble
from planning.kv_cache import Cache
from planning.weights import BF16, FP32, Format, Tensor

# The parts of layers. `at` is the module's name in the checkpoint, such as `layers.0.self_attn`.


def _linear(
    c: Config, name: str, rows: Sequence[tuple[int, int]], columns: int, split: str, at: str, *, bias: bool = False
) -> tuple[Tensor, ...]:
    tensors = [Tensor(name, tuple(rows), columns, split, c.format(at))]
    if bias:
        tensors.append(Tensor(f"{name}.bias", tuple(rows), 1, "rows" if split == "rows" else "whole"))
    return tuple(tensors)


def _norm(name: str, *widths: int, form: Format = BF16) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, ((1, width),), 1, "whole", form) for width in widths if width)


def _grouped(
    c: Config,
    at: str,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    value_dim: int = 0,
    kind: str = "full",
    window: int = 0,
    bias: bool = False,
    output_bias: bool = False,
    norms: Sequence[int] = (),
    gate: int = 0,
    sinks: bool = False,
) -> tuple[tuple[Cache, ...], tuple[Tensor, ...]]:
    """Grouped-query attention. `gate` is heads of an output gate that the query projection computes too."""
    value_dim = value_dim or head_dim
    rows = [(heads + gate, head_dim), (kv_heads, head_dim), (kv_heads, value_dim)]
    tensors = (
        *_linear(c, "qkv", rows, c.hidden, "rows", f"{at}.q_proj", bias=bias),
        *_linear(c, "o", [(1, c.hidden)], heads * value_dim, "columns", f"{at}.o_proj", bias=output_bias),
        *_norm("qk_norm", *norms),
        *((Tensor("sinks", ((heads, 1),), 1, "rows"),) if sinks else ()),
    )
    return (Cache(kind, kv_heads, head_dim + value_dim, window=window),), tensors


def _latent(c: Config, at: str, *, nope_only: bool = False, gate: bool = False) -> tuple[Cache, tuple[Tensor, ...]]:
    """Multi-head latent attention: one compressed vector per token, whole on every GPU."""
    rank, rope = c.size("kv_lora_rank"), c.size("qk_rope_head_dim")
    nope, value = c.size("qk_nope_head_dim"), c.size("v_head_dim")
    down: list[tuple[int, int]] = [(1, rank + rope)]
    tensors: tuple[Tensor, ...] = ()
    if q_rank := c.count("q_lora_rank"):
        tensors += _linear(c, "qkv_a", [(1, q_rank), *down], c.hidden, "whole", f"{at}.q_a_proj")
        tensors += _norm("q_a_norm", q_rank)
        tensors += _linear(c, "q_b", [(c.heads, nope + rope)], q_rank, "rows", f"{at}.q_b_proj")
    else:
        tensors += _linear(c, "q", [(c.heads, nope + rope)], c.hidden, "rows", f"{at}.q_proj")
        tensors += _linear(c, "kv_a", down, c.hidden, "whole", f"{at}.kv_a_proj_with_mqa")
    if gate:
        tensors += _linear(c, "gate", [(c.heads, value)], c.hidden, "rows", f"{at}.g_proj")
    tensors += _norm("kv_a_norm", rank)
    tensors += _linear(c, "kv_b", [(c.heads, nope + value)], rank, "rows", f"{at}.kv_b_proj")
    tensors += _linear(c, "o", [(1, c.hidden)], c.heads * value, "columns", f"{at}.o_proj")
    return Cache("latent", 1, rank + rope, packed_bytes=0), tensors


def _dense(
    c: Config, at: str, width: int, *, gated: bool = True, bias: bool = False, up: str = "gate_proj"
) -> tuple[Tensor, ...]:
    if not gated:
        rows, up = [(width, 1)], "up_proj"
    else:
        rows = [(width, 1), (width, 1)]
    return (
        *_linear(c, "up", rows, c.hidden, "rows", f"{at}.{up}", bias=bias),
        *_linear(c, "down", [(1, c.hidden)], width, "columns", f"{at}.down_proj", bias=bias),
    )


def _experts(
    c: Config,
    at: str,
    *,
    experts: int,
    width: int,
    gated: bool = True,
    inputs: int = 0,
    bias: bool = False,
    router: Format = BF16,
    router_bias: bool = False,
    correction: bool = False,
) -> tuple[Tensor, ...]:
    """Routed experts with their router, which is whole on every GPU."""
    inputs = inputs or c.hidden
    form = c.format(f"{at}.experts", experts=True)
    up = ((width, 1), (width, 1)) if gated else ((width, 1),)
    tensors = [
        Tensor("experts.up", up, inputs, "rows", form, experts),
        Tensor("experts.down", ((1, inputs),), width, "columns", form, experts),
        Tensor("router", ((1, experts),), c.hidden, "whole", router),
    ]
    if bias:
        tensors += [
            Tensor("experts.up.bias", up, 1, "rows", replace(BF16, multiple=form.multiple), experts),
            Tensor("experts.down.bias", ((1, inputs),), 1, "whole", BF16, experts),
        ]
    if router_bias:
        tensors.append(Tensor("router.bias", ((1, experts),), 1))
    if correction:
        tensors.append(Tensor("router.correction", ((1, experts),), 1, "whole", FP32))
    return tuple(tensors)


def _indexer(c: Config, at: str) -> tuple[Cache, tuple[Tensor, ...]]:
    """Sparse attention's indexer of DeepSeek V3.2: 8-bit keys with a 4-byte scale for each 128 of them."""
    heads, width = c.size("index_n_heads"), c.size("index_head_dim")
    tensors = (
        *_linear(c, "indexer.q", [(1, heads * width)], c.size("q_lora_rank"), "whole", f"{at}.indexer.wq_b"),
        Tensor("indexer.k", ((1, width + heads),), c.hidden),
        *_norm("indexer.norm", width, width, form=FP32),
    )
    return Cache("latent", token_bytes=width + width // 128 * 4, role="indexer"), tensors


# Families.


def _llama(
    qkv_bias: bool = False, qk_norm: bool = False, flag: str = "attention_bias"
) -> Callable[[Config], Architecture]:
    """Dense decoders with grouped-query attention."""

    def build(c: Config) -> Architecture:
        layers, kv_heads = c.size("num_hidden_layers"), c.size("num_key_value_heads", c.heads)
        head_dim = c.size("head_dim", c.hidden // c.heads)
        biased = bool(c.get(flag, False))
        windows = _windows(c, layers)
        stack = []
        for index, window in enumerate(windows):
            caches, attention = _grouped(
                c,
                f"layers.{index}.self_attn",
                heads=c.heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                kind="sliding" if window else "full",
                window=window,
                bias=qkv_bias or biased,
                output_bias=biased and not qkv_bias,
                norms=(head_dim, head_dim) if qk_norm else (),
            )
            mlp = _dense(c, f"layers.{index}.mlp", c.size("intermediate_size"), bias=bool(c.get("mlp_bias", False)))
            norms = _norm("norm", c.hidden, c.hidden)
            stack.append(Layer("sliding" if window else "full", "dense", caches, (*attention, *mlp, *norms)))
        return assemble(c, stack, kv_heads=kv_heads, head_dim=head_dim, rope_dims=(head_dim,))

    return build


def _windows(c: Config, layers: int) -> list[int]:
    """The window of each layer, 0 where it sees everything."""
    kinds = c.get("layer_types")
    if kinds is not None:
        kinds = c.per_layer("layer_types", layers)
        other = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
        if other:
            c.refuse(f"layers other than attention ({', '.join(other)})")
        if "sliding_attention" not in kinds:
            return [0] * layers
        return [c.size("sliding_window") if kind == "sliding_attention" else 0 for kind in kinds]
    window = c.count("sliding_window") if c.get("use_sliding_window", True) else 0
    if window and c.count("max_window_layers"):
        c.refuse("sliding windows in some layers only (max_window_layers)")
    return [window] * layers


def _moe_everywhere(
    *,
    at: str,
    count: str,
    qk_norm: str = "",
    router: Format = BF16,
    correction: bool = False,
    everywhere: str = "embedding output norm",
) -> Callable[[Config], Architecture]:
    """Experts in every layer that is not listed as dense; grouped-query attention over the whole context."""

    def build(c: Config) -> Architecture:
        layers, kv_heads = c.size("num_hidden_layers"), c.size("num_key_value_heads")
        head_dim = c.size("head_dim", c.hidden // c.heads)
        experts, dense = c.size(count), set(c.get("mlp_only_layers", []))
        width = c.size("moe_intermediate_size") if c.get("moe_intermediate_size") else c.size("intermediate_size")
        step = c.size("decoder_sparse_step", 1)
        norms: tuple[int, ...] = ()
        if qk_norm == "head":
            norms = (head_dim, head_dim)
        stack = []
        for index, window in enumerate(_windows(c, layers)):
            caches, attention = _grouped(
                c,
                f"layers.{index}.self_attn",
                heads=c.heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                kind="sliding" if window else "full",
                window=window,
                bias=bool(c.get("attention_bias", False)),
                norms=norms,
            )
            if qk_norm == "layer" and c.get("use_qk_norm"):  # one norm over all heads, split like them
                attention += tuple(Tensor("qk_norm", ((n, head_dim),), 1, "rows") for n in (c.heads, kv_heads))
            has_experts = index not in dense and (index + 1) % step == 0
            if has_experts:
                mlp = _experts(
                    c, f"layers.{index}.{at}", experts=experts, width=width, router=router, correction=correction
                )
            else:
                mlp = _dense(c, f"layers.{index}.{at}", c.size("intermediate_size"))
            tensors = (*attention, *mlp, *_norm("norm", c.hidden, c.hidden))
            words = "sliding" if window else "full"
            stack.append(Layer(words, "experts" if has_experts else "dense", caches, tensors))
        dim = c.size("rotary_dim", int(head_dim * float(c.get("partial_rotary_factor", 1.0))))
        return assemble(
            c,
            stack,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope_dims=(dim,),
            experts=experts,
            expert_width=width,
            everywhere=everywhere,
        )

    return build


def _gpt_oss(c: Config) -> Architecture:
    layers, kv_heads, head_dim = c.size("num_hidden_layers"), c.size("num_key_value_heads"), c.size("head_dim")
    experts, width = c.size("num_local_experts"), c.size("intermediate_size")
    stack = []
    for index, window in enumerate(_windows(c, layers)):
        caches, attention = _grouped(
            c,
            f"layers.{index}.self_attn",
            heads=c.heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            kind="sliding" if window else "full",
            window=window,
            bias=True,
            output_bias=True,
            sinks=True,
        )
        mlp = _experts(c, f"layers.{index}.mlp", experts=experts, width=width, bias=True, router_bias=True)
        tensors = (*attention, *mlp, *_norm("norm", c.hidden, c.hidden))
        stack.append(Layer("sliding" if window else "full", "experts", caches, tensors))
    # The table is kept in 32 bits: twice the rows of a 16-bit one.
    return assemble(
        c,
        stack,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope_dims=(2 * head_dim,),
        experts=experts,
        expert_width=width,
        everywhere="embedding output norm",
        whole_units=(kv_heads,),
    )


def _deepseek_v3(c: Config) -> Architecture:
    """DeepSeek V3, R1 and Kimi K2 (latent attention), V3.2 and GLM-5 (sparse, with an indexer)."""
    layers = c.size("num_hidden_layers")
    sparse = bool(c.count("index_topk"))
    experts, width = c.count("n_routed_experts"), c.count("moe_intermediate_size")
    first, frequency = int(c.get("first_k_dense_replace", 0)), c.size("moe_layer_freq", 1)
    pattern, every, offset = c.get("index_topk_pattern"), c.size("index_topk_freq", 1), c.get("index_skip_topk_offset")
    offset = 2 if offset is None else int(offset)
    stack = []
    for index in range(layers):
        at = f"layers.{index}"
        cache, attention = _latent(c, f"{at}.self_attn")
        caches: tuple[Cache, ...] = (cache,)
        if sparse:
            caches = (Cache("latent", 1, cache.width, packed_bytes=656),)
            skips = pattern[index] == "S" if pattern else max(index - offset + 1, 0) % every != 0
            if not skips:  # the others use the last choice of tokens
                side, tensors = _indexer(c, f"{at}.self_attn")
                caches, attention = (side, *caches), attention + tensors
        has_experts = experts and index >= first and index % frequency == 0
        if has_experts:
            correction = c.get("topk_method") == "noaux_tc"
            mlp = _experts(c, f"{at}.mlp", experts=experts, width=width, correction=correction)
            if shared := c.count("n_shared_experts"):
                mlp += _dense(c, f"{at}.mlp.shared_experts", shared * width)
        else:
            mlp = _dense(c, f"{at}.mlp", c.size("intermediate_size"))
        tensors = (*attention, *mlp, *_norm("norm", c.hidden, c.hidden))
        stack.append(Layer("sparse" if sparse else "latent", "experts" if has_experts else "dense", caches, tensors))
    dim = c.size("qk_rope_head_dim")
    return assemble(
        c,
        stack,
        kv_heads=1,
        head_dim=c.size("kv_lora_rank") + dim,
        rope_dims=(dim, dim) if sparse and not c.get("indexer_rope_interleave") else (dim,),
        experts=experts,
        expert_width=width,
        kernel="sparse" if sparse else "latent",
        encoder=_kimi_vision(c),
    )


def _llama4(c: Config) -> Architecture:
    layers, kv_heads, head_dim = c.size("num_hidden_layers"), c.size("num_key_value_heads"), c.size("head_dim")
    experts, width = c.size("num_local_experts"), c.size("intermediate_size")
    step, chunk = c.size("interleave_moe_layer_step", 1), c.size("attention_chunk_size", 8192)
    no_rope = c.get("no_rope_layers") or [int((index + 1) % 4 != 0) for index in range(layers)]
    stack = []
    for index in range(layers):
        chunked = bool(no_rope[index])
        caches, attention = _grouped(
            c,
            f"layers.{index}.self_attn",
            heads=c.heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            kind="chunked" if chunked else "full",
            window=chunk if chunked else 0,
        )
        has_experts = (index + 1) % step == 0
        if has_experts:
            mlp = _experts(c, f"layers.{index}.feed_forward", experts=experts, width=width)
            mlp += _dense(c, f"layers.{index}.feed_forward.shared_expert", width)
        else:
            mlp = _dense(c, f"layers.{index}.feed_forward", c.size("intermediate_size_mlp"))
        tensors = (*attention, *mlp, *_norm("norm", c.hidden, c.hidden))
        words = "chunked" if chunked else "full"
        stack.append(Layer(words, "experts" if has_experts else "dense", caches, tensors))
    return assemble(
        c,
        stack,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope_dims=(head_dim,),
        experts=experts,
        expert_width=width,
        encoder=_llama4_vision(c),
    )


def _gemma4(c: Config) -> Architecture:
    layers = c.size("num_hidden_layers")
    if c.count("num_kv_shared_layers") or c.count("hidden_size_per_layer_input") or c.get("use_double_wide_mlp"):
        c.refuse("layers that share keys and values, or embeddings per layer (the small Gemma 4 models)")
    experts = c.count("num_experts") if c.get("enable_moe_block") else 0
    width = c.count("moe_intermediate_size") or c.count("expert_intermediate_size")
    stack = []
    for index, window in enumerate(_windows(c, layers)):
        at = f"layers.{index}"
        head_dim = c.size("head_dim") if window else c.size("global_head_dim", c.size("head_dim"))
        kv_heads = c.size("num_key_value_heads")
        if not window and c.get("attention_k_eq_v"):
            kv_heads = c.size("num_global_key_value_heads", kv_heads)
        caches, tensors = _grouped(
            c,
            f"{at}.self_attn",
            heads=c.heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            kind="sliding" if window else "full",
            window=window,
            bias=bool(c.get("attention_bias", False)),
            norms=(head_dim, head_dim),
        )
        tensors += _dense(c, f"{at}.mlp", c.size("intermediate_size"))
        tensors += _norm("norm", *[c.hidden] * 4)
        if experts:
            tensors += _experts(c, at, experts=experts, width=width)
            tensors += _norm("router.scale", c.hidden, experts) + _norm("norm", *[c.hidden] * 3)
        stack.append(Layer("sliding" if window else "full", "experts" if experts else "dense", caches, tensors))
    head_dim = c.size("head_dim")
    return assemble(
        c,
        stack,
        kv_heads=max(c.size("num_key_value_heads"), c.count("num_global_key_value_heads")),
        head_dim=head_dim,
        rope_dims=(head_dim, c.size("global_head_dim", head_dim)),
        everywhere="embedding",
        kernel="gemma-4",
        experts=experts,
        expert_width=width,
        encoder=_gemma_vision(c),
    )


def _mimo_v2(c: Config) -> Architecture:
    layers = c.size("num_hidden_layers")
    sliding, moe = c.per_layer("hybrid_layer_pattern", layers), c.per_layer("moe_layer_freq", layers)
    experts, width = c.size("n_routed_experts"), c.size("moe_intermediate_size")
    stack = []
    for index in range(layers):
        at, swa = f"layers.{index}", "swa_" if sliding[index] else ""
        caches, attention = _grouped(
            c,
            f"{at}.self_attn",
            heads=c.size(f"{swa}num_attention_heads"),
            kv_heads=c.size(f"{swa}num_key_value_heads"),
            head_dim=c.size(f"{swa}head_dim"),
            value_dim=c.size(f"{swa}v_head_dim", c.size(f"{swa}head_dim")),
            kind="sliding" if swa else "full",
            window=c.size("sliding_window_size", c.count("sliding_window")) if swa else 0,
            bias=bool(c.get("attention_bias", False)),
            sinks=bool(c.get(f"add_{swa or 'full_'}attention_sink_bias")),
        )
        if moe[index]:
            mlp = _experts(
                c, f"{at}.mlp", experts=experts, width=width, router=FP32, correction=c.get("topk_method") == "noaux_tc"
            )
        else:
            mlp = _dense(c, f"{at}.mlp", c.size("intermediate_size"))
        tensors = (*attention, *mlp, *_norm("norm", c.hidden, c.hidden))
        stack.append(Layer("sliding" if swa else "full", "experts" if moe[index] else "dense", caches, tensors))
    dim = int(c.size("head_dim") * float(c.get("partial_rotary_factor", 1.0)))
    return assemble(
        c,
        stack,
        kv_heads=max(c.size("num_key_value_heads"), c.size("swa_num_key_value_heads")),
        head_dim=c.size("head_dim"),
        rope_dims=(dim, dim),
        experts=experts,
        expert_width=width,
    )


def _qwen35(c: Config) -> Architecture:
    """Qwen3-Next and Qwen3.5: three layers of gated delta nets to one of attention with an output gate."""
    layers, kv_heads, head_dim = c.size("num_hidden_layers"), c.size("num_key_value_heads"), c.size("head_dim")
    interval = c.size("full_attention_interval", 4)
    kinds = c.get("layer_types") or [
        "linear_attention" if (index + 1) % interval else "full_attention" for index in range(layers)
    ]
    experts, width = c.count("num_experts"), c.count("moe_intermediate_size")
    k_heads, v_heads = c.size("linear_num_key_heads"), c.size("linear_num_value_heads")
    k_dim, v_dim, kernel = (
        c.size("linear_key_head_dim"),
        c.size("linear_value_head_dim"),
        c.size("linear_conv_kernel_dim"),
    )
    state_bytes = {"float32": 4, "bfloat16": 2, "float16": 2}.get(str(c.get("mamba_ssm_dtype", c.dtype)), 0)
    if not state_bytes:
        c.refuse(f"a state in {c.get('mamba_ssm_dtype')}")
    next_ = c.family.startswith("Qwen3Next")
    state = Cache(
        "state",
        state=(
            (k_heads, 2 * k_dim * (kernel - 1) * 2),
            (v_heads, v_dim * (kernel - 1) * 2),
            (v_heads, v_dim * k_dim * state_bytes),
        ),
        checkpoint_alignment=64,  # FlashInfer's prefill kernel, the choice on compute capability 9 and above
    )
    stack = []
    for index in range(layers):
        at = f"layers.{index}"
        caches: tuple[Cache, ...]
        if kinds[index] == "full_attention":
            caches, tensors = _grouped(
                c,
                f"{at}.self_attn",
                heads=c.heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                bias=bool(c.get("attention_bias", False)),
                norms=(head_dim, head_dim),
                gate=c.heads if c.get("attn_output_gate", True) else 0,
            )
        elif kinds[index] == "linear_attention":
            conv = [(k_heads, k_dim), (k_heads, k_dim), (v_heads, v_dim)]
            lin = f"{at}.linear_attn"
            name = f"{lin}.in_proj_qkvz" if next_ else f"{lin}.in_proj_qkv"
            caches = (state,)
            tensors = (
                *_linear(c, "in", [*conv, (v_heads, v_dim)], c.hidden, "rows", name),
                *_linear(c, "ba", [(v_heads, 1), (v_heads, 1)], c.hidden, "rows", f"{lin}.in_proj_b"),
                Tensor("conv", tuple(conv), kernel, "rows"),
                Tensor("dt", ((v_heads, 1),), 1, "rows"),
                Tensor("A", ((v_heads, 1),), 1, "rows", FP32),
                *_norm("state_norm", v_dim, form=FP32 if not next_ else BF16),
                *_linear(c, "out", [(1, c.hidden)], v_heads * v_dim, "columns", f"{lin}.out_proj"),
            )
        else:
            c.refuse(f"layers other than attention ({kinds[index]})")
            raise AssertionError
        if experts:
            tensors += _experts(c, f"{at}.mlp", experts=experts, width=width)
            if shared := c.count("shared_expert_intermediate_size"):
                tensors += _dense(c, f"{at}.mlp.shared_expert", shared)
                tensors += (Tensor("shared_gate", ((1, 1),), c.hidden),)
        else:
            tensors += _dense(c, f"{at}.mlp", c.size("intermediate_size"))
        words = "full" if kinds[index] == "full_attention" else "linear"
        tensors += _norm("norm", c.hidden, c.hidden)
        stack.append(Layer(words, "experts" if experts else "dense", caches, tensors))
    factor = float(c.rope().get("partial_rotary_factor") or c.get("partial_rotary_factor", 0.25))
    return assemble(
        c,
        stack,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope_dims=(int(head_dim * factor),),
        everywhere="embedding output" if next_ else "embedding",
        experts=experts,
        expert_width=width,
        encoder=_qwen_vision(c),
    )


def _qwen3_vl(moe: bool) -> Callable[[Config], Architecture]:
    inner = _moe_everywhere(at="mlp", count="num_experts", qk_norm="head") if moe else _llama(qk_norm=True)

    def build(c: Config) -> Architecture:
        text, tower = inner(c), _qwen_vision(c)
        return replace(text, encoder=tower, parameters=text.parameters + sum(t.parameters for t in tower))

    return build


def _nemotron_h(c: Config) -> Architecture:
    """Mamba 2, attention and MLPs as layers of their own."""
    letters = {"mamba": "M", "attention": "*", "moe": "E", "mlp": "-"}
    if kinds := c.get("layers_block_type"):
        unknown = sorted({str(kind) for kind in kinds} - set(letters))
        if unknown:
            c.refuse(f"layers of the kind {', '.join(unknown)}")
        pattern = "".join(letters[kind] for kind in kinds)
    else:
        pattern = "".join(c.per_layer("hybrid_override_pattern", c.size("num_hidden_layers")))
    if set(pattern) - set("M*E-"):
        c.refuse(f"layers of the kind {', '.join(sorted(set(pattern) - set('M*E-')))}")
    kv_heads = c.size("num_key_value_heads")
    head_dim = c.size("head_dim", c.count("attention_head_dim") or c.hidden // c.heads)
    heads, width, groups = c.size("mamba_num_heads"), c.size("mamba_head_dim"), c.size("n_groups")
    states, kernel = c.size("ssm_state_size"), c.size("conv_kernel")
    state_dtype = str(c.get("mamba_ssm_cache_dtype", "float32"))  # vLLM's own default for this family
    state_bytes = {"float32": 4, "bfloat16": 2, "float16": 2}.get(state_dtype, 0)
    if not state_bytes:
        c.refuse(f"a state in {state_dtype}")
    cache = Cache(
        "state",
        state=(
            (heads, width * (kernel - 1) * 2),
            (groups, 2 * states * (kernel - 1) * 2),
            (heads, width * states * state_bytes),
        ),
        checkpoint_alignment=1,
    )
    experts, expert_width, latent = (
        c.count(key) for key in ("n_routed_experts", "moe_intermediate_size", "moe_latent_size")
    )
    stack = []
    for index, letter in enumerate(pattern):
        at = f"layers.{index}.mixer"
        norm = _norm("norm", c.hidden)
        if letter == "*":
            caches, tensors = _grouped(c, at, heads=c.heads, kv_heads=kv_heads, head_dim=head_dim)
            stack.append(Layer("full", "none", caches, tensors + norm))
        elif letter == "M":
            bias = bool(c.get("use_bias", False))
            conv = [(heads, width), (groups, states), (groups, states)]
            tensors = (
                *_linear(c, "in", [(heads, width), *conv, (heads, 1)], c.hidden, "rows", f"{at}.in_proj", bias=bias),
                Tensor("conv", tuple(conv), kernel, "rows"),
                *((Tensor("conv.bias", tuple(conv), 1, "rows"),) if c.get("use_conv_bias", True) else ()),
                Tensor("A", ((heads, 1),), 1, "rows", FP32),
                Tensor("D and dt", ((heads, 1), (heads, 1)), 1, "rows"),
                Tensor("state_norm", ((heads, width),), 1, "rows"),
                *_linear(c, "out", [(1, c.hidden)], heads * width, "columns", f"{at}.out_proj", bias=bias),
            )
            stack.append(Layer("state-space", "none", (cache,), tensors + norm))
        elif letter == "E":
            tensors = _experts(c, at, experts=experts, width=expert_width, gated=False, inputs=latent, correction=True)
            if latent:
                tensors += _linear(c, "latent.in", [(1, latent)], c.hidden, "whole", f"{at}.fc1_latent_proj")
                tensors += _linear(c, "latent.out", [(1, c.hidden)], latent, "whole", f"{at}.fc2_latent_proj")
            if shared := c.count("n_shared_experts"):
                total = shared * c.size("moe_shared_expert_intermediate_size")
                tensors += _dense(c, f"{at}.shared_experts", total, gated=False)
            stack.append(Layer("none", "experts", (), tensors + norm))
        else:
            tensors = _dense(c, at, c.size("intermediate_size"), gated=False, bias=bool(c.get("mlp_bias", False)))
            stack.append(Layer("none", "dense", (), tensors + norm))
    return assemble(
        c,
        stack,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope_dims=(),
        experts=experts,
        expert_width=expert_width,
        everywhere="embedding output norm",
        whole_units=(groups,) if groups > 1 else (),
    )


def _nemotron_nas(c: Config) -> Architecture:
    """Llama whose layers differ: some without attention, some with a narrower MLP."""
    blocks = c.per_layer("block_configs", c.size("num_hidden_layers"))
    head_dim = c.size("head_dim", c.hidden // c.heads)
    stack, kv_heads = [], 1
    for index, block in enumerate(blocks):
        attention, ffn = block.get("attention") or {}, block.get("ffn") or {}
        if attention.get("replace_with_linear") or ffn.get("replace_with_linear"):
            c.refuse("layers that are one linear projection")
        caches: tuple[Cache, ...] = ()
        tensors: tuple[Tensor, ...] = ()
        if not attention.get("no_op"):
            count = c.heads // int(attention["n_heads_in_group"])
            kv_heads = max(kv_heads, count)
            caches, tensors = _grouped(c, f"layers.{index}.self_attn", heads=c.heads, kv_heads=count, head_dim=head_dim)
            tensors += _norm("norm", c.hidden)
        if not ffn.get("no_op"):
            # Source: vLLM's nemotron_nas.py: two thirds of the multiple, in steps of 256.
            width = _up(int(2 * float(ffn["ffn_mult"]) * c.hidden / 3), 256)
            tensors += _dense(c, f"layers.{index}.mlp", width) + _norm("norm", c.hidden)
        words = "none" if attention.get("no_op") else "full"
        stack.append(Layer(words, "none" if ffn.get("no_op") else "dense", caches, tensors))
    return assemble(c, stack, kv_heads=kv_heads, head_dim=head_dim, rope_dims=(head_dim,))


def _minimax_m3(c: Config) -> Architecture:
    layers, kv_heads, head_dim = c.size("num_hidden_layers"), c.size("num_key_value_heads"), c.size("head_dim")
    moe = c.per_layer("moe_layer_freq", layers)
    sparse = c.get("sparse_attention_config") or {}
    frequency = sparse.get("sparse_attention_freq") if sparse.get("use_sparse_attention") else [0] * layers
    if not isinstance(frequency, list) or len(frequency) < layers:
        raise NotModelledError(f"{c.family} cannot be planned: sparse_attention_freq has no entry for each layer.")
    experts, width = c.size("num_local_experts"), c.size("intermediate_size")
    stack = []
    for index in range(layers):
        at = f"layers.{index}"
        caches, attention = _grouped(
            c,
            f"{at}.self_attn",
            heads=c.heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norms=(head_dim, head_dim) if c.get("use_qk_norm") else (),
        )
        if frequency[index]:
            wide, number = int(sparse["sparse_index_dim"]), int(sparse["sparse_num_index_heads"])
            caches = (*caches, Cache("latent", token_bytes=wide * 2, role="indexer"))
            first, *rest = attention
            rows = (*first.rows, (number, wide), (1, wide))
            attention = (Tensor("qkv", rows, c.hidden, "rows", first.format), *rest, *_norm("qk_norm", wide, wide))
        if moe[index]:
            mlp = _experts(
                c,
                f"{at}.block_sparse_moe",
                experts=experts,
                width=width,
                router=FP32,
                correction=bool(c.get("use_routing_bias")),
            )
            if shared := c.count("n_shared_experts"):
                mlp += _dense(c, f"{at}.block_sparse_moe.shared_experts", shared * width)
        else:
            mlp = _dense(c, f"{at}.mlp", c.size("dense_intermediate_size"))
        tensors = (*attention, *mlp, *_norm("norm", c.hidden, c.hidden))
        words = "sparse" if len(caches) > 1 else "full"
        stack.append(Layer(words, "experts" if moe[index] else "dense", caches, tensors))
    dim = c.size("rotary_dim", head_dim)
    return assemble(
        c,
        stack,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope_dims=(dim,),
        experts=experts,
        expert_width=width,
        kernel="minimax-m3",
        encoder=_minimax_vision(c),
    )


def _kimi_k3(c: Config) -> Architecture:
    """Kimi Delta Attention in most layers, latent attention in the others; experts in a narrower space."""
    layers = c.size("num_hidden_layers")
    linear = c.get("linear_attn_config") or {}
    if not linear.get("use_full_rank_gate"):
        c.refuse("delta attention whose gate has a low rank (Kimi Linear)")
    deltas = {int(layer) - 1 for layer in linear["kda_layers"]}
    heads, width, kernel = int(linear["num_heads"]), int(linear["head_dim"]), int(linear["short_conv_kernel_size"])
    experts, expert_width = c.size("num_experts"), c.size("moe_intermediate_size")
    latent = c.count("routed_expert_hidden_size")
    first, frequency = int(c.get("first_k_dense_replace", 0)), c.size("moe_layer_freq", 1)
    state = Cache(
        "state",
        state=((heads, 3 * width * (kernel - 1) * 2), (heads, width * width * 4)),
        checkpoint_alignment=16,
    )
    stack = []
    for index in range(layers):
        at = f"layers.{index}"
        caches: tuple[Cache, ...]
        if index in deltas:
            caches = (state,)
            row = [(heads, width)]
            tensors = (
                *_linear(c, "in", [*row * 4, (1, width)], c.hidden, "rows", f"{at}.self_attn.q_proj"),
                Tensor("beta", ((heads, 1),), c.hidden, "rows", c.format(f"{at}.self_attn.b_proj"), multiple=16),
                *_linear(c, "f_b", row, width, "rows", f"{at}.self_attn.f_b_proj"),
                Tensor("dt", ((heads, width),), 1, "rows", FP32),
                Tensor("conv", ((heads, 3 * width),), kernel, "rows", FP32),
                Tensor("A", ((heads, 1),), 1, "rows", FP32),
                *_norm("state_norm", width),
                *_linear(c, "o", [(1, c.hidden)], heads * width, "columns", f"{at}.self_attn.o_proj"),
            )
        else:
            cache, tensors = _latent(c, f"{at}.self_attn", gate=bool(c.get("mla_use_output_gate")))
            caches = (cache,)
        has_experts = index >= first and index % frequency == 0
        if has_experts:
            moe = f"{at}.block_sparse_moe"
            routed = _experts(c, moe, experts=experts, width=expert_width, inputs=latent, correction=True)
            tensors += tuple(replace(item, least=256) if item.experts else item for item in routed)
            if shared := c.count("num_shared_experts"):
                tensors += _dense(c, f"{moe}.shared_experts", shared * expert_width)
            if latent:
                tensors += _linear(c, "latent.in", [(1, latent)], c.hidden, "whole", f"{moe}.routed_expert_down_proj")
                tensors += _linear(c, "latent.out", [(1, c.hidden)], latent, "whole", f"{moe}.routed_expert_up_proj")
                tensors += _norm("latent.norm", latent if c.get("latent_moe_use_norm") else 0)
        else:
            tensors += _dense(c, f"{at}.mlp", c.size("intermediate_size"))
        tensors += _norm("norm", c.hidden, c.hidden)
        if c.get("attn_res_block_size"):
            tensors += _norm("residual", *[c.hidden] * 4)
        words = "linear" if index in deltas else "latent"
        stack.append(Layer(words, "experts" if has_experts else "dense", caches, tensors))
    return assemble(
        c,
        stack,
        kv_heads=1,
        head_dim=c.size("kv_lora_rank") + c.size("qk_rope_head_dim"),
        rope_dims=(),
        experts=experts,
        expert_width=expert_width,
        experts_per_token=c.size("num_experts_per_token"),
        kernel="latent",
        encoder=_kimi_vision(c),
    )


def _deepseek_v4(c: Config) -> Architecture:
    """A window of 128 tokens in every layer, and beside it the whole context compressed by 4 or by 128.

    Pages, alignments and block sizes are those of vLLM's FlashMLA layout, the only one below compute capability 12.
    """
    if c.get("model_type") not in (None, "deepseek_v4"):
        c.refuse(f"vLLM 0.33 does not know the model type {c.get('model_type')}")
    layers, head_dim, window = c.size("num_hidden_layers"), c.size("head_dim"), c.size("sliding_window")
    ratios = c.per_layer("compress_ratios", layers)
    experts, width = c.size("n_routed_experts"), c.size("moe_intermediate_size")
    if head_dim != 512 or set(ratios) - {0, 1, 4, 128}:
        c.refuse(f"heads of {head_dim}, compression by {sorted(set(ratios))}")
    q_rank, o_rank, groups = c.size("q_lora_rank"), c.size("o_lora_rank"), c.size("o_groups")
    index_heads, index_dim = c.size("index_n_heads"), c.size("index_head_dim")
    streams = c.size("hc_mult")
    mixes = (2 + streams) * streams
    near = Cache("sliding-latent", token_bytes=584, window=window, block_size=64, alignment=576, role="window")

    def states(ratio: int, dim: int) -> Cache:
        overlap = 2 if ratio == 4 else 1  # neighbours overlap where few tokens are compressed
        return Cache(
            "sliding-latent",
            token_bytes=2 * overlap * dim * 4,
            window=overlap * ratio,
            block_size=4 if ratio == 4 else 8,
            alignment=576,
            role="compressor",
        )

    def compressor(ratio: int, dim: int) -> tuple[Tensor, ...]:
        overlap = 2 if ratio == 4 else 1
        return (
            Tensor("compressor.position", ((1, ratio),), overlap * dim, "whole", FP32),
            Tensor("compressor.kv", ((1, 2 * overlap * dim),), c.hidden),
            *_norm("compressor.norm", dim),
        )

    stack = []
    for index in range(layers):
        at, ratio = f"layers.{index}", max(1, ratios[index])
        caches: tuple[Cache, ...] = (near,)
        tensors = (
            *_linear(c, "qkv_a", [(1, q_rank), (1, head_dim)], c.hidden, "whole", f"{at}.attn.wq_a"),
            *_norm("norm", q_rank, head_dim, c.hidden, c.hidden),
            *_linear(c, "q_b", [(c.heads, head_dim)], q_rank, "rows", f"{at}.attn.wq_b"),
            *_linear(c, "o_a", [(groups * o_rank, 1)], c.heads * head_dim // groups, "rows", f"{at}.attn.wo_a"),
            *_linear(c, "o_b", [(1, c.hidden)], groups * o_rank, "columns", f"{at}.attn.wo_b"),
            Tensor("sinks", ((c.heads, 1),), 1, "rows", FP32),
            Tensor("streams", ((1, 2 * mixes),), streams * c.hidden, "whole", FP32),
            *_norm("streams.bias", 2 * mixes, 6, form=FP32),
        )
        if ratio > 1:
            far = Cache(
                "latent", token_bytes=584, block_size=256, tokens_per_entry=ratio, alignment=576, role="compressed"
            )
            caches += (states(ratio, head_dim), far)
            tensors += compressor(ratio, head_dim)
        if ratio == 4:
            keys = Cache(
                "latent",
                token_bytes=index_dim + index_dim // 128 * 4,
                block_size=256,
                tokens_per_entry=4,
                alignment=576,
                role="indexer",
            )
            caches += (states(4, index_dim), keys)
            tensors += (
                *_linear(c, "indexer.q", [(1, index_heads * index_dim)], q_rank, "whole", f"{at}.attn.indexer.wq_b"),
                Tensor("indexer.weights", ((1, index_heads),), c.hidden),
                *compressor(4, index_dim),
            )
        hashed = index < c.count("num_hash_layers")
        tensors += _experts(c, f"{at}.ffn", experts=experts, width=width, correction=not hashed)
        if hashed:  # a table from token to experts
            tensors += (
                Tensor("router.table", ((1, c.size("vocab_size")),), c.size("num_experts_per_tok"), "whole", FP32),
            )
        if shared := c.count("n_shared_experts"):
            shares = _dense(c, f"{at}.ffn.shared_experts", shared * width, up="w1")
            tensors += tuple(replace(tensor, multiple=128) for tensor in shares)  # whole blocks of scales
        stack.append(Layer("sparse", "experts", caches, tensors))
    return assemble(
        c,
        stack,
        kv_heads=1,
        head_dim=head_dim,
        # In 32 bits, and one more for layers that compress nothing.
        rope_dims=(2 * c.size("qk_rope_head_dim"),) * len({ratio > 1 for ratio in ratios}),
        experts=experts,
        expert_width=width,
        packed_blocks=True,
        kernel="deepseek-v4",
        last=(Tensor("streams", ((1, streams),), streams * c.hidden, "whole", FP32),),
    )


# Encoders.


def _tower(
    *, width: int, heads: int, mlp: int, layers: int, bias: bool, qkv: int = 0, norm: int = 2
) -> tuple[Tensor, ...]:
    """The blocks of a vision transformer, split over GPUs like the decoder; `norm` is numbers per channel of a norm."""
    head, one = (qkv or width) // heads, int(bias)
    block = (
        Tensor("vision.qkv", ((heads, head),) * 3, width + one, "rows"),
        Tensor("vision.o", ((1, width),), heads * head, "columns"),
        Tensor("vision.up", ((mlp, 1),), width + one, "rows"),
        Tensor("vision.down", ((1, width),), mlp, "columns"),
        *_norm("vision.norm", 2 * norm * width, 2 * one * width),  # with the biases of o and down
    )
    return tuple(replace(tensor, whole_unless=heads) for tensor in block) * layers


def _projector(inner: int, inputs: int, outputs: int, *, bias: bool = True, whole: bool = False) -> tuple[Tensor, ...]:
    """Two linear layers behind a vision tower."""
    return (
        Tensor("projector.up", ((inner, 1),), inputs + bias, "whole" if whole else "rows"),
        Tensor("projector.down", ((1, outputs),), inner, "whole" if whole else "columns"),
        *_norm("projector.bias", outputs if bias else 0),
    )


def _vision(c: Config) -> Mapping[str, Any] | None:
    c.asked = "vision_config"
    vision = c.outer.get("vision_config")
    return vision if isinstance(vision, Mapping) else None


def _qwen_vision(c: Config) -> tuple[Tensor, ...]:
    """The vision tower of Qwen3-VL and Qwen3.5."""
    if not (v := _vision(c)):
        return ()
    width, out = int(v["hidden_size"]), int(v["out_hidden_size"])
    merged = width * int(v["spatial_merge_size"]) ** 2
    patch = int(v.get("in_channels", 3)) * int(v["temporal_patch_size"]) * int(v["patch_size"]) ** 2
    mergers = 1 + len(v.get("deepstack_visual_indexes") or ())
    return (
        *_tower(
            width=width, heads=int(v["num_heads"]), mlp=int(v["intermediate_size"]), layers=int(v["depth"]), bias=True
        ),
        *_projector(merged, merged, out) * mergers,
        *_norm("projector.norm", 2 * width, *[2 * merged] * (mergers - 1)),
        Tensor("patch", ((1, width),), patch + 1),
        Tensor("position", ((1, int(v["num_position_embeddings"])),), width),
    )


def _kimi_vision(c: Config) -> tuple[Tensor, ...]:
    """The vision towers of Kimi K2.5 and K3."""
    if not (v := _vision(c)):
        return ()
    width, merged = int(v["vt_hidden_size"]), int(v["vt_hidden_size"]) * math.prod(v["merge_kernel_size"])
    second = v.get("mm_projector_type") == "patchmergerv2"
    norm = 1 if v.get("norm_type") == "rmsnorm" else 2
    positions = int(v["init_pos_emb_height"]) * int(v["init_pos_emb_width"])
    return (
        *_tower(
            width=width,
            heads=int(v["vt_num_attention_heads"]),
            mlp=int(v["vt_intermediate_size"]),
            layers=int(v["vt_num_hidden_layers"]),
            bias=bool(v.get("linear_bias", True)),
            qkv=int(v.get("qkv_hidden_size") or 0),
            norm=norm,
        ),
        *_projector(merged, merged, c.hidden, bias=not second, whole=True),
        *_norm("vision.norm", norm * width, c.hidden if second else 2 * width),
        Tensor("patch", ((1, width),), 3 * int(v["patch_size"]) ** 2 + bool(v.get("patch_embed_proj_bias", True))),
        Tensor("position", ((1, positions),), width),
    )


def _gemma_vision(c: Config) -> tuple[Tensor, ...]:
    """The vision tower of Gemma 4, whole on every GPU."""
    if not (v := _vision(c)):
        return ()
    width, mlp, patch = int(v["hidden_size"]), int(v["intermediate_size"]), int(v["patch_size"])
    heads, head = int(v["num_attention_heads"]) * int(v["head_dim"]), int(v["head_dim"])
    block = (
        Tensor("vision.qkvo", ((1, 4 * heads),), width),
        Tensor("vision.mlp", ((1, 3 * mlp),), width),
        *_norm("vision.norm", 4 * width, 2 * head),
    )
    return (
        *block * int(v["num_hidden_layers"]),
        Tensor("patch", ((1, width),), 3 * patch**2),
        Tensor("position", ((1, 2 * int(v["position_embedding_size"])),), width),
        *_norm("vision.norm", 2 * width if v.get("standardize") else 0),
        Tensor("projector", ((1, c.hidden),), width),
    )


def _minimax_vision(c: Config) -> tuple[Tensor, ...]:
    """The vision tower of MiniMax M3, with its projector and its merger of patches."""
    if not (v := _vision(c)):
        return ()
    width, inner = int(v["hidden_size"]), int(c.outer.get("projector_hidden_size") or c.hidden)
    squeeze = v.get("img_token_compression_config") or {}
    patch = int(v["num_channels"]) * int(squeeze.get("temporal_patch_size", 2)) * int(v["patch_size"]) ** 2
    return (
        *_tower(
            width=width,
            heads=int(v["num_attention_heads"]),
            mlp=int(v["intermediate_size"]),
            layers=int(v["num_hidden_layers"]),
            bias=True,
        ),
        *_projector(inner, width, c.hidden),
        *_projector(inner, c.hidden * int(squeeze.get("spatial_merge_size", 2)) ** 2, c.hidden),
        Tensor("patch", ((1, width),), patch),
        *_norm("vision.norm", 2 * width),
    )


def _llama4_vision(c: Config) -> tuple[Tensor, ...]:
    """The vision tower of Llama 4; fields that the config leaves out are those of transformers' Llama4VisionConfig."""
    if not isinstance(c.outer.get("text_config"), Mapping):
        return ()
    v = _vision(c) or {}
    width, mlp = int(v.get("hidden_size", 768)), int(v.get("intermediate_size", 5632))
    out, image, patch = (
        int(v.get("vision_output_dim", 7680)),
        int(v.get("image_size", 448)),
        int(v.get("patch_size", 14)),
    )
    inner, adapted = int(v.get("projector_input_dim", 4096)), int(v.get("projector_output_dim", 4096))
    return (
        *_tower(
            width=width,
            heads=int(v.get("num_attention_heads", 16)),
            mlp=mlp,
            layers=int(v.get("num_hidden_layers", 34)),
            bias=True,
        ),
        *_projector(inner, mlp, adapted, bias=False),
        Tensor("projector", ((c.hidden, 1),), out, "rows"),
        Tensor("patch", ((width, 1),), int(v.get("num_channels", 3)) * patch**2, "rows"),
        Tensor("position", ((1, (image // patch) ** 2 + 1),), width),
        *_norm("vision.norm", width, 4 * width),
    )


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


#: What a config may have that a family's builder would overlook: words, and the fields that tell.
FEATURES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "experts": (
        "mixture of experts",
        ("num_experts", "num_local_experts", "n_routed_experts", "num_routed_experts", "moe_num_experts"),
    ),
    "latent": ("multi-head latent attention (MLA)", ("kv_lora_rank",)),
    "index": ("sparse attention with an indexer", ("index_topk", "sparse_attention_config")),
    "states": (
        "layers with a state",
        ("linear_num_key_heads", "linear_attn_config", "mamba_num_heads", "mamba_d_state"),
    ),
    "pattern": ("layers of several kinds", ("hybrid_override_pattern", "layers_block_type", "block_configs")),
    "chunks": ("chunked attention", ("attention_chunk_size",)),
    "shared": ("layers that share keys and values", ("num_kv_shared_layers",)),
    "encoder": ("multimodal inputs and their encoders", ("vision_config", "audio_config", "speech_config")),
}

_DEEPSEEK = (_deepseek_v3, "experts latent index encoder")

#: Classes of vLLM 0.33 by their name in `architectures`, and the features that their builders know.
FAMILIES: Mapping[str, tuple[Callable[[Config], Architecture], str]] = {
    "LlamaForCausalLM": (_llama(), ""),
    "MistralForCausalLM": (_llama(), ""),
    "Qwen2ForCausalLM": (_llama(qkv_bias=True), ""),
    "Qwen3ForCausalLM": (_llama(qk_norm=True), ""),
    "MiMoForCausalLM": (_llama(qkv_bias=True), ""),
    "DeciLMForCausalLM": (_nemotron_nas, "pattern"),
    "MixtralForCausalLM": (_moe_everywhere(at="block_sparse_moe", count="num_local_experts"), "experts"),
    "Qwen3MoeForCausalLM": (_moe_everywhere(at="mlp", count="num_experts", qk_norm="head"), "experts"),
    "MiniMaxM2ForCausalLM": (
        _moe_everywhere(
            at="block_sparse_moe",
            count="num_local_experts",
            qk_norm="layer",
            router=FP32,
            correction=True,
            everywhere="",
        ),
        "experts",
    ),
    "GptOssForCausalLM": (_gpt_oss, "experts"),
    "DeepseekV3ForCausalLM": _DEEPSEEK,
    "DeepseekV32ForCausalLM": _DEEPSEEK,
    "GlmMoeDsaForCausalLM": _DEEPSEEK,
    "KimiK25ForConditionalGeneration": _DEEPSEEK,
    "KimiK3ForConditionalGeneration": (_kimi_k3, "experts latent states encoder"),
    "DeepseekV4ForCausalLM": (_deepseek_v4, "experts latent index"),
    "Llama4ForConditionalGeneration": (_llama4, "experts chunks encoder"),
    "Llama4ForCausalLM": (_llama4, "experts chunks"),
    "Gemma4ForConditionalGeneration": (_gemma4, "experts shared encoder"),
    "Gemma4ForCausalLM": (_gemma4, "experts shared"),
    "MiMoV2FlashForCausalLM": (_mimo_v2, "experts chunks"),
    "MiniMaxM3SparseForCausalLM": (_minimax_m3, "experts index"),
    "MiniMaxM3SparseForConditionalGeneration": (_minimax_m3, "experts index encoder"),
    "NemotronHForCausalLM": (_nemotron_h, "experts states pattern"),
    "Qwen3NextForCausalLM": (_qwen35, "experts states"),
    "Qwen3_5ForConditionalGeneration": (_qwen35, "experts states encoder"),
    "Qwen3_5MoeForConditionalGeneration": (_qwen35, "experts states encoder"),
    "Qwen3VLForConditionalGeneration": (_qwen3_vl(moe=False), "encoder"),
    "Qwen3VLMoeForConditionalGeneration": (_qwen3_vl(moe=True), "experts encoder"),
}

#: Names that are published but that vLLM 0.33 has no class for.
ABSENT = {
    "MiniMaxM3ForCausalLM": "vLLM 0.33 has no class of that name (it serves MiniMaxM3SparseForConditionalGeneration)",
    "Step3p7FlashForCausalLM": "vLLM 0.33 has no class of that name (it serves Step3p7ForConditionalGeneration)",
}
