"""One control plane for the whole session; each test has a namespace of its own in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox import toolchain
from sandbox.cluster_api import ClusterApi
from sandbox.control_plane import ControlPlane
from sandbox.kubernetes import KubernetesProvider
from tests.sandbox.managed import GPU_TAINT, H100_NODE, say
from tests.sandbox.project import Project, copied

ROOT = Path(__file__).parents[2]
#: Reads until nobody holds the other end of its input any more, however that came about.
GUARD = "import sys; from pathlib import Path; from sandbox.control_plane import ControlPlane; " + (
    "sys.stdin.read(); ControlPlane(Path(sys.argv[1]), lambda _: None).stop()"
)


@contextmanager
def ended_in_any_case(plane: ControlPlane) -> Generator[ControlPlane]:
    """Stop the control plane at the end; should the tests be killed, a process of its own does it."""
    folder = str(plane.folder)
    guard = subprocess.Popen(
        [sys.executable, "-c", GUARD, folder], cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield plane
    finally:
        plane.stop()
        guard.communicate(timeout=60)
        # The logs are kept for whoever asks why a test has failed.
        shutil.rmtree(plane.folder / "data", ignore_errors=True)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with one node of eight GPUs, whose pods are ready half a second after their start."""
    binaries = toolchain.binaries(say)
    plane = ControlPlane(tmp_path_factory.mktemp("control-plane"), say, pod_ready_delay_seconds=0.5)
    with ended_in_any_case(plane):
        plane.start(binaries)
        plane.add_node("gpu-0", {"aks-vllm/pool": "h100"}, [GPU_TAINT], H100_NODE)
        yield plane


@pytest.fixture
def api(control_plane: ControlPlane) -> ClusterApi:
    return ClusterApi(control_plane.admin_client())


@pytest.fixture
def namespace(api: ClusterApi) -> Iterator[str]:
    """A namespace of the test's own; it takes everything in it along."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    api.request("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
    yield name
    # Its pods first: a namespace waits half of their grace periods before it looks again, and GPUs stay taken so long.
    workloads = ("apps/v1", "deployments"), ("apps/v1", "daemonsets"), ("batch/v1", "jobs")
    for group, kind in workloads:
        api.request("DELETE", f"/apis/{group}/namespaces/{name}/{kind}", query={"propagationPolicy": "Background"})
    api.request("DELETE", f"/api/v1/namespaces/{name}/pods", query={"gracePeriodSeconds": "0"})
    api.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def said() -> list[str]:
    """What the provider has told people."""
    return []


@pytest.fixture
def provider(control_plane: ControlPlane, said: list[str]) -> KubernetesProvider:
    """The provider as a program configures it: AKS' kubeconfig, turned to a sign-in that needs no person."""
    kubeconfig = control_plane.user_kubeconfig().replace("devicecode", "azurecli")
    return KubernetesProvider(kubeconfig, control_plane.bin, said.append)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A copy of the project for the tests of one file."""
    with copied(tmp_path_factory.mktemp("project")) as copy:
        yield copy
