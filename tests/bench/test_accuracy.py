"""The accuracy that the documentation promises is the one that the planner has."""

from __future__ import annotations

from bench import accuracy


def test_errors_are_within_their_limits_and_every_verdict_is_right() -> None:
    found = accuracy.results()
    for kind, limit in (("dense", 0.10), ("experts", 0.70)):
        errors = {result.row.name: round(result.error, 2) for result in found if result.kind == kind}
        assert len(errors) >= 7
        assert accuracy.median(list(errors.values())) <= limit, errors
    assert [result.row.name for result in found if not result.right] == []


def test_the_page_is_current() -> None:
    assert accuracy.PAGE.read_text("utf-8") == accuracy.page(accuracy.results()), "run make bench ARGS=accuracy"


def test_the_other_planners_miss_by_what_was_measured_for_them() -> None:
    by_name = {result.row.name: result for result in accuracy.results()}
    measured = {
        "Qwen3-4B, 79.18 GiB card": (2.98, -0.09),
        "Qwen3-30B-A3B, H100": (0.50, -2.50),
        "Qwen3-235B fp8, eight L40S, expert parallel": (-2.08, 0.01),
        "Qwen3-Next-80B, two H200": (0.94, 2.36),
    }
    for name, (kaito, llm_d) in measured.items():
        assert abs(by_name[name].kaito - kaito) <= 0.04, name
        assert abs(by_name[name].llm_d - llm_d) <= 0.04, name
