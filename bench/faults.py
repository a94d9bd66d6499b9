"""Every resource × every fault: does the next `up` converge, and does `destroy` leave nothing?"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from bench.figure import Figure
from tests.sandbox.faulty import CONFIG, FAULTS, World, converges

#: With the parts that a development stack is made without.
EVERYTHING = {
    **CONFIG,
    "aks-vllm:add-ons": json.dumps(["log-analytics", "managed-prometheus", "managed-grafana"]),
    "aks-vllm:budget": json.dumps({"usd-per-month": 9000, "contacts": ["a@example.com"], "first-month": "2026-12"}),
    "aks-vllm:weights": json.dumps({"source": "azure-blob"}),
}


def figures() -> list[Figure]:
    """For each pair an `up` that fails, one that does not, a preview and a `destroy`."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "undisturbed", dict(EVERYTHING))
        world.folder.mkdir()
        steps = world.run("up").steps
        names = [step.name for step in steps if step.custom and not step.type.startswith("pulumi:")]
        expected = world.holds()
        pairs = [(name, fault) for name in names for fault in FAULTS]
        failed = []
        # Not forked, as the program above has left threads; and not for long, as a program that has run leaves objects.
        started_anew = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(os.cpu_count(), mp_context=started_anew, max_tasks_per_child=8) as pool:
            running = {pool.submit(_said, folder, *pair, expected): pair for pair in pairs}
            for number, done in enumerate(as_completed(running), 1):
                said = done.result()
                failed += [said] if said else []
                name, fault = running[done]
                print(f"  {number}/{len(pairs)} {name}, {fault}{': ' + said if said else ''}", file=sys.stderr)
    good = len(pairs) - len(failed)
    return [
        Figure(
            what="failures at one resource that the next up does not overcome, or that leave something behind",
            command="make bench ARGS=faults",
            value=len(failed),
            limit=0,
            unit="",
            detail=f"{good} of {len(pairs)} converge: {len(names)} resources × {len(FAULTS)} faults",
        )
    ]


def _said(folder: str, name: str, fault: str, expected: Counter[str]) -> str:
    """What went wrong with one pair; nothing where it converges."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        try:
            converges(Path(place), name, fault, expected, EVERYTHING)
        except Exception as problem:
            return f"{name}, {fault}: {problem}"
    return ""
