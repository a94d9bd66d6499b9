"""What the sandbox's tests share: the node that they use, and one resource driven as the engine drives it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pulumi.provider.experimental import provider as sdk

from sandbox.kubernetes import KubernetesProvider
from sandbox.values import from_properties, to_properties

H100_NODE = {"cpu": "96", "memory": "1900Gi", "pods": "110", "nvidia.com/gpu": "8"}
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}

T = TypeVar("T")


def say(text: str) -> None:
    print(text, file=sys.stderr)


def eventually(look: Callable[[], T], what: str, seconds: float = 20) -> T:
    """What `look` gives as soon as it is true; controllers take a moment."""
    until = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < until, what
        time.sleep(0.1)
    return found


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

    def preview(self, declared: dict[str, Any]) -> dict[str, Any]:
        """What a creation would give."""
        request = sdk.CreateRequest(self.urn, to_properties(self.check(declared)), 0, preview=True)
        return from_properties(asyncio.run(self.provider.create(request)).properties)

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
