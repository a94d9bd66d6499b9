"""Every preset stands: its file, its numbers against the model's real `config.json`, its VM size, its command."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from planning import catalogue, engine, listing
from planning.architecture import Architecture, from_hf_config
from planning.findings import InvalidStack, Problem, Severity
from planning.memory import EngineOptions
from planning.parallelism import choose_layout
from planning.plan import StackPlan, read_and_decide
from planning.stack_file import from_pulumi
from tests import hf_configs

ONE_NODE = catalogue.preset_names()
SEVERAL_NODES = catalogue.several_nodes_names()

#: Presets whose config is another model's: instructed ones share the shape of the base model.
CONFIG_OF = {
    "llama-3.3-70b-instruct": "meta-llama/Meta-Llama-3.1-70B",
    "llama-3.1-8b-instruct": "meta-llama/Meta-Llama-3.1-8B",
    "gemma-4-26b-a4b-it": "google/gemma-4-26B-A4B",
}


def _file(name: str) -> Path:
    folder = catalogue.PRESETS / "models"
    return (folder / catalogue.SEVERAL_NODES if name in SEVERAL_NODES else folder) / f"{name}.yaml"


def _decide(name: str, **settings: str) -> StackPlan:
    bag = {"environment": "development", "preset": name, **settings}
    keys = {f"aks-vllm:{key}": value for key, value in bag.items()}
    return read_and_decide(from_pulumi({"azure-native:location": "eastus", **keys}, [], "test"))


def test_forty_models_or_more_are_served_by_one_node() -> None:
    assert len(ONE_NODE) >= 40


@pytest.mark.parametrize("name", (*ONE_NODE, *SEVERAL_NODES))
def test_the_short_config_gives_the_architecture_of_the_whole_one(name: str) -> None:
    preset = catalogue.preset(name)
    source = CONFIG_OF.get(name, preset.model_id).replace("/", "--", 1)
    whole = from_hf_config(*hf_configs.load(source))
    differs = [
        field.name
        for field in fields(Architecture)
        if getattr(whole, field.name) != getattr(preset.architecture, field.name)
    ]
    assert not differs, "a field is missing in the preset's config, or an ignore list is too short"


@pytest.mark.parametrize("name", ONE_NODE)
def test_a_preset_decides_on_its_default_vm_size_and_its_command_line_is_vllms(name: str) -> None:
    preset = catalogue.preset(name)
    (model,) = _decide(name).models
    assert model.layout.vm_size == preset.default_vm_size
    assert model.memory.verdict == "fits", "a default that does not start is none"
    least = min(preset.architecture.native_context, 32768)
    assert model.memory.max_model_len >= least, "nobody can use so short a context"
    options: dict[str, object] = {}
    words = model.args[1:]
    for index, word in enumerate(words):
        if word.startswith("--"):
            key, _, value = word.removeprefix("--").partition("=")
            following = words[index + 1] if index + 1 < len(words) else "--"
            options[key] = value or (True if following.startswith("--") else following)
    theirs = {key: value for key, value in options.items() if key not in ("port", "shutdown-timeout")}
    assert engine.check(theirs, prefix="vllm", source="test") == ()
    assert engine.normalise(theirs)["max-model-len"] == model.memory.max_model_len


@pytest.mark.parametrize("name", ONE_NODE)
def test_the_default_vm_size_is_the_cheapest_that_holds_a_batch_where_one_does(name: str) -> None:
    """A batch: eight requests of 32,768 tokens, or of the whole context where that is shorter."""
    preset = catalogue.preset(name)
    vm = catalogue.vm_size(preset.default_vm_size)
    assert float(vm.gpu.compute_capability) >= _least_capability(preset.architecture), "vLLM has no kernel for that GPU"
    if name in ("llama-3.3-70b-instruct", "qwen3-8b"):
        return  # chosen by hand: the node the project is about, and its smaller sister
    holding = [size for size in catalogue.vm_size_names() if _holds_batch(preset, size)]
    priced = [size for size in holding if catalogue.vm_size(size).cheapest_price is not None]
    if priced:
        assert vm.name == min(priced, key=lambda size: catalogue.vm_size(size).cheapest_price or 0.0)


def _least_capability(architecture: Architecture) -> float:
    """Sparse attention: FlashMLA's kernels are for 9.0 and up; an fp8 KV cache: 8.9, as Triton's fp8 is."""
    if architecture.kernel in ("sparse", "deepseek-v4", "minimax-m3"):
        return 9.0
    return 8.9 if architecture.kv_cache_dtype == "fp8" else 8.0


def _holds_batch(preset: catalogue.Preset, size: str) -> bool:
    vm = catalogue.vm_size(size)
    context = min(preset.architecture.native_context, 32768)
    if float(vm.gpu.compute_capability) < _least_capability(preset.architecture):
        return False
    try:
        _, memory = choose_layout(
            preset.architecture,
            vm,
            replicas=1,
            tensor_parallel_size=None,
            pipeline_parallel_size=None,
            options=EngineOptions(max_model_len=context),
        )
    except catalogue.InvalidStack:
        raise
    except Exception as error:
        assert type(error).__name__ == "LayoutError", error
        return False
    return memory.max_concurrency >= 8


@pytest.mark.parametrize("name", ONE_NODE)
def test_the_number_in_a_models_name_is_about_its_parameters(name: str) -> None:
    architecture = catalogue.preset(name).architecture
    named = re.search(r"-(\d+(?:\.\d+)?)b(?:-|$)", name)
    if not named or "llama-4" in name:
        return  # Llama 4 names its active parameters
    billions = float(named[1])
    if "x" in name.split("b-")[0].rpartition("-")[2]:
        return
    assert billions * 0.9 < architecture.parameters / 1e9 < billions * 1.15 + 0.2


@pytest.mark.parametrize("name", (*ONE_NODE, *SEVERAL_NODES))
def test_a_presets_parameters_are_those_of_its_checkpoint_where_they_were_counted(name: str) -> None:
    data = yaml.safe_load(_file(name).read_text("utf-8"))
    assert catalogue.preset(name).architecture.parameters == data.get(
        "parameters", catalogue.preset(name).architecture.parameters
    ), "the tensors are not counted as the checkpoint has them"


@pytest.mark.parametrize("name", (*ONE_NODE, *SEVERAL_NODES))
def test_what_is_known_of_a_preset_has_a_source_and_the_rest_is_null(name: str) -> None:
    text = _file(name).read_text("utf-8")
    first = text.partition("\n")[0]
    depth = "../" if name in SEVERAL_NODES else ""
    assert first == f"# yaml-language-server: $schema={depth}schema.json", "editors complete and check by it"
    for key in ("license", "tool-call-parser"):
        line = re.search(rf"^(?:#.*\n)?{key}: (\S+).*$", text, re.MULTILINE)
        assert line is None or line[1] == "null" or "#" in line[0], f"{key} says nowhere where it comes from"
    for key in ("revision", "license", "gated"):
        assert f"{key}: null" not in text or f"{key}: null # not" in text


@pytest.mark.parametrize("name", ONE_NODE)
def test_parsers_and_options_are_vllms_own(name: str) -> None:
    preset = catalogue.preset(name)
    contract = json.loads((engine.folder() / "arguments.json").read_text("utf-8"))
    for option, value in (
        ("tool-call-parser", preset.tool_call_parser),
        ("reasoning-parser", preset.reasoning_parser),
    ):
        assert value is None or value in contract[option]["choices"]
    assert engine.check(preset.options, prefix="vllm", source="test") == ()
    memory = {field.name.replace("_", "-") for field in fields(EngineOptions)} | set(engine.PLANNED)
    assert not memory & set(preset.options), "the plan would not know of it"
    assert preset.chat or not (preset.tool_call_parser or preset.reasoning_parser)


@pytest.mark.parametrize("name", ONE_NODE)
def test_a_name_that_says_a_format_is_told_by_the_config(name: str) -> None:
    formats = catalogue.preset(name).architecture.quantization
    assert all(word in formats for word in ("fp8", "nvfp4") if name.endswith(word)), (
        "vLLM would take the weights for 16 bits"
    )


def test_two_presets_never_name_the_same_model() -> None:
    ids = [catalogue.preset(name).model_id for name in (*ONE_NODE, *SEVERAL_NODES)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", SEVERAL_NODES)
def test_a_model_that_needs_several_nodes_is_refused_with_words(name: str) -> None:
    with pytest.raises(InvalidStack) as refused:
        _decide(name)
    (problem,) = refused.value.problems
    assert problem.key == "aks-vllm:preset"
    assert "needs several nodes" in problem.limit
    assert "make presets" in problem.remedy


def test_what_is_unknown_of_a_preset_is_a_step_in_production() -> None:
    name = next(name for name in ONE_NODE if len(catalogue.preset(name).unknown) == 2)
    steps = [step for step in _decide(name, environment="production").findings if step.severity is Severity.STEP]
    (pins,) = [step.message for step in steps if "not known yet" in step.message]
    assert "the model's commit, its licence, whether it is gated" in pins


def test_one_preset_is_read_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *args: opened.append(self.name) or real(self, *args))
    catalogue.preset.__wrapped__("gpt-oss-20b")
    assert {name for name in opened if name.endswith(".yaml")} <= {"gpt-oss-20b.yaml", "vm-sizes.yaml"}


# What the engine starts with.


def _command(given: dict[str, object], name: str = "qwen3-8b", **changes: Any) -> tuple[str, ...]:
    (model,) = _decide(name).models
    return engine.arguments(
        options=engine.normalise(given),
        model_path="/models/m",
        served_model_name="m",
        port=8000,
        layout=model.layout,
        memory=model.memory,
        shutdown_timeout_seconds=60,
        preset=replace(catalogue.preset(name), **changes),
    )


def test_a_models_own_parsers_are_used() -> None:
    text = " ".join(_command({}))
    assert "--enable-auto-tool-choice" in text
    assert "--tool-call-parser hermes" in text
    assert "--reasoning-parser qwen3" in text


def test_a_model_without_known_parsers_gets_none() -> None:
    text = " ".join(_command({}, tool_call_parser=None, reasoning_parser=None))
    assert "parser" not in text
    assert "tool" not in text


def test_a_stacks_own_parsers_win() -> None:
    text = " ".join(_command({"tool-call-parser": "qwen3_xml", "reasoning-parser": "deepseek_r1"}))
    assert text.count("--tool-call-parser") == text.count("--reasoning-parser") == 1
    assert "--tool-call-parser qwen3_xml" in text
    assert "--reasoning-parser deepseek_r1" in text


def test_a_stack_may_turn_tool_calls_off() -> None:
    text = " ".join(_command({"enable-auto-tool-choice": False}))
    assert "--enable-auto-tool-choice" not in text
    assert "--tool-call-parser" not in text


def test_options_that_a_model_needs_are_passed_on_and_a_stacks_own_win() -> None:
    needed = {"tokenizer-mode": "deepseek_v32"}
    assert "--tokenizer-mode deepseek_v32" in " ".join(_command({}, options=needed))
    assert "--tokenizer-mode slow" in " ".join(_command({"tokenizer-mode": "slow"}, options=needed))


# Files that cannot stand.

GOOD = """model-id: Some/Model
revision: null
license: null
gated: null
default-vm-size: Standard_NC40ads_H100_v5
config: config.json
"""


def _problems(tmp_path: Path, text: str) -> tuple[Problem, ...]:
    (tmp_path / "config.json").write_text(json.dumps(hf_configs.load("Qwen--Qwen3-0.6B")[0]))
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InvalidStack) as refused:
        catalogue.load_preset(tmp_path / "mine.yaml")
    assert all("mine.yaml" in problem.key for problem in refused.value.problems), "the file is named"
    return refused.value.problems


def test_a_config_may_be_a_file_beside_the_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD)
    config, _ = hf_configs.load("Qwen--Qwen3-0.6B")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert catalogue.load_preset(tmp_path / "mine.yaml").architecture.parameters == from_hf_config(config).parameters


def test_the_example_of_the_documentation_is_a_preset(tmp_path: Path) -> None:
    text = (catalogue.PRESETS.parent / "docs/change-the-model.md").read_text("utf-8")
    example = next(part for part in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "model-id" in part)
    (tmp_path / "mine.yaml").write_text(example)
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model/config.json").write_text(json.dumps(hf_configs.load("Qwen--Qwen3-1.7B")[0]))
    preset = catalogue.load_preset(tmp_path / "mine.yaml")
    assert (preset.model_id, preset.tool_call_parser, preset.unknown) == ("Qwen/Qwen3-1.7B", "hermes", ())
    assert preset.architecture.parameters == catalogue.preset("qwen3-1.7b").architecture.parameters


def test_a_quantisation_file_beside_the_config_counts(tmp_path: Path) -> None:
    config, beside = hf_configs.load("nvidia--Qwen3-235B-A22B-NVFP4")
    (tmp_path / "mine.yaml").write_text(GOOD)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    assert "nvfp4" in catalogue.load_preset(tmp_path / "mine.yaml").architecture.quantization


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    (problem,) = _problems(tmp_path, GOOD + "tool-cal-parser: hermes\n")
    assert problem.key.endswith("mine.yaml: tool-cal-parser")
    assert problem.remedy == "did you mean tool-call-parser?"


@pytest.mark.parametrize(
    ("before", "after", "key", "words"),
    [
        ("license: null\n", "", "license", "is missing"),
        ("gated: null", "gated: maybe", "gated", "boolean or null"),
        ("revision: null", "revision: main", "revision", "must look like"),
        ("model-id: Some/Model", "model-id: Model", "model-id", "must look like"),
        ("Standard_NC40ads_H100_v5", "Standard_NC40ads_H100_v6", "default-vm-size", "vm-sizes.yaml"),
        ("config.json", "other.json", "config", "no such file"),
        ("config.json", "mine.yaml", "config", "is not JSON"),
        ("config: config.json", "config: {architectures: [Strange]}", "config", "not modelled"),
        ("config: config.json", "config: {}\nparameters: 0", "parameters", "at least 1"),
        ("config: config.json", "config: config.json\ndownload-exclude: [1]", "download-exclude", "text only"),
    ],
)
def test_a_wrong_value_is_refused_with_the_key_and_the_limit(
    tmp_path: Path, before: str, after: str, key: str, words: str
) -> None:
    (problem,) = _problems(tmp_path, GOOD.replace(before, after))
    assert problem.key.endswith(f": {key}")
    assert words.lower() in problem.limit.lower()
    assert problem.remedy


@pytest.mark.parametrize("text", ["a: [", "", "- a\n", "a: !!python/object:x.y {}\n"])
def test_what_is_no_preset_is_refused(tmp_path: Path, text: str) -> None:
    assert _problems(tmp_path, text)


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    problems = _problems(tmp_path, GOOD.replace("null", "[]") + "more: 1\n")
    assert len(problems) == 4


# The list of them.


def test_the_page_of_models_is_current() -> None:
    page = (catalogue.PRESETS.parent / "docs/models.md").read_text("utf-8")
    assert page == listing.as_markdown(listing.rows()) + "\n", (
        "make it again: python -m planning presets --format markdown > docs/models.md"
    )


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_list_names_every_model_with_its_size_and_price_on_every_terminal(width: int) -> None:
    text = listing.as_text(listing.rows(), width=width, color=False)
    for name in (*ONE_NODE, *SEVERAL_NODES):
        assert re.search(rf"(^|\s){re.escape(name)}\s", text, re.MULTILINE), name
    assert ("licence" in text) == (width > 100), "it is left out before it is cut to nothing"
    assert f"{len(ONE_NODE)} models." in text
    line = next(line for line in text.splitlines() if "llama-3.3-70b-instruct" in line)
    assert width < 100 or line.split()[-3:] == ["×", "TP4", "98.32"]
