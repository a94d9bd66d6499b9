"""The constants of the serving rate are what the fit gives, and they keep what is promised of them."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from bench import serving
from planning import serving_rate


def test_the_constants_are_what_the_fit_gives() -> None:
    assert asdict(serving_rate.constants()) == pytest.approx(asdict(serving.fit(serving.usable())), rel=0.005)


def test_queues_are_recognised() -> None:
    wrong = [row for row in serving.rows() if (row.users > int(row.held)) is not (row in serving.queueing())]
    assert serving.queueing()
    assert not wrong
