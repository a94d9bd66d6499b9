"""Whatever fails, the next `up` converges, nothing is made twice, and `destroy` leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sandbox.faulty import FAULTS, World, converges


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], World]:
    """The stack's resources by logical name, and the world after an `up` that nothing disturbed."""
    world = World(tmp_path_factory.mktemp("undisturbed"))
    steps = world.run("up").steps
    return [step.name for step in steps if step.custom and not step.type.startswith("pulumi:")], world


def test_a_failure_at_any_resource_is_overcome_by_running_it_again(
    undisturbed: tuple[list[str], World], tmp_path: Path
) -> None:
    """Every third resource, with one of the faults each; `make bench ARGS=faults` takes every pair."""
    names, world = undisturbed
    assert len(names) >= 20
    for number, (name, fault) in enumerate(zip(names, [*FAULTS] * len(names), strict=False)):
        if number % 3 == 0:
            (tmp_path / str(number)).mkdir()
            converges(tmp_path / str(number), name, fault, world.holds())
