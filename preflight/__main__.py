"""Live checks before a deployment: `python -m preflight --stack prod`, and nothing is changed anywhere.

Standard output carries what was found: with `--format json` one JSON document, also on errors. Progress goes to
standard error. Exit codes: 0 nothing is in the way, 1 a check found a problem or could not be done, 2 the input is
wrong.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from planning.command_line import InputError, Parser, add_stack, asks_for_json, fail, planned
from preflight.endpoints import PUBLIC, Endpoints

if TYPE_CHECKING:
    from preflight.checks import Check, Result


def main(arguments: Sequence[str] | None = None, where: Endpoints = PUBLIC) -> int:
    """The command line; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = asks_for_json(words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without the arrow still gets the rest
    try:
        parser = Parser(prog="python -m preflight", description="What would stop a deployment, asked before it begins.")
        add_stack(parser)
        parser.add_argument("--format", choices=("text", "markdown", "json"), default="text")
        options = parser.parse_args(words)
        return _preflight(options.stack, options.set, options.format, where)
    except InputError as error:
        return fail(error, 2, as_json, error.problems)
    except KeyboardInterrupt:
        return fail("stopped; nothing was changed", 1, as_json)
    except Exception as error:  # a traceback helps nobody who wants to deploy
        return fail(f"this should not have happened: {type(error).__name__}: {error}", 1, as_json)


def _preflight(stack: str, overrides: Sequence[str], format_: str, where: Endpoints) -> int:
    plan = planned(stack, overrides)
    # The clients take most of a second to load: a stack file that is wrong is told of without them.
    from planning.report import terminal
    from preflight import azure, checks, offers, report
    from preflight.account import Account
    from preflight.resource_manager import ResourceManager

    account = Account()
    elsewhere = offers.checks(plan, where, lambda: account.get_token().token)
    wanted = [*azure.checks(plan, ResourceManager(account, where.arm)), *elsewhere]
    print(f"Asking Azure, Hugging Face and the registries: {len(wanted)} checks", file=sys.stderr)
    results = checks.run(wanted, finished=_progress)
    if format_ == "json":
        print(json.dumps(report.as_json(plan, results), indent=2))
    elif format_ == "markdown":
        print(report.as_markdown(plan, results))
    else:
        print(report.as_text(plan, results, *terminal(sys.stdout)))
    return 1 if report.failed(results) else 0


def _progress(check: Check, results: Sequence[Result], seconds: float) -> None:
    worst = sorted({str(result.status) for result in results})
    print(f"  {check.name}: {', '.join(worst)} ({seconds:.1f} s)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
