"""vLLM 0.33.0's own `vllm serve` parser takes what the plan writes, and refuses what the plan says it refuses."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import yaml

from planning import catalogue, engine
from planning.findings import InvalidStack
from planning.plan import ModelPlan, read_and_decide
from planning.stack_file import from_pulumi
from tests import hf_configs
from tests.serve_words import accepted, words

pytestmark = pytest.mark.engine

ARGUMENTS: dict[str, dict[str, Any]] = json.loads((engine.folder() / "arguments.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((engine.folder() / "rules.yaml").read_text())
ENVIRONMENT: list[str] = yaml.safe_load((engine.folder() / "environment.yaml").read_text())["names"]
FREE = sorted(set(ARGUMENTS) - set(RULES["reserved"]) - set(engine.PLANNED))
GENERATED = 400  # command lines; enough that each option meets some dozen others
H100S = "Standard_ND96isr_H100_v5"
VALUES_EACH, DRAWN = 3, 400  # of each option alone; of several together
CONFIGURED = 600  # at least, with the engine's whole configuration made
#: What is said of things that only the pod has.
NOT_HERE: tuple[str, ...] = ()
Ask = Callable[[str, Any], Any]

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
    """A value of the option's kind, within the limits that the rules name or at them."""
    row = engine._row(name)
    if name in SHAPED:
        return SHAPED[name]
    if "example" in row:
        value: Any = row["example"].partition(" ")[0]
    elif "choices" in row:
        value = chance.choice(row["choices"])
    else:
        value = _plain_value(row, chance)
    return [value] if row.get("many") else value


def _plain_value(row: Mapping[str, Any], chance: random.Random) -> Any:
    least, most = row.get("least", row.get("above", 0)), row.get("most", row.get("below"))
    return {
        "switch": lambda: chance.random() < 0.5,
        "flag": lambda: True,
        "int": lambda: chance.choice(
            [int(least), max(1, int(least)), chance.randint(max(1, int(least)), 512), 100_000]
        ),
        "size": lambda: chance.choice([1, 2048, "4k", "1M"]),
        "size-or-auto": lambda: chance.choice(["auto", 8192]),
        "float": lambda: chance.choice([least, most or 1.0, round(chance.uniform(max(0.1, least), most or 2), 2)]),
        "map": lambda: _inside(row, chance),
        "json": dict,
        "json-or-text": dict,
    }.get(row["kind"], lambda: chance.choice(["plain", "with a blank", "a=b,c", "-dash", "é"]))()


def _inside(row: Mapping[str, Any], chance: random.Random) -> dict[str, Any]:
    """A map with one of its keys, or none."""
    rows = {key: sub for key, sub in row.get("keys", {}).items() if sub["kind"] in ("switch", "int", "float")}
    keys = chance.sample(sorted(rows), min(1, len(rows))) if chance.random() < 0.7 else []
    return {key: _plain_value(rows[key], chance) for key in keys}


#: What people tune.
TUNED: dict[str, tuple[Any, ...]] = {
    "async-scheduling": (True, False),
    "block-size": (16, 32, 64, 128),
    "dtype": ("auto", "bfloat16", "half"),
    "enable-chunked-prefill": (True, False),
    "enable-expert-parallel": (True,),
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
    "speculative-config": (
        {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4},
        {"method": "mtp", "num_speculative_tokens": 1},
    ),
    "stream-interval": (1, 10),
    "tokenizer-mode": ("auto", "slow"),
}


def _planned(preset: str, environment: str, settings: Mapping[str, str] = {}) -> tuple[ModelPlan, ...]:
    bag = {"azure-native:location": "eastus", "aks-vllm:preset": preset, "aks-vllm:environment": environment}
    bag |= {f"aks-vllm:{key}": value for key, value in settings.items()}
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


def _objections(ask: Ask, commands: Sequence[Sequence[str]], configs: list[Any]) -> list[tuple[str, str]]:
    """(command line, what vLLM says against it), of those it objects to."""
    answers = ask("serve_parser.py", {"commands": commands, "configs": configs})
    pairs = zip(commands, answers, strict=True)
    return [(" ".join(words), answer["objection"]) for words, answer in pairs if answer["objection"]]


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
    together = itertools.islice((options for options in drawn if accepted(options)), GENERATED)
    mappings = [options for options in alone if accepted(options)] + list(together)
    commands = [words(options, chance.choice([1, 1, 2])) for options in mappings]
    objections = _objections(ask_vllm, commands, [None] * len(commands))
    print(f"\nOptions: {len(mappings)} accepted mappings, {len(objections)} of them refused by vLLM's parser")
    assert not objections, "\n".join(map(str, objections[:60]))


def test_vllm_refuses_every_option_that_the_plan_calls_removed(ask_vllm: Ask) -> None:
    commands = [["/models/m", f"--{name}", "1"] for name in RULES["removed"]]
    answers = ask_vllm("serve_parser.py", {"commands": commands})
    taken = [name for name, answer in zip(RULES["removed"], answers, strict=True) if not answer["objection"]]
    assert not taken, "people would be told to delete what works"


def _deployable(preset: str, options: Mapping[str, Any]) -> ModelPlan | None:
    """The whole plan of a preset with these options, on the H100s that vLLM believes in; None where it is refused."""
    try:
        return _planned(preset, "development", {"vllm": json.dumps(options), "vm-size": H100S})[0]
    except InvalidStack:
        return None


def _drawn(chance: random.Random, presets: Sequence[str]) -> Iterator[tuple[str, ModelPlan]]:
    """Deployable plans: every option alone, several values each; then some of what people tune, with any others."""
    for name in FREE:
        for _ in range(VALUES_EACH):
            preset = chance.choice(presets)
            needs = [rule for rule in RULES["together"] if rule["option"] == name and "needs" in rule]
            beside = {rule["needs"]: rule.get("being") or _value(rule["needs"], chance) for rule in needs}
            options = {name: _value(name, chance), **beside}
            if plan := _deployable(preset, options):
                yield json.dumps(options), plan
    for _ in range(DRAWN):
        options = {name: chance.choice(TUNED[name]) for name in chance.sample(sorted(TUNED), chance.randint(1, 4))}
        options |= {name: _value(name, chance) for name in chance.sample(FREE, chance.randint(0, 2))}
        if plan := _deployable(chance.choice(presets), options):
            yield json.dumps(options), plan


def test_the_engine_can_be_configured_with_whatever_can_be_deployed(ask_vllm: Ask) -> None:
    chance = random.Random(33)  # noqa: S311  repeatable on purpose
    known = {name: catalogue.preset(name).model_id.replace("/", "--") for name in catalogue.preset_names()}
    presets = [name for name, model in known.items() if model in hf_configs.names()]
    plans = list(_drawn(chance, presets))
    configs = [_config(known[plan.preset.name], plan.args) for _, plan in plans]
    answers = ask_vllm("serve_parser.py", {"commands": [plan.args for _, plan in plans], "configs": configs})
    whole, tried, wrong = 0, set(), []
    for (options, plan), config, answer in zip(plans, configs, answers, strict=True):
        tried |= set(json.loads(options))
        whole += config is not None
        found = answer["objection"]
        if config is not None and not found:
            ours = (plan.memory.max_model_len, plan.memory.max_num_seqs, plan.memory.max_num_batched_tokens)
            theirs = (answer["max_model_len"], answer["max_num_seqs"], answer["max_num_batched_tokens"])
            found = f"plans {ours}, vLLM {theirs}" if ours != theirs else None
        if found and not any(words in found for words in NOT_HERE):
            wrong.append(f"{plan.preset.name} {options}: {found}")
    print(f"\nConfigurations: {len(plans)} plans ({whole} whole), {len(tried)} options, {len(wrong)} refused by vLLM")
    assert not wrong, "\n".join(wrong[:400])
    assert whole >= CONFIGURED, "the sample must not shrink"
    assert len(tried) >= 0.9 * len(FREE), "nearly every option must have been tried"
