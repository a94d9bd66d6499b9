"""vLLM 0.33.0's own `vllm serve` parser takes what the plan writes, and refuses what the plan says it refuses."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import yaml

from planning import catalogue, engine, parallelism
from planning.findings import InvalidStack
from planning.memory import EngineOptions
from planning.plan import ModelPlan, read_and_decide
from planning.settings import from_pulumi
from tests import hf_configs

pytestmark = pytest.mark.engine

ARGUMENTS: dict[str, dict[str, Any]] = json.loads((engine.folder() / "arguments.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((engine.folder() / "rules.yaml").read_text())
ENVIRONMENT: list[str] = yaml.safe_load((engine.folder() / "environment.yaml").read_text())["names"]
FREE = sorted(set(ARGUMENTS) - set(RULES["reserved"]) - set(engine.PLANNED))
GENERATED = 400  # command lines; enough that each option meets some dozen others
CONFIGURED = 200  # with the engine's whole configuration made
Ask = Callable[[str, Any], Any]

PRESET = catalogue.preset("qwen3-8b")
LAYOUT, MEMORY = parallelism.choose_layout(
    PRESET.architecture,
    catalogue.vm_size("Standard_ND96isr_H100_v5"),
    replicas=1,
    tensor_parallel_size=2,
    pipeline_parallel_size=None,
    options=EngineOptions(max_model_len=16384),
)


def _words(options: Mapping[str, Any], stages: int = 1) -> list[str]:
    return list(
        engine.arguments(
            options=engine.normalise(options),
            model_path="/models/m/abc",
            served_model_name="m",
            port=8000,
            layout=replace(LAYOUT, pipeline_parallel_size=stages),
            memory=MEMORY,
            shutdown_timeout_seconds=274,
            preset=PRESET,
        )
    )


#: Options whose value has a shape of its own: what vLLM's documentation of the option shows.
SHAPED: dict[str, Any] = {
    "chat-template": "{{ messages }}",
    "compilation-config": {"mode": 3},
    "default-mm-loras": {"image": "/adapters/a"},
    "limit-mm-per-prompt": {"image": 2},
    "lora-modules": ["sql=/adapters/sql"],
    "speculative-config": {"method": "ngram", "num_speculative_tokens": 3},
}


def _value(name: str, chance: random.Random) -> Any:
    """A value of the option's kind, within the limits that the rules name."""
    row, limits = ARGUMENTS[name], RULES["ranges"].get(name, {})
    least, most = limits.get("least", limits.get("above", 0)), limits.get("most")
    if name in SHAPED:
        return SHAPED[name]
    if "choices" in row:
        value: Any = chance.choice(row["choices"])
    else:
        value = {
            "switch": lambda: chance.random() < 0.5,
            "flag": lambda: True,
            "int": lambda: chance.randint(max(1, least), 512),
            "size": lambda: chance.choice([2048, "4k", "1M"]),
            "size-or-auto": lambda: chance.choice(["auto", 8192]),
            "float": lambda: round(chance.uniform(max(0.1, least), most or 2), 2),
            "json": dict,
            "json-or-text": dict,
        }.get(row["kind"], lambda: chance.choice(["plain", "with a blank", "a=b,c", "-dash", "é"]))()
    return [value] if row.get("many") else value


#: What people tune: with these the engine's whole configuration is made, on an H100's terms.
TUNED: dict[str, tuple[Any, ...]] = {
    "async-scheduling": (True, False),
    "block-size": (16, 32, 64, 128),
    "dtype": ("auto", "bfloat16", "half"),
    "enable-chunked-prefill": (True,),  # off, it needs max-num-batched-tokens of at least max-model-len
    "enable-log-requests": (True, False),
    "enable-prefix-caching": (True, False),
    "enforce-eager": (True, False),
    "generation-config": ("auto", "vllm"),
    "gpu-memory-utilization": (0.5, 0.9, 0.95),
    "kv-cache-dtype": ("auto", "bfloat16", "fp8", "fp8_e4m3"),
    "kv-cache-memory-bytes": ("4G", "40G"),
    "limit-mm-per-prompt": ({"image": 0}, {"image": 2}),
    "max-num-batched-tokens": (2048, "8k", 16384),
    "max-num-seqs": (1, 64, 256, 1024),
    "mm-processor-cache-gb": (0, 2.5),
    "override-generation-config": ({"temperature": 0.2},),
    "performance-mode": ("balanced", "interactivity", "throughput"),
    "prefix-caching-hash-algo": ("sha256", "sha256_cbor"),
    "scheduling-policy": ("fcfs", "priority"),
    "seed": (0, 7),
    "speculative-config": ({"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4},),
    "stream-interval": (1, 10),
    "tokenizer-mode": ("auto", "slow"),
}


def _accepted(options: dict[str, Any]) -> bool:
    return not engine.check(options, prefix="aks-vllm:vllm", source="stacks/Pulumi.x.yaml")


def _planned(preset: str, environment: str) -> tuple[ModelPlan, ...]:
    bag = {
        "azure-native:location": "eastus",
        "aks-vllm:preset": preset,
        "aks-vllm:environment": environment,
    }
    return read_and_decide(from_pulumi(bag, {"aks-vllm:hf-token"}, environment)).models


def test_the_contract_is_this_parser(ask_vllm: Ask) -> None:
    found = ask_vllm("contract.py", None)
    theirs = found["arguments"]
    assert found["environment"] == ENVIRONMENT
    assert {name: (theirs.get(name), row) for name, row in ARGUMENTS.items() if theirs.get(name) != row} == {}, (
        "(vLLM's, ours); make engine-contract writes it"
    )
    assert set(theirs) == set(ARGUMENTS)


def _config(name: str, words: Sequence[str]) -> dict[str, Any] | None:
    """The model's config.json; None where it is not at hand, or needs Python that only its repository has."""
    if name not in hf_configs.names() or "--trust-remote-code" in words:
        return None
    return hf_configs.load(name)[0]


def _objections(ask: Ask, commands: list[list[str]], configs: list[Any]) -> list[tuple[str, str]]:
    """(command line, what vLLM says against it), of those it objects to."""
    answers = ask("serve_parser.py", {"commands": commands, "configs": configs})
    return [(" ".join(words), answer) for words, answer in zip(commands, answers, strict=True) if answer]


def test_vllm_takes_every_command_line_of_every_preset_and_stack(ask_vllm: Ask) -> None:
    lines, configs, not_planned = [], [], []
    for preset, environment in itertools.product(catalogue.preset_names(), ("development", "production")):
        name = catalogue.preset(preset).model_id.replace("/", "--")
        try:
            models = _planned(preset, environment)
        except InvalidStack:
            not_planned.append(preset)
            continue
        lines += [list(model.args) for model in models]
        # Where the whole config.json is known, the engine's configuration is made as well.
        configs += [_config(name, model.args) for model in models]
    objections = _objections(ask_vllm, lines, configs)
    whole = len(configs) - configs.count(None)
    print(f"\nCommand lines: {len(lines)} of presets and stacks ({whole} with the engine's configuration made)")
    assert not objections, "\n".join(map(str, objections))
    unexpected = {name for name in not_planned if not catalogue.preset(name).needs_several_nodes}
    assert not unexpected, "a preset that its own VM size does not serve is none"


def test_vllm_takes_every_option_that_the_plan_accepts(ask_vllm: Ask) -> None:
    chance = random.Random(33)  # noqa: S311  repeatable on purpose
    alone = [{name: _value(name, chance)} for name in FREE]
    samples = (chance.sample(FREE, chance.randint(2, 8)) for _ in itertools.count())
    drawn = ({name: _value(name, chance) for name in names} for names in samples)
    together = itertools.islice((options for options in drawn if _accepted(options)), GENERATED)
    mappings = [options for options in alone if _accepted(options)] + list(together)
    commands = [_words(options, chance.choice([1, 1, 2])) for options in mappings]
    objections = _objections(ask_vllm, commands, [None] * len(commands))
    print(f"\nOptions: {len(mappings)} accepted mappings, {len(objections)} of them refused by vLLM's parser")
    assert not objections, "\n".join(map(str, objections[:60]))


def test_vllm_refuses_every_option_that_the_plan_calls_removed(ask_vllm: Ask) -> None:
    commands = [["/models/m", f"--{name}", "1"] for name in RULES["removed"]]
    answers = ask_vllm("serve_parser.py", {"commands": commands})
    taken = [name for name, answer in zip(RULES["removed"], answers, strict=True) if not answer]
    assert not taken, "people would be told to delete what works"


def test_the_engine_can_be_configured_with_what_people_tune(ask_vllm: Ask) -> None:
    chance = random.Random(33)  # noqa: S311  repeatable on purpose
    samples = (chance.sample(sorted(TUNED), chance.randint(1, 6)) for _ in itertools.count())
    drawn = ({name: chance.choice(TUNED[name]) for name in names} for names in samples)
    mappings = list(itertools.islice((options for options in drawn if _accepted(options)), CONFIGURED))
    models = [chance.choice(("Qwen--Qwen3-8B", "Qwen--Qwen3-30B-A3B", "Qwen--Qwen3-VL-8B-Instruct")) for _ in mappings]
    configs = [hf_configs.load(model)[0] for model in models]
    objections = _objections(ask_vllm, [_words(options) for options in mappings], configs)
    print(f"\nConfigurations: {len(mappings)} accepted mappings, {len(objections)} of them refused by vLLM's engine")
    assert not objections, "\n".join(map(str, objections[:60]))
