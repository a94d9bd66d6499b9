"""What the comparison says of an update, against what the real scheduler and the real Deployment controller make of it.

An update does what Pulumi does: every Deployment that stays gets its new spec, new ones are made, and one that is gone
is deleted when everything else has ended well.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator
from typing import Any

import pytest

from planning import diff, report
from planning.diff import Kind, Side
from planning.plan import StackPlan, decide
from planning.settings import Settings
from sandbox.cluster_api import ClusterApi, ConflictError
from sandbox.control_plane import ControlPlane
from tests.components.harness import DEPLOYMENT, recorded_preview
from tests.sandbox.test_promises import Stage, Watch, model

pytestmark = pytest.mark.control_plane

#: Seconds in which nothing moves until an update counts as stuck. Here pods are ready in half a second.
STILL = 8
LONGEST = 120

#: What -> nodes, models before, models after, what is said of the update.
UPDATES: dict[str, tuple[int, dict[str, Any], dict[str, Any], Kind]] = {
    "another context, two replicas on a full node": (
        1,
        {"a": model(4, 2)},
        {"a": model(4, 2) | {"max-model-len": 8192}},
        Kind.ROLLING,
    ),
    "another context, one replica beside free GPUs": (
        1,
        {"a": model(4, 1)},
        {"a": model(4, 1) | {"max-model-len": 8192}},
        Kind.ROLLING,
    ),
    "another context, one replica on a full node": (
        1,
        {"a": model(8, 1)},
        {"a": model(8, 1) | {"max-model-len": 8192}},
        Kind.OUTAGE,
    ),
    "4 GPUs each to 8": (1, {"a": model(4, 2)}, {"a": model(8, 1)}, Kind.OUTAGE),
    "8 GPUs to 4 each": (1, {"a": model(8, 1)}, {"a": model(4, 2)}, Kind.STUCK),
    "more, smaller replicas on a full node": (1, {"a": model(4, 2)}, {"a": model(2, 4)}, Kind.STUCK),
    "a model renamed on a full node": (1, {"a": model(4, 2)}, {"b": model(4, 2)}, Kind.STUCK),
    "a model beside another that leaves room": (
        1,
        {"a": model(4, 1)},
        {"a": model(4, 1), "b": model(4, 1)},
        Kind.ROLLING,
    ),
    "a model in place of another, on a node with room": (1, {"a": model(4, 1)}, {"b": model(4, 1)}, Kind.OUTAGE),
}


@pytest.fixture
def stage(control_plane: ControlPlane, api: ClusterApi, namespace: str) -> Iterator[Stage]:
    one = Stage(control_plane, api, namespace)
    yield one
    one.clear()


@pytest.mark.parametrize("update", UPDATES)
def test_an_update_comes_to_what_the_comparison_says(stage: Stage, update: str) -> None:
    nodes, before, after, kind = UPDATES[update]
    said = diff.compare(_side(before, nodes), _side(after, nodes), "test").consequences
    worst = min((each.kind for each in said if each.kind is not Kind.IN_PLACE), key=list(Kind).index, default=Kind.NONE)
    assert worst == kind, [each.sentence for each in said]
    stage.set(before, nodes)
    with Watch(stage, list(before)) as watch:
        ended = _update(stage, before, after, nodes)
    served = min(watch.fewest[name] for name in before)
    assert ended == (kind is not Kind.STUCK), "the comparison says that it gets stuck" if ended else "it got stuck"
    if kind is Kind.ROLLING:
        assert served >= 1, "it says that somebody is served all the while"
    if kind is Kind.OUTAGE:
        assert served == 0, "it says that nobody is served for a while"


def _update(stage: Stage, before: dict[str, Any], after: dict[str, Any], nodes: int) -> bool:
    """Whether it ends."""
    bounds = {"min": nodes, "max": nodes}
    stage.recording = recorded_preview(preset=None, models=after, gpu_nodes=bounds)
    for name in after:
        if name in before:
            new = copy.deepcopy(dict(stage.recording.one(DEPLOYMENT, f"{name}-deployment").inputs))["spec"]
            for volume in new["template"]["spec"]["volumes"]:
                if "configMap" in volume:
                    volume["configMap"]["name"] = "weights-program"
            _replace(stage, name, {**new, "minReadySeconds": 1})
        else:
            stage.prepare_objects()
            stage.deploy(name)
    plan = _plan(after, nodes)
    wanted = {each.name: each.layout.replicas for each in plan.models}
    seen, since, started = None, time.monotonic(), time.monotonic()
    while not all(stage.is_done(name, replicas) for name, replicas in wanted.items()):
        now = sorted((pod["metadata"]["name"], str(pod.get("status", {}).get("conditions"))) for pod in stage.pods())
        if now != seen:
            seen, since = now, time.monotonic()
        if time.monotonic() - since > STILL:
            return False
        assert time.monotonic() - started < LONGEST, "it neither ends nor stands still"
        time.sleep(0.1)
    for name in before.keys() - after.keys():
        stage.api.request("DELETE", stage.deployment(name))
    time.sleep(1)  # its replicas go
    return True


def _replace(stage: Stage, name: str, spec: dict[str, Any]) -> None:
    """The whole spec, and not a merge, which would keep what is gone; again where the controller was faster."""
    for _ in range(20):
        current = stage.api.request("GET", stage.deployment(name))
        with contextlib.suppress(ConflictError):
            stage.api.request("PUT", stage.deployment(name), body={**current, "spec": spec})
            return
    raise AssertionError(f"{name}: always modified meanwhile")


def _plan(models: dict[str, Any], nodes: int) -> StackPlan:
    bounds = {"min": nodes, "max": nodes}
    stack = {"location": "eastus", "environment": "development", "models": models, "gpu-nodes": bounds}
    return decide(Settings.model_validate(stack), stack="test", source="test")


def _side(models: dict[str, Any], nodes: int) -> Side:
    return Side(label="test", config={}, plan=report.as_json(_plan(models, nodes)))
