"""One real control plane for all tests that need one: its start takes seconds, its first build minutes."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pulumi.provider.experimental import provider as sdk

from sandbox import toolchain
from sandbox.cluster_api import ClusterApi
from sandbox.control_plane import ControlPlane
from sandbox.kubernetes import KubernetesProvider
from sandbox.values import from_properties, to_properties

H100_NODE = {"cpu": "96", "memory": "1900Gi", "pods": "110", "nvidia.com/gpu": "8"}
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


def say(text: str) -> None:
    print(text, file=sys.stderr)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with one node of eight GPUs, whose pods are ready half a second after their start."""
    plane = ControlPlane(tmp_path_factory.mktemp("control-plane"), say, pod_ready_delay_seconds=0.5)
    try:
        plane.start(toolchain.binaries(say))
        plane.add_node("gpu-0", {"aks-vllm/pool": "h100"}, [GPU_TAINT], H100_NODE)
        yield plane
    finally:
        plane.stop()


@pytest.fixture
def api(control_plane: ControlPlane) -> ClusterApi:
    return ClusterApi(control_plane.admin_client())


@pytest.fixture
def namespace(api: ClusterApi) -> Iterator[str]:
    """A namespace of the test's own; it takes everything in it along."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    api.request("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
    yield name
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


@dataclass
class Managed:
    """One resource of a program, driven through the provider's methods in the engine's order."""

    provider: KubernetesProvider
    type: str
    name: str = "thing"
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    id: str = ""

    @property
    def urn(self) -> str:
        return f"urn:pulumi:test::aks-vllm::aks-vllm:index:Parent${self.type}::{self.name}"

    def check(self, declared: dict[str, Any]) -> dict[str, Any]:
        response = asyncio.run(
            self.provider.check(
                sdk.CheckRequest(self.urn, to_properties(self.inputs), to_properties(declared), random_seed=b"")
            )
        )
        assert not response.failures, [failure.reason for failure in response.failures]
        return from_properties(response.inputs)

    def diff(self, inputs: dict[str, Any]) -> sdk.DiffResponse:
        request = sdk.DiffRequest(self.urn, self.id, to_properties(self.outputs), to_properties(inputs), [])
        vars(request)["old_inputs"] = to_properties(self.inputs)
        return asyncio.run(self.provider.diff(request))

    def up(self, declared: dict[str, Any], timeout: float = 30) -> str:
        """Bring the object to what is declared; the word for what had to be done."""
        inputs = self.check(declared)
        if not self.id:
            return self._create(inputs, timeout)
        difference = self.diff(inputs)
        if not difference.changes:
            return "same"
        if difference.replaces:
            former = Managed(self.provider, self.type, self.name, self.inputs, self.outputs, self.id)
            if difference.delete_before_replace:
                former.destroy()
            self._create(inputs, timeout)
            if not difference.delete_before_replace:
                former.destroy()
            return "replace"
        properties = (to_properties(self.outputs), to_properties(inputs))
        request = sdk.UpdateRequest(self.urn, self.id, *properties, timeout, [], preview=False)
        response = asyncio.run(self.provider.update(request))
        self.inputs, self.outputs = inputs, from_properties(response.properties)
        return "update"

    def refresh(self) -> bool:
        """Read the object back; whether it still exists."""
        request = sdk.ReadRequest(self.urn, self.id, to_properties(self.outputs), to_properties(self.inputs))
        response = asyncio.run(self.provider.read(request))
        self.inputs, self.outputs = from_properties(response.inputs), from_properties(response.properties)
        return bool(response.resource_id)

    def destroy(self, timeout: float = 30) -> None:
        request = sdk.DeleteRequest(self.urn, self.id, to_properties(self.outputs), timeout)
        asyncio.run(self.provider.delete(request))

    def _create(self, inputs: dict[str, Any], timeout: float) -> str:
        request = sdk.CreateRequest(self.urn, to_properties(inputs), timeout, preview=False)
        response = asyncio.run(self.provider.create(request))
        assert response.resource_id, "a created object has an id"
        self.inputs, self.outputs, self.id = inputs, from_properties(response.properties), response.resource_id
        return "create"
