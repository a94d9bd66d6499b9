"""The unmodified program on a cloud that fails where it is told to: Azure simulated, Kubernetes in memory.

The objects of the cluster are kept in a file and nothing acts on them, so that hundreds of runs take minutes. What a
real API server makes of a failure is tested in test_killed_up.py and test_kubernetes.py.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pulumi.provider.experimental import provider as sdk

from sandbox.azure import CLUSTER, AzureError, SimulatedAzure
from sandbox.engine import Engine, Result, RunFailedError
from sandbox.kubernetes import KubernetesProvider
from sandbox.state import Store
from sandbox.values import from_properties, to_properties

ROOT = Path(__file__).parents[2]
TOKEN_KEY = "aks-vllm:hf-token"  # noqa: S105  the key, not the value
KUBECONFIG_KEY, EXISTING_KEY = "aks-vllm:kubeconfig", "aks-vllm:existing-cluster"
SECRET_KEYS = {TOKEN_KEY, KUBECONFIG_KEY, "aks-vllm:benchmark-key"}
CONFIG = {
    "azure-native:location": "eastus",
    "aks-vllm:environment": "development",
    "aks-vllm:preset": "llama-3.3-70b-instruct",
    TOKEN_KEY: "hf_" + "notARealToken" * 3,
}
KUBECONFIG = json.dumps(
    {"users": [{"name": "user", "user": {"exec": {"command": "kubelogin", "args": ["--server-id", "6dae42f8"]}}}]}
)

#: Fault -> (whether the resource exists afterwards, the error). None: the process is gone before it can tell.
FAULTS: dict[str, tuple[bool, Exception | None]] = {
    "quota": (False, AzureError(403, "InsufficientVCPUQuota", "no vCPUs are left")),
    "conflict": (False, AzureError(409, "OperationNotAllowed", "another operation is in progress")),
    "throttled": (False, AzureError(429, "TooManyRequests", "try again in 60 seconds")),
    "unreachable": (False, ConnectionRefusedError("the API server does not answer")),
    "internal error": (True, AzureError(500, "InternalServerError", "the service failed after it had begun")),
    "no capacity": (True, AzureError(409, "AllocationFailed", "no capacity after it had begun")),
    "timeout": (True, TimeoutError("no answer in time, though the work was done")),
    "killed": (True, None),
}


class Plane:
    """A control plane that only counts its nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: set[str] = set()

    def start(self, binaries: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def stop(self) -> None:
        self.nodes.clear()

    def running(self) -> bool:
        return True

    def add_node(self, name: str, labels: dict, taints: list, capacity: dict) -> None:
        self.nodes.add(name)

    def remove_node(self, name: str) -> None:
        self.nodes.discard(name)

    def user_kubeconfig(self) -> str:
        return KUBECONFIG


class Objects(KubernetesProvider):
    """Checks and compares as the real provider does; creates, updates and deletes in a file."""

    def __init__(self, file: Path) -> None:
        super().__init__("", None, lambda _: None)
        self._file = file

    def all(self) -> dict[str, Any]:
        return json.loads(self._file.read_text()) if self._file.exists() else {}

    def _put(self, urn: str, kind: str, inputs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        id_ = self.predicted_id(kind, to_properties(inputs))
        assert id_ is not None, "an update knows every name"
        with self._lock:
            everything = self.all()
            owner = everything.setdefault(f"{kind} {id_}", urn)
            assert owner == urn, f"{kind} {id_} belongs to {owner}"
            self._file.parent.mkdir(exist_ok=True)
            self._file.write_text(json.dumps(everything))
        # What a load balancer's Service waits for.
        return id_, {**inputs, "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.10"}]}}}

    async def create(self, request: sdk.CreateRequest) -> sdk.CreateResponse:
        if request.preview:
            return sdk.CreateResponse(properties=request.properties)
        id_, live = self._put(request.urn, _kind(request.urn), from_properties(request.properties))
        return sdk.CreateResponse(resource_id=id_, properties=to_properties(live))

    async def update(self, request: sdk.UpdateRequest) -> sdk.UpdateResponse:
        if not request.preview:
            self._put(request.urn, _kind(request.urn), from_properties(request.news))
        return sdk.UpdateResponse(properties=request.olds | request.news)

    async def delete(self, request: sdk.DeleteRequest) -> None:
        with self._lock:
            everything = self.all()
            everything.pop(f"{_kind(request.urn)} {request.resource_id}", None)
            self._file.write_text(json.dumps(everything))


@dataclass
class Passing(sdk.Provider):
    """A provider in front of another: all of it goes through."""

    provider: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.provider, name)

    async def check(self, request: sdk.CheckRequest) -> sdk.CheckResponse:
        return await self.provider.check(request)

    async def diff(self, request: sdk.DiffRequest) -> sdk.DiffResponse:
        return await self.provider.diff(request)

    async def create(self, request: sdk.CreateRequest) -> sdk.CreateResponse:
        return await self.provider.create(request)

    async def update(self, request: sdk.UpdateRequest) -> sdk.UpdateResponse:
        return await self.provider.update(request)

    async def delete(self, request: sdk.DeleteRequest) -> None:
        await self.provider.delete(request)

    async def invoke(self, request: sdk.InvokeRequest) -> sdk.InvokeResponse:
        return await self.provider.invoke(request)

    async def cancel(self) -> None:
        await self.provider.cancel()


@dataclass
class Faulty(Passing):
    """A provider whose creation of one resource fails once, in one way."""

    target: str  # logical name
    fault: str

    async def create(self, request: sdk.CreateRequest) -> sdk.CreateResponse:
        if request.preview or request.urn.rsplit("::", 1)[1] != self.target:
            return await self.provider.create(request)
        exists, error = FAULTS[self.fault]
        if exists:
            await self.provider.create(request)
        if error is None:
            os._exit(9)
        raise error


@dataclass
class World:
    """One subscription with a stack in it, in a folder of its own."""

    folder: Path
    config: dict[str, str] = field(default_factory=lambda: dict(CONFIG))
    through: Callable[[sdk.Provider], sdk.Provider] = lambda provider: provider

    @property
    def _objects(self) -> Path:
        """In the control plane's folder: they go when the cluster goes."""
        return self.folder / "plane" / "objects.json"

    @property
    def store(self) -> Store:
        """The stack's state."""
        return Store(self.folder / "state")

    def run(self, verb: str, target: str = "", fault: str = "") -> Result:
        """One verb on the stack; the creation of `target` fails with `fault`."""
        azure = SimulatedAzure(
            location="eastus",
            file=self.folder / "azure.json",
            plane=Plane(self.folder / "plane"),
            neighbour=self._theirs(),
        )
        objects = Objects(self._objects)

        def package(provider: sdk.Provider) -> Callable[[Any], sdk.Provider]:
            return lambda _: Faulty(provider, target, fault) if fault else self.through(provider)

        packages = {"azure-native": package(azure), "kubernetes": package(objects)}
        engine = Engine(project="aks-vllm", stack="test", store=self.store, packages=packages)
        if verb == "destroy":
            return engine.destroy(self.config)
        run = getattr(engine, verb)
        secrets = SECRET_KEYS & self.config.keys()
        return run(ROOT / "__main__.py", root=ROOT, config=self.config, secret_keys=secrets)

    def _theirs(self) -> Callable[[Path], Plane] | None:
        """Beside this stack, another one's cluster, where the settings name it."""
        id_ = json.loads(self.config.get(EXISTING_KEY, "{}")).get("id")
        if id_ is None:
            return None
        inputs = {"location": "eastus", "kubernetesVersion": "1.36", "oidcIssuerProfile": {"enabled": True}}
        entry = {"id": id_, "type": CLUSTER, "urn": "theirs", "inputs": inputs, "nodes": {}, "state": "Succeeded"}
        file = self.folder.parent / "theirs" / "azure.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"resources": [entry]}))
        return lambda _: Plane(self.folder / "plane")

    def fails(self, target: str, fault: str) -> str:
        """An `up` that is cut off at the creation of `target`; what it said, or that the process was killed."""
        if FAULTS[fault][1] is None:
            process = multiprocessing.get_context("fork").Process(target=self.run, args=("up", target, fault))
            process.start()
            process.join(timeout=300)
            assert process.exitcode == 9, f"{target}: the process ended with {process.exitcode}"
            return "killed"
        try:
            self.run("up", target, fault)
        except RunFailedError as failed:
            return str(failed)
        raise AssertionError(f"{target}: no failure though {fault} was ordered")

    def holds(self) -> Counter[str]:
        """How many of each type exist, in Azure and in the cluster."""
        file = self.folder / "azure.json"
        found = (
            Counter(resource["type"] for resource in json.loads(file.read_text())["resources"])
            if file.exists()
            else Counter()
        )
        return found + Counter(key.split()[0] for key in Objects(self._objects).all())


def converges(
    folder: Path, target: str, fault: str, expected: Counter[str], config: Mapping[str, str] = CONFIG
) -> None:
    """A failed `up`, run again, leaves exactly what an undisturbed one leaves; destroyed, nothing."""
    world = World(folder, dict(config))
    said = world.fails(target, fault)
    assert said == "killed" or str(FAULTS[fault][1]) in said, said
    world.run("up")
    again = world.run("preview")
    changed = [f"{step.op} {step.name}" for step in again.steps if step.op != "same"]
    assert not changed, f"{target}, {fault}: a third run would still {changed}"
    assert world.holds() == expected, (
        f"{target}, {fault}: {world.holds() - expected} too many, {expected - world.holds()} missing"
    )
    world.run("destroy")
    assert not world.holds(), f"{target}, {fault}: left behind {world.holds()}"


def _kind(urn: str) -> str:
    return urn.split("::")[2].rsplit("$", 1)[-1].removeprefix("kubernetes:")
