"""Draws `docs/report.svg`, the report that the README shows: `make picture`."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).parents[1]))

from planning import report, stack_file
from planning.plan import read_and_decide

PICTURE = Path(__file__).with_name("report.svg")
WIDTH = 100


def draw() -> str:
    """The report of the stack `prod` without what comes after the findings, as SVG."""
    plan = read_and_decide(stack_file.from_file("prod"))
    text, _, _ = Text.from_ansi(report.as_text(plan, width=WIDTH, color=True)).plain.partition("\nNext ")
    colored = Text.from_ansi(report.as_text(plan, width=WIDTH, color=True))[: len(text)]
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(colored)
    drawn = console.export_svg(title="make plan STACK=prod", unique_id="report")
    # Fonts from the network: whoever looks has a monospaced one.
    return re.sub(r"\s*@font-face \{.*?\}\n", "\n", drawn, flags=re.DOTALL)


if __name__ == "__main__":
    PICTURE.write_text(draw())
