"""What the plan says to a person: problems that stop it, and findings that accompany it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

#: Last parts of keys whose values are never shown, whoever wrote them there. `max-answer-tokens` is a number.
_SECRET_KEY = re.compile(r"(^|[.:_-])(token|secret|password|credential|api[-_]?key|passwd)s?$", re.IGNORECASE)
_HUGGING_FACE_TOKEN = re.compile(r"hf_\w{20,}")  # real ones have 34 characters more
_SHOWN_MAX = 80  # characters of a value in a message


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

    @property
    def shown(self) -> str:
        """The value as a message may show it: on one line, not too long, and never a secret."""
        if self.value is not None and _SECRET_KEY.search(self.key) and "max-" not in self.key:
            return "(hidden)"
        text = without_tokens(" ".join(_as_written(self.value).split()))
        return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 1] + "…"

    def __str__(self) -> str:
        line = f"{without_tokens(self.key)} = {self.shown}: {self.limit} ({self.source}); {self.remedy}"
        # What somebody wrote may hold line breaks, or escape sequences that a terminal would obey.
        return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in line)


class InvalidStack(Exception):  # noqa: N818  it names the state of the stack, as Pulumi's own errors do
    """The stack's configuration cannot be deployed; carries every problem found, never only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def without_tokens(text: str) -> str:
    """Text in which whatever looks like a Hugging Face token is hidden."""
    return _HUGGING_FACE_TOKEN.sub("(hidden)", text)


def _as_written(value: object) -> str:
    """As the stack file would have it: true, not True."""
    return str(value).lower() if isinstance(value, bool) else "nothing" if value is None else str(value)
