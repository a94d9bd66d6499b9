"""vLLM 0.33.0's own `vllm serve` parser takes what the plan writes, and refuses what the plan says it refuses."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import yaml

from planning import catalogue, engine, parallelism
from planning.findings import InvalidStack
from planning.memory import EngineOptions
from planning.plan import ModelPlan, read_and_decide
from planning.settings import from_pulumi

pytestmark = pytest.mark.engine

ARGUMENTS: dict[str, dict[str, Any]] = json.loads((engine.FOLDER / "arguments.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((engine.FOLDER / "rules.yaml").read_text())
FREE = sorted(set(ARGUMENTS) - set(RULES["reserved"]) - set(engine.PLANNED))
GENERATED = 400  # command lines; enough that each option meets some dozen others
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


def _accepted(options: dict[str, Any]) -> bool:
    return not engine.check(options, prefix="aks-vllm:vllm", source="stacks/Pulumi.x.yaml")


def _planned(preset: str, environment: str) -> tuple[ModelPlan, ...]:
    bag = {
        "azure-native:location": "eastus",
        "aks-vllm:preset": preset,
        "aks-vllm:environment": environment,
        "aks-vllm:vm-size": "Standard_ND96isr_H100_v5",
    }
    return read_and_decide(from_pulumi(bag, {"aks-vllm:hf-token"}, environment)).models


def test_the_contract_is_this_parser(ask_vllm: Ask) -> None:
    theirs = ask_vllm("contract.py", None)
    assert {name: (theirs.get(name), row) for name, row in ARGUMENTS.items() if theirs.get(name) != row} == {}, (
        "(vLLM's, ours); make engine-contract writes it"
    )
    assert set(theirs) == set(ARGUMENTS)


def test_vllm_takes_every_command_line_of_every_preset_and_stack(ask_vllm: Ask) -> None:
    lines, too_large = [], []
    for preset, environment in itertools.product(catalogue.preset_names(), ("development", "production")):
        try:
            lines += [(preset, environment, list(model.args)) for model in _planned(preset, environment)]
        except InvalidStack as invalid:
            too_large.append((preset, environment, str(invalid)))
    answers = ask_vllm("serve_parser.py", {"commands": [words for _, _, words in lines]})
    refused = [(*line, answer) for line, answer in zip(lines, answers, strict=True) if answer]
    print(f"\nCommand lines: {len(lines)} of presets and stacks, {len(too_large)} of them no plan at all")
    assert not refused
    served = {preset for preset, _, _ in lines}
    unserved = {preset for preset, _, _ in too_large} - served
    assert not unserved, "a preset that no stack can serve on eight H100s is none"


def test_vllm_takes_every_option_that_the_plan_accepts(ask_vllm: Ask) -> None:
    chance = random.Random(33)  # noqa: S311  repeatable on purpose
    alone = [{name: _value(name, chance)} for name in FREE]
    samples = (chance.sample(FREE, chance.randint(2, 8)) for _ in itertools.count())
    drawn = ({name: _value(name, chance) for name in names} for names in samples)
    together = itertools.islice((options for options in drawn if _accepted(options)), GENERATED)
    mappings = [options for options in alone if _accepted(options)] + list(together)
    commands = [_words(options, chance.choice([1, 1, 2])) for options in mappings]
    answers = ask_vllm("serve_parser.py", {"commands": commands})
    refused = [(options, answer) for options, answer in zip(mappings, answers, strict=True) if answer]
    print(f"\nOptions: {len(mappings)} accepted mappings, {len(refused)} of them refused by vLLM")
    assert not refused, "\n".join(f"{options}: {answer}" for options, answer in refused[:60])


def test_vllm_refuses_every_option_that_the_plan_calls_removed(ask_vllm: Ask) -> None:
    commands = [["/models/m", f"--{name}", "1"] for name in RULES["removed"]]
    answers = ask_vllm("serve_parser.py", {"commands": commands})
    taken = [name for name, answer in zip(RULES["removed"], answers, strict=True) if not answer]
    assert not taken, "people would be told to delete what works"
