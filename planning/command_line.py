"""What the command lines of this project share: how they take a stack, how they fail, and what they answer then."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from planning.findings import InvalidStack, without_tokens

if TYPE_CHECKING:
    from planning.plan import StackPlan


class InputError(Exception):
    """The input is wrong; the text says what, and what to do. `problems` lists a stack's, one by one."""

    def __init__(self, text: str, problems: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(text)
        self.problems = list(problems)


class Parser(argparse.ArgumentParser):
    """argparse that leaves the way of failing to its caller, and takes options only by their whole names."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def add_stack(parser: argparse.ArgumentParser) -> None:
    """The options that `planned` takes."""
    parser.add_argument("--stack", required=True, help="stacks/Pulumi.STACK.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replaces a value of the file; repeatable"
    )


def planned(stack: str, overrides: Sequence[str]) -> StackPlan:
    """The plan of a stack file. Raises InputError with every problem that the file has."""
    from planning import settings
    from planning.plan import read_and_decide

    reading = settings.from_file(stack, overrides=overrides)
    try:
        return read_and_decide(reading)
    except InvalidStack as invalid:
        count = f"{len(invalid.problems)} problem{'s' if len(invalid.problems) > 1 else ''}"
        problems = [
            {
                "key": problem.key,
                "value": problem.shown,
                "limit": without_tokens(problem.limit),
                "source": problem.source,
                "remedy": without_tokens(problem.remedy),
            }
            for problem in invalid.problems
        ]
        raise InputError(f"{count} in {reading.source}; nothing was changed\n{invalid}", problems) from None


def fail(text: object, code: int, as_json: bool, problems: Sequence[dict[str, Any]] = ()) -> int:
    """Say what went wrong, as JSON too where that was asked for; the exit code."""
    message = without_tokens(str(text))
    print(message, file=sys.stderr)
    if as_json:
        print(json.dumps({"error": message, **({"problems": list(problems)} if problems else {})}, indent=2))
    return code


def asks_for_json(words: Sequence[str]) -> bool:
    """Whether the arguments ask for JSON; known before they are parsed, which may fail."""
    return any(
        word == "--format=json" or (word == "--format" and words[index + 1 : index + 2] == ["json"])
        for index, word in enumerate(words)
    )
