"""Every resource × every fault: does the next `up` converge, and does `destroy` leave nothing?"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench.figure import Figure
from tests.sandbox.faulty import FAULTS, World, converges


def figures() -> list[Figure]:
    """For each pair an `up` that fails, one that does not, a preview and a `destroy`."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "undisturbed")
        world.folder.mkdir()
        steps = world.run("up").steps
        names = [step.name for step in steps if step.custom and not step.type.startswith("pulumi:")]
        expected, failed = world.holds(), []
        for number, name in enumerate(names, 1):
            print(f"  {number}/{len(names)} {name}", file=sys.stderr)
            for fault in FAULTS:
                place = Path(folder) / f"{number}-{fault}"
                place.mkdir()
                try:
                    converges(place, name, fault, expected)
                except Exception as problem:
                    failed.append(f"{name}, {fault}: {problem}")
    print(*failed, sep="\n", file=sys.stderr)
    pairs = len(names) * len(FAULTS)
    return [
        Figure(
            what="failures at one resource that the next up does not overcome, or that leave something behind",
            command="make bench ARGS=faults",
            value=len(failed),
            limit=0,
            unit="",
            detail=f"{pairs - len(failed)} of {pairs} converge: {len(names)} resources × {len(FAULTS)} faults",
        )
    ]
