"""Who serves while a Deployment is replaced, counted in whole GPUs; simulated, no scheduler is asked."""

from __future__ import annotations

import pytest

from planning.rolling_update import Course, Pool, Replicas, simulate

NODE = {"h100": Pool(nodes=1, gpus_per_node=8)}


def replicas(count: int, gpus: int, pool: str = "h100", surge: int = 0, unavailable: int = 1) -> Replicas:
    return Replicas(pool=pool, count=count, gpus=gpus, max_surge=surge, max_unavailable=unavailable)


@pytest.mark.parametrize(
    ("before", "after", "fewest", "stuck"),
    [
        (replicas(2, 4), replicas(2, 4), 1, False),
        (replicas(1, 8), replicas(1, 8), 0, False),
        (replicas(2, 4), replicas(1, 8), 0, False),
        (replicas(1, 8), replicas(2, 4), 1, True),
        (replicas(1, 8), replicas(1, 4), 0, False),
        (replicas(1, 4), replicas(2, 4), 1, False),
        (replicas(2, 4), replicas(4, 2), 2, True),
        (replicas(4, 2), replicas(2, 4), 1, False),
        (replicas(1, 4), replicas(1, 4, surge=1, unavailable=0), 1, False),
        (replicas(2, 4), replicas(2, 4, surge=1, unavailable=0), 2, True),
        (replicas(4, 2), replicas(4, 2, unavailable=2), 2, False),
    ],
    ids=str,
)
def test_on_one_node(before: Replicas, after: Replicas, fewest: int, stuck: bool) -> None:
    course = simulate({"model": before}, {"model": after}, {"model"}, NODE)["model"]
    assert course == Course(fewest_ready=fewest, stuck=stuck)


def test_more_replicas_without_a_new_version_leave_those_that_serve_alone() -> None:
    course = simulate({"model": replicas(1, 4)}, {"model": replicas(2, 4)}, set(), NODE)["model"]
    assert course == Course(fewest_ready=1, stuck=False)


def test_a_new_pool_has_room_while_the_old_one_serves() -> None:
    pools = {**NODE, "h200": Pool(nodes=1, gpus_per_node=8)}
    course = simulate({"model": replicas(2, 4)}, {"model": replicas(2, 4, "h200")}, {"model"}, pools)["model"]
    assert course == Course(fewest_ready=1, stuck=False)


def test_what_is_removed_keeps_its_gpus_to_the_end() -> None:
    courses = simulate({"old": replicas(2, 4)}, {"new": replicas(2, 4)}, set(), NODE)
    assert courses["new"].stuck, "Pulumi deletes after it has created"
    half = simulate({"old": replicas(1, 4)}, {"new": replicas(1, 4)}, set(), NODE)
    assert not half["new"].stuck


def test_another_models_replicas_are_in_the_way() -> None:
    others = {"other": replicas(1, 4)}
    course = simulate(
        {"model": replicas(1, 4), **others},
        {"model": replicas(1, 4, surge=1, unavailable=0), **others},
        {"model"},
        NODE,
    )["model"]
    assert course.stuck, "the surge replica would need the GPUs of the other model"


def test_a_node_that_goes_takes_its_replica_along_and_the_other_serves() -> None:
    course = simulate({"model": replicas(2, 8)}, {"model": replicas(1, 8)}, set(), NODE)["model"]
    assert course == Course(fewest_ready=1, stuck=False)
