"""The report drawn for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from planning import report_page as page
from planning.findings import Finding, Severity

if TYPE_CHECKING:
    from planning.plan import StackPlan

LABEL = 13  # columns of the words on the left
STYLES = {Severity.STEP: "bold yellow", Severity.WARNING: "bold red", Severity.NOTE: "bold"}


def draw(plan: StackPlan, width: int, color: bool) -> str:
    """All of the page in so many columns."""
    system = "standard" if color else None
    console = Console(width=width, force_terminal=color, color_system=system, highlight=False, emoji=False)
    with console.capture() as captured:
        steps = any(finding.severity is Severity.STEP for finding in plan.findings)
        console.print(
            Text.assemble(
                ("aks-vllm", "bold"),
                f" · stack {plan.stack} · {plan.environment} · {plan.cluster.location} · ",
                (page.status(plan), "bold yellow" if steps else "bold green"),
            )
        )
        for line in page.verdict(plan):
            console.print(Padding(Text(line), (0, 0, 0, 1)))
        for section in page.sections(plan, width - LABEL - 3, width - 4):
            _heading(console, section.title)
            if section.about:
                console.print(Padding(Text(section.about), (0, 0, 0, 1)))
            for block in section.blocks:
                _block(console, block)
        for title, findings in page.findings_by_kind(plan):
            _heading(console, title, STYLES[findings[0].severity])
            console.print(_findings(findings))
        _heading(console, "Next")
        console.print(Padding(_shell("\n".join(page.first_steps(plan))), (0, 0, 0, 1)))
        for part in page.next_steps(plan).split("\n## ")[1:]:
            title, _, commands = part.partition("\n")
            console.print(Padding(Text(f"\n{title}", style="bold"), (0, 0, 0, 1)))
            body = "\n".join(line.removeprefix("    ") for line in commands.strip("\n").splitlines())
            console.print(Padding(_shell(body), (0, 0, 0, 1)))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _heading(console: Console, text: str, style: str = "bold cyan") -> None:
    console.print()
    rule = "─" * max(0, console.width - len(text) - 1)
    console.print(Text.assemble((text, style), " ", (rule, "dim")), no_wrap=True)


def _block(console: Console, block: page.Rows | page.Table | page.Drawing) -> None:
    if isinstance(block, page.Drawing):
        drawn = Text("\n").join(Text.assemble(*line) for line in block.lines)
        _rows(console, [(block.title, drawn)])
    elif isinstance(block, page.Rows) and block.code:
        for label, text in block.rows:  # across the page: commands that are broken cannot be copied
            console.print(Padding(Text(label, style="dim"), (0, 0, 0, 1)))
            console.print(Padding(Text(text, style="green", overflow="fold"), (0, 0, 0, 3)))
    elif isinstance(block, page.Rows):
        _rows(console, [(label, Text(text)) for label, text in block.rows])
    else:
        _rows(console, [(block.title, Text(block.about))])
        table = Padding(_table(block), (0, 0, 0, 1))
        if console.measure(table, options=console.options.update(width=9999)).minimum <= console.width:
            console.print(table)
        else:  # figures would be broken
            _rows(console, [("", Text(_sentence(block, at))) for at in range(len(block.rows))])
        _rows(console, [("", Text(note)) for note in block.notes])


def _rows(console: Console, pairs: list[tuple[str, Text]]) -> None:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=LABEL, style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in pairs:
        grid.add_row(label, value)
    console.print(Padding(grid, (0, 0, 0, 1)))


def _table(block: page.Table) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", width=1)
    for at, title in enumerate(block.header):
        widest = max(len(row[at]) for row in block.rows)
        table.add_column(title, justify="right" if at > 1 else "left", vertical="bottom", min_width=widest)
    for at, row in enumerate(block.rows):
        mark = "▸" if at == block.marked else ""
        table.add_row(mark, *row, style="bold" if mark else "")
    return table


def _sentence(block: page.Table, at: int) -> str:
    cells = [f"{title} {cell}" for title, cell in zip(block.header[1:], block.rows[at][1:], strict=True)]
    return f"{'▸ ' if at == block.marked else ''}{block.rows[at][0]}: {'; '.join(cells)}"


def _findings(findings: list[Finding]) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=3, justify="right", style="dim")
    grid.add_column()
    for number, finding in enumerate(findings, 1):
        text = Text(f"{finding.subject}: ", style="dim")
        text.append(f"{finding.message} ", style="not dim").append(_remedy(finding), style="not dim cyan")
        grid.add_row(f"{number}.", text)
    return grid


def _remedy(finding: Finding) -> str:
    """A step's command on a line of its own, to be copied."""
    if finding.severity is not Severity.STEP:
        return finding.remedy
    parts = (part.strip(" .") for part in finding.remedy.split("`"))
    return "\n".join(part for part in parts if part)


def _shell(text: str) -> Text:
    drawn = Text(overflow="fold")
    for line in text.splitlines():
        command, mark, comment = line.partition("   #")
        drawn.append(command, style="dim" if line.startswith("#") else "green").append(mark + comment, style="dim")
        drawn.append("\n")
    drawn.rstrip()
    return drawn
