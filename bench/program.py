"""The program beside one written by hand for exactly one stack, both in a preview without a cluster."""

from __future__ import annotations

from bench.figure import Figure
from bench.measure import paired

PREVIEW = """
from bench.handwritten import preview
preview({!r})
"""


def figures() -> list[Figure]:
    """Whole processes: imports, reading, deciding, declaring."""
    ours, hand, ratio = paired(
        ["-c", PREVIEW.format("__main__.py")], ["-c", PREVIEW.format("bench/handwritten.py")], runs=9
    )
    return [
        Figure(
            what="preview of the stack against a program written by hand with the same classes",
            command="make bench",
            value=ratio,
            limit=1.3,
            detail=f"{ours:.2f} s against {hand:.2f} s",
        )
    ]
