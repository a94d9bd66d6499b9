"""What each added model costs in a preview, up to a thousand."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

from bench.figure import Figure
from bench.measure import ROOT

COUNTS = (10, 100, 300, 1000)

_ONE = """
import json, sys, time
from bench.measure import ROOT
from sandbox.engine import record
count = int(sys.argv[1])
models = {f"m{number}": {"preset": "qwen3-8b"} for number in range(count)}
config = {"azure-native:location": "eastus", "aks-vllm:models": json.dumps(models)}
config["aks-vllm:environment"] = "development"  # in production weights are streamed, by at most twenty models
config["aks-vllm:network"] = json.dumps({"pod-cidr": "10.64.0.0/10"})  # a /24 for each of a thousand nodes
started = time.process_time()
recording = record(ROOT, "bench", config, secret_keys=[])
print(json.dumps({"seconds": time.process_time() - started, "resources": len(recording.registrations)}))
"""


def figures() -> list[Figure]:
    """CPU milliseconds per added model between the two largest counts, over those between the two smallest."""
    seconds, resources = {}, {}
    for count in COUNTS:
        done = subprocess.run([sys.executable, "-c", _ONE, str(count)], cwd=ROOT, check=True, capture_output=True)
        measured = json.loads(done.stdout.splitlines()[-1])
        seconds[count], resources[count] = measured["seconds"], measured["resources"]
    slope = {(a, b): (seconds[b] - seconds[a]) / (b - a) * 1000 for a, b in itertools.pairwise(COUNTS)}
    (first, *_, last) = slope.values()
    return [
        Figure(
            what="cost of one more model at 1,000 against at 100 (1 is linear)",
            command="make bench ARGS=growth",
            value=last / first,
            limit=1.5,
            detail=", ".join(
                f"{count} models, {resources[count]} resources: {seconds[count]:.1f} s of CPU" for count in COUNTS
            ),
        )
    ]
