"""How fast one replica serves: time per output token, time to first token and tokens per second of a steady load.

A closed form over what a step reads and computes (bytes and arithmetic from the architecture, speeds from the GPU's
data sheet), with eight constants from `presets/serving-rate.yaml`. With b requests running and tokens in flight:

    step   = hypot(weights read, arithmetic of b tokens) + KV read + layers x (launches + all-reduces) + b x link
    prompt = arithmetic of the prompt + its attention + its link
    time per output token = step + prompt x (b - 1) / output tokens: the prompts of others, chunked into the steps
    time to first token   = fixed + some steps + prompt x (1 + sqrt(prompts that come in meanwhile))

The load is a closed loop: so many users, each sends the next request when the answer is there. What it leaves out
(prefix-cache hits, speculative decoding, bursts, tails) and where it has no answer is in `not_modelled`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from planning import catalogue, kv_cache
from planning.architecture import Architecture
from planning.catalogue import Gpu
from planning.memory import EngineOptions, memory_plan
from planning.weights import Tensor

#: Kinds of attention whose KV reads the form has a term for.
MODELLED_ATTENTION = {"full", "sliding", "latent", "none"}

#: Options of vLLM that change the rate and have no term.
UNMODELLED_OPTIONS = {
    "speculative-config": "speculative decoding",
    "enable-lora": "LoRA adapters",
    "cpu-offload-gb": "weights in host memory",
    "kv-offloading-size": "a KV cache in host memory",
    "data-parallel-size": "data-parallel attention",
    "decode-context-parallel-size": "decode context parallelism",
    "enforce-eager": "steps without CUDA graphs",
}

BASIS = (
    "steady load of so many users who each wait for their answer; cold prompts of equal length, text only; fitted to "
    "vLLM 0.11 to 0.18 on H100 and H200, the deployed engine is newer; AKS nodes were not measured"
)

#: From this tensor parallel size on, one cluster with the same recipe was up to three times slower (a second one ran
#: it as predicted); the cause is not known.
UNSURE_TENSOR_PARALLEL_SIZE = 4
UNSURE = "from tensor parallel size 4 on a best case: one of two clusters was up to 3 times slower"

ROUNDS = 4  # of the fixed point between the two times; the third changes less than 1 %


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A steady load. Tokens are means; users are requests that are always under way."""

    input_tokens: int
    output_tokens: int
    users: int
    max_tpot_ms: float | None = None  # the longest time per output token that users accept


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """The fitted eight; units and readings are in `presets/serving-rate.yaml`."""

    kv_read_share: float
    layer_us: float
    all_reduce_us: float
    arithmetic_share: float
    experts_tb_per_s: float
    experts_arithmetic_share: float
    first_token_ms: float
    first_token_steps: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Nine of ten measurements lie between low and high."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """What one replica does under a load. Tokens per second count output tokens."""

    users: int
    running: float  # requests in flight: the others wait for KV cache
    max_users: int  # before requests wait for KV cache
    oversubscribed: bool
    time_per_output_token_ms: Range
    time_to_first_token_ms: Range  # median, cold prompt
    tokens_per_second_per_user: Range
    tokens_per_second_per_gpu: Range


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a step of one replica reads and computes. Bytes are one GPU's, arithmetic (FLOPs) is the whole replica's."""

    gpus: int
    layers: float  # pairs of attention and MLP
    weight_bytes: float  # every step reads them: attention, dense MLPs, output layer
    expert_bytes: float  # one expert of each layer
    experts: int
    experts_per_token: int
    token_flops: float  # at 16 bits; those in fp8 count half
    token_expert_flops: float  # the same of the experts that a token sees
    prompt_expert_flops: float  # those at full count: their kernels gain nothing from fp8
    pair_flops: float  # of attention, per token and token before it
    link_bytes: float  # per token
    kv_bytes: tuple[tuple[float, int], ...]  # (per token of context, window; 0: the whole context)


@lru_cache(maxsize=4096)
def sizes(architecture: Architecture, tensor_parallel_size: int) -> Sizes:
    """Of one replica. The KV cache counts at 16 bits: an fp8 cache saves room, but hardly any time to read it."""
    tensor = tensor_parallel_size
    weight = expert = flops = expert_flops = prompt_flops = pair = 0.0
    parts = 0
    kv: Counter[int] = Counter()
    for layer, number in Counter(architecture.stack).items():
        parts += number * ((layer.attention != "none") + (layer.mlp != "none"))
        for item in layer.tensors:
            if item.experts:
                seen = 2 * item.parameters / item.experts * architecture.experts_per_token
                expert += number * item.bytes(tensor) / item.experts
                expert_flops += number * seen * _cost(item)
                prompt_flops += number * seen
            else:
                weight += number * item.bytes(tensor)
                flops += number * 2 * item.parameters * _cost(item)
            if item.name == "o":  # its inputs are the heads' values; half of the pairs are masked
                pair += number * 2 * item.columns
        for cache in layer.caches:
            kv[cache.window] += number * kv_cache.token_bytes(cache, tensor, architecture.dtype_bytes)
    output = architecture.output
    layers = parts / 2
    return Sizes(
        gpus=tensor,
        layers=layers,
        weight_bytes=weight + output.bytes(tensor),
        expert_bytes=expert,
        experts=architecture.experts,
        experts_per_token=architecture.experts_per_token,
        token_flops=flops + 2 * output.parameters * _cost(output),
        token_expert_flops=expert_flops,
        prompt_expert_flops=prompt_flops,
        pair_flops=pair,
        # Two all-reduces of 16-bit hidden states in each layer; a ring moves 2 (n - 1) / n of them over each link.
        link_bytes=2 * layers * 2 * architecture.hidden_size * 2 * (tensor - 1) / tensor,
        kv_bytes=tuple((size, window) for window, size in kv.items()),
    )


def _cost(tensor: Tensor) -> float:
    """Of arithmetic against 16 bits: Hopper's fp8 tensor cores are twice as fast, narrower formats are widened."""
    return 0.5 if tensor.format.name.startswith("fp8") else 1.0


def predict(
    sizes: Sizes,
    gpu: Gpu,
    *,
    input_tokens: float,
    output_tokens: float,
    users: int,
    capacity: float,
    constants: Constants,
) -> tuple[float, float, float]:
    """Expected time per output token and to the first one, milliseconds, and output tokens per second of the replica.

    `capacity` is the requests that run at once at most; further users wait. `gpu` must have speeds.
    """
    speed = gpu.speed
    assert speed is not None
    running = min(float(users), capacity)
    bandwidth = speed.memory_tb_per_s * 1e12
    arithmetic = constants.arithmetic_share * speed.tflops * 1e12 * sizes.gpus
    read = sizes.weight_bytes / bandwidth
    if sizes.experts:
        hit = sizes.experts * (1 - (1 - sizes.experts_per_token / sizes.experts) ** running)
        read += hit * sizes.expert_bytes / (constants.experts_tb_per_s * 1e12)
    computed = running * (sizes.token_flops + sizes.token_expert_flops) / arithmetic
    context = input_tokens + output_tokens / 2
    kv = sum(size * (min(context, window) if window else context) for size, window in sizes.kv_bytes)
    per_layer = constants.layer_us + 2 * math.log2(sizes.gpus) * constants.all_reduce_us
    link = sizes.link_bytes / (speed.link_gb_per_s * 1e9)
    step = math.hypot(read, computed) + sizes.layers * per_layer * 1e-6
    step += running * (kv / (constants.kv_read_share * bandwidth) + link)
    slower = constants.arithmetic_share / constants.experts_arithmetic_share
    prompt = input_tokens * (sizes.token_flops + slower * sizes.prompt_expert_flops) / arithmetic
    prompt += input_tokens**2 * sizes.pair_flops / arithmetic + input_tokens * link
    first, each = prompt, step
    for _ in range(ROUNDS):
        life = first + (output_tokens - 1) * each
        each = step + prompt / output_tokens * (running - 1) * (1 - first / life)
        incoming = min(1.0, running * prompt / life) * max(0.0, running - 1)
        first = constants.first_token_ms * 1e-3 + constants.first_token_steps * step + prompt * (1 + incoming**0.5)
    life = first + (output_tokens - 1) * each
    if users > running:
        first += life * (users / running - 1)
    return 1e3 * each, 1e3 * first, running * output_tokens / life


def rate(
    architecture: Architecture,
    gpu: Gpu,
    *,
    tensor_parallel_size: int,
    workload: Workload,
    capacity: float,
    max_num_seqs: int,
) -> Rate:
    """One replica under its share of a load, `workload.users` of them; see `not_modelled` for where this holds.

    `capacity` is the requests that the KV cache holds (`users_held`).
    """
    known = constants()
    running = max(1.0, min(capacity, max_num_seqs))
    each, first, tokens = predict(
        sizes(architecture, tensor_parallel_size),
        gpu,
        input_tokens=workload.input_tokens,
        output_tokens=workload.output_tokens,
        users=workload.users,
        capacity=running,
        constants=known,
    )
    per_token = _range(each, "time-per-output-token")
    return Rate(
        users=workload.users,
        running=min(workload.users, running),
        max_users=int(capacity),
        oversubscribed=workload.users > int(capacity),
        time_per_output_token_ms=per_token,
        time_to_first_token_ms=_range(first, "time-to-first-token"),
        tokens_per_second_per_user=Range(
            low=1e3 / per_token.high, expected=1e3 / per_token.expected, high=1e3 / per_token.low
        ),
        tokens_per_second_per_gpu=_range(tokens / tensor_parallel_size, "tokens-per-second"),
    )


@lru_cache(maxsize=4096)
def users_held(
    architecture: Architecture,
    gpu: Gpu,
    *,
    tensor_parallel_size: int,
    input_tokens: int,
    output_tokens: int,
    options: EngineOptions,
    engine_version: str | None = None,
) -> float:
    """Requests that the KV cache of one replica holds at once in a steady load.

    Each keeps its prompt and, on average over its life, half of its answer. Raises LayoutError.
    """
    return memory_plan(
        architecture,
        gpu,
        tensor_parallel_size=tensor_parallel_size,
        options=replace(options, max_model_len=held_tokens(input_tokens, output_tokens)),
        engine_version=engine_version,
    ).max_concurrency


def held_tokens(input_tokens: int, output_tokens: int) -> int:
    """What a request keeps in the KV cache, on average over its life."""
    return input_tokens + -(-output_tokens // 2)


def not_modelled(
    architecture: Architecture, gpu: Gpu, options: Mapping[str, Any] | None = None, *, pipeline_parallel_size: int = 1
) -> str:
    """Why there is no answer for a model, a GPU or an engine option; empty where there is one."""
    kinds = sorted({layer.attention for layer in architecture.stack} - MODELLED_ATTENTION)
    if kinds:
        return f"{' and '.join(kinds)} attention ({architecture.hf_architecture}): no term"
    if gpu.speed is None:
        return f"{gpu.name}: not measured (H100-80GB and H200 were)"
    if pipeline_parallel_size > 1:
        return "pipeline parallelism: no term"
    for key, words in UNMODELLED_OPTIONS.items():
        value = (options or {}).get(key)
        if value is True or (value and value != 1):  # one rank is no parallelism
            return f"{words} ({key}): no term"
    return ""


def to_measure(workload: Workload, model: str = "MODEL") -> str:
    """vLLM's own command that measures this load against a running server; `make benchmark` runs it in the cluster."""
    return (
        f"vllm bench serve --backend openai --base-url http://localhost:8000 --model {model} --dataset-name random "
        f"--random-input-len {workload.input_tokens} --random-output-len {workload.output_tokens} --ignore-eos "
        f"--max-concurrency {workload.users} --num-prompts {10 * workload.users}"
    )


@lru_cache(maxsize=1)
def constants() -> Constants:
    """From `presets/serving-rate.yaml`."""
    data = catalogue.serving_rate()["constants"]
    return Constants(**{key.replace("-", "_"): float(row["value"]) for key, row in data.items()})


def most_users() -> int:
    """The most users of one replica that were measured."""
    return catalogue.serving_rate()["most-users"]


def _range(expected: float, kind: str) -> Range:
    low, high = catalogue.serving_rate()["ranges"][kind]
    return Range(low=low * expected, expected=expected, high=high * expected)


def notes(rate: Rate, tensor_parallel_size: int) -> list[str]:
    """What a reader of one rate must know."""
    found = []
    if rate.oversubscribed:
        found.append(
            f"{rate.users} users are more than the KV cache holds ({rate.max_users}): the others wait, and the time to "
            "first token is that of the queue"
        )
    if rate.users > most_users():
        found.append(f"more than {most_users()} users on one replica were not measured")
    if tensor_parallel_size >= UNSURE_TENSOR_PARALLEL_SIZE:
        found.append(UNSURE)
    return found


def span(values: Range) -> str:
    """Two significant figures, from low to high."""
    low, high = _figures(values.low), _figures(values.high)
    return low if low == high else f"{low} to {high}"


def rough(value: float) -> str:
    """One significant figure."""
    return _figures(value, 1)


def _figures(value: float, count: int = 2) -> str:
    rounded = float(f"{value:.{count}g}")
    decimals = count - 1 - math.floor(math.log10(rounded)) if rounded else 0
    return f"{rounded:,.{max(0, decimals)}f}"
