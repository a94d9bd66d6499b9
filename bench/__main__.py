"""Measure the planner, the program and the growth per model; `up` measures `make up`, cold and warm."""

from __future__ import annotations

import argparse
import sys

from bench import (
    accuracy,
    creation,
    each_setting,
    edge,
    engine,
    faults,
    growth,
    losses,
    planner,
    program,
    security,
    serving_accuracy,
    up,
)
from bench.figure import Figure, table

SECTIONS = {
    "accuracy": accuracy.figures,
    "serving": serving_accuracy.figures,
    "planner": planner.figures,
    "program": program.figures,
    "growth": growth.figures,
    "edge": edge.figures,
    "engine": engine.figures,
    "faults": faults.figures,
    "settings": each_setting.figures,
    "creation": creation.figures,
    "security": security.figures,
    "losses": losses.figures,
    "up": up.figures,
}
DEFAULT = ("accuracy", "serving", "planner", "program", "growth")


def main() -> int:
    """Print one Markdown table of figures; 1 when one is beyond its limit."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("section", nargs="?", choices=SECTIONS, help=f"default: {', '.join(DEFAULT)}")
    section = parser.parse_args().section
    measured: list[Figure] = []
    for name in [section] if section else DEFAULT:
        print(f"measuring: {name}", file=sys.stderr)
        measured += SECTIONS[name]()
    print(table(measured))
    return 0 if all(figure.kept for figure in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
