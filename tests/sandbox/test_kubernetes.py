"""The Kubernetes provider of the embedded engine: names, replacement, conflicts, waiting, and words for what fails."""

from __future__ import annotations

import asyncio
import base64
import copy
import threading
from typing import Any

import pytest
from pulumi.provider.experimental import provider as sdk

from sandbox import toolchain
from sandbox.cluster_api import APPLY, MERGE, ClusterApi, ClusterError, ConflictError, NotFoundError
from sandbox.control_plane import ControlPlane
from sandbox.kubernetes import KubernetesProvider
from sandbox.values import UNKNOWN, Secret, from_properties, masked, reveal, to_properties
from tests.sandbox.managed import Managed, eventually

real = pytest.mark.control_plane

DEPLOYMENT = "kubernetes:apps/v1:Deployment"
SECRET = "kubernetes:core/v1:Secret"  # noqa: S105  a type
SERVICE = "kubernetes:core/v1:Service"
TOKEN = "hf_0123456789abcdef"  # noqa: S105  nobody's

#: Any request with it fails: nobody listens on the discard port.
NOWHERE = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:9"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
users: [{name: u, user: {token: token-of-nobody}}]
"""


def workload(namespace: str, *, replicas: int = 1, gpus: int = 0, outcome: str = "", **spec: Any) -> dict[str, Any]:
    """A Deployment of pods that the GPU node takes."""
    labels = {"app": "vllm"}
    container = {"name": "main", "image": "example.invalid/vllm:1", "env": [{"name": "REVISION", "value": "1"}]}
    if gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
    pod = {"containers": [container], "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}
    metadata: dict[str, Any] = {"labels": labels}
    if outcome:
        metadata["annotations"] = {"sandbox.aks-vllm/outcome": outcome}
    whole = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": {"metadata": metadata, "spec": pod}}
    return {"metadata": {"namespace": namespace}, "spec": whole | spec}


def with_(declared: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one value set: `spec.replicas`."""
    changed = copy.deepcopy(declared)
    *parents, last = path.split(".")
    inner = changed
    for step in parents:
        inner = inner[int(step)] if isinstance(inner, list) else inner.setdefault(step, {})
    inner[last] = value
    return changed


def path_of(thing: Managed, kind: str = "/apis/apps/v1/namespaces/{}/deployments/{}") -> str:
    return kind.format(*thing.id.split("/"))


# What needs no cluster: its kubeconfig is not even one.


@pytest.fixture
def offline(said: list[str]) -> KubernetesProvider:
    return KubernetesProvider("no kubeconfig at all", None, said.append)


def test_an_object_without_a_name_gets_one_and_keeps_it(offline: KubernetesProvider):
    thing = Managed(offline, DEPLOYMENT, "model")
    thing.inputs = thing.check(workload("a"))
    name = thing.inputs["metadata"]["name"]
    assert name.startswith("model-")
    assert len(name) == len("model-") + 8
    assert thing.inputs["kind"] == "Deployment"
    assert thing.inputs["apiVersion"] == "apps/v1"
    again = thing.check(with_(workload("a"), "spec.replicas", 2))
    assert again["metadata"]["name"] == name, "another name at each run would replace everything at each run"


def test_a_given_name_is_left_alone(offline: KubernetesProvider):
    named = Managed(offline, DEPLOYMENT).check(with_(workload("a"), "metadata.name", "mine"))
    assert named["metadata"] == {"namespace": "a", "name": "mine"}


def test_nulls_of_the_program_are_not_applied(offline: KubernetesProvider):
    """Server-side apply would take ownership of the field and clear it."""
    checked = Managed(offline, DEPLOYMENT).check(with_(workload("a"), "spec.replicas", None))
    assert "replicas" not in checked["spec"]


@pytest.mark.parametrize(
    ("type_", "old", "path", "value", "replaces"),
    [
        (DEPLOYMENT, workload("a"), "spec.replicas", 3, False),
        (DEPLOYMENT, workload("a"), "spec.template.spec.containers.0.image", "example.invalid/vllm:2", False),
        (DEPLOYMENT, workload("a"), "spec.selector.matchLabels.app", "other", True),
        (DEPLOYMENT, workload("a"), "metadata.namespace", "b", True),
        (DEPLOYMENT, workload("a"), "metadata.labels", {"a": "b"}, False),
        (SECRET, {"stringData": {"token": "1"}}, "stringData.token", "2", True),
        (SECRET, {"stringData": {"token": "1"}}, "metadata.labels", {"a": "b"}, False),
        ("kubernetes:core/v1:ConfigMap", {"data": {"a": "1"}}, "data.b", "2", True),
        (SERVICE, {"spec": {"ports": [{"port": 80}]}}, "spec.ports.0.port", 8000, False),
        (SERVICE, {"spec": {"clusterIP": "10.0.0.9"}}, "spec.clusterIP", "10.0.0.10", True),
        ("kubernetes:rbac.authorization.k8s.io/v1:RoleBinding", {"roleRef": {"name": "a"}}, "roleRef.name", "b", True),
    ],
)
def test_what_kubernetes_cannot_change_is_replaced_under_a_new_name(
    offline: KubernetesProvider, type_: str, old: dict, path: str, value: Any, replaces: bool
):
    thing = Managed(offline, type_)
    thing.inputs = thing.check(old)
    new = thing.check(with_(old, path, value))
    difference = thing.diff(new)
    assert difference.changes
    assert bool(difference.replaces) == replaces
    assert (new["metadata"]["name"] != thing.inputs["metadata"]["name"]) == replaces
    assert not difference.delete_before_replace, "its users move over before the old one goes"


def test_a_replaced_object_with_a_fixed_name_goes_before_its_successor_comes(offline: KubernetesProvider):
    declared = {"metadata": {"name": "fixed"}, "stringData": {"token": "1"}}
    thing = Managed(offline, SECRET)
    thing.inputs = thing.check(declared)
    difference = thing.diff(thing.check(with_(declared, "stringData.token", "2")))
    assert difference.delete_before_replace, "two objects cannot have one name"


def test_two_resources_cannot_mean_one_object(offline: KubernetesProvider):
    declared = with_(workload("a"), "metadata.name", "same")
    for _ in range(2):
        Managed(offline, DEPLOYMENT, "first").check(declared)
    with pytest.raises(AssertionError, match=r"Deployment a/same is declared already, by .*::first"):
        Managed(offline, DEPLOYMENT, "second").check(declared)
    Managed(offline, SERVICE, "second").check(with_({"spec": {}}, "metadata", {"namespace": "a", "name": "same"}))


def test_charts_are_refused_with_the_way_out(offline: KubernetesProvider):
    with pytest.raises(AssertionError, match="declare its objects one by one"):
        Managed(offline, "kubernetes:helm.sh/v4:Chart").check({"chart": "keda"})


def test_a_preview_with_values_that_only_an_update_can_tell_calls_nobody(offline: KubernetesProvider):
    declared = with_(workload("a"), "spec.template.spec.serviceAccountName", UNKNOWN)
    shown = Managed(offline, DEPLOYMENT).preview(declared)
    assert shown["spec"]["template"]["spec"]["serviceAccountName"] is UNKNOWN
    assert "uid" not in shown["metadata"]


def test_a_preview_does_without_a_cluster_that_is_down_and_says_so_once(said: list[str]):
    provider = KubernetesProvider(NOWHERE, None, said.append)
    for name in ("a", "b"):
        assert Managed(provider, "kubernetes:core/v1:Namespace", name).preview({})["kind"] == "Namespace"
    assert len(said) == 1, "every resource would say the same"
    assert "https://127.0.0.1:9 cannot be reached" in said[0]
    assert "last known state" in said[0]
    with pytest.raises(ClusterError, match=r"cannot be reached: .*refused"):
        Managed(provider, "kubernetes:core/v1:Namespace", "c").up({})


def test_a_bad_kubeconfig_is_not_quoted():
    provider = KubernetesProvider("users: [{token: very-secret-token", None, lambda _: None)
    with pytest.raises(ClusterError, match="gives no access") as caught:
        Managed(provider, SERVICE).up({})
    assert "very-secret" not in str(caught.value)


# What a real API server, its controllers and scheduler make of it.


@real
def test_a_changed_secret_is_a_new_secret_and_its_users_roll(
    provider: KubernetesProvider, api: ClusterApi, namespace: str
):
    def declared(token: str) -> dict[str, Any]:
        return {"metadata": {"namespace": namespace}, "stringData": {"token": Secret(token)}}

    def using(secret: Managed) -> dict[str, Any]:
        volume = {"name": "token", "secret": {"secretName": reveal(secret.outputs)["metadata"]["name"]}}
        return with_(workload(namespace), "spec.template.spec.volumes", [volume])

    def pods() -> set[str]:
        listed = api.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]
        return {pod["metadata"]["name"] for pod in listed if "deletionTimestamp" not in pod["metadata"]}

    secret, user = Managed(provider, SECRET, "hugging-face"), Managed(provider, DEPLOYMENT, "model")
    secret.up(declared(TOKEN))
    user.up(using(secret))
    assert secret.up(declared(TOKEN)) == "same"
    first, before = secret.id, pods()
    former = Managed(provider, SECRET, "hugging-face", secret.inputs, secret.outputs, secret.id)
    assert secret.diff(secret.check(declared("hf_another"))).replaces
    secret.id, secret.outputs = "", {}
    secret.up(declared("hf_another"))
    assert secret.id != first
    assert user.up(using(secret)) == "update"
    assert not pods() & before, "a pod that keeps the old token would fail at its next download"
    former.destroy()
    assert api.get(path_of(former, "/api/v1/namespaces/{}/secrets/{}")) is None


@real
def test_a_secret_stays_marked_wherever_it_comes_back(provider: KubernetesProvider, namespace: str):
    secret = Managed(provider, SECRET)
    secret.up({"metadata": {"namespace": namespace}, "stringData": {"token": Secret(TOKEN)}})
    encoded = base64.b64encode(TOKEN.encode()).decode()
    assert reveal(secret.outputs)["data"] == {"token": encoded}
    assert secret.refresh()
    assert reveal(secret.inputs)["stringData"] == {"token": TOKEN}, "read back as the program wrote it"
    for text in (str(masked(secret.outputs)), str(masked(secret.inputs))):
        assert TOKEN not in text
        assert encoded not in text


@real
def test_a_field_that_somebody_else_manages_is_a_conflict_in_words(
    provider: KubernetesProvider, api: ClusterApi, namespace: str
):
    thing = Managed(provider, DEPLOYMENT)
    declared = workload(namespace)
    thing.up(declared)
    theirs = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 2}}
    query = {"fieldManager": "autoscaler", "force": "true"}
    api.request("PATCH", path_of(thing), body=theirs, query=query, content_type=APPLY)
    with pytest.raises(ConflictError) as caught:
        thing.up(with_(declared, "spec.replicas", 3))
    words = str(caught.value)
    for part in (f"Deployment {thing.id}", '"autoscaler"', ".spec.replicas", "let only one of the two set it"):
        assert part in words, words
    live = api.get(path_of(thing))
    assert live is not None
    assert live["spec"]["replicas"] == 2, "their value stands"


@real
def test_an_object_of_somebody_else_is_not_taken_over(provider: KubernetesProvider, api: ClusterApi, namespace: str):
    body = {"metadata": {"name": "theirs"}, "data": {"a": "1"}}
    api.request("POST", f"/api/v1/namespaces/{namespace}/configmaps", body=body)
    thing = Managed(provider, "kubernetes:core/v1:ConfigMap")
    declared = {"metadata": {"namespace": namespace, "name": "theirs"}, "data": {"b": "2"}}
    for attempt in (thing.preview, thing.up):
        with pytest.raises(ClusterError, match="already exists and is not managed by this stack"):
            attempt(declared)


@real
def test_drift_is_read_and_put_right(provider: KubernetesProvider, api: ClusterApi, namespace: str):
    declared = with_(workload(namespace), "metadata.labels", {"team": "serving"})
    declared = with_(declared, "spec.template.spec.containers.0.resources", {"requests": {"cpu": "1000m"}})
    thing = Managed(provider, DEPLOYMENT)
    thing.up(declared)
    assert thing.refresh()
    assert thing.up(declared) == "same", "defaults, and 1000m CPU written as 1, are no drift"
    body = {"metadata": {"labels": {"team": None, "added": "by-hand"}}}
    api.request("PATCH", path_of(thing), body=body, content_type=MERGE)
    assert thing.refresh()
    assert thing.inputs["metadata"]["labels"] == {}, "what the program never spoke of is none of its business"
    assert thing.up(declared) == "update"
    assert thing.outputs["metadata"]["labels"] == {"team": "serving", "added": "by-hand"}
    api.request("DELETE", path_of(thing))
    eventually(lambda: api.get(path_of(thing)) is None, "the Deployment must go")
    assert not thing.refresh(), "a deleted object is missed"
    thing.destroy()


@real
def test_a_field_that_is_declared_no_longer_goes_away(provider: KubernetesProvider, namespace: str):
    declared = workload(namespace)
    thing = Managed(provider, DEPLOYMENT)
    thing.up(with_(declared, "metadata.labels", {"team": "serving"}))
    assert thing.up(declared) == "update"
    assert "labels" not in thing.outputs["metadata"]


@real
def test_a_deployment_is_waited_for_with_progress(provider: KubernetesProvider, namespace: str, said: list[str]):
    thing = Managed(provider, DEPLOYMENT)
    thing.up(workload(namespace, replicas=2))
    assert thing.outputs["status"]["readyReplicas"] == 2
    assert any(line.startswith(f"Deployment {thing.id}: ") and "/2 ready" in line for line in said), said
    assert len(said) == len(set(said)), "the same sentence over and over tells nothing"


@real
def test_ready_pods_that_do_not_count_yet_are_said_to(provider: KubernetesProvider, namespace: str, said: list[str]):
    Managed(provider, DEPLOYMENT).up(workload(namespace, minReadySeconds=2))
    assert any("1/1 ready, 1 of this version, 0 for long enough to count" in line for line in said), said


@real
@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("crash-loop", "container main: CrashLoopBackOff: back-off 40s restarting"),
        ("image-pull-error", 'container main: ImagePullBackOff: Back-off pulling image "example.invalid/vllm:1"'),
        ("never-ready", "container main runs, but its probes have not succeeded yet"),
    ],
)
def test_a_pod_that_fails_says_why_within_the_timeout(
    provider: KubernetesProvider, namespace: str, outcome: str, words: str
):
    with pytest.raises(ClusterError, match=r"not ready after 2\.5 s \(the resource's create timeout\)") as caught:
        Managed(provider, DEPLOYMENT, "model").up(workload(namespace, outcome=outcome), timeout=2.5)
    assert words in str(caught.value)
    assert f"Deployment {namespace}/model-" in str(caught.value)
    assert "0/1 ready" in str(caught.value)


@real
def test_kubernetes_own_deadline_ends_the_waiting(provider: KubernetesProvider, namespace: str):
    declared = workload(namespace, outcome="never-ready", progressDeadlineSeconds=1)
    with pytest.raises(ClusterError, match=r"has timed out progressing.*probes have not succeeded"):
        Managed(provider, DEPLOYMENT).up(declared)


@real
def test_a_pod_without_a_place_gives_the_schedulers_own_words(
    provider: KubernetesProvider, namespace: str, said: list[str]
):
    with pytest.raises(ClusterError, match=r"Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia\.com/gpu"):
        Managed(provider, DEPLOYMENT).up(workload(namespace, gpus=9), timeout=2.5)
    assert any("Insufficient nvidia.com/gpu" in line for line in said), "while it waits, not only at the end"


@real
def test_a_service_waits_for_endpoints_and_a_headless_one_does_not(provider: KubernetesProvider, namespace: str):
    spec = {"selector": {"app": "vllm"}, "ports": [{"port": 80, "targetPort": 8000}]}
    service = Managed(provider, SERVICE, "waits")
    declared = {"metadata": {"namespace": namespace}, "spec": spec}
    with pytest.raises(ClusterError, match="0/0 endpoints ready"):
        service.up(declared, timeout=0.5)
    Managed(provider, DEPLOYMENT).up(workload(namespace))
    service.up(declared)
    assert service.outputs["spec"]["clusterIP"].startswith("10.0.")
    headless = {"selector": {"app": "nobody"}, "ports": [{"port": 80}], "clusterIP": "None"}
    Managed(provider, SERVICE, "headless").up({"metadata": {"namespace": namespace}, "spec": headless}, timeout=0.5)


@real
def test_a_disruption_budget_is_kept_by_the_real_controllers(
    provider: KubernetesProvider, api: ClusterApi, namespace: str
):
    Managed(provider, DEPLOYMENT).up(workload(namespace))
    budget = Managed(provider, "kubernetes:policy/v1:PodDisruptionBudget")
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "vllm"}}}
    budget.up({"metadata": {"namespace": namespace}, "spec": spec})
    path = path_of(budget, "/apis/policy/v1/namespaces/{}/poddisruptionbudgets/{}")

    def seen() -> bool:
        status = (api.get(path) or {})["status"]
        return status.get("currentHealthy") == 1

    eventually(seen, "the controller must count the pod")
    pod = api.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"][0]["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    with pytest.raises(ClusterError, match="disruption budget"):
        api.request("POST", f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction", body=eviction)


@real
def test_deleting_a_namespace_waits_until_it_is_gone(provider: KubernetesProvider, api: ClusterApi):
    space = Managed(provider, "kubernetes:core/v1:Namespace", "short-lived")
    space.up({})
    template = workload(space.id)["spec"]["template"]
    # Kubernetes looks at a namespace again after half of its pods' longest grace period.
    pod = {"metadata": {"name": "a"}, "spec": template["spec"] | {"terminationGracePeriodSeconds": 1}}
    api.request("POST", f"/api/v1/namespaces/{space.id}/pods", body=pod)
    space.destroy()
    assert api.get(f"/api/v1/namespaces/{space.id}") is None


@real
def test_deleting_a_deployment_waits_for_its_pods(provider: KubernetesProvider, api: ClusterApi, namespace: str):
    """Else their GPUs would still be taken when the next resource needs them; grace periods pass in fast motion."""
    thing = Managed(provider, DEPLOYMENT)
    thing.up(with_(workload(namespace), "spec.template.spec.terminationGracePeriodSeconds", 900))
    thing.destroy()
    assert api.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"] == []
    thing.destroy()


@real
def test_what_holds_a_deletion_up_is_named(provider: KubernetesProvider, api: ClusterApi, namespace: str):
    thing = Managed(provider, "kubernetes:core/v1:ConfigMap")
    thing.up({"metadata": {"namespace": namespace, "finalizers": ["example.com/held"]}, "data": {}})
    with pytest.raises(ClusterError, match=r"is not gone after 0 s; held by finalizers example\.com/held"):
        thing.destroy(timeout=0.1)
    path = path_of(thing, "/api/v1/namespaces/{}/configmaps/{}")
    api.request("PATCH", path, body={"metadata": {"finalizers": None}}, content_type=MERGE)
    thing.destroy()


@real
def test_a_killed_creation_converges(provider: KubernetesProvider, api: ClusterApi, namespace: str):
    """The engine has saved the inputs when it began; the object may be there, whole, without the engine knowing."""
    thing = Managed(provider, DEPLOYMENT)
    declared = workload(namespace, outcome="never-ready")
    thing.inputs = thing.check(declared)
    with pytest.raises(ClusterError):
        thing.up(declared, timeout=0.1)
    assert not thing.id
    assert provider.predicted_id(DEPLOYMENT, to_properties(thing.inputs))
    assert thing.up(workload(namespace)) == "create"
    listed = api.request("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments")["items"]
    assert [f"{namespace}/{item['metadata']['name']}" for item in listed] == [thing.id], "one object, not two"
    assert "outcome" not in str(thing.outputs["spec"]["template"])


@real
def test_cancel_stops_the_waiting_and_leaves_the_object(provider: KubernetesProvider, api: ClusterApi, namespace: str):
    problems: list[Exception] = []

    def create() -> None:
        try:
            Managed(provider, DEPLOYMENT).up(workload(namespace, outcome="never-ready"), timeout=60)
        except ClusterError as problem:
            problems.append(problem)

    def there() -> list[dict]:
        return api.request("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments")["items"]

    waiting = threading.Thread(target=create)
    waiting.start()
    eventually(there, "the Deployment must be created")
    asyncio.run(provider.cancel())
    waiting.join(timeout=10)
    assert "stopped while waiting" in str(problems)
    assert there(), "the next update goes on from there"


@real
def test_an_object_that_asks_not_to_be_waited_for_is_not(provider: KubernetesProvider, namespace: str):
    declared = with_(workload(namespace, gpus=9), "metadata.annotations", {"pulumi.com/skipAwait": "true"})
    thing = Managed(provider, DEPLOYMENT)
    thing.up(declared, timeout=0.5)
    assert not thing.outputs.get("status", {}).get("readyReplicas")


@real
def test_a_daemon_set_without_nodes_is_done_and_with_one_is_waited_for(provider: KubernetesProvider, namespace: str):
    """The device plugin is declared before a pool at zero has its first node."""
    declared = workload(namespace)
    del declared["spec"]["replicas"]
    thing = Managed(provider, "kubernetes:apps/v1:DaemonSet")
    thing.up(with_(declared, "spec.template.spec.nodeSelector", {"no": "such"}), timeout=10)
    assert thing.outputs["status"]["desiredNumberScheduled"] == 0
    thing.up(with_(declared, "spec.template.spec.nodeSelector", {"aks-vllm/pool": "h100"}))
    assert thing.outputs["status"]["numberReady"] == 1


@real
def test_a_job_is_waited_for_until_it_is_complete(provider: KubernetesProvider, namespace: str):
    template = workload(namespace)["spec"]["template"]
    template["spec"]["restartPolicy"] = "Never"
    thing = Managed(provider, "kubernetes:batch/v1:Job")
    thing.up({"metadata": {"namespace": namespace}, "spec": {"template": template}})
    assert thing.outputs["status"]["succeeded"] == 1


@real
def test_a_kind_that_the_cluster_lacks_passes_a_preview_and_fails_an_update_in_words(
    provider: KubernetesProvider, namespace: str
):
    """Its definition may be part of the same preview."""
    thing = Managed(provider, "kubernetes:keda.sh/v1alpha1:ScaledObject")
    declared = {"metadata": {"namespace": namespace}, "spec": {}}
    assert thing.preview(declared)["kind"] == "ScaledObject"
    with pytest.raises(NotFoundError, match=r"does not serve keda\.sh/v1alpha1.*operator or CRD installed"):
        thing.up(declared)
    thing.id = f"{namespace}/lost"
    assert not thing.refresh(), "when a definition goes, its objects are gone with it"
    thing.destroy()


@real
def test_a_preview_lets_the_api_server_judge_and_changes_nothing(
    provider: KubernetesProvider, api: ClusterApi, namespace: str
):
    wrong = with_(workload(namespace), "spec.template.spec.containers.0.ports", [{"containerPort": 99999}])
    with pytest.raises(ClusterError, match="must be between 1 and 65535"):
        Managed(provider, DEPLOYMENT, "wrong").preview(wrong)
    unknown = with_(workload(namespace), "spec.template.spec.containers.0.imagePullPolice", "Always")
    with pytest.raises(ClusterError, match="imagePullPolice"):
        Managed(provider, DEPLOYMENT, "unknown").preview(unknown)
    Managed(provider, DEPLOYMENT, "right").preview(workload(namespace))
    assert api.request("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments")["items"] == []
    absent = workload("made-in-the-same-preview")
    assert Managed(provider, DEPLOYMENT, "early").preview(absent)["kind"] == "Deployment"


@real
def test_an_update_preview_shows_what_the_server_would_make_of_it(provider: KubernetesProvider, namespace: str):
    declared = workload(namespace)
    thing = Managed(provider, DEPLOYMENT)
    thing.up(declared)
    inputs = thing.check(with_(declared, "spec.replicas", 2))
    properties = (to_properties(thing.outputs), to_properties(inputs))
    request = sdk.UpdateRequest(thing.urn, thing.id, *properties, 0, [], preview=True)
    response = asyncio.run(provider.update(request))
    assert response.properties is not None
    assert from_properties(response.properties)["spec"]["replicas"] == 2
    assert thing.refresh()
    assert thing.inputs["spec"]["replicas"] == 1, "a preview changes nothing"


@real
def test_requests_survive_a_restart_of_the_api_server(
    control_plane: ControlPlane, provider: KubernetesProvider, namespace: str
):
    """A pooled connection that the server has closed is not an error of the cluster's."""
    thing = Managed(provider, "kubernetes:core/v1:ConfigMap", "stays")
    thing.up({"metadata": {"namespace": namespace}, "data": {"a": "1"}})
    control_plane.stop()
    control_plane.start(toolchain.binaries(lambda _: None))
    assert thing.refresh()
