"""Measuring a stack: one update with the benchmark's Jobs, their figures read back, and both beside the prediction."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any

from gitops.cluster import Cluster
from gitops.tools import Tool
from planning import benchmark, stack_file
from planning.benchmark import BenchmarkPlan, Compared
from planning.plan import StackPlan, read_and_decide

#: What makes the stack declare the Jobs, for these updates alone.
SETTING = "benchmark=true"


class MeasureError(Exception):
    """There are no figures; the text says why, and what to do."""


def planned(stack: str) -> StackPlan:
    """The stack with its benchmarks. Raises InvalidStack."""
    return read_and_decide(stack_file.from_file(stack, overrides=[SETTING]), date.today())


def measure(tool: Tool, plan: StackPlan, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """By model, what the stack's output `benchmarks` then says. Raises MeasureError and ClusterError."""
    requests = sum(each.requests for each in plan.benchmarks)
    minutes = max(each.deadline_seconds for each in plan.benchmarks) // 60
    say(f"{tool.stack}: an update that sends {requests:,} requests; {minutes} minutes at most")
    failed = tool.update([SETTING]).wait() != 0
    kubeconfig = tool.kubeconfig()
    if kubeconfig is None:
        raise MeasureError(f"The update failed: {tool.last_words}")
    cluster = Cluster(kubeconfig, plan.namespace)
    said = {each.model: cluster.last_words(each.job, "benchmark") for each in plan.benchmarks}
    if failed:
        reasons = [f"{model}: {text.strip().splitlines()[-1]}" for model, text in said.items() if text.strip()]
        raise MeasureError("\n".join([f"The update failed: {tool.last_words}", *reasons]))
    silent = [model for model, text in said.items() if not text.strip()]
    if silent:
        why = "its Job left no figures" if tool.answers else "pods are simulated here, and no model answers"
        raise MeasureError(f"{', '.join(silent)}: {why}.")
    for each in plan.benchmarks:
        cluster.annotate_job(each.job, benchmark.MEASURED, said[each.model])
    say(f"{tool.stack}: read; the stack's output `benchmarks` gets them")
    if tool.update([SETTING], refresh=True).wait() != 0:
        raise MeasureError(f"The figures were read, and the update that shows them failed: {tool.last_words}")
    return {each.model: _outcome(each, said[each.model]) for each in plan.benchmarks}


def _outcome(plan: BenchmarkPlan, text: str) -> dict[str, Any]:
    return benchmark.outcome(plan.predicted, plan.requests, text)


def as_json(outcomes: Mapping[str, Mapping[str, Any]]) -> str:
    """One document."""
    return json.dumps({"benchmarks": outcomes}, indent=1)


def as_markdown(plan: StackPlan, outcomes: Mapping[str, Mapping[str, Any]]) -> str:
    """A table for each model."""
    blocks = []
    for each in plan.benchmarks:
        title, rows, wrong = _rows(plan, each, outcomes)
        lines = [f"### {title}", ""]
        if rows:
            lines += ["| | predicted | measured | ratio | |", "|---|---|---:|---:|---|"]
            lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
        blocks.append("\n".join([*lines, *(f"- {problem}" for problem in wrong)]))
    return "\n\n".join(blocks)


def as_text(plan: StackPlan, outcomes: Mapping[str, Mapping[str, Any]]) -> str:
    """For a terminal."""
    lines = []
    for each in plan.benchmarks:
        title, rows, wrong = _rows(plan, each, outcomes)
        cells = [["", "predicted", "measured", "ratio", ""], *(_cells(row) for row in rows)] if rows else []
        widths = [max(len(row[at]) for row in cells) for at in range(5)] if cells else []
        lines += [title, *("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)]
        lines += [f"  {problem}" for problem in wrong]
    return "\n".join(lines)


def _rows(
    plan: StackPlan, each: BenchmarkPlan, outcomes: Mapping[str, Mapping[str, Any]]
) -> tuple[str, Sequence[Compared], Sequence[str]]:
    model = next(model for model in plan.models if model.name == each.model)
    load = model.serving.workload
    title = f"{each.model}: {load.input_tokens:,} + {load.output_tokens:,} tokens, {load.users:,} users"
    rows, wrong = benchmark.compare(outcomes[each.model]["measured"] or {}, each.predicted, each.requests)
    return title, rows, wrong


def _cells(row: Compared) -> list[str]:
    if row.predicted is None:
        return [row.what, "not modelled", f"{row.measured:,.1f}", "", ""]
    low, expected, high = row.predicted
    said = f"{expected:,.1f} ({low:,.1f} to {high:,.1f})"
    return [row.what, said, f"{row.measured:,.1f}", f"{row.ratio:.2f}", "inside" if row.inside else "outside"]
