"""How near the memory plan comes to what vLLM printed, beside two other planners; a part of `docs/accuracy.md`.

The rows are start-up logs (`tests/data/startup_logs.yaml`), each planned by the rules of its own vLLM version. The
other planners get the true weights and the row's own utilisation, so that only their formulas are compared.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from bench.figure import Figure
from planning import catalogue
from planning.memory import constants
from tests.planning.startup_logs import Row, rows

PAGE = Path(__file__).parents[1] / "docs" / "accuracy.md"

#: KAITO, to 0.12: a fixed share and 5 % of the weights beside them.
KAITO_FIXED_GIB, KAITO_OF_WEIGHTS = 2.3, 0.05
#: llm-d's planner: activations by kind of model, counted once per replica, and non-torch memory of one and more GPUs.
LLM_D_ACTIVATION_GIB = {"llama": 4.8, "qwen": 5.6, "experts": 8.0, "multimodal": 2.5}
LLM_D_NON_TORCH_GIB = {False: 0.15, True: 0.6}


@dataclass(frozen=True)
class Result:
    """One row; GiB per GPU. Errors are planned less logged: a positive one promises too much."""

    row: Row
    logged: float
    error: float
    stated: float
    kaito: float
    llm_d: float
    right: bool

    @property
    def kind(self) -> str:
        """Dense or experts."""
        return "experts" if self.row.architecture.experts else "dense"


def results() -> list[Result]:
    """Every row whose inputs are known."""
    return [_result(row) for row in rows().values() if row.has_known_inputs]


def _result(row: Row) -> Result:
    plan, logged = row.plan(), row.logged["available"]
    weights = row.logged.get("weights", plan.weights_gib)
    tensor = row.data.get("tensor", 1)
    utilization = row.options.get("gpu_memory_utilization", constants(row.data["version"]).utilization)
    budget = (row.data.get("memory-gib") or catalogue.gpu(row.data["gpu"]).memory_gib) * utilization
    kaito = budget - weights * (1 + KAITO_OF_WEIGHTS) - KAITO_FIXED_GIB
    llm_d = budget - weights - LLM_D_ACTIVATION_GIB[_llm_d_kind(row)] / tensor - LLM_D_NON_TORCH_GIB[tensor > 1]
    return Result(
        row=row,
        logged=logged,
        error=plan.available_kv_gib - logged,
        stated=plan.error_gib,
        kaito=kaito - logged,
        llm_d=llm_d - logged,
        right=(plan.verdict == "refused") == bool(row.data.get("refused")),
    )


def _llm_d_kind(row: Row) -> str:
    if row.name.startswith("llava"):
        return "multimodal"
    if row.architecture.experts:
        return "experts"
    return "qwen" if row.architecture.hf_architecture.startswith("Qwen") else "llama"


def median(errors: list[float]) -> float:
    """Median of the errors without their sign, GiB."""
    return statistics.median(abs(error) for error in errors)


def figures() -> list[Figure]:
    """Median errors of dense models and of models with experts, and verdicts that are wrong; writes the page."""
    found = results()
    write()
    measured = []
    for kind, limit in (("dense", 0.10), ("experts", 0.70)):
        errors = [result.error for result in found if result.kind == kind]
        measured.append(
            Figure(
                what=f"available KV cache, {kind}: median error per GPU",
                command="make bench ARGS=accuracy",
                value=median(errors),
                limit=limit,
                unit="GiB",
                detail=f"{len(errors)} start-ups",
            )
        )
    wrong = sum(not result.right for result in found)
    measured.append(
        Figure(
            what="verdicts (fits or refused) that were wrong",
            command="make bench ARGS=accuracy",
            value=wrong,
            limit=0,
            unit="",
            detail=f"{len(found) - wrong} of {len(found)} right",
        )
    )
    return measured


def write() -> None:
    """Write `docs/accuracy.md`."""
    PAGE.write_text(page(results()), "utf-8")


def page(found: list[Result]) -> str:
    """`docs/accuracy.md`."""
    from bench import serving_accuracy  # it fits constants, which takes seconds

    return "\n".join(["# How accurate the plan is", "", *section(found), *serving_accuracy.section()])


def section(found: list[Result]) -> list[str]:
    """The part about memory."""
    lines = [
        "## Memory",
        "",
        "Available KV cache in GiB per GPU: what vLLM logged, and by how much three planners miss it. A positive error",
        "promises memory that is not there. `stated` is the error that the plan itself prints beside its answer. Each",
        "row is planned by the rules of the vLLM version that wrote the log; the other planners are given the true",
        "weights and the row's own utilisation. Written by `make bench ARGS=accuracy` from",
        "`tests/data/startup_logs.yaml`.",
        "",
        "| start-up | vLLM | logged | this plan | stated | KAITO | llm-d |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {result.row.name} | {result.row.data['version']} | {result.logged:.2f} | {result.error:+.2f} | "
        f"± {result.stated:.2f} | {result.kaito:+.2f} | {result.llm_d:+.2f} |"
        for result in found
    ]
    lines += ["", "| median without sign | start-ups | this plan | KAITO | llm-d |", "|---|--:|--:|--:|--:|"]
    for kind, words in (("dense", "dense models"), ("experts", "models with experts")):
        of = [result for result in found if result.kind == kind]
        medians = (median([getattr(result, who) for result in of]) for who in ("error", "kaito", "llm_d"))
        lines.append(f"| {words} | {len(of)} | " + " | ".join(f"{value:.2f}" for value in medians) + " |")
    right = sum(result.right for result in found)
    inside = [result for result in found if abs(result.error) <= result.stated]
    beyond = ", ".join(result.row.name for result in found if result not in inside)
    lines += [
        "",
        f"- Verdicts (fits or refused): {right} of {len(found)} right; the other planners give none.",
        f"- Within the stated error: {len(inside)} of {len(found)}" + (f"; beyond it: {beyond}." if beyond else "."),
        "- Given the available memory, tokens, concurrency and the longest context of every row are vLLM's own to the",
        "  last block (`tests/planning/test_kv_cache.py`); `tests/engine` compares with vLLM's planner itself.",
        "- Left out above, because the card's total memory or the weights were not logged:",
    ]
    lines += [f"  - {row.name}" for row in rows().values() if not row.has_known_inputs]
    return [
        *lines,
        "",
        "The formulas of the others: KAITO (to 0.12) budget − 1.05 × weights − 2.3; llm-d budget − weights − a",
        "constant (4.8 Llama, 5.6 Qwen, 8.0 experts, 2.5 multimodal) per replica − 0.15, or 0.6 on several GPUs.",
        "",
    ]
