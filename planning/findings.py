"""What the plan says to a person: problems that stop it, and findings that accompany it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much a finding matters. Errors are not findings: they are `Problem`s and stop the plan."""

    STEP = "step"  # still to do: the plan stands, `up` refuses until it is done
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that could surprise a person, with a number in the message and a remedy."""

    severity: Severity
    subject: str  # a model's name, or "stack"
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}" + (f" {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One setting that cannot stand, written as `key = value: limit broken (source); remedy`."""

    key: str
    value: object
    limit: str
    source: str  # the file, or "--set"
    remedy: str

    def __str__(self) -> str:
        shown = "(secret)" if "token" in self.key else self.value
        return f"{self.key} = {shown}: {self.limit} ({self.source}); {self.remedy}"


class InvalidStack(Exception):  # noqa: N818  it names the state of the stack, as Pulumi's own errors do
    """The stack's configuration cannot be deployed; carries every problem found, never only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
