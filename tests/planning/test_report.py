"""The report: the same plan for people, for programs and for the stack's outputs."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from planning import catalogue, report, report_page
from planning.plan import StackPlan, read_and_decide
from planning.stack_file import from_file

ANSI = "\x1b["
SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text())
STACKS = ("prod", "dev", "sandbox")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def plans() -> list[tuple[str, StackPlan]]:
    """Every stack of the project, and every preset in one."""
    found = [(stack, read_and_decide(from_file(stack))) for stack in STACKS]
    for name in catalogue.preset_names():
        overrides = [f"preset={name}", f"vm-size={catalogue.preset(name).default_vm_size}", "max-model-len=4096"]
        found.append((name, read_and_decide(from_file("dev", overrides=overrides))))
    return found


def breaches(value: Any, schema: dict[str, Any], path: str = "$") -> list[str]:
    """Where a value is not what those words of JSON Schema ask that the file uses."""
    classes = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(value is None if kind == "null" else isinstance(value, classes[kind]) for kind in kinds):
        return [f"{path}: {value!r} is not {kinds}"]
    found = [] if value in schema.get("enum", [value]) else [f"{path}: {value!r}"]
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        found += [f"{path}.{key} is missing" for key in schema.get("required", []) if key not in value]
        if schema.get("additionalProperties") is False:
            found += [f"{path}.{key} is not documented" for key in value if key not in properties]
        for key in properties.keys() & value.keys():
            found += breaches(value[key], properties[key], f"{path}.{key}")
    if isinstance(value, list) and "items" in schema:
        found += [line for at, item in enumerate(value) for line in breaches(item, schema["items"], f"{path}[{at}]")]
    return found


def numbers(text: str) -> set[str]:
    return {number.replace(",", "").rstrip(".") for number in NUMBER.findall(text)}


def written_numbers(value: Any) -> set[str]:
    """Every number of a JSON document in the ways that a report writes it."""
    if isinstance(value, dict):
        return {number for key, item in value.items() for number in (*numbers(key), *written_numbers(item))}
    if isinstance(value, list):
        return {number for item in value for number in written_numbers(item)}
    if isinstance(value, str):
        return numbers(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {f"{value:.0f}", f"{value:.1f}", f"{value:.2f}", str(math.ceil(value / 60))}
    return set()


@pytest.fixture(scope="module")
def prod() -> StackPlan:
    return read_and_decide(from_file("prod"))


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_no_line_is_wider_than_the_terminal(prod: StackPlan, width: int) -> None:
    assert [line for line in report.as_text(prod, width).splitlines() if len(line) > width] == []


@pytest.mark.parametrize("stack", ["prod", "dev", "sandbox"])
def test_commands_to_copy_stay_on_one_line_of_a_small_terminal(stack: str) -> None:
    found = read_and_decide(from_file(stack))
    shown = {line.strip() for line in report.as_text(found, 80).splitlines()}
    commands = [line.strip() for line in report.next_steps(found).splitlines() if line.startswith("    ")]
    remedies = [finding.remedy for finding in found.findings if finding.severity == "step"]
    commands += [part for remedy in remedies for part in remedy.split("`")[1::2]]
    assert [command for command in commands if command not in shown] == []


def test_a_pipe_gets_no_colours_and_a_terminal_does(prod: StackPlan) -> None:
    assert ANSI not in report.as_text(prod, 100, color=False)
    assert ANSI in report.as_text(prod, 100, color=True)


def test_text_and_markdown_say_what_is_decided(prod: StackPlan) -> None:
    model, cost = prod.models[0], prod.cost
    said = [
        f"{model.memory.kv_cache_tokens:,} tokens",
        "16,384 tokens",
        "131,072",
        "2 replicas × 4 GPUs",
        "--max-model-len",
        f"${cost.gpu_pools_per_hour:,.2f}",
        cost.price_date,
        "standardNDSH100v5Family",
        "pulumi config set --secret aks-vllm:hf-token --stack prod",
        "curl",
    ]
    for written in (report.as_text(prod, 120), report.as_markdown(prod)):
        flowing = " ".join(written.split())
        assert [words for words in said if words not in flowing] == []
        assert " ".join(model.rollout.drain_consequence.split()) in flowing


def test_what_one_form_says_the_others_say_too() -> None:
    for name, plan in plans():
        text = report.as_text(plan, 120).partition("\nNext ")[0]
        for model in plan.models:
            text = text.replace((model.revision or "")[:12], "")  # a commit is shortened
        shown = numbers(text)
        assert shown - numbers(report.as_markdown(plan)) == set(), f"{name}: Markdown lacks these numbers"
        document = report.as_json(plan)
        places = {str(number) for number in range(len(document["findings"]) + 1)}  # findings are numbered
        month = {"730"}
        assert shown - written_numbers(document) - places - month == set(), f"{name}: JSON lacks these numbers"


def test_json_is_as_its_schema_says() -> None:
    kubeconfig = from_file("dev", overrides=["kubeconfig={secure: v1:x}"])
    for name, plan in [*plans(), ("existing", read_and_decide(kubeconfig))]:
        document = json.loads(json.dumps(report.as_json(plan), allow_nan=False))
        assert breaches(document, SCHEMA) == [], name


def test_a_document_that_lacks_a_key_or_has_one_more_breaks_the_schema(prod: StackPlan) -> None:
    document = report.as_json(prod)
    del document["cost"]
    document["extra"] = 1
    assert set(breaches(document, SCHEMA)) >= {"$.cost is missing", "$.extra is not documented"}


def test_the_verdict_comes_before_everything_else(prod: StackPlan) -> None:
    for written in (report.as_text(prod, 100), report.as_markdown(prod)):
        flowing = " ".join(written.split())
        order = ["Deployable after 2 steps.", "an update is no outage", "weights", "chosen: 2 × TP 4", "Start-up"]
        order += ["keeps serving all the while", "an hour, ", "vCPUs", "--tensor-parallel-size", "Still to do", "curl"]
        places = [flowing.index(words) for words in order]
        assert places == sorted(places)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_of_layouts_keeps_its_figures_whole(prod: StackPlan, width: int) -> None:
    lines = report.as_text(prod, width).splitlines()
    for found in report_page.other_layouts(prod, prod.models[0]):
        figures = [
            f"{found.kv_cache_tokens:,}",
            f"{found.kv_cache_tokens_per_node:,}",
            f"{found.longest_max_model_len:,}",
        ]
        price = f"${found.replica_per_hour:,.2f}"
        row = [line for line in lines if line.lstrip("▸ ").startswith(f"{report_page.layout_name(found)} ")]
        assert any(all(figure in line.split() for figure in (*figures, price)) for line in row), found
    assert sum(line.startswith(" ▸ 2 × TP 4") for line in lines) == 1, "the chosen one is marked"


def test_the_bar_is_as_long_as_the_gpus_memory_whatever_the_width(prod: StackPlan) -> None:
    for width in (44, 72):
        bar, *legend = report_page._memory(prod.models[0], width).lines
        assert sum(len(glyphs) for glyphs, _ in bar) == width
        assert len({glyphs[0] for glyphs, _ in bar}) == len(bar)
        said = "".join(words for line in legend for words, _ in line)
        assert all(glyphs[0] in said for glyphs, _ in bar), "every part has its words"


def test_the_stages_of_a_start_follow_each_other(prod: StackPlan) -> None:
    _, *stages, _ = report_page._startup(prod.models[0], 60).lines
    ends = 0
    for (_, _), (space, _), (bar, _) in stages:
        assert abs(len(space) - ends) <= 1, "a stage begins where the one before ends"
        ends = len(space) + len(bar)
    assert ends == 60 - 16


def test_the_command_line_can_be_pasted(prod: StackPlan) -> None:
    import shlex

    words = [*prod.models[0].command, *prod.models[0].args]
    for width in (40, 80, 200):
        assert shlex.split(report_page.command(words, width).replace("\\\n", " ")) == words
    quoted = ["vllm", "serve", "a b", "--x", '{"k": 1}']
    assert shlex.split(report_page.command(quoted, 20).replace("\\\n", " ")) == quoted


def test_json_is_the_whole_plan_in_plain_values(prod: StackPlan) -> None:
    document = json.loads(json.dumps(report.as_json(prod), allow_nan=False))
    assert document["models"][0]["args"] == list(prod.models[0].args)
    assert document["cost"]["gpu_pools_per_hour"] == prod.cost.gpu_pools_per_hour
    assert {finding["severity"] for finding in document["findings"]} <= {"step", "warning", "note"}
    assert document["models"][0]["image"]["reference"] == prod.models[0].image.reference


def test_the_headline_holds_only_values_that_an_output_can_show(prod: StackPlan) -> None:
    headline = report.headline(prod)
    assert headline["kvCacheTokens"] == 2 * prod.models[0].memory.kv_cache_tokens
    assert all(isinstance(value, str | int | float) for value in headline.values())


def test_the_next_steps_end_with_an_answer_a_change_and_the_removal(prod: StackPlan) -> None:
    text = report.next_steps(prod)
    assert text.index("A first answer") < text.index("Change the model") < text.index("Remove everything")
    body = re.search(r"-d '(.*?)'", text, re.DOTALL)
    assert body is not None
    assert json.loads(body[1])["model"] == prod.models[0].served_model_name, "the server answers to this name only"
    assert "port-forward service/edge 8000:80" in text, "the way in for whoever is outside of the network"
    assert text.index("aks-vllm:protect false") < text.index("pulumi destroy"), "or the removal is refused"


def test_an_unprotected_stack_is_removed_without_a_detour() -> None:
    assert "protect" not in report.next_steps(read_and_decide(from_file("dev")))


def test_the_change_that_is_proposed_is_one_that_the_plan_accepts(prod: StackPlan) -> None:
    for stack in ("prod", "dev"):
        found = read_and_decide(from_file(stack))
        proposed = re.search(r'SET="(.*?)"', report.next_steps(found))
        assert proposed is not None
        assert read_and_decide(from_file(stack, overrides=[proposed[1]])) != found


def test_a_model_of_several_is_changed_by_its_path() -> None:
    reading = from_file("prod", overrides=["preset=qwen3-8b"])
    settings = reading.settings
    assert settings is not None
    from planning.plan import decide

    several = settings.model_copy(update={"models": {"chat": settings.models["model"]}, "flat": False})
    text = report.next_steps(decide(several, stack="prod", source=reading.source))
    assert "pulumi config set --path aks-vllm:models.chat.max-model-len" in text
    assert "localhost:8000/chat/v1/chat/completions" in text
