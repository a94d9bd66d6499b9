"""The plan for people (text, Markdown), for programs (JSON) and for the stack's outputs. Decides nothing."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from planning import report_page as page
from planning.findings import Finding, Severity
from planning.report_page import findings_by_kind, next_steps
from planning.words import whole_minutes

if TYPE_CHECKING:
    from planning.plan import StackPlan

__all__ = ["as_json", "as_markdown", "as_text", "finding_as_json", "headline", "next_steps", "terminal"]

MIN_WIDTH, MAX_WIDTH = 60, 120


def terminal(stream: IO[str]) -> tuple[int, bool]:
    """Columns to write, and whether in colour (https://no-color.org is honoured)."""
    width = shutil.get_terminal_size((100, 24)).columns
    color = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return max(MIN_WIDTH, min(MAX_WIDTH, width)), color


def headline(plan: StackPlan) -> dict[str, str | int | float]:
    """The plan's few numbers that stack outputs show; a price that is not known is left out."""
    figures = {
        "location": plan.cluster.location,
        "gpuNodes": sum(pool.count for pool in plan.gpu_pools),
        "gpus": sum(model.layout.gpus_per_replica * model.layout.replicas for model in plan.models),
        "kvCacheTokens": sum(model.memory.kv_cache_tokens * model.layout.replicas for model in plan.models),
        "startUpMinutes": max(whole_minutes(model.startup.total_seconds) for model in plan.models),
        "gpuPricePerHourUsd": plan.cost.gpu_pools_per_hour,
    }
    return {key: value for key, value in figures.items() if value is not None}


def as_json(plan: StackPlan) -> dict[str, Any]:
    """Everything in the plan and in the report, as plain values; `docs/report.schema.json` describes it."""
    document: dict[str, Any] = {
        **_plain(plan),
        "deployable": True,
        "verdict": page.verdict(plan),
        "headline": headline(plan),
        "quota_vcpus": page.quota_vcpus(plan),
        "next_steps": next_steps(plan),
    }
    for model, written in zip(plan.models, document["models"], strict=True):
        written["alternatives"] = _plain(page.other_layouts(plan, model))
        written["serving"]["said"] = [_plain(block) for block in page.serving(model)]
        written["derived"] = {
            "max_concurrency_of_all_replicas": model.memory.max_concurrency * model.layout.replicas,
            "unused_gib": page.unused_gib(model),
            "startup_probe_seconds": page.probe_seconds(model),
        }
    return document


def as_markdown(plan: StackPlan) -> str:
    """The report for a pull request's comment."""
    lines = [f"# aks-vllm: stack {plan.stack}", "", f"**{page.status(plan)}** {plan.environment}, "]
    lines[-1] += f"{plan.cluster.location}."
    lines += ["", *(f"- {line}" for line in page.verdict(plan))]
    for section in page.sections(plan):
        lines += ["", f"## {section.title}"]
        lines += ["", section.about] if section.about else []
        for block in section.blocks:
            lines += ["", *_markdown(block)]
    for title, findings in findings_by_kind(plan):
        lines += ["", f"## {title}", ""]
        lines += [
            f"{number}. **{finding.subject}**: {finding.message} {finding.remedy}".rstrip()
            for number, finding in enumerate(findings, 1)
        ]
    lines += ["", "## Next", "", *(f"    {command}" for command in page.first_steps(plan)), ""]
    lines += next_steps(plan).splitlines()[2:]
    return "\n".join(lines)


def _markdown(block: page.Rows | page.Table | page.Drawing) -> list[str]:
    if isinstance(block, page.Drawing):
        drawn = ["".join(glyphs for glyphs, _ in line).rstrip() for line in block.lines]
        return [f"**{block.title}**", "", "```text", *drawn, "```"]
    if isinstance(block, page.Table):
        rows = [[f"**{cell}**" if at == block.marked else cell for cell in row] for at, row in enumerate(block.rows)]
        alignment = ["---:" if at > 1 else "---" for at in range(len(block.header))]
        table = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in (block.header, alignment, *rows)]
        return [f"**{block.title}**: {block.about}", "", *table, "", *(f"- {note}" for note in block.notes)]
    if block.code:
        return [line for label, text in block.rows for line in (f"**{label}**", "", "```sh", text, "```", "")][:-1]
    lines = ["| | |", "|---|---|"]
    return lines + [f"| {label} | {'<br>'.join(map(_cell, text.splitlines()))} |" for label, text in block.rows]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def as_text(plan: StackPlan, width: int = 100, color: bool = False) -> str:
    """The report for a terminal of so many columns."""
    from planning import report_text  # rich takes longer to load than the plan to decide

    return report_text.draw(plan, width, color)


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {**plain, "reference": value.reference} if hasattr(value, "reference") else plain
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Severity) else value


def finding_as_json(finding: Finding) -> dict[str, str]:
    """A finding for programs."""
    return _plain(finding)
