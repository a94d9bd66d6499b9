"""What people see of a run: the plan, the steps as they happen, and what came out of them.

On a terminal what is under way stays on the last lines, with its time; elsewhere every piece of news is a line.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sandbox.deployment import Op, Step
from sandbox.values import Change, Value, masked, show_path

#: Symbol (the Pulumi CLI's), colour, and the words for before, during and after.
LOOKS: Mapping[Op, tuple[str, str, str, str, str]] = {
    Op.CREATE: ("+", "green", "create", "creating", "created"),
    Op.UPDATE: ("~", "yellow", "update", "updating", "updated"),
    Op.REPLACE: ("+-", "magenta", "replace", "replacing", "replaced"),
    Op.DELETE: ("-", "red", "delete", "deleting", "deleted"),
    Op.SAME: (" ", "", "unchanged", "", "unchanged"),
}
#: Characters of one value; a pod's whole environment on a line helps nobody.
LONGEST_VALUE = 90
#: Columns of a table in a log file.
WIDE = 250


class Display:
    """A listener of the engine that writes to one stream. Text that arrives here is free of secrets."""

    def __init__(self, stream: TextIO, *, width: int | None = None) -> None:
        terminal = stream.isatty()
        # Without a terminal nothing wraps: a line is a piece of news, and somebody may search for it.
        width = width or (None if terminal else WIDE)
        self._console = Console(
            file=stream, highlight=False, markup=False, emoji=False, width=width, soft_wrap=not terminal
        )
        self._lock = threading.Lock()
        self._under_way: dict[str, tuple[Step, float]] = {}
        self._news = ""
        self._told: set[str] = set()
        self.report_shown = False
        self._live: Live | None = None

    # What the engine and the providers call, from any thread.

    def planned(self, step: Step) -> None:
        """The plan is shown as a whole, see `plan`."""

    def started(self, step: Step) -> None:
        with self._lock:
            self._under_way[step.urn] = step, time.monotonic()
        if not self._console.is_terminal:
            self._step(step, LOOKS[step.op][3])

    def finished(self, step: Step, elapsed: float) -> None:
        with self._lock:
            self._under_way.pop(step.urn, None)
        if step.custom:
            self._step(step, f"{LOOKS[step.op][4]}{_took(elapsed)}")

    def failed(self, step: Step, message: str) -> None:
        with self._lock:
            self._under_way.pop(step.urn, None)
        self._step(step, "failed", style="bold red")  # the reason comes once, at the end

    def message(self, severity: str, text: str) -> None:
        self._say(f"{severity}: {text}", "yellow" if severity == "warning" else "dim")

    def logged(self, severity: str, text: str) -> None:
        """The program runs twice in an update, says everything twice, and no more than a report before it has said."""
        if text not in self._told and (severity == "error" or not self.report_shown):
            self._told.add(text)
            self.message(severity, text)

    def progress(self, text: str) -> None:
        """News of something that takes long."""
        with self._lock:
            if text == self._news:
                return
            self._news = text
        if not self._console.is_terminal:
            self._say(f"    {text}")

    # What the commands call.

    def title(self, text: str) -> None:
        """A line that says what comes next."""
        self._say("")
        self._say(text, "bold")

    def line(self, text: str, style: str = "") -> None:
        """Any other line."""
        self._say(text, style)

    def running(self) -> AbstractContextManager[Any]:
        """While it is entered, a terminal shows what is under way."""
        if not self._console.is_terminal:
            return nullcontext()
        return Live(
            get_renderable=self._under_way_now,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            screen=False,
        )

    def plan(self, steps: Iterable[Step]) -> None:
        """Every step but the unchanged ones, with what changes and why."""
        shown = [step for step in steps if step.op is not Op.SAME]
        wide = max((len(step.type) for step in shown), default=0)
        name_wide = max((len(step.name) for step in shown), default=0)
        for step in shown:
            symbol, style, word, _, _ = LOOKS[step.op]
            why = f" ({step.because})" if step.because else ""
            self._say(f" {symbol:<2} {step.type:<{wide}}  {step.name:<{name_wide}}  {word}{why}", style)
            for change in step.changes:
                self._say(f"      {change_text(change)}")

    def summary(self, counts: Mapping[str, int], *, done: bool, elapsed: float | None = None) -> None:
        """How many resources each operation concerns."""
        parts = [
            f"{counts[op.value]} {look[4] if done else 'to ' + look[2]}"
            for op, look in LOOKS.items()
            if op is not Op.SAME and counts.get(op.value)
        ]
        same = counts.get(Op.SAME.value)
        parts += [f"{same} unchanged"] if same else []
        took = f" in {_duration(elapsed)}" if elapsed is not None else ""
        self._say(f"Resources: {', '.join(parts) or 'none'}{took}", "bold")

    def outputs(self, outputs: Mapping[str, Value]) -> None:
        """The stack's outputs, secrets masked; texts of several lines have their own place."""
        for key, value in sorted(outputs.items()):
            shown = masked(value)
            text = shown if isinstance(shown, str) else json.dumps(shown)
            if "\n" not in text:
                self._say(f"    {key}: {text}")

    def workloads(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Which models are served, and where."""
        table = Table(box=None, pad_edge=False)
        for heading in ("    Workload", "Namespace", "Ready", "GPUs", "Nodes"):
            table.add_column(heading, overflow="fold")
        for row in rows:
            ready = f"{row['ready']}/{row['replicas']} ready"
            style = "green" if row["ready"] == row["replicas"] else "yellow"
            gpus = f"{row['gpus_per_replica']} GPU{'' if row['gpus_per_replica'] == 1 else 's'} each"
            table.add_row(
                f"    {row['name']}", row["namespace"], Text(ready, style), gpus, ", ".join(row["nodes"]) or "-"
            )
        self._console.print(table)

    def problems(self, problems: Iterable[str]) -> None:
        """Why the command failed."""
        for problem in problems:
            self._say(f"error: {problem}", "red")

    # Helpers.

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style))

    def _step(self, step: Step, words: str, style: str = "") -> None:
        symbol, colour, *_ = LOOKS[step.op]
        self._say(f" {symbol:<2} {step.type}  {step.name}  {words}", style or colour)

    def _under_way_now(self) -> Text:
        with self._lock:
            steps, news = list(self._under_way.values()), self._news
        now = time.monotonic()
        lines = [f"    {LOOKS[step.op][3]} {step.name}, {now - began:.0f} s" for step, began in steps]
        return Text("\n".join([*lines, f"    {news}"] if news else lines), "dim", no_wrap=True, overflow="ellipsis")


def change_text(change: Change) -> str:
    """`~ path: old → new` of one property."""
    path, old, new = show_path(change.path), _shown(change.old), _shown(change.new)
    if change.old is None:
        return f"+ {path}: {new}"
    if change.new is None:
        return f"- {path}: {old}"
    return f"~ {path}: {old} → {new}"


def _shown(value: Value) -> str:
    text = json.dumps(masked(value), ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _took(seconds: float) -> str:
    return f" ({_duration(seconds)})" if seconds >= 0.05 else ""


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60} s"
