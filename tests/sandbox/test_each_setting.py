"""What the previews say of a change is what an update does. `make bench ARGS=settings` takes every setting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sandbox.each_setting import CASES, CLUSTER, IMPOSSIBLE, NODES, PODS, STAYS, Outcome, outcome, settings
from tests.sandbox.faulty import World

#: One for each thing that may happen; the quick ones.
HERE = {
    "max-model-len": PODS,
    "gpu-nodes.capacity-reservation-group": NODES,
    "network.node-subnet-cidr": IMPOSSIBLE,
    "network.subnet-id": IMPOSSIBLE,
    "existing-cluster.id": CLUSTER,
    "existing-cluster.namespace": NODES,
    "tags": STAYS,
    "edge.paths": STAYS,
    "workload.users": STAYS,
}


@pytest.fixture(scope="module")
def bases() -> dict[str, World]:
    return {}


def test_every_setting_has_a_change() -> None:
    """A setting that nobody tried is one whose preview nobody checked."""
    assert {case.setting for case in CASES} == set(settings())


@pytest.mark.parametrize("setting", HERE)
def test_what_the_previews_say_of_a_change_happens(
    setting: str, bases: dict[str, World], tmp_path_factory: pytest.TempPathFactory
) -> None:
    case = next(case for case in CASES if case.setting == setting)
    found = outcome(case, tmp_path_factory.mktemp("worlds"), bases)
    assert (found.said, found.happened) == (HERE[setting], HERE[setting])
    assert found.previewed == found.done
    assert found.noticed or not found.endpoint, "the endpoint changes, and the comparison says nothing of it"


def test_a_preview_that_lies_is_found_out() -> None:
    honest = Outcome(
        setting="tags",
        said=STAYS,
        happened=STAYS,
        noticed=False,
        endpoint=False,
        previewed={"a": "update"},
        done={"a": "update"},
    )
    assert honest.agrees
    assert not replace(honest, said=NODES).agrees
    assert not replace(honest, done={"a": "replace"}).agrees
    assert not replace(honest, endpoint=True).agrees, "the endpoint changed, and nobody was told"
