"""What clients lose and what stays closed: the counts that the tests on real servers print (`make test-engine`)."""

from __future__ import annotations

import re
import subprocess
import sys

from bench.figure import Figure
from bench.measure import ROOT

HOW = "make bench ARGS=losses"


def figures() -> list[Figure]:
    """Raises RuntimeError where a test of tests/serving has failed or did not print its count."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "engine", "-s", "tests/serving"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"tests/serving failed: {done.stdout[-3000:]}")
    sent, lost, under_way = _told(r"Update as rendered: (\d+) requests, (\d+) lost .*?; (\d+) under way", done.stdout)
    others, others_lost = _told(r"Update by the defaults: (\d+) requests, (\d+) lost", done.stdout)
    failed, asked, spared = _told(r"SIGKILL: (\d+) of (\d+) requests failed .*?, (\d+) of them without", done.stdout)
    (streaming,) = _told(r"Hang-up, streaming: .*? after ([\d.]+) s", done.stdout)
    (silent,) = _told(r"Hang-up, silent: .*? after ([\d.]+) s", done.stdout)
    clients, peak, bound = _told(
        r"Overload by (\d+) clients: .*?; at most (\d+) in an engine, bound (\d+)", done.stdout
    )
    routes, opened, without = _told(r"Routes: (\d+) of vLLM, (\d+) open with a key, (\d+) without", done.stdout)
    return [
        Figure(
            what="requests lost in an update of both replicas under load",
            command=HOW,
            value=lost,
            limit=0,
            unit="",
            detail=f"of {sent:.0f}, {under_way:.0f} under way at SIGTERM; by the usual defaults {others_lost:.0f} of "
            f"{others:.0f}",
        ),
        Figure(
            what="requests that fail when an engine is killed although it was not working on them",
            command=HOW,
            value=spared,
            limit=0,
            unit="",
            detail=f"{failed:.0f} of {asked:.0f} were on it, and their clients see an error",
        ),
        Figure(
            what="until an engine lets go of a stream whose client hung up",
            command=HOW,
            value=streaming,
            limit=1,
            unit="s",
        ),
        Figure(
            what="the same, of an answer that is not streamed",
            command=HOW,
            value=silent,
            limit=1,
            unit="s",
        ),
        Figure(
            what="most requests in an engine under five times its load, against its bound",
            command=HOW,
            value=peak / bound,
            limit=1,
            detail=f"{clients:.0f} clients",
        ),
        Figure(
            what="routes of vLLM open to clients without a key",
            command=HOW,
            value=without,
            limit=0,
            unit="",
            detail=f"of {routes:.0f}; {opened:.0f} with one",
        ),
    ]


def _told(pattern: str, printed: str) -> list[float]:
    match = re.search(pattern, printed)
    if match is None:
        raise RuntimeError(f"make test-engine printed no line for: {pattern}")
    return [float(number) for number in match.groups()]
