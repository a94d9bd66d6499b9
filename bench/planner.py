"""How fast the planner answers."""

from __future__ import annotations

from bench.figure import Figure
from bench.measure import call_milliseconds, paired
from planning import settings
from planning.plan import read_and_decide

FIT = [
    "-m",
    "planning",
    "fit",
    "--preset",
    "llama-3.3-70b-instruct",
    "--gpu",
    "H100-80GB",
    "--tensor-parallel-size",
    "4",
]
IMPORTS = ["-c", "from pydantic import BaseModel; import yaml"]


def figures() -> list[Figure]:
    """`decide()` in this process, and `python -m planning fit` beside a process that only imports its libraries."""
    reading = settings.from_file("prod")
    decide = call_milliseconds(lambda: read_and_decide(reading), runs=200)
    fit, imports, ratio = paired([*FIT, "--format", "json"], IMPORTS, runs=15)
    return [
        Figure(what="`decide()` for one model", command="make bench", value=decide, limit=2, unit="ms"),
        Figure(
            what="`python -m planning fit` against importing pydantic and yaml",
            command="make bench",
            value=ratio,
            limit=3,
            detail=f"{fit * 1000:.0f} ms against {imports * 1000:.0f} ms",
        ),
    ]
