"""Measuring what a stack serves with vLLM's own benchmark: the Job, and what its figures are compared with.

The Job talks to the edge as any client does, with the load that the stack is planned for.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planning.findings import Finding, Severity
from planning.weight_source import AZURE_BLOB, HOME, JOB_NAME_MAX, UPLOAD_SERVICE_ACCOUNT, WEIGHTS, TaskPlan, tokenizer

if TYPE_CHECKING:
    from planning.edge import EdgePlan
    from planning.plan import ModelPlan

PROGRAM = "/opt/aks-vllm-benchmark/benchmark.py"  # pod/benchmark.py, mounted from a ConfigMap
#: The Job's annotation in which `make benchmark` puts what it read from the pod, which has no token to do it itself.
MEASURED = "aks-vllm/measured"
KEY_VARIABLE = "OPENAI_API_KEY"  # vLLM's benchmark sends it: vllm/benchmarks/lib/endpoint_request_func.py
#: Requests for each user: the first ones start together, which no steady load does, and are outnumbered.
REQUESTS_PER_USER = 8
#: Where nothing is predicted, a request may take so long; else so many times what is.
UNKNOWN_SECONDS, PATIENCE = 120, 4
#: Pulling the image onto a system node, fetching the tokenizer, importing vLLM.
BEFORE_SECONDS = 1200
CPU, MEMORY_GIB = 1, 4  # requests; vLLM's import takes the most of it
#: Of the prediction, by the names of vLLM's result.
METRICS = {
    "mean_tpot_ms": "time per output token, ms",
    "median_ttft_ms": "time to first token, ms",
    "output_throughput": "output tokens a second, all replicas",
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """One model's Job. `predicted` is (low, expected, high) by the names of vLLM's result; empty: not modelled."""

    model: str
    job: str
    account: str  # service account: the one that may read the token, where that is in a vault
    before: TaskPlan  # fetches the tokenizer, with which prompts are made; the only one that sees the token
    command: tuple[str, ...]
    env: Mapping[str, str]
    image: str
    node_selector: Mapping[str, str]
    tolerated_taints: tuple[str, ...]
    cpu: int
    memory_gib: int
    requests: int
    predicted: Mapping[str, tuple[float, float, float]]
    deadline_seconds: int  # the Job fails after it
    pulumi_timeout_minutes: int  # longer than the deadline


def plan_benchmarks(models: Sequence[ModelPlan], edge: EdgePlan, namespace: str) -> tuple[BenchmarkPlan, ...]:
    """A Job for each model, under the workload of its plan."""
    return tuple(_benchmark(model, edge, namespace) for model in models)


def objections(*, benchmark: bool, keys: bool, has_key: bool) -> Iterator[tuple[str, object, str, str]]:
    """(key, value, limit, remedy) of what does not go together."""
    if benchmark and keys and not has_key:
        limit = "needs a key of its own, as the endpoint asks for one"
        remedy = "`pulumi config set --secret aks-vllm:benchmark-key`, with its SHA-256 among aks-vllm:edge.keys"
        yield "benchmark", True, limit, remedy


def findings(plans: Sequence[BenchmarkPlan]) -> Iterator[Finding]:
    """What a measurement means for the people served meanwhile."""
    for plan in plans:
        yield Finding(
            severity=Severity.WARNING,
            subject=plan.model,
            message=f"A Job sends {plan.requests:,} requests to the endpoint in the first update with "
            "aks-vllm:benchmark: whoever uses the model meanwhile shares it with them, and the figures are of both.",
            remedy="Measure when nobody else does; docs/measure.md says how.",
        )


def _benchmark(model: ModelPlan, edge: EdgePlan, namespace: str) -> BenchmarkPlan:
    load, served = model.serving.workload, model.serving.decided
    predicted: dict[str, tuple[float, float, float]] = {}
    seconds = float(UNKNOWN_SECONDS)
    if served is not None:
        rate = served.rate
        ranges = (rate.time_per_output_token_ms, rate.time_to_first_token_ms, served.tokens_per_second)
        predicted = {name: (each.low, each.expected, each.high) for name, each in zip(METRICS, ranges, strict=True)}
        token, first = rate.time_per_output_token_ms.expected, rate.time_to_first_token_ms.expected
        seconds = PATIENCE * (first + load.output_tokens * token) / 1000
    requests = REQUESTS_PER_USER * load.users
    before = tokenizer(model.preset, model.revision, model.image)
    command = _command(model, edge, namespace, requests)
    digest = hashlib.sha256(repr((command, before, predicted)).encode()).hexdigest()[:6]
    deadline = math.ceil(BEFORE_SECONDS + (REQUESTS_PER_USER + 1) * seconds)
    return BenchmarkPlan(
        model=model.name,
        job=f"benchmark-{model.name[: JOB_NAME_MAX - 17]}-{digest}",
        account=UPLOAD_SERVICE_ACCOUNT if model.weights.source == AZURE_BLOB else model.name,
        before=before,
        command=command,
        env={"HOME": HOME, "HF_HUB_OFFLINE": "1", "NVIDIA_VISIBLE_DEVICES": "void", "PYTHONUNBUFFERED": "1"},
        image=model.image.reference,
        node_selector=edge.node_selector,
        tolerated_taints=edge.tolerated_taints,
        cpu=CPU,
        memory_gib=MEMORY_GIB,
        requests=requests,
        predicted=predicted,
        deadline_seconds=deadline,
        pulumi_timeout_minutes=math.ceil(deadline / 60) + 10,
    )


def _command(model: ModelPlan, edge: EdgePlan, namespace: str, requests: int) -> tuple[str, ...]:
    load, prefix = model.serving.workload, edge.base_paths[model.name].removesuffix("/v1")
    options = {
        "backend": "openai",
        "base-url": f"{edge.scheme}://edge.{namespace}.svc:{edge.service_port}{prefix}",
        "endpoint": "/v1/completions",
        "model": model.served_model_name,
        "tokenizer": WEIGHTS,
        "dataset-name": "random",
        "random-input-len": load.input_tokens,
        "random-output-len": load.output_tokens,
        "num-prompts": requests,
        "max-concurrency": load.users,
        "num-warmups": min(load.users, 8),
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    # Inside the cluster the edge has another name than the one on its certificate.
    flags = ["--ignore-eos", "--disable-tqdm", *(["--insecure"] if edge.scheme == "https" else [])]
    flags += ["--trust-remote-code"] if "--trust-remote-code" in model.args else []
    return ("python3", PROGRAM, "vllm", "bench", "serve", *words, *flags)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One figure beside its prediction; `predicted` is None where there is none."""

    name: str
    what: str
    measured: float
    predicted: tuple[float, float, float] | None

    @property
    def ratio(self) -> float | None:
        """Measured over expected."""
        return None if self.predicted is None else self.measured / self.predicted[1]

    @property
    def inside(self) -> bool | None:
        """Whether the printed range holds it."""
        return None if self.predicted is None else self.predicted[0] <= self.measured <= self.predicted[2]


def compare(
    result: Mapping[str, Any], predicted: Mapping[str, Sequence[float]], requests: int
) -> tuple[list[Compared], list[str]]:
    """What was measured beside what was said, and what is wrong with the measurement. Nothing is compared then."""
    wrong = []
    done = result.get("completed")
    if not isinstance(done, int) or isinstance(done, bool):
        wrong.append("the result does not say how many requests were answered")
    elif done < requests:
        wrong.append(f"{requests - done} of {requests} requests failed: a rate without them is no rate of this load")
    for name in METRICS:
        value = result.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            wrong.append(f"{name} is {value!r}, which is no measurement")
    if wrong:
        return [], wrong
    rows = [
        Compared(
            name=name,
            what=what,
            measured=float(result[name]),
            predicted=(predicted[name][0], predicted[name][1], predicted[name][2]) if name in predicted else None,
        )
        for name, what in METRICS.items()
    ]
    return rows, []


def outcome(predicted: Mapping[str, Sequence[float]], requests: int, measured: str) -> dict[str, Any]:
    """A stack's output: the prediction, and once it was read (`measured`, JSON) the measurement, by vLLM's names."""
    shown: dict[str, Any] = {
        "predicted": {
            name: dict(zip(("low", "expected", "high"), each, strict=True)) for name, each in predicted.items()
        },
        "requests": requests,
        "measured": None,
        "ratio": {},
        "wrong": [],
    }
    if not measured:
        return shown
    try:
        result = json.loads(measured)
    except ValueError:
        return {**shown, "wrong": ["what was measured is no JSON"]}
    if not isinstance(result, dict):
        return {**shown, "wrong": ["what was measured is no JSON object"]}
    rows, wrong = compare(result, predicted, requests)
    ratios = {row.name: round(row.ratio, 3) for row in rows if row.ratio is not None}
    return {**shown, "measured": result, "ratio": ratios, "wrong": wrong}
