"""The control plane starts, heals, stops, and schedules as a real one does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client, watch

from sandbox import toolchain
from sandbox.cluster_api import ClusterApi, ClusterError
from sandbox.control_plane import COMPONENTS, ControlPlane, ControlPlaneError
from tests.sandbox.conftest import ROOT, ended_in_any_case
from tests.sandbox.managed import GPU_TAINT, H100_NODE, eventually, say

pytestmark = pytest.mark.control_plane


def pods_of(api: ClusterApi, namespace: str, seconds: float = 20) -> list[dict]:
    """The pods of a namespace, once each of them is either ready or found unschedulable."""
    until = time.monotonic() + seconds
    while True:
        pods = api.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]
        if pods and all(condition(pod, "Ready") == "True" or reason(pod) for pod in pods):
            return pods
        assert time.monotonic() < until, f"the pods did not settle: {[pod.get('status') for pod in pods]}"
        time.sleep(0.1)


def condition(pod: dict, type_: str) -> str:
    return next((c["status"] for c in pod["status"].get("conditions", []) if c["type"] == type_), "")


def reason(pod: dict) -> str:
    return next((c.get("message", "") for c in pod["status"].get("conditions", []) if c["type"] == "PodScheduled"), "")


def gpu_pod(name: str, gpus: int = 4) -> dict:
    container = {
        "name": "main",
        "image": "example.invalid/vllm",
        "resources": {"limits": {"nvidia.com/gpu": str(gpus)}},
    }
    setup = {"name": "download", "image": "example.invalid/vllm"}
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    spec = {"containers": [container], "initContainers": [setup], "tolerations": tolerations}
    return {"metadata": {"name": name}, "spec": spec}


def test_a_second_start_adopts_what_runs(control_plane: ControlPlane):
    before = control_plane.processes()
    ControlPlane(control_plane.folder, say, pod_ready_delay_seconds=0.5).start(toolchain.binaries(say))
    assert control_plane.processes() == before, "another program in the same folder must not start anything twice"
    assert set(before) == set(COMPONENTS)


@pytest.mark.parametrize("component", ["kube-scheduler", "etcd"])
def test_a_killed_component_is_started_again(control_plane: ControlPlane, api: ClusterApi, component: str):
    before = control_plane.processes()
    os.kill(before[component], signal.SIGKILL)
    until = time.monotonic() + 10
    while control_plane.running() and time.monotonic() < until:
        time.sleep(0.05)
    assert not control_plane.running(), "a missing component must be noticed"
    control_plane.start(toolchain.binaries(say))
    after = control_plane.processes()
    assert control_plane.running()
    assert after[component] != before[component]
    assert {n: p for n, p in after.items() if n != component} == {n: p for n, p in before.items() if n != component}
    assert api.get("/api/v1/nodes/gpu-0") is not None, "the data must survive"


def test_after_a_loss_of_power_everything_is_there_again(control_plane: ControlPlane, api: ClusterApi, namespace: str):
    """All processes gone at once, files of theirs left behind: what a restart of the machine looks like."""
    api.request("POST", f"/api/v1/namespaces/{namespace}/pods", body=gpu_pod("a", gpus=1))
    before = pods_of(api, namespace)[0]
    ports = (control_plane.folder / "ports.json").read_text()
    for pid in control_plane.processes().values():
        os.kill(pid, signal.SIGKILL)
    control_plane.start(toolchain.binaries(say))
    assert (control_plane.folder / "ports.json").read_text() == ports, "kubeconfigs handed out earlier must stay valid"
    after = pods_of(api, namespace)[0]
    assert (after["metadata"]["uid"], condition(after, "Ready")) == (before["metadata"]["uid"], "True")
    api.request("POST", f"/api/v1/namespaces/{namespace}/pods", body=gpu_pod("b", gpus=1))
    assert {condition(pod, "Ready") for pod in pods_of(api, namespace)} == {"True"}, "scheduler and KWOK work again"


def test_long_logs_are_cut_to_their_ends_while_they_are_written(control_plane: ControlPlane):
    log = control_plane.folder / "logs/kwok.log"
    with log.open("ab") as other:
        other.write(b"a line of a long log\n" * 60_000 + b"the last line\n")
    size = log.stat().st_size
    assert control_plane.running()
    assert log.stat().st_size < size / 2
    assert log.read_bytes().endswith(b"the last line\n")
    assert os.O_APPEND & _flags_of(control_plane.processes()["kwok"]), "else the next line would leave a hole as before"


def _flags_of(pid: int) -> int:
    """How a process opened its standard output."""
    lines = Path(f"/proc/{pid}/fdinfo/1").read_text().splitlines()
    return next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))


def test_a_foreign_process_is_never_taken_for_a_component(control_plane: ControlPlane, tmp_path: Path):
    """Same program name, arguments of a folder that only begins alike."""
    stranger = tmp_path / "kwok"
    stranger.symlink_to("/bin/sleep")
    before = control_plane.processes()
    with subprocess.Popen(["/bin/sh", "-c", f"exec '{stranger}' 60 # ={control_plane.folder}-2/x"]) as process:
        try:
            assert control_plane.processes() == before
        finally:
            process.kill()


def test_it_listens_on_loopback_only(control_plane: ControlPlane):
    ids = set(control_plane.processes().values())
    inodes = set()
    for pid in ids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append(fields[1].split(":")[0])
    assert listening, "etcd and the API server listen somewhere"
    assert set(listening) == {"0100007F"}, "nobody else on the network may reach the sandbox"


def test_secrets_are_readable_by_their_owner_alone(control_plane: ControlPlane):
    private = ["certificates/tokens.csv", "certificates/deployer.json", "certificates/server.key", "admin.kubeconfig"]
    modes = {name: (control_plane.folder / name).stat().st_mode & 0o777 for name in private}
    assert set(modes.values()) == {0o600}, modes


def test_two_replicas_of_four_gpus_fill_a_node_and_the_third_says_why(api: ClusterApi, namespace: str):
    for name in ("a", "b", "c"):
        api.request("POST", f"/api/v1/namespaces/{namespace}/pods", body=gpu_pod(name))
    pods = pods_of(api, namespace)
    placed = [pod for pod in pods if pod["spec"].get("nodeName") == "gpu-0"]
    waiting = [pod for pod in pods if not pod["spec"].get("nodeName")]
    assert len(placed) == 2, "8 GPUs hold two pods of 4"
    assert "Insufficient nvidia.com/gpu" in reason(waiting[0]), "the scheduler's own words reach the user"
    done = placed[0]["status"]["initContainerStatuses"][0]["state"]
    assert done["terminated"]["reason"] == "Completed", "a pod is not ready before its init containers are done"


def test_a_pod_without_the_toleration_stays_off_gpu_nodes(api: ClusterApi, namespace: str):
    pod = gpu_pod("a", gpus=1)
    del pod["spec"]["tolerations"]
    api.request("POST", f"/api/v1/namespaces/{namespace}/pods", body=pod)
    assert "untolerated taint" in reason(pods_of(api, namespace)[0])


def test_a_node_can_be_added_twice_changed_and_removed(control_plane: ControlPlane, api: ClusterApi, namespace: str):
    for gpus in ("8", "4"):
        capacity = {**H100_NODE, "nvidia.com/gpu": gpus}
        control_plane.add_node("gpu-1", {"round": gpus, f"only-{gpus}": "yes"}, [GPU_TAINT], capacity)
    node = api.get("/api/v1/nodes/gpu-1")
    assert node is not None
    exact = {**H100_NODE, "nvidia.com/gpu": "4"}
    assert node["status"]["capacity"] == node["status"]["allocatable"] == exact, "nothing added, nothing left over"
    assert condition(node, "Ready") == "True"
    assert node["metadata"]["labels"]["round"] == "4"
    assert "only-8" not in node["metadata"]["labels"], "a label that the pool no longer has must go"
    pod = gpu_pod("a", gpus=1)
    pod["spec"]["nodeSelector"] = {"round": "4"}
    api.request("POST", f"/api/v1/namespaces/{namespace}/pods", body=pod)
    pods_of(api, namespace)
    for _ in range(2):
        control_plane.remove_node("gpu-1")
    assert api.get("/api/v1/nodes/gpu-1") is None
    until = time.monotonic() + 10
    while api.get(f"/api/v1/namespaces/{namespace}/pods/a") is not None:
        assert time.monotonic() < until, "a pod must not outlive its machine"
        time.sleep(0.1)


def test_a_sign_in_that_waits_for_a_person_is_refused(control_plane: ControlPlane):
    """AKS hands out `--login devicecode`; a deployment that keeps it hangs until somebody notices."""
    with pytest.raises(ClusterError, match="devicecode waits for a person"):
        ClusterApi.connect(control_plane.user_kubeconfig(), control_plane.bin)


def test_the_plug_in_is_missed_with_words(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ClusterError, match="`kubelogin`, which is not on PATH"):
        ClusterApi.connect(control_plane.user_kubeconfig())


def test_another_sign_in_gets_a_token(control_plane: ControlPlane):
    kubeconfig = control_plane.user_kubeconfig().replace("devicecode", "workloadidentity")
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = ClusterApi.connect(kubeconfig, control_plane.bin).request(
        "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=review
    )
    assert answer["status"]["userInfo"]["username"] == "deployer"


START = """
import sys, os, signal
from pathlib import Path
from sandbox.control_plane import ControlPlane
ControlPlane(Path(sys.argv[1]), print).start(Path(sys.argv[2]))
os.killpg(0, signal.SIGKILL)
"""


def test_it_outlives_its_program_stops_whole_and_goes_on_with_the_data(tmp_path: Path):
    plane = ControlPlane(tmp_path / "own", say)
    with ended_in_any_case(plane):
        command = [sys.executable, "-c", START, str(plane.folder), str(toolchain.binaries(say))]
        killed = subprocess.run(command, cwd=ROOT, start_new_session=True, timeout=120, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert plane.running(), "killing the program and its process group must leave the control plane alone"
        before = plane.processes()
        plane.start(toolchain.binaries(say))
        assert plane.processes() == before, "the next command adopts it"
        ids, port = plane.processes().values(), (plane.folder / "ports.json").read_text()
        ClusterApi(plane.admin_client()).request("POST", "/api/v1/namespaces", body={"metadata": {"name": "kept"}})
        plane.stop()
        assert plane.processes() == {}
        assert not [pid for pid in ids if Path(f"/proc/{pid}/exe").exists()], "a process was left behind"
        with socket.create_server(("127.0.0.1", json.loads(port)["kube-apiserver"])):
            plane.start(toolchain.binaries(say))
            assert ClusterApi(plane.admin_client()).get("/api/v1/namespaces/kept") is not None, "somebody took our port"


def test_it_ends_even_if_the_tests_are_killed(tmp_path: Path):
    """Looked at with a program of etcd's name: the guard knows processes by name and folder."""
    folder = (tmp_path / "own").resolve()
    sleeper = tmp_path / "etcd"
    sleeper.symlink_to(sys.executable)
    script = f"""
import subprocess, os, signal
from pathlib import Path
from tests.sandbox.conftest import ended_in_any_case
from tests.sandbox.managed import say
from sandbox.control_plane import ControlPlane
with ended_in_any_case(ControlPlane(Path({str(folder)!r}), say)):
    subprocess.Popen([{str(sleeper)!r}, "-c", "import time; time.sleep(300)", "--data-dir={folder}/data"],
                     start_new_session=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    folder.mkdir()
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, timeout=60, check=False)
    plane = ControlPlane(folder, say)
    eventually(lambda: not plane.processes(), "a control plane was left behind")


def test_a_component_that_cannot_start_is_named_with_its_last_words(tmp_path: Path):
    fakes = tmp_path / "bin"
    fakes.mkdir()
    for name in COMPONENTS:
        (fakes / name).write_text("#!/bin/sh\necho no space left on device\nexit 1\n")
        (fakes / name).chmod(0o755)
    plane = ControlPlane(tmp_path / "broken", say)
    with pytest.raises(ControlPlaneError, match=r"(?s)etcd stopped.*etcd\.log.*no space left on device"):
        plane.start(fakes)


def test_the_admin_client_verifies_the_server(control_plane: ControlPlane):
    configuration = control_plane.admin_client().configuration
    assert configuration.verify_ssl
    assert Path(str(configuration.ssl_ca_cert)).read_text().startswith("-----BEGIN CERTIFICATE-----")


def deployment(name: str, revision: str, *, gpus: int = 4) -> dict:
    """Two replicas that fill the node, so that an update must take one away before it can add one."""
    labels = {"app": name}
    pod = gpu_pod(name, gpus)
    pod["spec"]["terminationGracePeriodSeconds"] = 600
    sleep = {"preStop": {"exec": {"command": ["sleep", "300"]}}}
    pod["spec"]["containers"][0] |= {"lifecycle": sleep, "env": [{"name": "REVISION", "value": revision}]}
    spec = {
        "replicas": 2,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod["spec"]},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def pod_states(control_plane: ControlPlane, namespace: str, start: dict) -> Iterator[list[dict]]:
    """Every state that the pods of a namespace went through since `start`, as the API server tells its watchers."""
    pods = {pod["metadata"]["name"]: pod for pod in start["items"]}
    yield list(pods.values())
    listing = client.CoreV1Api(control_plane.admin_client()).list_namespaced_pod
    version = start["metadata"]["resourceVersion"]
    for event in watch.Watch().stream(listing, namespace, resource_version=version, timeout_seconds=1):
        pod = event["raw_object"]
        pods[pod["metadata"]["name"]] = pod
        if event["type"] == "DELETED":
            del pods[pod["metadata"]["name"]]
        yield list(pods.values())


def test_a_rollout_on_a_full_node_always_keeps_one_replica_ready(
    control_plane: ControlPlane, api: ClusterApi, namespace: str
):
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    api.request("POST", path, body=deployment("vllm", "1"))

    def ready(revision: str, pods: list[dict]) -> list[str]:
        return [
            pod["metadata"]["name"]
            for pod in pods
            if condition(pod, "Ready") == "True"
            and "deletionTimestamp" not in pod["metadata"]
            and pod["spec"]["containers"][0]["env"][0]["value"] in revision
        ]

    def listed() -> dict:
        return api.request("GET", f"/api/v1/namespaces/{namespace}/pods")

    eventually(lambda: len(ready("1", listed()["items"])) == 2, "the first version must come up")
    start = listed()
    api.request("PUT", f"{path}/vllm", body=deployment("vllm", "2"))
    # 600 s of grace and 300 s of preStop are the machine's to wait for; here nothing runs in the pod.
    eventually(lambda: len(ready("2", listed()["items"])) == 2, "the second version must come up")
    states = list(pod_states(control_plane, namespace, start))
    fewest = min(len(ready("12", pods)) for pods in states)
    most = max(sum("deletionTimestamp" not in pod["metadata"] for pod in pods) for pods in states)
    assert fewest == 1, "one replica at a time is down: never both, and not none, for the node is full"
    assert most == 2, "no surge: there is no node for it"
    assert len(states) > 6, "the whole rollout was looked at: two pods ended, two created, placed and started"
    nodes = {pod["spec"]["nodeName"] for pod in listed()["items"]}
    assert nodes == {"gpu-0"}
