"""Every resource × every fault: does the next `up` converge, and does `destroy` leave nothing?"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path

from bench.figure import Figure
from tests.sandbox.faulty import CONFIG, FAULTS, World, converges

#: With most of what a development stack is made without.
MOST = {
    **CONFIG,
    "aks-vllm:add-ons": json.dumps(["log-analytics", "managed-prometheus", "managed-grafana"]),
    "aks-vllm:budget": json.dumps({"usd-per-month": 9000, "contacts": ["a@example.com"], "first-month": "2026-12"}),
    "aks-vllm:weights": json.dumps({"source": "azure-blob"}),
}


def figures() -> list[Figure]:
    """For each pair an `up` that fails, one that does not, a preview and a `destroy`."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "undisturbed", dict(MOST))
        world.folder.mkdir()
        steps = world.run("up").steps
        names = [step.name for step in steps if step.custom and not step.type.startswith("pulumi:")]
        expected = world.holds()
        failed, pairs = list[str](), len(names) * len(FAULTS)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            running = {pool.submit(_apart, folder, name, expected): name for name in names}
            for number, done in enumerate(as_completed(running), 1):
                failed += done.result()
                print(f"  {number}/{len(names)} {running[done]}", *done.result(), sep="\n    ", file=sys.stderr)
    good = pairs - len(failed)
    return [
        Figure(
            what="failures at one resource that the next up does not overcome, or that leave something behind",
            command="make bench ARGS=faults",
            value=len(failed),
            limit=0,
            unit="",
            detail=f"{good} of {pairs} converge: {len(names)} resources × {len(FAULTS)} faults",
        )
    ]


def _apart(folder: str, name: str, expected: Counter[str]) -> list[str]:
    """One resource in a process of its own: a program that has run leaves objects, and threads that no fork has."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_failed, folder, name, expected).result()


def _failed(folder: str, name: str, expected: Counter[str]) -> list[str]:
    """The faults that one resource's creation does not overcome, and why."""
    failed = []
    for fault in FAULTS:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            try:
                converges(Path(place), name, fault, expected, MOST)
            except Exception as problem:
                failed.append(f"{name}, {fault}: {problem}")
    return failed
