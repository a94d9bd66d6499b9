"""When a Kubernetes object counts as done, as the Pulumi Kubernetes provider's await logic has it, and why not yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sandbox.cluster_api import ClusterApi, Json

#: What only time or a person heals: worth showing while waiting, and in the error of a wait that came to its end.
STUCK = ("CrashLoopBackOff", "ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError", "InvalidImageName")


class GaveUpError(Exception):
    """Kubernetes itself has given up; the message is its own."""


def waiting_for(api: ClusterApi, live: Json) -> str | None:
    """What a live object still waits for, in a few words; None when it is done.

    Raises GaveUpError, and ClusterError when the API server cannot be asked.
    """
    rule = _RULES.get((live["apiVersion"], live["kind"]))
    return rule(api, live) if rule and not skips_await(live) else None


def skips_await(live: Json) -> bool:
    """Whether the program asked not to wait for this object."""
    return live["metadata"].get("annotations", {}).get("pulumi.com/skipAwait") == "true"


def stuck_reason(api: ClusterApi, live: Json, *, patient: bool = True) -> str:
    """Why the pods of a workload (or the pod itself) do not get ready; empty when there is nothing to tell.

    Patient, a container that only needs time is nothing to tell.
    """
    problem_of = _pod_problem if patient else lambda pod: _pod_problem(pod) or _not_ready(pod)
    if live["kind"] == "Pod":
        return problem_of(live)
    labels = live.get("spec", {}).get("selector") or {}
    labels = labels.get("matchLabels", {}) if live["kind"] != "Service" else labels
    for pod in _pods(api, live["metadata"].get("namespace", ""), labels):
        # What is on its way out holds nobody up, and says nothing about the version that is waited for.
        problem = "" if "deletionTimestamp" in pod["metadata"] else problem_of(pod)
        if problem:
            return f"pod {pod['metadata']['name']}: {problem}"
    return ""


def _deployment(_api: ClusterApi, live: Json) -> str | None:
    wanted, status = live["spec"].get("replicas", 1), live.get("status", {})
    conditions = _conditions(live)
    if not _observed(live):
        return "not seen by its controller yet"
    progressing = conditions.get("Progressing", {})
    if progressing.get("reason") == "ProgressDeadlineExceeded":
        raise GaveUpError(progressing.get("message", "its progress deadline has passed"))
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    settled = progressing.get("reason") == "NewReplicaSetAvailable" or "progressDeadlineSeconds" not in live["spec"]
    if updated == wanted == status.get("replicas", 0) and available >= wanted and settled:
        return None
    ready = status.get("readyReplicas", 0)
    # Ready, but not yet for `minReadySeconds`: without a word this looks like a hang.
    settling = f", {available} for long enough to count" if available < ready else ""
    return f"{ready}/{wanted} ready, {updated} of this version{settling}"


def _stateful_set(_api: ClusterApi, live: Json) -> str | None:
    wanted, status = live["spec"].get("replicas", 1), live.get("status", {})
    done = _observed(live) and status.get("updatedReplicas", 0) == wanted == status.get("readyReplicas", 0)
    return None if done else f"{status.get('readyReplicas', 0)}/{wanted} ready"


def _daemon_set(_api: ClusterApi, live: Json) -> str | None:
    """With no matching node there is nothing to wait for: a GPU pool may stand at zero."""
    status = live.get("status", {})
    wanted, ready = status.get("desiredNumberScheduled", 0), status.get("numberReady", 0)
    if _observed(live) and status.get("updatedNumberScheduled", 0) == wanted == ready:
        return None
    return f"{ready}/{wanted} ready"


def _service(api: ClusterApi, live: Json) -> str | None:
    spec, metadata = live["spec"], live["metadata"]
    if not spec.get("selector") or spec.get("clusterIP") == "None" or spec.get("type") == "ExternalName":
        return None
    slices = api.request(
        "GET",
        f"/apis/discovery.k8s.io/v1/namespaces/{metadata['namespace']}/endpointslices",
        query={"labelSelector": f"kubernetes.io/service-name={metadata['name']}"},
    )["items"]
    ready = [e.get("conditions", {}).get("ready") for s in slices for e in s.get("endpoints") or []]
    if not ready or not all(ready):
        return f"{sum(map(bool, ready))}/{len(ready)} endpoints ready"
    if spec["type"] == "LoadBalancer" and not live.get("status", {}).get("loadBalancer", {}).get("ingress"):
        return "no address yet"
    return None


def _pod(_api: ClusterApi, live: Json) -> str | None:
    ready = _conditions(live).get("Ready", {}).get("status") == "True"
    if ready or live.get("status", {}).get("phase") == "Succeeded":
        return None
    if live.get("status", {}).get("phase") == "Failed":
        raise GaveUpError(_pod_problem(live) or "the pod failed")
    return "not ready"


def _job(_api: ClusterApi, live: Json) -> str | None:
    conditions = _conditions(live)
    if conditions.get("Failed", {}).get("status") == "True":
        raise GaveUpError(conditions["Failed"].get("message", "the job failed"))
    if conditions.get("Complete", {}).get("status") == "True":
        return None
    return f"{live.get('status', {}).get('succeeded', 0)}/{live['spec'].get('completions', 1)} completed"


_RULES: Mapping[tuple[str, str], Callable[[ClusterApi, Json], str | None]] = {
    ("apps/v1", "Deployment"): _deployment,
    ("apps/v1", "StatefulSet"): _stateful_set,
    ("apps/v1", "DaemonSet"): _daemon_set,
    ("batch/v1", "Job"): _job,
    ("v1", "Service"): _service,
    ("v1", "Pod"): _pod,
}


def _observed(live: Json) -> bool:
    return live.get("status", {}).get("observedGeneration", 0) >= live["metadata"]["generation"]


def _conditions(live: Json) -> dict[str, Any]:
    return {condition["type"]: condition for condition in live.get("status", {}).get("conditions") or []}


def _pods(api: ClusterApi, namespace: str, labels: Mapping[str, str]) -> list[Json]:
    if not labels or not namespace:
        return []
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    return api.request("GET", f"/api/v1/namespaces/{namespace}/pods", query={"labelSelector": selector})["items"]


def _pod_problem(pod: Json) -> str:
    scheduled = _conditions(pod).get("PodScheduled", {})
    if scheduled.get("status") == "False":
        # Its second sentence is about preemption, which never helps between equals.
        return f"{scheduled.get('reason')}: {scheduled.get('message', '').partition('. ')[0]}"
    status = pod.get("status", {})
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        state = container.get("state", {})
        waiting, ended = state.get("waiting", {}), state.get("terminated", {})
        if waiting.get("reason") in STUCK:
            return f"container {container['name']}: {waiting['reason']}: {waiting.get('message', '')}"
        if ended.get("exitCode"):
            return f"container {container['name']} ended with exit code {ended['exitCode']} ({ended.get('reason')})"
    return ""


def _not_ready(pod: Json) -> str:
    status = pod.get("status", {})
    slow = [
        c["name"] for c in status.get("containerStatuses") or [] if "running" in c.get("state", {}) and not c["ready"]
    ]
    return f"container {', '.join(slow)} runs, but its probes have not succeeded yet" if slow else ""
