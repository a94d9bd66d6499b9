"""Timing: whole processes in turn, so that a noisy machine slows both sides of a ratio."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def process_seconds(arguments: Sequence[str]) -> float:
    """Wall seconds of one Python process that must succeed."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def paired(ours: Sequence[str], other: Sequence[str], runs: int) -> tuple[float, float, float]:
    """Median seconds of both processes and the median of the ratios, pair by pair, after one warm-up of each."""
    process_seconds(ours), process_seconds(other)
    pairs = [(process_seconds(ours), process_seconds(other)) for _ in range(runs)]
    first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
    return first, second, statistics.median(a / b for a, b in pairs)


def call_milliseconds(function: Callable[[], object], runs: int) -> float:
    """Median milliseconds of a call, caches warm."""
    function()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        function()
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)
