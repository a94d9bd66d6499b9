"""How fast the planner answers."""

from __future__ import annotations

import contextlib
import time

from bench.figure import Figure
from bench.measure import call_milliseconds, paired
from planning import catalogue, stack_file
from planning.memory import EngineOptions
from planning.parallelism import LayoutError, choose_layout
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


def _every_preset_on_every_size() -> tuple[int, float]:
    """How many pairs there are and how long they take, seconds; presets are read beforehand."""
    presets = [catalogue.preset(name) for name in catalogue.preset_names()]
    sizes = [catalogue.vm_size(name) for name in catalogue.vm_size_names()]
    started = time.perf_counter()
    for preset in presets:
        for size in sizes:
            with contextlib.suppress(LayoutError):  # a refusal is an answer too
                choose_layout(
                    preset.architecture,
                    size,
                    replicas=None,
                    tensor_parallel_size=None,
                    pipeline_parallel_size=None,
                    options=EngineOptions(),
                )
    return len(presets) * len(sizes), time.perf_counter() - started


def figures() -> list[Figure]:
    """`decide()` in this process, and `python -m planning fit` beside a process that only imports its libraries."""
    reading = stack_file.from_file("prod")
    decide = call_milliseconds(lambda: read_and_decide(reading), runs=200)
    fit, imports, ratio = paired([*FIT, "--format", "json"], IMPORTS, runs=15)
    estimates, seconds = _every_preset_on_every_size()
    return [
        Figure(what="`decide()` for one model", command="make bench", value=decide, limit=1, unit="ms"),
        Figure(
            what="a layout and its memory, every preset on every VM size, nothing cached between them",
            command="make bench",
            value=seconds / estimates * 1000,
            limit=10,
            unit="ms",
            detail=f"{estimates} of them, {estimates / seconds:,.0f} a second",
        ),
        Figure(
            what="`python -m planning fit` against importing pydantic and yaml",
            command="make bench",
            value=ratio,
            limit=3,
            detail=f"{fit * 1000:.0f} ms against {imports * 1000:.0f} ms",
        ),
    ]
