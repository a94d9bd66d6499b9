"""The control plane starts, heals, stops, and schedules as a real one does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import GPU_TAINT, H100_NODE, say

from sandbox import toolchain
from sandbox.cluster_api import ClusterApi, ClusterError
from sandbox.control_plane import COMPONENTS, ControlPlane, ControlPlaneError

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
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "4"
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


def test_stop_ends_every_process_and_a_start_goes_on_with_the_data(tmp_path: Path):
    plane = ControlPlane(tmp_path / "own", say)
    try:
        plane.start(toolchain.binaries(say))
        ids, port = plane.processes().values(), (plane.folder / "ports.json").read_text()
        ClusterApi(plane.admin_client()).request("POST", "/api/v1/namespaces", body={"metadata": {"name": "kept"}})
        plane.stop()
        assert plane.processes() == {}
        assert not [pid for pid in ids if Path(f"/proc/{pid}/exe").exists()], "a process was left behind"
        plane.start(toolchain.binaries(say))
        assert (plane.folder / "ports.json").read_text() == port, "kubeconfigs handed out earlier must stay valid"
        assert ClusterApi(plane.admin_client()).get("/api/v1/namespaces/kept") is not None
    finally:
        plane.stop()


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
    assert Path(configuration.ssl_ca_cert).read_text().startswith("-----BEGIN CERTIFICATE-----")
