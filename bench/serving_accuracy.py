"""How near the serving rate comes to servers whose model was left out of the fit; a part of `docs/accuracy.md`."""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from bench.figure import Figure
from bench.measure import call_milliseconds
from bench.serving import MEASUREMENTS, Row, fit, queueing, rows, usable
from planning import catalogue, serving_rate
from planning.__main__ import main as planner
from planning.serving_rate import Constants, Workload

COMMAND = "make bench ARGS=serving"

ESTIMATES = MEASUREMENTS.with_name("aiconfigurator_estimates.csv")
#: What makes two loads the same.
SAME_LOAD = ("preset", "gpu", "tensor_parallel_size", "input_tokens", "output_tokens", "users")

KINDS = {
    "time per output token": "time-per-output-token",
    "tokens per second and GPU": "tokens-per-second",
    "time to first token": "time-to-first-token",
}
#: Largest mean error, largest ninth decile, largest bias, in per cent.
LIMITS = {
    "time per output token": (10, 20, 5),
    "tokens per second and GPU": (11, 20, None),
    "time to first token": (28, 60, None),
}
#: The share of measurements that a printed range holds, at least, for each model.
INSIDE = 0.8


@dataclass(frozen=True, kw_only=True)
class Group:
    """Measurements, and constants that have not seen them."""

    name: str
    rows: tuple[Row, ...]
    constants: Constants


@dataclass(frozen=True)
class Errors:
    """Predicted / measured - 1, in per cent; and the share of measurements inside the printed range."""

    count: int
    mean: float
    ninth: float
    bias: float
    inside: float


@cache
def left_out() -> tuple[Group, ...]:
    """Each model, with the constants of the others."""
    models = dict.fromkeys(row.preset for row in usable())
    return tuple(_without(model, lambda row, model=model: row.preset == model) for model in models)


@cache
def also() -> tuple[Group, ...]:
    """Experts are in one model only: one of its GPUs left out. And a model that was never in a fit."""
    experts = [
        model for model in dict.fromkeys(row.preset for row in usable()) if catalogue.preset(model).architecture.experts
    ]
    groups = [
        _without(f"{model} on {gpu}", lambda row, model=model, gpu=gpu: (row.preset, row.gpu) == (model, gpu))
        for model in experts
        for gpu in sorted({row.gpu for row in usable() if row.preset == model})
    ]
    never = tuple(usable(held_out=True))
    return *groups, Group(name=f"{never[0].preset} (never fitted)", rows=never, constants=serving_rate.constants())


def _without(name: str, out: Callable[[Row], bool]) -> Group:
    given = usable()
    return Group(
        name=name,
        rows=tuple(row for row in given if out(row)),
        constants=fit([row for row in given if not out(row)]),
    )


def errors(groups: Iterable[Group], kind: str) -> Errors:
    """Of all rows of some groups that measured this."""
    ratios = [ratio for group in groups for row in group.rows if (ratio := _ratio(row, group.constants, kind))]
    sizes = sorted(abs(ratio - 1) for ratio in ratios)
    low, high = catalogue.serving_rate()["ranges"][KINDS[kind]]
    return Errors(
        len(ratios),
        100 * statistics.fmean(sizes),
        100 * sizes[min(len(sizes) - 1, int(0.9 * len(sizes)))],
        100 * (statistics.fmean(ratios) - 1),
        sum(low <= 1 / ratio <= high for ratio in ratios) / len(ratios),
    )


def _ratio(row: Row, constants: Constants, kind: str) -> float | None:
    """Predicted / measured."""
    predicted = dict(zip(KINDS, _ordered(row.predicted(constants)), strict=True))[kind]
    measured = dict(zip(KINDS, (row.each_ms, row.tokens_per_second, row.first_ms), strict=True))[kind]
    return predicted / measured if measured else None


def _ordered(answer: tuple[float, float, float]) -> tuple[float, float, float]:
    each, first, tokens = answer
    return each, tokens, first


@dataclass(frozen=True)
class Ranking:
    """Pairs of layouts under one load of a node, and what choosing by the prediction loses of the tokens."""

    pairs: int
    right: int
    choices: int
    loss: float  # mean, in per cent


def ranking() -> Ranking:
    """Full nodes of eight GPUs whose replicas share the same users, by constants that have not seen the model."""
    right = pairs = 0
    losses = []
    for group in left_out():
        nodes: dict[object, list[tuple[float, float]]] = {}
        for row in group.rows:
            if 8 % row.tensor_parallel_size == 0 and row.tokens_per_second:
                load = (row.gpu, row.input_tokens, row.output_tokens, row.users * 8 // row.tensor_parallel_size)
                predicted = _ordered(row.predicted(group.constants))[1]
                nodes.setdefault(load, []).append((predicted, row.tokens_per_second))
        for layouts in nodes.values():
            if len(layouts) < 2:
                continue
            for one, other in combinations(layouts, 2):
                pairs += 1
                right += (one[0] > other[0]) is (one[1] > other[1])
            chosen, best = max(layouts)[1], max(measured for _, measured in layouts)
            losses.append(100 * (1 - chosen / best))
    return Ranking(pairs, right, len(losses), statistics.fmean(losses))


def queues() -> tuple[int, int, int]:
    """Loads whose users waited for KV cache; of them missed; false alarms among the others."""
    waits = queueing()
    alarms = {row for row in rows() if row.users > int(row.held)}
    return len(waits), len(waits - alarms), len(alarms - waits)


def section() -> list[str]:
    """The part of `docs/accuracy.md`."""
    lines = [
        "## Serving rate",
        "",
        "Steady closed loops on H100 and H200, predicted with constants that have not seen the model: mean error",
        "without sign, nine of ten errors below, bias (positive: predicted too high), and the share of measurements",
        f"inside the range that the report prints. Written by `{COMMAND}` from `bench/data/serving_measurements.csv`.",
        "",
    ]
    for kind in KINDS:
        low, high = catalogue.serving_rate()["ranges"][KINDS[kind]]
        lines += [
            f"| {kind}, range × {low:g} to {high:g} | loads | mean | nine of ten | bias | inside |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        everything = [("all, one model left out", left_out())]
        for name, groups in [*((g.name, (g,)) for g in left_out()), *everything, *((g.name, (g,)) for g in also())]:
            found = errors(groups, kind)
            lines.append(
                f"| {name} | {found.count} | {found.mean:.1f} % | {found.ninth:.1f} % | {found.bias:+.1f} % | "
                f"{found.inside:.0%} |"
            )
        lines.append("")
    lines += _beside_aiconfigurator()
    waits, missed, false = queues()
    order = ranking()
    lines += [
        "- Eight constants for all of it, in `presets/serving-rate.yaml`. minimax-m2.5 is the only model with experts",
        "  in the fit: without it their two constants stay where the fit begins, so one GPU is left out besides.",
        "- The form of the time to first token was chosen with llama's rows in view.",
        f"- Users that wait for KV cache: {waits} loads, {missed} missed, {false} false alarms.",
        f"- Layouts of a node under the same load: {order.right} of {order.pairs} pairs in the right order; choosing",
        f"  by the prediction loses {order.loss:.1f} % of the tokens on average ({order.choices} choices).",
        "- Not predicted, so not here: bursts of hundreds of requests (0.3 to 0.8 of such a form), A100, tails.",
        "- AKS nodes were not measured. One of two clusters was up to 3 times slower from four GPUs on.",
        "",
    ]
    return lines


def _beside_aiconfigurator() -> list[str]:
    """The same measurements by aiconfigurator, where it has an estimate: time per output token and to the first."""
    with ESTIMATES.open(encoding="utf-8", newline="") as file:
        theirs = {tuple(line[key] for key in SAME_LOAD): line for line in csv.DictReader(file)}
    lines = [
        "aiconfigurator 0.12.0 on the same loads (`cli_estimate` in Python, backend vllm, whose tables",
        "are of vLLM 0.24.0; minimax on 8 GPUs by expert parallelism, as it refuses the other way). Its estimates are",
        "kept in `bench/data/aiconfigurator_estimates.csv`; each took it about a second.",
        "",
        "| mean error | loads | here, per output token | there | here, first token | there |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    named = [(group.name, (group,)) for group in (*left_out(), also()[-1])]
    for name, groups in [*named, ("all", (*left_out(), also()[-1]))]:
        both = [(row, theirs[_load(row)], group) for group in groups for row in group.rows if _load(row) in theirs]
        cells = []
        for kind, column in (
            ("time per output token", "time_per_output_token_ms"),
            ("time to first token", "time_to_first_token_ms"),
        ):
            of = [each for each in both if _measured(each[0], kind)]
            ours = [abs((_ratio(row, group.constants, kind) or 0) - 1) for row, _, group in of]
            others = [abs(float(line[column]) / _measured(row, kind) - 1) for row, line, _ in of]
            cells += [f"{statistics.fmean(ours):.1%}", f"{statistics.fmean(others):.1%}"]
        lines.append(f"| {name} | {len(both)} | {' | '.join(cells)} |")
    return [*lines, ""]


def _load(row: Row) -> tuple[str, ...]:
    return tuple(str(getattr(row, key)) for key in SAME_LOAD)


def _measured(row: Row, kind: str) -> float:
    """Milliseconds; 0 where it was not measured."""
    return row.each_ms if kind == "time per output token" else row.first_ms or 0


def figures() -> list[Figure]:
    """Errors, queues, the time of a prediction and of sizing over the whole catalogue; writes the page."""
    from bench import accuracy

    accuracy.write()
    found = []
    for kind, (mean, ninth, bias) in LIMITS.items():
        of = errors(left_out(), kind)
        found.append(_figure(f"{kind}: mean error, model left out", of.mean, mean, "%", f"{of.count} loads"))
        found.append(_figure(f"{kind}: nine of ten errors below", of.ninth, ninth, "%"))
        if bias is not None:
            found.append(_figure(f"{kind}: bias without sign", abs(of.bias), bias, "%"))
        worst = min((errors((group,), kind).inside, group.name) for group in (*left_out(), also()[-1]))
        outside = 100 * (1 - worst[0])
        found.append(
            _figure(f"{kind}: outside the printed range, worst model", outside, 100 - 100 * INSIDE, "%", worst[1])
        )
    waits, missed, false = queues()
    order = ranking()
    found += [
        _figure("loads that wait for KV cache: missed", missed, 1, "", f"of {waits}"),
        _figure("loads that do not wait: false alarms", false, 0, ""),
        _figure(
            "pairs of layouts in the wrong order",
            100 * (1 - order.right / order.pairs),
            25,
            "%",
            f"{order.pairs} pairs",
        ),
        _figure("tokens lost by choosing a layout by the prediction", order.loss, 5, "%", f"{order.choices} choices"),
        _speed(),
        _size(),
    ]
    return found


def _figure(what: str, value: float, limit: float, unit: str, detail: str = "") -> Figure:
    return Figure(what=what, command=COMMAND, value=value, limit=limit, unit=unit, detail=detail)


def _speed() -> Figure:
    architecture = catalogue.preset("llama-3.3-70b-instruct").architecture
    gpu, load = catalogue.gpu("H100-80GB"), Workload(input_tokens=1024, output_tokens=512, users=64)

    def predict() -> None:
        serving_rate.rate(architecture, gpu, tensor_parallel_size=4, workload=load, capacity=200, max_num_seqs=1024)

    took = call_milliseconds(predict, runs=2000)
    return _figure("one prediction", took, 0.1, "ms", f"{1000 / took:,.0f} a second")


def _size() -> Figure:
    import contextlib
    import io

    words = ["size", "--users", "200", "--input-tokens", "1024", "--output-tokens", "512", "--max-tpot-ms", "40"]
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        assert planner(words) == 0
    return _figure("`size` over every model and VM size, CPU", time.process_time() - started, 5, "s")
