"""How near the serving rate comes to measured servers, and the fit of its constants (`make fit-serving`).

The measurements (`bench/data/serving_measurements.csv`) are closed loops on H100 and H200: NVIDIA's lab and InferenceX
as published in ai-dynamo/aiconfigurator's `silicon_sample.csv`, and GPUStack's performance lab. InferenceX draws
lengths between 0.8 and 1.0 of the nominal ones; the means are given. Rows marked `held-out` never enter a fit.
"""

from __future__ import annotations

import csv
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from planning import catalogue, serving_rate
from planning.memory import EngineOptions
from planning.serving_rate import Constants, Sizes

MEASUREMENTS = Path(__file__).parent / "data" / "serving_measurements.csv"

#: Where the fit begins; a constant that no row speaks of stays there.
START = Constants(
    kv_read_share=0.7,
    layer_us=80,
    all_reduce_us=3,
    arithmetic_share=0.6,
    experts_tb_per_s=2.5,
    experts_arithmetic_share=0.2,
    first_token_ms=30,
    first_token_steps=5,
)
#: How much a departure from the start weighs against the errors: enough to hold what the rows leave open, no more.
PULL = 0.01
#: The time to first token is rough whatever the constants are: it weighs less than the others.
FIRST_TOKEN_WEIGHT = 0.3

#: vLLM's default when the rows were measured, and what the published recipes set.
UTILIZATION = 0.9
#: Where twice the users wait more than three times as long for the first token, they wait for KV cache.
QUEUE = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One measurement."""

    held_out: bool
    source: str
    engine_version: str
    preset: str
    gpu: str
    tensor_parallel_size: int
    kv_cache_dtype: str
    input_tokens: int
    output_tokens: int
    users: int
    first_ms: float | None
    each_ms: float

    @property
    def tokens_per_second(self) -> float | None:
        """Output tokens per second and GPU, by Little's law."""
        if self.first_ms is None:
            return None
        life = self.first_ms + (self.output_tokens - 1) * self.each_ms
        return 1e3 * self.users * self.output_tokens / life / self.tensor_parallel_size

    @property
    def server(self) -> tuple[str, str, int]:
        """Rows of one server."""
        return self.preset, self.gpu, self.tensor_parallel_size

    @property
    def sizes(self) -> Sizes:
        """What a step of its replica reads and computes."""
        return serving_rate.sizes(catalogue.preset(self.preset).architecture, self.tensor_parallel_size)

    @property
    def held(self) -> float:
        """Requests that the plan of its own engine's version holds."""
        return _held(self)

    def predicted(self, constants: Constants) -> tuple[float, float, float]:
        """Time per output token and to the first one, milliseconds; output tokens per second and GPU."""
        each, first, tokens = serving_rate.predict(
            self.sizes,
            catalogue.gpu(self.gpu),
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            users=self.users,
            capacity=self.held,
            constants=constants,
        )
        return each, first, tokens / self.tensor_parallel_size


@cache
def _held(row: Row) -> float:
    return serving_rate.users_held(
        catalogue.preset(row.preset).architecture,
        catalogue.gpu(row.gpu),
        tensor_parallel_size=row.tensor_parallel_size,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        options=EngineOptions(gpu_memory_utilization=UTILIZATION, kv_cache_dtype=row.kv_cache_dtype),
        engine_version=row.engine_version,
    )


@cache
def rows() -> tuple[Row, ...]:
    """All measurements."""
    with MEASUREMENTS.open(encoding="utf-8", newline="") as file:
        return tuple(
            Row(
                held_out=line["use"] == "held-out",
                source=line["source"],
                engine_version=line["engine_version"],
                preset=line["preset"],
                gpu=line["gpu"],
                tensor_parallel_size=int(line["tensor_parallel_size"]),
                kv_cache_dtype=line["kv_cache_dtype"],
                input_tokens=int(float(line["input_tokens"])),
                output_tokens=round(float(line["output_tokens"])),
                users=int(line["users"]),
                first_ms=float(line["time_to_first_token_ms"]) if line["time_to_first_token_ms"] else None,
                each_ms=float(line["time_per_output_token_ms"]),
            )
            for line in csv.DictReader(file)
        )


@cache
def queueing() -> frozenset[Row]:
    """Rows whose users waited for KV cache, by the measurements alone."""
    series: dict[object, list[tuple[int, float, Row]]] = {}
    for row in rows():
        if row.first_ms is not None:
            sweep = (row.server, row.input_tokens, row.output_tokens, row.held_out)
            series.setdefault(sweep, []).append((row.users, row.first_ms, row))
    found = []
    for members in series.values():
        waits = False
        for (fewer, before, _), (users, first, row) in pairwise(sorted(members, key=lambda member: member[0])):
            waits = waits or first / before > QUEUE / 2 * users / fewer
            if waits:
                found.append(row)
    return frozenset(found)


def usable(held_out: bool = False) -> list[Row]:
    """Rows without a queue: those that are fitted, or those that never are."""
    return [row for row in rows() if row.held_out is held_out and row not in queueing()]


def fit(given: Sequence[Row]) -> Constants:
    """The constants with the least mean error of logarithms; each server weighs by the root of its rows.

    Steps along one constant at a time, halved when none helps: slow, sure, and free of dependencies.
    """
    counts = Counter(row.server for row in given)
    weights = [counts[row.server] ** -0.5 for row in given]
    names = list(asdict(START))

    def loss(logs: Sequence[float]) -> float:
        constants = Constants(
            **{name: getattr(START, name) * math.exp(log) for name, log in zip(names, logs, strict=True)}
        )
        total = 0.0
        for row, weight in zip(given, weights, strict=True):
            each, first, tokens = row.predicted(constants)
            error = abs(math.log(each / row.each_ms))
            if row.first_ms and row.tokens_per_second:
                error += abs(math.log(tokens / row.tokens_per_second))
                error += FIRST_TOKEN_WEIGHT * abs(math.log(first / row.first_ms))
            total += weight * error
        return total / sum(weights) + PULL * sum(log * log for log in logs)

    logs, step = [0.0] * len(names), 0.2
    best = loss(logs)
    while step > 0.002:
        better = False
        for index in range(len(names)):
            for change in (step, -step):
                tried = [*logs[:index], logs[index] + change, *logs[index + 1 :]]
                if (found := loss(tried)) < best:
                    logs, best, better = tried, found, True
                    break
        if not better:
            step /= 2
    return Constants(**{name: getattr(START, name) * math.exp(log) for name, log in zip(names, logs, strict=True)})


def main() -> int:
    """Fit on every usable row and write the constants into `presets/serving-rate.yaml`."""
    found = asdict(fit(usable()))
    path = catalogue.PRESETS / "serving-rate.yaml"
    text = path.read_text("utf-8")
    for name, value in found.items():
        key = name.replace("_", "-")
        shown = f"{value:.3g}"
        text, count = re.subn(rf"(?m)^(  {key}:.*\n    value: ).*$", rf"\g<1>{shown}", text)
        assert count == 1, key
        print(f"{key}: {shown}")
    path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
