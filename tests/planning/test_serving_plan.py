"""A workload in the stack: what is said of it, what it chooses, and what it is warned of."""

from __future__ import annotations

import re
from typing import Any

import pytest

from planning import catalogue, report, report_page, serving_plan, sizing
from planning.findings import InvalidStack, Severity
from planning.memory import EngineOptions
from planning.plan import ModelPlan, StackPlan, read_and_decide
from planning.serving_rate import Workload
from planning.stack_file import from_file

H100 = "Standard_ND96isr_H100_v5"
CHAT = ("workload.input-tokens=1024", "workload.output-tokens=512")


def plan(*overrides: str, stack: str = "prod") -> StackPlan:
    return read_and_decide(from_file(stack, overrides=overrides))


def model(*overrides: str) -> ModelPlan:
    return plan(*overrides).models[0]


def problems(*overrides: str) -> list[str]:
    with pytest.raises(InvalidStack) as invalid:
        plan(*overrides)
    return str(invalid.value).splitlines()


def said(found: StackPlan, severity: Severity) -> str:
    return "\n".join(f"{each.message} {each.remedy}" for each in found.findings if each.severity is severity)


# What the report says.


def test_without_a_workload_a_chat_is_shown_and_decides_nothing() -> None:
    shown = model()
    assert not shown.serving.asked
    assert (shown.layout.replicas, shown.layout.tensor_parallel_size) == (2, 4)
    assert shown.serving.workload == serving_plan.CHAT
    assert "as no workload is set" in report.as_text(plan(), 200)


@pytest.mark.parametrize("context", [1, 2, 3, 512, 1536, 131_072])
def test_the_chat_is_no_longer_than_the_context(context: int) -> None:
    load = serving_plan.chat_of(context)
    assert load.input_tokens >= 1
    assert load.output_tokens >= 1
    assert load.input_tokens + load.output_tokens <= max(2, context)


def test_figures_are_ranges_with_their_basis_in_every_form() -> None:
    found = plan(*CHAT, "workload.users=64")
    rate = found.models[0].serving.decided
    assert rate is not None
    for written in (report.as_text(found, 120), report.as_markdown(found), str(report.as_json(found))):
        flowing = " ".join(written.split())
        assert re.search(r"[\d.]+ to [\d.]+ ms per output token", flowing)
        assert re.search(r"\$[\d.]+ to [\d.]+ per million output tokens", flowing)
        assert "up to 3 times slower" in flowing
        assert "AKS nodes were not measured" in flowing


def test_the_cost_of_a_million_tokens_is_the_nodes_price_over_what_they_serve() -> None:
    decided = model(*CHAT, "workload.users=64").serving.decided
    assert decided is not None
    assert decided.per_million_output_tokens is not None
    assert decided.per_million_tokens is not None
    price = catalogue.vm_size(H100).price_per_hour["eastus"]
    million = price / (decided.tokens_per_second.expected * 3600) * 1e6
    assert decided.per_million_output_tokens.expected == pytest.approx(million)
    assert decided.per_million_tokens.expected == pytest.approx(million / 3), "512 of 1,536 tokens are output"


def test_what_is_not_modelled_has_words_and_a_command_but_no_figures() -> None:
    found = plan("preset=qwen3.5-122b-a10b", "vllm.max-num-seqs=64")
    serving = found.models[0].serving
    assert (serving.decided, serving.layouts, serving.recommended) == (None, (), None)
    text = " ".join(report.as_text(found, 120).split())
    assert "not modelled: linear attention" in text
    assert "vllm bench serve" in text
    assert "per million output" not in text


# What it chooses.


def test_the_layout_is_the_cheapest_that_keeps_the_limit_and_says_so() -> None:
    fast, slow = model(*CHAT, "workload.users=64", "workload.max-tpot-ms=20"), model(*CHAT, "workload.users=64")
    for chosen in (fast, slow):
        assert chosen.serving.decided is not None
        assert chosen.serving.decided.lacks == ""
        assert "the workload" in chosen.layout.reason
        assert "at the lowest cost per token" in chosen.layout.reason
        assert chosen.layout.replicas % chosen.layout.replicas_per_node == 0, "nodes are paid whole, and filled"
        assert chosen.layout.replicas > 1, "an update keeps serving"
    assert fast.serving.decided is not None
    assert fast.serving.decided.rate.time_per_output_token_ms.expected <= 20
    assert fast.layout.tensor_parallel_size > slow.layout.tensor_parallel_size


def test_what_is_asked_for_is_kept() -> None:
    asked = model(*CHAT, "workload.users=64", "vllm.tensor-parallel-size=8", "replicas=3")
    assert (asked.layout.tensor_parallel_size, asked.layout.replicas) == (8, 3)
    assert "as asked" in asked.layout.reason


def test_a_single_replica_is_chosen_only_where_it_is_asked_for() -> None:
    assert model(*CHAT, "workload.users=4", "replicas=1").layout.tensor_parallel_size == 8
    assert model(*CHAT, "workload.users=4").layout.replicas > 1


def test_a_workload_that_is_not_modelled_leaves_the_layout_alone() -> None:
    assert (
        model("preset=deepseek-v3.2-nvfp4").layout
        == model("preset=deepseek-v3.2-nvfp4", *CHAT, "workload.users=9").layout
    )


def test_layouts_less_than_a_tenth_apart_are_a_tie_for_the_smaller_split() -> None:
    architecture, vm = catalogue.preset("llama-3.3-70b-instruct").architecture, catalogue.vm_size(H100)
    options = EngineOptions(max_model_len=2048)
    for users in range(8, 400, 8):
        load = Workload(input_tokens=1024, output_tokens=512, users=users)
        found = sizing.layouts(architecture, vm, sizing.fitting(architecture, vm, options), load, options)
        best = sizing.best(found)
        assert best is not None
        cheapest = min(map(sizing.cost_of, (each for each in found if each.keeps_serving and not each.lacks)))
        assert sizing.cost_of(best) <= cheapest * (1 + sizing.TIE)
        smaller = [each for each in found if each.tensor_parallel_size < best.tensor_parallel_size and not each.lacks]
        assert all(sizing.cost_of(each) > cheapest * (1 + sizing.TIE) for each in smaller if each.keeps_serving)


# What it warns of.


def test_more_users_than_the_cache_holds_are_a_warning_with_what_would_do() -> None:
    found = plan(*CHAT, "workload.users=2000", "replicas=1", "vllm.tensor-parallel-size=4")
    told = said(found, Severity.WARNING)
    assert "the KV cache of a replica holds 360 users, 2000 come" in told
    assert re.search(r"\d+ × tensor parallel size \d on \d+ nodes does", told)


def test_a_limit_that_nothing_keeps_names_the_closest_and_what_it_lacks() -> None:
    told = said(plan(*CHAT, "workload.users=64", "workload.max-tpot-ms=5"), Severity.WARNING)
    assert "closest is tensor parallel size 8" in told
    assert "even for a single user, 5 ms are allowed" in told


def test_a_dearer_split_that_was_asked_for_is_told() -> None:
    told = said(plan(*CHAT, "workload.users=64", "vllm.tensor-parallel-size=2"), Severity.NOTE)
    assert re.search(r"Tensor parallel size 4 would serve the workload for less: 2 costs about \d+% more", told)


def test_a_workload_on_gpus_that_were_not_measured_is_a_note() -> None:
    told = said(plan(*CHAT, "workload.users=64", stack="dev"), Severity.NOTE)
    assert "not modelled: H100-NVL: not measured" in told
    assert "vllm bench serve" in told


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["workload.users=0"], "aks-vllm:workload.users = 0: must be at least 1 (--set); for example users: 64"),
        (["workload.users=many"], "aks-vllm:workload.users = many: must be a whole number"),
        (["workload.max-tpot-ms=0"], "aks-vllm:workload.max-tpot-ms = 0: must be above 0 (--set)"),
        (["workload.max-tpot-ms=quick"], "aks-vllm:workload.max-tpot-ms = quick: must be a number"),
        (["workload.userz=5"], "aks-vllm:workload.userz = 5: is not a key of this program"),
        (["workload=5"], "aks-vllm:workload = 5: must be a map"),
        (
            ["workload.users=5", "workload.input-tokens=16000"],
            "aks-vllm:workload = 16000 + 512 tokens: prompt and answer are 16512 tokens, the context is 16384 (--set); "
            "set max-model-len to 16512 or more, or shorten them",
        ),
        (
            ["workload.users=5", "workload.input-tokens=200000", "max-model-len=131072"],
            "aks-vllm:workload = 200000 + 512 tokens: prompt and answer are 200512 tokens, the context is 131072 "
            "(--set); shorten them",
        ),
    ],
)  # fmt: skip
def test_a_workload_that_cannot_be_is_refused_in_words(overrides: list[str], expected: str) -> None:
    given = {"workload.input-tokens": "1024", "workload.output-tokens": "512", "workload.users": "8"}
    for pair in overrides:
        key, _, value = pair.partition("=")
        given = {key: value} if key == "workload" else {**given, key: value}
    told = problems(*(f"{key}={value}" for key, value in given.items()))
    assert any(line.startswith(expected) for line in told), told


def test_a_workload_without_its_users_is_refused() -> None:
    (told,) = problems(*CHAT)
    assert told.startswith("aks-vllm:workload.users = nothing: is required ")
    assert told.endswith("for example users: 64")


def test_the_table_marks_what_was_chosen() -> None:
    chosen = model(*CHAT, "workload.users=64")
    _, table = report_page.serving(chosen)
    assert isinstance(table, report_page.Table)
    row: Any = table.rows[table.marked]
    assert row[0].endswith(f"{chosen.layout.replicas} × TP {chosen.layout.tensor_parallel_size}")
