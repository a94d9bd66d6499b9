"""What the plan promises while replicas are placed, replaced, drained, lost and scaled, on the real control plane.

The program's own manifests, unchanged but for their namespace and for `minReadySeconds`, as pods are ready in half a
second here; scheduler, controllers, admission and the eviction API are the real ones.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from planning.plan import StackPlan, decide
from planning.settings import Settings
from sandbox.cluster_api import MERGE, ClusterApi, ClusterError, NotFoundError
from sandbox.control_plane import ControlPlane
from sandbox.engine import Recording
from tests.components.harness import DEPLOYMENT, recorded_preview
from tests.sandbox.managed import GPU_TAINT, H100_NODE, eventually

pytestmark = pytest.mark.control_plane

POOL = {"aks-vllm/pool": "h100x8"}
KINDS = ("scheduling.k8s.io/v1:PriorityClass", "core/v1:ServiceAccount", "policy/v1:PodDisruptionBudget")
#: Seconds until something that takes one or two on a quiet machine must have come about.
PATIENCE = 90


def model(gpus: int, replicas: int) -> dict[str, Any]:
    """A small model, which fits on any number of GPUs that it is told to."""
    split = {"tensor-parallel-size": gpus}
    return {"preset": "qwen3-8b", "vm-size": "Standard_ND96isr_H100_v5", "replicas": replicas, "vllm": split}


@dataclass
class Stage:
    """A namespace with its own GPU nodes, and what the program declares for some models in it."""

    plane: ControlPlane
    api: ClusterApi
    namespace: str
    nodes: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)  # of the cluster, and in no namespace
    recording: Recording = field(init=False)

    def set(self, models: dict[str, Any], nodes: int, order: Callable[[list[str]], list[str]] = list) -> StackPlan:
        """Make nodes and Deployments, one after the other in this order of models; wait until all replicas serve."""
        plan = self.prepare(models, nodes)
        for name in order(list(models)):
            self.deploy(name)
        for each in plan.models:
            self.wait_for(each.name, each.layout.replicas)
        return plan

    def prepare(self, models: dict[str, Any], nodes: int) -> StackPlan:
        """Make nodes, and everything that the program declares for the models but their Deployments."""
        bounds = {"min": nodes, "max": nodes}
        stack = {"location": "eastus", "environment": "development", "models": models, "gpu-nodes": bounds}
        plan = decide(Settings.model_validate(stack), stack="test", source="test")
        assert plan.gpu_pools[0].count == nodes
        self.recording = recorded_preview(preset=None, models=models, gpu_nodes=bounds)
        for at in range(nodes):
            self.nodes.append(f"{self.namespace}-{at}")
            self.plane.add_node(self.nodes[-1], POOL, [GPU_TAINT], H100_NODE)
        namespace = dict(self.recording.one("kubernetes:core/v1:Namespace", "models-namespace").inputs)
        level = {"metadata": {"labels": namespace["metadata"]["labels"]}}
        self.patch(f"/api/v1/namespaces/{self.namespace}", level)
        self.prepare_objects()
        return plan

    def prepare_objects(self) -> None:
        """What Deployments need, where it is not there yet."""
        for kind in KINDS:
            for registration in self.recording.of_type(f"kubernetes:{kind}"):
                self._create(dict(registration.inputs))

    def deploy(self, name: str, without: Sequence[str] = ()) -> None:
        """Make a model's Deployment, some of its pods' fields left out."""
        deployment = copy.deepcopy(dict(self.recording.one(DEPLOYMENT, f"{name}-deployment").inputs))
        deployment["spec"]["minReadySeconds"] = 1
        for volume in deployment["spec"]["template"]["spec"]["volumes"]:
            if "configMap" in volume:  # made up by an update; a preview knows no name
                volume["configMap"]["name"] = "weights-program"
        for field_ in without:
            deployment["spec"]["template"]["spec"].pop(field_, None)
        self._create(deployment)

    def _create(self, body: dict[str, Any]) -> None:
        name = body["metadata"]["name"]
        body["metadata"] = {**body["metadata"], "namespace": self.namespace}
        if body["kind"] == "PriorityClass":
            del body["metadata"]["namespace"]
        path = self.api.path(body["apiVersion"], body["kind"], self.namespace, name)
        if self.api.get(path) is None:
            self.api.request("POST", path.rpartition("/")[0], body=body)
            if "namespace" not in body["metadata"]:
                self.shared.append(path)

    def clear(self) -> None:
        for node in self.nodes:
            self.plane.remove_node(node)
        for path in self.shared:  # a stack that comes after would find them taken
            self.api.request("DELETE", path)

    def patch(self, path: str, change: dict[str, Any]) -> None:
        self.api.request("PATCH", path, body=change, content_type=MERGE)

    def deployment(self, name: str) -> str:
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{name}"

    def pods(self, name: str | None = None) -> list[dict[str, Any]]:
        """Of one model or all of them; those that are on their way out are left out."""
        labels = "app.kubernetes.io/name=vllm" + (f",app.kubernetes.io/instance={name}" if name else "")
        listed = self.api.request("GET", f"/api/v1/namespaces/{self.namespace}/pods", query={"labelSelector": labels})[
            "items"
        ]
        return [pod for pod in listed if "deletionTimestamp" not in pod["metadata"]]

    def serving(self, name: str) -> int:
        return sum(is_ready(pod) for pod in self.pods(name))

    def wait_for(self, name: str, replicas: int) -> None:
        """As many serve as there should be, all of the newest version."""
        eventually(lambda: self.is_done(name, replicas), f"{name}: not {replicas} replicas serving", PATIENCE)

    def is_done(self, name: str, replicas: int) -> bool:
        """Whether as many serve as there should be, all of the newest version."""
        found = self.api.request("GET", self.deployment(name))
        status = found.get("status", {})
        seen = status.get("observedGeneration") == found["metadata"]["generation"]
        current = status.get("updatedReplicas", 0) == status.get("replicas", 0) == replicas
        return seen and current and self.serving(name) == replicas

    def contents(self) -> list[dict[str, int]]:
        """What each node holds, in a stable order."""
        held: dict[str, Counter[str]] = {node: Counter() for node in self.nodes}
        for pod in self.pods():
            if "nodeName" not in pod["spec"]:
                continue
            held[pod["spec"]["nodeName"]][pod["metadata"]["labels"]["app.kubernetes.io/instance"]] += 1
        return sorted((dict(node) for node in held.values()), key=str)

    def drain(self, node: str) -> None:
        """As `kubectl drain` and AKS do it: cordon, then evict until nothing is left, asking again after a refusal."""
        self.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": True}})

        def empty() -> bool:
            here = [pod for pod in self.pods() if pod["spec"].get("nodeName") == node]
            for pod in here:
                name = pod["metadata"]["name"]
                body = {
                    "apiVersion": "policy/v1",
                    "kind": "Eviction",
                    "metadata": {"name": name, "namespace": self.namespace},
                }
                try:
                    self.api.request("POST", f"/api/v1/namespaces/{self.namespace}/pods/{name}/eviction", body=body)
                except NotFoundError:
                    pass
                except ClusterError as refused:
                    assert "disruption budget" in str(refused), refused
            return not here

        eventually(empty, f"the drain of {node} never ends", PATIENCE)

    def replace_node(self, node: str) -> None:
        """Drain a node and bring it back empty, as an update of its image does. Nobody waits for its replicas."""
        self.drain(node)
        self.plane.remove_node(node)
        self.plane.add_node(node, POOL, [GPU_TAINT], H100_NODE)


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


@dataclass
class Watch:
    """The fewest and the most replicas of each model that serve, from its start to its end."""

    stage: Stage
    names: list[str]
    fewest: dict[str, int] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            counts = Counter(
                pod["metadata"]["labels"]["app.kubernetes.io/instance"] for pod in self.stage.pods() if is_ready(pod)
            )
            for name in self.names:
                self.fewest[name] = min(self.fewest.get(name, 99), counts[name])
                self.most[name] = max(self.most.get(name, 0), counts[name])


@pytest.fixture
def stage(control_plane: ControlPlane, api: ClusterApi, namespace: str) -> Iterator[Stage]:
    one = Stage(control_plane, api, namespace)
    yield one
    one.clear()


MIXES = {
    "a pair on one node": (1, {"a": model(4, 2)}),
    "two pairs on two nodes": (2, {"a": model(4, 2), "b": model(4, 2)}),
    "fours and twos": (2, {"a": model(4, 2), "b": model(2, 4)}),
    "a whole node and a pair": (2, {"a": model(8, 1), "b": model(4, 2)}),
    "three fours and two twos": (2, {"a": model(4, 3), "b": model(2, 2)}),
    "a whole node and four halves": (3, {"a": model(8, 1), "b": model(4, 4)}),
}


@pytest.mark.parametrize("small_first", [False, True], ids=["large first", "small first"])
@pytest.mark.parametrize("mix", MIXES)
def test_replicas_come_to_stand_as_planned_in_whatever_order_they_come(
    stage: Stage, mix: str, small_first: bool
) -> None:
    nodes, models = MIXES[mix]
    plan = stage.set(models, nodes, order=lambda names: names[::-1] if small_first else names)
    planned = [dict(kind.replicas) for kind in plan.placements[0].nodes for _ in range(kind.count)]
    assert stage.contents() == sorted(planned, key=str), plan.placements[0].way


def test_without_the_plans_rules_the_small_ones_strand_a_large_one(stage: Stage) -> None:
    """Or the test above could not fail."""
    nodes, models = MIXES["a whole node and a pair"]
    stage.prepare(models, nodes)
    rules = ("affinity", "topologySpreadConstraints", "priorityClassName")
    stage.deploy("b", without=rules)
    stage.wait_for("b", 2)
    stage.deploy("a", without=rules)

    def refused() -> bool:
        conditions = [each for pod in stage.pods("a") for each in pod.get("status", {}).get("conditions", [])]
        return any(each["type"] == "PodScheduled" and each.get("reason") == "Unschedulable" for each in conditions)

    eventually(refused, "the scheduler's own spreading has left a whole node: the tests above prove nothing", PATIENCE)
    assert stage.contents() == [{"b": 1}, {"b": 1}]


@pytest.mark.parametrize(
    ("nodes", "models"),
    [(1, {"a": model(4, 2)}), (1, {"a": model(4, 1)}), (2, {"a": model(4, 2), "b": model(4, 2)})],
    ids=["full node", "free place", "two models at once"],
)
def test_an_update_keeps_the_promised_replicas_serving(stage: Stage, nodes: int, models: dict[str, Any]) -> None:
    plan = stage.set(models, nodes)
    with Watch(stage, list(models)) as watch:
        for name in models:
            new = {"metadata": {"annotations": {"aks-vllm/config-hash": "another"}}}
            stage.patch(stage.deployment(name), {"spec": {"template": new}})
        for each in plan.models:
            stage.wait_for(each.name, each.layout.replicas)
    for each in plan.models:
        assert watch.fewest[each.name] >= each.rollout.min_available_during_update, watch.fewest
        if each.rollout.max_surge == 0:
            assert watch.fewest[each.name] < each.layout.replicas, "no replica was replaced: nothing is proved"
        hashes = {pod["metadata"]["annotations"]["aks-vllm/config-hash"] for pod in stage.pods(each.name)}
        assert hashes == {"another"}


@pytest.mark.parametrize(
    ("nodes", "models"),
    [
        (1, {"a": model(4, 2)}),
        (2, {"a": model(4, 2)}),
        (2, {"a": model(4, 2), "b": model(4, 2)}),
        (2, {"a": model(8, 1), "b": model(4, 2)}),
    ],
    ids=["one node", "two nodes", "two models on two full nodes", "replicas of different sizes"],
)
def test_every_node_can_be_drained_and_the_promised_replicas_keep_serving(
    stage: Stage, nodes: int, models: dict[str, Any]
) -> None:
    """One node after the other, as an update of the pool: the next one is begun before the replicas are back."""
    plan = stage.set(models, nodes)
    with Watch(stage, list(models)) as watch:
        for node in stage.nodes:
            stage.replace_node(node)
        for each in plan.models:
            stage.wait_for(each.name, each.layout.replicas)
    for each in plan.models:
        assert watch.fewest[each.name] >= each.rollout.min_available_during_drain, watch.fewest
        assert watch.fewest[each.name] < each.layout.replicas, "no replica was evicted: nothing is proved"
        assert (nodes == 1) <= (each.rollout.min_available_during_drain == 0), "one node: an outage, and it is said"


def test_a_replica_that_is_lost_comes_back_while_the_other_serves(stage: Stage) -> None:
    stage.set({"a": model(4, 2)}, 1)
    lost = stage.pods("a")[0]["metadata"]["name"]
    with Watch(stage, ["a"]) as watch:
        path = f"/api/v1/namespaces/{stage.namespace}/pods/{lost}"
        stage.api.request("DELETE", path, query={"gracePeriodSeconds": "0"})
        eventually(lambda: watch.fewest.get("a") == 1, "nobody was missed", PATIENCE)
        stage.wait_for("a", 2)
    assert watch.fewest["a"] == 1, "one serves all the while"
    assert lost not in [pod["metadata"]["name"] for pod in stage.pods("a")]


def test_more_and_fewer_replicas_disturb_nobody_who_stays(stage: Stage) -> None:
    stage.set({"a": model(2, 2)}, 1)
    stay = {pod["metadata"]["name"] for pod in stage.pods("a")}
    with Watch(stage, ["a"]) as watch:
        stage.patch(stage.deployment("a"), {"spec": {"replicas": 4}})
        stage.wait_for("a", 4)
        assert stay <= {pod["metadata"]["name"] for pod in stage.pods("a")}
        stage.patch(stage.deployment("a"), {"spec": {"replicas": 2}})
        stage.wait_for("a", 2)
    assert (watch.fewest["a"], watch.most["a"]) == (2, 4)


def test_a_pod_below_the_namespaces_security_level_is_refused(stage: Stage) -> None:
    stage.set({"a": model(4, 1)}, 1)
    template = stage.api.request("GET", stage.deployment("a"))["spec"]["template"]
    path = f"/api/v1/namespaces/{stage.namespace}/pods"

    def admitted(change: Callable[[dict[str, Any]], object]) -> None:
        pod = copy.deepcopy(template["spec"])
        change(pod)
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried"}, "spec": pod}
        stage.api.request("POST", path, body=body, query={"dryRun": "All"})

    admitted(lambda pod: None)
    for change in (
        lambda pod: pod["securityContext"].pop("seccompProfile"),
        lambda pod: pod["containers"][0].pop("securityContext"),
        lambda pod: pod["initContainers"][0]["securityContext"].update(allowPrivilegeEscalation=True),
        lambda pod: pod["securityContext"].update(runAsUser=0),
        lambda pod: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        lambda pod: pod.update(hostNetwork=True),
    ):
        with pytest.raises(ClusterError, match='violates PodSecurity "restricted'):
            admitted(change)
