"""The report: the same plan for people, for programs and for the stack's outputs."""

from __future__ import annotations

import json
import re

import pytest

from planning import report
from planning.plan import StackPlan, read_and_decide
from planning.settings import from_file

ANSI = "\x1b["


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


def test_the_bar_is_as_long_as_the_gpus_memory_whatever_the_width(prod: StackPlan) -> None:
    for width in (20, 44, 72):
        bar, legend = report._bar(prod.models[0], width)
        assert sum(len(glyphs) for glyphs, _ in bar) == width
        assert len(bar) == len(legend)


def test_the_command_line_can_be_pasted(prod: StackPlan) -> None:
    import shlex

    words = [*prod.models[0].command, *prod.models[0].args]
    for width in (40, 80, 200):
        assert shlex.split(report._command(words, width).replace("\\\n", " ")) == words
    assert shlex.split(report._command(["vllm", "serve", "a b", "--x", '{"k": 1}'], 20).replace("\\\n", " ")) == [
        "vllm",
        "serve",
        "a b",
        "--x",
        '{"k": 1}',
    ]


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
    assert "port-forward service/model 8000" in text, "the endpoint is reachable inside the cluster only"
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
    assert "service/chat" in text
