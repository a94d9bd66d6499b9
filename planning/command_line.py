"""What the command lines of this project share: how they take a stack, how they fail, and what they answer then."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from planning.findings import InvalidStack, without_tokens

if TYPE_CHECKING:
    from planning.architecture import Architecture
    from planning.memory_rules import LayoutError
    from planning.plan import StackPlan

CHOICES_SHOWN = 16  # in one message


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
    from planning import stack_file
    from planning.plan import read_and_decide

    reading = stack_file.from_file(stack, overrides=overrides)
    try:
        return read_and_decide(reading, date.today())
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


def add_model(parser: argparse.ArgumentParser) -> None:
    """The options that `architecture_of` takes."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--preset", help="a model of presets/models")
    model.add_argument("--config", type=Path, help="a Hugging Face config.json")


def architecture_of(options: argparse.Namespace) -> Architecture:
    """The model that was named. Raises InputError."""
    from planning import catalogue
    from planning.architecture import NotModelledError, from_hf_config

    if options.preset is not None:
        return known(catalogue.preset, options.preset, "--preset", catalogue.preset_names).architecture
    beside = options.config.parent / "hf_quant_config.json"
    try:
        return from_hf_config(_json_file(options.config), _json_file(beside) if beside.is_file() else None)
    except NotModelledError as error:
        raise InputError(str(error)) from None


def known(find: Callable[[str], Any], name: str, flag: str, names: Callable[[], Sequence[str]]) -> Any:
    """What `find` knows by this name. Raises InputError with names that are near."""
    try:
        return find(name)
    except KeyError:
        import difflib

        remedy = f"the choices are {', '.join(names())}"
        if len(names()) > CHOICES_SHOWN:
            near = difflib.get_close_matches(name, names(), n=3)
            remedy = f"did you mean {' or '.join(near)}?" if near else "`python -m planning presets` lists them"
        raise InputError(f"{flag} {name}: is not known; {remedy}") from None


def refused(error: LayoutError) -> InputError:
    """What cannot work, in the words of a command line."""
    return InputError(f"--{error.key.removeprefix('vllm.')} {error.value}: {error.limit}; {error.remedy}")


#: More GiB than any machine has; beyond it arithmetic would overflow.
MOST = 1e9


def number(text: str) -> float:
    """A number up to MOST; argparse says so where it is none."""
    value = float(text)
    if not abs(value) <= MOST:
        raise ValueError(text)
    return value


def positive(text: str) -> float:
    """A number above 0."""
    if (value := number(text)) <= 0:
        raise ValueError(text)
    return value


def count(text: str) -> int:
    """A whole number, at least 1."""
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


# What argparse says where one of these refuses a value.
positive.__name__, count.__name__ = "number above 0", "whole number, at least 1"


def _json_file(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror or 'cannot be read'}; name a config.json") from None
    except (ValueError, RecursionError):
        raise InputError(f"--config {path}: is not JSON; name a model's config.json") from None
    if not isinstance(content, dict):
        raise InputError(f"--config {path}: holds no JSON object; name a model's config.json")
    return content
