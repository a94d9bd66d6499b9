"""How many of vLLM's own numbers the plan reproduces: the counts that `make test-engine` prints."""

from __future__ import annotations

import re
import subprocess
import sys

from bench.figure import Figure
from bench.measure import ROOT

COUNTS = {
    "KV cache: cases that differ from vLLM's own code": r"KV cache: (?P<good>\d+) of (?P<all>\d+) cases equal.*?"
    r"(?P<other>\d+) that vLLM refuses in the format of the weights, (?P<idle>\d+) that",
    "weights: builds off by more than 0.5 %": r"Weights: (?P<good>\d+) within .*?(?P<bad>\d+) off",
    "layouts that vLLM refuses and the plan takes": r"refuses: (?P<good>\d+) refused by the plan, (?P<bad>\d+) planned",
    "deployable configurations that vLLM's engine refuses": r"Configurations: (?P<good>\d+) plans .*?"
    r"(?P<bad>\d+) refused by vLLM",
    "accepted options that vLLM's parser refuses": r"Options: (?P<good>\d+) accepted mappings, (?P<bad>\d+) of them",
}


def figures() -> list[Figure]:
    """Raises RuntimeError where the engine tier did not print a count."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "engine", "-s", "tests/engine"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    found = []
    for what, pattern in COUNTS.items():
        match = re.search(pattern, done.stdout)
        if match is None:
            raise RuntimeError(f"make test-engine printed no count for: {what}")
        counts = {name: int(number) for name, number in match.groupdict().items()}
        bad = counts["bad"] if "bad" in counts else counts["all"] - counts["good"] - counts["other"] - counts["idle"]
        how = "make bench ARGS=engine"
        found.append(Figure(what=what, command=how, value=bad, limit=0, unit="", detail=f"{counts['good']} the same"))
    return found
