"""Each setting changed once: does what the previews say of it happen?"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench.figure import Figure
from tests.sandbox.each_setting import CASES, outcome, settings
from tests.sandbox.faulty import World


def figures() -> list[Figure]:
    """A Markdown row for each change on standard error, then the count."""
    told, bases = [], dict[str, World]()
    print("| setting | said | happened | users notice | |\n|---|---|---|---|---|", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            row = outcome(case, Path(folder), bases)
            told.append(row)
            notice, mark = "yes" if row.noticed else "no", "agrees" if row.agrees else "**differs**"
            print(f"| `{row.setting}` | {row.said} | {row.happened} | {notice} | {mark} |", file=sys.stderr)
    agree = sum(row.agrees for row in told)
    steps = sum(len(row.done) for row in told)
    return [
        Figure(
            what="changes of a setting that did what a preview had not said",
            command="make bench ARGS=settings",
            value=len(told) - agree,
            limit=0,
            unit="",
            detail=f"{agree} of {len(told)} changes of {len(set(settings()))} settings agree, {steps} steps alike",
        )
    ]
