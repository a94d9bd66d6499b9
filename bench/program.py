"""The program beside one written by hand for exactly one stack, both in a preview without a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.figure import Figure
from bench.measure import ROOT, paired
from sandbox.engine import Recording, record

OURS, HANDWRITTEN = "__main__.py", "bench/handwritten.py"
TOKEN = "aks-vllm:hf-token"  # noqa: S105  the key, not the value
CONFIG = {
    "azure-native:location": "eastus",
    "aks-vllm:environment": "development",
    "aks-vllm:preset": "llama-3.3-70b-instruct",
    TOKEN: "a stand-in",
}


def preview(program: str) -> Recording:
    """What a program declares, whole as it is, by the same engine."""
    return record(ROOT, "test", CONFIG, secret_keys=[TOKEN], program=ROOT / Path(program))


def figures() -> list[Figure]:
    """Whole processes: imports, reading, deciding, declaring."""
    ours, hand, ratio = paired(["-m", "bench.program", OURS], ["-m", "bench.program", HANDWRITTEN], runs=9)
    return [
        Figure(
            what="preview of the stack against a program written by hand with the same classes",
            command="make bench",
            value=ratio,
            limit=1.3,
            detail=f"{ours:.2f} s against {hand:.2f} s",
        )
    ]


if __name__ == "__main__":
    preview(sys.argv[1])
