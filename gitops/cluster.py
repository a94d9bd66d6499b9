"""Looking into a cluster during and after an update: what is stuck, what runs, whether a model answers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sandbox.cluster_api import ClusterApi, ClusterError, Json
from sandbox.readiness import STUCK

#: Asks one question inside the pod, past every network rule, with the Python that vLLM itself runs on.
QUESTION = """
import json, urllib.request
body = json.dumps({"model": %r, "prompt": "Say hello.", "max_tokens": 8}).encode()
request = urllib.request.Request("http://127.0.0.1:%d/v1/completions", body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=120))["choices"][0]["text"])
"""
ANSWER_SECONDS = 180
#: The label of a Job's pods. https://kubernetes.io/docs/reference/labels-annotations-taints/#batch-kubernetes-io-job-name
JOB_NAME = "batch.kubernetes.io/job-name"


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Replicas of one model."""

    wanted: int
    ready: int


class Cluster:
    """One namespace, through the kubeconfig that the stack gives out (kubelogin signs in). Raises ClusterError."""

    def __init__(self, kubeconfig: str, namespace: str) -> None:
        self._kubeconfig, self._namespace = kubeconfig, namespace
        self._api = ClusterApi.connect(kubeconfig)

    def stuck_pods(self) -> dict[str, str]:
        """Pods that cannot start, each with the kubelet's reason."""
        found = {}
        for pod in self._list("api/v1", "pods"):
            status = pod.get("status", {})
            for container in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
                waiting = container.get("state", {}).get("waiting", {})
                if waiting.get("reason") in STUCK and "deletionTimestamp" not in pod["metadata"]:
                    said = waiting.get("message") or container.get("image")
                    found[pod["metadata"]["name"]] = f"{waiting['reason']}: {said}"
        return found

    def ready(self, models: Collection[str]) -> dict[str, Ready]:
        """How many replicas of each model are ready; models that are not there yet are left out."""
        return {
            each["metadata"]["name"]: Ready(
                wanted=each["spec"]["replicas"], ready=each.get("status", {}).get("readyReplicas", 0)
            )
            for each in self._list("apis/apps/v1", "deployments")
            if each["metadata"]["name"] in models
        }

    def differences(self, model: Mapping[str, Any]) -> Iterator[str]:
        """Where what runs is not what the plan says; nothing, when all is as planned."""
        name = model["name"]
        live = next((d for d in self._list("apis/apps/v1", "deployments") if d["metadata"]["name"] == name), None)
        if live is None:
            yield f"{name}: there is no Deployment of this name"
            return
        (server,) = [each for each in live["spec"]["template"]["spec"]["containers"] if each["name"] == "vllm"]
        if server["image"] != model["image"]["reference"]:
            yield f"{name}: runs {server['image']}, planned is {model['image']['reference']}"
        if server["args"] != list(model["args"]):
            yield f"{name}: runs with {' '.join(server['args'])}, planned is {' '.join(model['args'])}"
        wanted, status = live["spec"]["replicas"], live.get("status", {})
        if status.get("updatedReplicas", 0) != wanted or status.get("readyReplicas", 0) < wanted:
            yield f"{name}: {status.get('readyReplicas', 0)} of {wanted} replicas are ready"

    def ask(self, model: Mapping[str, Any]) -> str:
        """A first answer of the model, from inside one of its pods. Raises ClusterError when there is none."""
        import tempfile
        from pathlib import Path

        from kubernetes import client, config
        from kubernetes.stream import stream

        labels = {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": model["name"]}
        pods = [
            pod["metadata"]["name"]
            for pod in self._list("api/v1", "pods")
            if labels.items() <= pod["metadata"].get("labels", {}).items()
            and "deletionTimestamp" not in pod["metadata"]
        ]
        if not pods:
            raise ClusterError("there is no pod to ask")
        with tempfile.TemporaryDirectory(prefix="aks-vllm-") as folder:
            file = Path(folder, "kubeconfig")
            file.touch(mode=0o600)
            file.write_text(self._kubeconfig)
            # A client of its own: a stream takes over the client's way of sending requests.
            pod_exec = client.CoreV1Api(config.new_client_from_config(str(file))).connect_get_namespaced_pod_exec
        script = QUESTION % (model["served_model_name"], model["port"])
        command = {"container": "vllm", "command": ["python3", "-c", script], "stdout": True, "stderr": True}
        answer = stream(pod_exec, pods[0], self._namespace, **command, _preload_content=False)
        answer.run_forever(timeout=ANSWER_SECONDS)
        said, failed = answer.read_stdout().strip(), answer.read_stderr().strip()
        if not said:
            raise ClusterError(f"gave no answer: {(failed.splitlines() or ['nothing was said'])[-1]}")
        return said

    def last_words(self, job: str, container: str) -> str:
        """What a container of a Job's newest pod ended with; "" where it has said nothing, or has not ended."""
        pods = [pod for pod in self._list("api/v1", "pods") if pod["metadata"].get("labels", {}).get(JOB_NAME) == job]
        pods.sort(key=lambda pod: pod["metadata"]["creationTimestamp"])
        statuses = pods[-1].get("status", {}).get("containerStatuses", ()) if pods else ()
        ended = [each.get("state", {}).get("terminated") or {} for each in statuses if each["name"] == container]
        return ended[0].get("message", "") if ended else ""

    def annotate_job(self, job: str, name: str, value: str) -> None:
        """Note something on a Job, beside what is declared of it."""
        path = f"/apis/batch/v1/namespaces/{self._namespace}/jobs/{job}"
        body = {"metadata": {"annotations": {name: value}}}
        self._api.request("PATCH", path, body=body, content_type="application/merge-patch+json")

    def _list(self, group: str, kind: str) -> list[Json]:
        return self._api.request("GET", f"/{group}/namespaces/{self._namespace}/{kind}")["items"]
