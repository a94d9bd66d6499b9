"""Runs vLLM's benchmark and leaves its figures where Kubernetes keeps a container's last words.

    benchmark.py vllm bench serve ...

Needs nothing but Python. A pod here has no token of the API server: whoever may read pods reads the figures there.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

#: 4096 bytes at most: https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
LAST_WORDS = Path("/dev/termination-log")
RESULT = Path("/tmp/result.json")  # noqa: S108  the pod's own
#: Of some forty, those that people compare.
FIGURES = (
    "completed",
    "duration",
    "request_throughput",
    "output_throughput",
    "total_token_throughput",
    "mean_tpot_ms",
    "median_tpot_ms",
    "p99_tpot_ms",
    "mean_ttft_ms",
    "median_ttft_ms",
    "p99_ttft_ms",
)


def main(command: list[str]) -> int:
    """The benchmark's exit code; 1 where it ended well and left no figures."""
    saved = ["--save-result", "--result-dir", str(RESULT.parent), "--result-filename", RESULT.name]
    done = subprocess.run([*command, *saved], check=False).returncode
    if done != 0:
        return done
    try:
        result = json.loads(RESULT.read_text())
    except (OSError, ValueError) as problem:
        print(f"the benchmark left no figures: {problem}", file=sys.stderr)
        return 1
    # An infinity is no JSON; a figure that is none is left out.
    known = {name: result[name] for name in FIGURES if isinstance(result.get(name), int | float)}
    figures = {name: value for name, value in known.items() if math.isfinite(value)}
    LAST_WORDS.write_text(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
