"""The comparison is fair only while the program written by hand declares what the project's program declares."""

from __future__ import annotations

from typing import Any

from bench.program import HANDWRITTEN, OURS, preview
from sandbox.engine import Recording


def _declared(recording: Recording) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r.type, r.name): dict(r.inputs) for r in recording.registrations if r.custom}


def _leaves(value: Any) -> int:
    """How many plain values there are: what the SDK has to translate and send."""
    if isinstance(value, dict):
        return sum(map(_leaves, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_leaves, value))
    return 1


def test_both_programs_declare_the_same_resources_of_the_same_size() -> None:
    ours, hand = _declared(preview(OURS)), _declared(preview(HANDWRITTEN))
    assert set(hand) == set(ours)
    for resource, inputs in ours.items():
        difference = _leaves(hand[resource]) / _leaves(inputs)
        assert 0.9 <= difference <= 1.1, f"{resource}: bring bench/handwritten.py up to date"
