"""What the checks found, for people (text, Markdown) and for programs (JSON)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from planning.findings import without_tokens
from planning.plan import StackPlan
from preflight.checks import Result, Status

_STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.PROBLEM: "bold red", Status.NOT_DONE: "magenta"}


def failed(results: Sequence[Result]) -> bool:
    """Whether something is wrong, or nobody can say that it is not."""
    return any(result.status in (Status.PROBLEM, Status.NOT_DONE) for result in results)


def verdict(results: Sequence[Result]) -> str:
    """One line."""
    counts = [(status, sum(result.status is status for result in results)) for status in Status]
    parts = [f"{count} {status}" for status, count in counts if count]
    return ("Do not deploy yet: " if failed(results) else "Nothing is in the way: ") + ", ".join(parts) + "."


def as_json(plan: StackPlan, results: Sequence[Result]) -> Mapping[str, Any]:
    """`deployable` is false where a check found a problem, and where one could not be done."""
    return {
        "stack": plan.stack,
        "location": plan.cluster.location,
        "deployable": not failed(results),
        "verdict": verdict(results),
        "checks": [{key: without_tokens(value) for key, value in asdict(result).items()} for result in results],
    }


def as_markdown(plan: StackPlan, results: Sequence[Result]) -> str:
    """For a pull request's comment, or a pipeline's summary."""
    lines = [f"# Preflight of stack {plan.stack}, {plan.cluster.location}", "", f"**{verdict(results)}**", ""]
    lines += ["| check | | found | remedy |", "|---|---|---|---|"]
    for result in results:
        cells = (result.check, f"**{result.status}**", result.message, result.remedy)
        lines.append(f"| {' | '.join(without_tokens(cell).replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def as_text(plan: StackPlan, results: Sequence[Result], width: int, color: bool) -> str:
    """For a terminal of so many columns: a remedy under everything that needs one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for result in results:
        found = Text(without_tokens(result.message))
        if result.remedy:
            found.append(f"\n→ {without_tokens(result.remedy)}", style="cyan" if color else "")
        table.add_row(Text(result.status, style=_STYLES[result.status] if color else ""), result.check, found)
    console = Console(width=width, color_system="standard" if color else None, force_terminal=color, highlight=False)
    with console.capture() as drawn:
        console.print(Text(f"Preflight of stack {plan.stack}, {plan.cluster.location}", style="bold" if color else ""))
        console.print()
        console.print(table)
        console.print()
        console.print(Text(verdict(results), style="bold" if color else ""))
    return "\n".join(line.rstrip() for line in drawn.get().splitlines())
