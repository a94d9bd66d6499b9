"""One promised figure and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured value beside its limit; both in the same unit."""

    what: str
    command: str
    value: float
    limit: float
    unit: str = "×"
    detail: str = ""

    @property
    def kept(self) -> bool:
        """Whether the value is within the limit."""
        return self.value <= self.limit


def table(figures: Iterable[Figure]) -> str:
    """A Markdown table."""
    rows = ["| figure | measured | limit | | how |", "|---|---|---|---|---|"]
    for f in figures:
        mark = "kept" if f.kept else "**broken**"
        detail = f" ({f.detail})" if f.detail else ""
        rows.append(f"| {f.what} | {f.value:.2f} {f.unit}{detail} | {f.limit:g} {f.unit} | {mark} | `{f.command}` |")
    return "\n".join(rows)
