"""`make up` in a fresh clone: with nothing cached, with everything cached, and with nothing to change."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.figure import Figure
from bench.measure import ROOT


def figures() -> list[Figure]:
    """Minutes of the first `make up` (virtual environment, Go modules and control plane included), then warm ones."""
    with tempfile.TemporaryDirectory(prefix="aks-vllm-bench-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        # Empty caches of its own: nothing built or downloaded earlier helps.
        caches = {name: str(Path(folder) / name) for name in ("XDG_CACHE_HOME", "GOCACHE", "GOMODCACHE")}
        environment = {**os.environ, **caches, "GOFLAGS": "-modcacherw"}  # so that the folder can be removed
        try:
            first = _make("up", clone, environment)
            _make("down", clone, environment)
            warm = _make("up", clone, environment)
            again = _make("up", clone, environment)
        finally:
            _make("down", clone, environment)
    how = "make bench ARGS=up"
    return [
        Figure(what=f"first `make up` on {os.cpu_count()} cores", command=how, value=first / 60, limit=12, unit="min"),
        Figure(what="`make up` with the caches filled", command=how, value=warm, limit=60, unit="s"),
        Figure(what="`make up` again, nothing to change", command=how, value=again, limit=60, unit="s"),
    ]


def _make(target: str, clone: Path, environment: dict[str, str]) -> float:
    started = time.monotonic()
    subprocess.run(["make", target], cwd=clone, env=environment, check=True, stdout=sys.stderr)
    return time.monotonic() - started
