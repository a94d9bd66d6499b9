"""The constants of the serving rate are what the fit gives, and they keep what is promised of them."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from bench import serving, serving_accuracy
from planning import serving_rate


def test_the_constants_are_what_the_fit_gives() -> None:
    assert asdict(serving_rate.constants()) == pytest.approx(asdict(serving.fit(serving.usable())), rel=0.005)


def test_queues_are_recognised() -> None:
    wrong = [row for row in serving.rows() if (row.users > int(row.held)) is not (row in serving.queueing())]
    assert serving.queueing()
    assert not wrong


@pytest.mark.parametrize("kind", serving_accuracy.KINDS)
def test_models_that_the_fit_has_not_seen_are_predicted_as_promised(kind: str) -> None:
    mean, ninth, bias = serving_accuracy.LIMITS[kind]
    found = serving_accuracy.errors(serving_accuracy.left_out(), kind)
    assert found.count > 100
    assert found.mean <= mean
    assert found.ninth <= ninth
    assert bias is None or abs(found.bias) <= bias
    for group in (*serving_accuracy.left_out(), serving_accuracy.also()[-1]):
        assert serving_accuracy.errors((group,), kind).inside >= serving_accuracy.INSIDE, group.name
