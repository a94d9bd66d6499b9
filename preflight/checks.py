"""What a check is, what it can find, and how all of them are run at once."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

T = TypeVar("T")

#: Seconds until a check counts as not answering: three tries of 20 seconds each, and something for the sign-in.
DEADLINE_SECONDS = 90.0


class Status(StrEnum):
    """What a check came to."""

    OK = "ok"
    WARNING = "warning"  # a deployment works, and somebody should know
    PROBLEM = "problem"  # a deployment would fail, or not be what it seems
    NOT_DONE = "not done"  # nobody knows: the remedy says what is missing


@dataclass(frozen=True, kw_only=True)
class Result:
    """One thing that was looked at."""

    check: str
    status: Status
    message: str  # with the number and the limit
    remedy: str = ""


class NotDone(Exception):  # noqa: N818  it says what happened
    """A check cannot say anything; the text says why, `remedy` what to do."""

    def __init__(self, text: str, remedy: str = "") -> None:
        super().__init__(text)
        self.remedy = remedy


class Once(Generic[T]):
    """A value that several checks need: found at the first question, in one thread; a NotDone is raised to all."""

    def __init__(self, find: Callable[[], T]) -> None:
        self._find, self._lock = find, threading.Lock()
        self._found: list[T | NotDone] = []

    def __call__(self) -> T:
        with self._lock:
            if not self._found:
                try:
                    self._found.append(self._find())
                except NotDone as reason:
                    self._found.append(reason)
            if isinstance(found := self._found[0], NotDone):
                raise found
            return found


@dataclass(frozen=True, kw_only=True)
class Check:
    """A name, and a function that finds results. It raises NotDone where it can say nothing."""

    name: str
    find: Callable[[], Iterable[Result]]


def run(
    checks: Sequence[Check],
    finished: Callable[[Check, Sequence[Result], float], None] = lambda *_: None,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> list[Result]:
    """All results, in the order of the checks, each in a thread of its own.

    What fails in one does not hide the others. `finished` hears of each as it ends, with the seconds it took.
    """
    began = time.monotonic()
    done: queue.SimpleQueue[tuple[Check, list[Result]]] = queue.SimpleQueue()
    found: dict[str, list[Result]] = {}
    for check in checks:
        # Daemons: one that hangs past the deadline must not keep the command from ending.
        threading.Thread(target=lambda check=check: done.put((check, _results(check))), daemon=True).start()
    while len(found) < len(checks):
        try:
            check, results = done.get(timeout=max(0.0, began + deadline_seconds - time.monotonic()))
        except queue.Empty:
            break
        found[check.name] = results
        finished(check, results, time.monotonic() - began)
    for check in checks:
        if check.name not in found:
            message = f"no answer within {deadline_seconds:g} seconds"
            found[check.name] = [_not_done(check, NotDone(message, "Look at the network, and run it again."))]
    return [result for check in checks for result in found[check.name]]


def _results(check: Check) -> list[Result]:
    try:
        return list(check.find())
    except NotDone as reason:
        return [_not_done(check, reason)]
    except Exception as defect:  # an answer of a shape that nobody expected, or our own mistake
        reason = NotDone(f"this should not have happened: {type(defect).__name__}: {defect}")
        return [_not_done(check, reason)]


def _not_done(check: Check, reason: NotDone) -> Result:
    return Result(check=check.name, status=Status.NOT_DONE, message=str(reason), remedy=reason.remedy)
