"""Each setting changed once: what the previews said of it, beside what an update then did.

Two previews are held against the update: the engine's, resource by resource, and the comparison's sentence of what the
change means for the people served. The cloud is the one of `faulty`, undisturbed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from planning import diff, report, stack_file
from planning.diff import Kind, Side
from planning.findings import InvalidStack
from planning.plan import read_and_decide
from planning.settings import ModelSettings, Settings
from sandbox.deployment import Op, Step
from sandbox.engine import Result, RunFailedError
from tests.components.harness import TOKEN_KEY, stack_config
from tests.edge import certificates
from tests.sandbox.faulty import KUBECONFIG, SECRET_KEYS, World

#: Fixed, so that budgets and kubernetes versions are judged the same on every day.
TODAY = date(2026, 11, 26)
_KEY = {"sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}
_MEASURED = {"benchmark": True, "edge": {"keys": {"team-a": _KEY}}}
_NAMED = {"tls-secret": "edge-tls", "host": "llm.example.com"}
_BUDGET = {"usd-per-month": 80000, "contacts": ["platform@example.com"], "first-month": "2026-12"}
_WORKLOAD = {"input-tokens": 1024, "output-tokens": 512, "users": 16}
_SUBNET = "/subscriptions/00000000-0000-0000-0000-00000000aaaa/resourceGroups/rg-hub/providers/Microsoft.Network"
_GROUP = "/subscriptions/00000000-0000-0000-0000-00000000aaaa/resourceGroups/rg-gpus/providers/Microsoft.Compute"
_CLUSTER = (
    "/subscriptions/00000000-0000-0000-0000-00000000aaaa/resourceGroups/rg-platform/providers"
    "/Microsoft.ContainerService/managedClusters/platform"
)
_REGISTRY = {
    "login-server": "myregistry.azurecr.io",
    "id": "/subscriptions/00000000-0000-0000-0000-00000000aaaa/resourceGroups/rg-platform/providers"
    "/Microsoft.ContainerRegistry/registries/myregistry",
}
_VAULT = {
    "id": "/subscriptions/00000000-0000-0000-0000-00000000aaaa/resourceGroups/rg-platform/providers"
    "/Microsoft.KeyVault/vaults/platform",
    "hf-token": "hugging-face",
}
_IN_VAULT = {"key-vault": _VAULT}
_STREAMED = {"weights": {"source": "azure-blob"}, "revision": "a" * 40}


@dataclass(frozen=True)
class Case:
    """A change of one setting. `base` is what the stack says before it, beyond Llama 70B in development."""

    setting: str  # "network.pod-cidr"
    change: Mapping[str, Any]
    base: Mapping[str, Any] = field(default_factory=dict)


CASES: tuple[Case, ...] = (
    Case("location", {"location": "eastus2"}),
    Case("environment", {"environment": "production"}),
    Case("preset", {"preset": "qwen3-8b"}),
    Case("max-model-len", {"max-model-len": 32768}),
    Case("replicas", {"replicas": 1}),
    Case("vm-size", {"vm-size": "Standard_ND96isr_H200_v5"}),
    Case("revision", {"revision": "a" * 40}),
    Case("workload.input-tokens", {"workload": {**_WORKLOAD, "input-tokens": 2048}}, {"workload": _WORKLOAD}),
    Case("workload.output-tokens", {"workload": {**_WORKLOAD, "output-tokens": 1024}}, {"workload": _WORKLOAD}),
    Case("workload.users", {"workload": {**_WORKLOAD, "users": 8}}, {"workload": _WORKLOAD}),
    Case("workload.max-tpot-ms", {"workload": {**_WORKLOAD, "max-tpot-ms": 60}}, {"workload": _WORKLOAD}),
    Case("weights.source", {"weights": {"source": "azure-blob"}}),
    Case("weights.storage-class", {"weights": {"source": "hugging-face", "storage-class": "local"}}),
    Case("vllm", {"vllm": {"max-num-seqs": 64}}),
    Case("models", {"preset": None, "models": {"model": {"preset": "llama-3.3-70b-instruct"}}}),
    Case("gpu-nodes.min", {"gpu-nodes": {"min": 2, "max": 2}}, {"gpu-nodes": {"min": 1, "max": 2}}),
    Case("gpu-nodes.max", {"gpu-nodes": {"min": 1, "max": 2}}),
    Case("gpu-nodes.zones", {"gpu-nodes": {"zones": ["1"]}}),
    Case("gpu-nodes.spot", {"gpu-nodes": {"spot": True}}),
    Case(
        "gpu-nodes.capacity-reservation-group",
        {"gpu-nodes": {"capacity-reservation-group": f"{_GROUP}/capacityReservationGroups/h100"}},
    ),
    Case("gpu-nodes.vcpu-quota", {"gpu-nodes": {"vcpu-quota": 192}}),
    Case("kubernetes-version", {"kubernetes-version": "1.36"}, {"kubernetes-version": "1.35"}),
    Case("kubelogin", {"kubelogin": "workloadidentity"}),
    Case("protect", {"protect": True}),
    Case("max-answer-tokens", {"max-answer-tokens": 4096}),
    Case("existing-cluster.id", {"existing-cluster": {"id": _CLUSTER}}),
    Case(
        "existing-cluster.namespace",
        {"existing-cluster": {"id": _CLUSTER, "namespace": "chat"}},
        {"existing-cluster": {"id": _CLUSTER}},
    ),
    Case(
        "existing-cluster.device-plugin",
        {"existing-cluster": {"id": _CLUSTER, "device-plugin": False}},
        {"existing-cluster": {"id": _CLUSTER}},
    ),
    Case(
        "existing-cluster.fqdn-policies",
        {"existing-cluster": {"id": _CLUSTER, "fqdn-policies": True}, **_STREAMED},
        {"existing-cluster": {"id": _CLUSTER}, **_STREAMED},
    ),
    Case("kubeconfig", {"kubeconfig": KUBECONFIG}),
    Case(
        "existing-cluster.node-labels",
        {"kubeconfig": KUBECONFIG, "existing-cluster": {"node-labels": {"team": "inference"}}},
        {"kubeconfig": KUBECONFIG},
    ),
    Case(
        "existing-cluster.taints",
        {"kubeconfig": KUBECONFIG, "existing-cluster": {"taints": ["dedicated"]}},
        {"kubeconfig": KUBECONFIG},
    ),
    Case("registry.login-server", {"registry": {"login-server": "myregistry.azurecr.io"}}),
    Case("registry.id", {"registry": _REGISTRY}, {"registry": {"login-server": "myregistry.azurecr.io"}}),
    Case("registry.abac", {"registry": {**_REGISTRY, "abac": True}}, {"registry": _REGISTRY}),
    Case("key-vault.id", {"key-vault": {**_VAULT, "id": f"{_VAULT['id']}-two"}}, _IN_VAULT),
    Case("key-vault.hf-token", {"key-vault": {**_VAULT, "hf-token": "other"}}, _IN_VAULT),
    Case("key-vault.certificate", {"key-vault": {**_VAULT, "certificate": "llm-example-com"}}, _IN_VAULT),
    Case("hf-token", {"preset": "qwen3-8b", "hf-token": None}, {"preset": "qwen3-8b"}),
    Case("network.vnet-cidr", {"network": {"vnet-cidr": "10.224.0.0/15"}}),
    Case("network.node-subnet-cidr", {"network": {"node-subnet-cidr": "10.224.16.0/20"}}),
    Case("network.pod-cidr", {"network": {"pod-cidr": "10.100.0.0/16"}}),
    Case("network.service-cidr", {"network": {"service-cidr": "10.246.0.0/16"}}),
    Case("network.dns-service-ip", {"network": {"dns-service-ip": "10.245.0.11"}}),
    Case(
        "network.subnet-id",
        {"network": {"subnet-id": f"{_SUBNET}/virtualNetworks/hub/subnets/aks", "outbound": "load-balancer"}},
    ),
    Case(
        "network.outbound",
        {"network": {"subnet-id": f"{_SUBNET}/virtualNetworks/hub/subnets/aks", "outbound": "load-balancer"}},
        {"network": {"subnet-id": f"{_SUBNET}/virtualNetworks/hub/subnets/aks", "outbound": "nat-gateway"}},
    ),
    Case("api-server-access", {"api-server-access": "private"}),
    Case(
        "authorized-ip-ranges",
        {"api-server-access": "authorized-ranges", "authorized-ip-ranges": ["203.0.113.0/24", "198.51.100.0/24"]},
        {"api-server-access": "authorized-ranges", "authorized-ip-ranges": ["203.0.113.0/24"]},
    ),
    Case("maintenance.day", {"maintenance": {"day": "Monday"}}),
    Case("maintenance.start", {"maintenance": {"start": "04:00"}}),
    Case("maintenance.hours", {"maintenance": {"hours": 8}}),
    Case("add-ons", {"add-ons": ["log-analytics", "image-cleaner"]}),
    Case("add-ons", {"add-ons": ["managed-prometheus", "managed-grafana"]}),
    Case("budget.usd-per-month", {"budget": {**_BUDGET, "usd-per-month": 90000}}, {"budget": _BUDGET}),
    Case("budget.contacts", {"budget": {**_BUDGET, "contacts": ["other@example.com"]}}, {"budget": _BUDGET}),
    Case("budget.first-month", {"budget": {**_BUDGET, "first-month": "2027-01"}}, {"budget": _BUDGET}),
    Case("tags", {"tags": {"team": "inference"}}),
    Case("edge.access", {"edge": {"access": "public", "keys": {"team-a": _KEY}, "tls-secret": "edge-tls"}}),
    Case("benchmark", {"benchmark": True}),
    Case("benchmark-key", {**_MEASURED, "benchmark-key": "another"}, {**_MEASURED, "benchmark-key": "one"}),
    Case("edge.host", {"edge": {"host": "llm.example.com"}}),
    Case("edge.tls-secret", {"edge": {"tls-secret": "edge-tls"}}),
    Case(
        "edge.certificate",
        {"edge": {**_NAMED, "certificate": certificates.make("llm.example.com")[0]}},
        {"edge": _NAMED},
    ),
    Case("edge.keys", {"edge": {"keys": {"team-a": _KEY}}}),
    Case(
        "edge.keys",
        {"edge": {"keys": {"team-a": {**_KEY, "requests-per-minute": 600}}}},
        {"edge": {"keys": {"team-a": _KEY}}},
    ),
    Case("edge.paths", {"edge": {"paths": ["/v1/models", "/v1/chat/completions"]}}),
    Case("edge.max-body-mib", {"edge": {"max-body-mib": 64}}),
)

#: Of a change, worst first: what may happen to the people served.
REFUSED, IMPOSSIBLE = "refused until steps are done", "no update can do it"
CLUSTER, NODES, PODS, STAYS = "cluster replaced", "GPU nodes replaced", "replicas replaced", "what serves stays"
CLASSES = (REFUSED, IMPOSSIBLE, CLUSTER, NODES, PODS, STAYS)
_SAID = {
    Kind.IMPOSSIBLE: IMPOSSIBLE,
    Kind.CLUSTER: CLUSTER,
    Kind.NODES: NODES,
    Kind.STUCK: PODS,
    Kind.OUTAGE: PODS,
    Kind.ROLLING: PODS,
    Kind.IN_PLACE: STAYS,
    Kind.NONE: STAYS,
}
#: What Azure answers where a subnet cannot be left or changed.
_IN_USE = ("InUsePrefixCannotBeDeleted", "InUseCannotBeDeleted")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One row of the table."""

    setting: str
    said: str
    happened: str
    noticed: bool  # the comparison says that users notice something
    endpoint: bool  # what stands before the models changed: files, keys, address
    previewed: Mapping[str, str]  # name -> what the engine's preview said
    done: Mapping[str, str]

    @property
    def agrees(self) -> bool:
        """Whether both previews told the truth."""
        silent = self.endpoint and not self.noticed
        return self.said == self.happened and self.previewed == self.done and not silent


def settings() -> Iterator[str]:
    """Every setting of a stack file that is no map of its own, by its key there."""
    for whole in (Settings, ModelSettings):
        for name, info in whole.model_fields.items():
            key, inner = name.replace("_", "-"), _group(info.annotation)
            if key == "flat":
                continue
            yield from [f"{key}.{each.replace('_', '-')}" for each in inner] if inner else [key]


def _group(annotation: Any) -> tuple[str, ...]:
    """Fields of a setting that is a map with keys of its own."""
    for each in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(each, type) and issubclass(each, BaseModel) and "preset" not in each.model_fields:
            return tuple(each.model_fields)
    return ()


def outcome(case: Case, folder: Path, bases: dict[str, World]) -> Outcome:
    """Deploy the base (once for each), preview the change both ways, and make it."""
    known = json.dumps(case.base, sort_keys=True)
    if known not in bases:
        bases[known] = World(folder / f"base-{len(bases)}", config=_config(case.base))
        bases[known].folder.mkdir(parents=True)
        bases[known].run("up")
    place = folder / f"{len(list(folder.iterdir()))}-{case.setting}"
    shutil.copytree(bases[known].folder, place)
    world = World(place, config=_config({**case.base, **case.change}))
    previewed = world.run("preview")
    said, noticed = _said(case)
    endpoint = any(step.name.startswith("edge-") and step.op is not Op.SAME for step in previewed.steps)
    told = {"setting": case.setting, "said": said, "noticed": noticed, "endpoint": endpoint}
    try:
        result = world.run("up")
    except RunFailedError as failed:
        if "still to do before an update" in str(failed):
            return Outcome(**told, happened=REFUSED, previewed={}, done={})
        if any(code in str(failed) for code in _IN_USE):
            return Outcome(**told, happened=IMPOSSIBLE, previewed={}, done={})
        raise
    again = _changes(world.run("preview"))
    assert not again, f"{case.setting}: another update would still {again}"
    return Outcome(**told, happened=_happened(result.steps), previewed=_changes(previewed), done=_changes(result))


def _config(settings: Mapping[str, Any]) -> dict[str, str]:
    config = stack_config(settings)
    return {key: value for key, value in config.items() if key != TOKEN_KEY or "hf-token" not in settings}


def _changes(result: Result) -> dict[str, str]:
    return {step.urn: step.op.value for step in result.steps if step.op is not Op.SAME}


def _said(case: Case) -> tuple[str, bool]:
    before, after = _side(case.base), _side({**case.base, **case.change})
    difference = diff.compare(before, after, "test")
    worst = min((_SAID[each.kind] for each in difference.consequences), key=CLASSES.index, default=STAYS)
    return REFUSED if difference.steps else worst, diff.NOTHING not in difference.verdict


def _side(settings: Mapping[str, Any]) -> Side:
    config = _config(settings)
    reading = stack_file.from_pulumi(config, SECRET_KEYS & config.keys(), "test")
    shown = {key: {"secure": value} if key in SECRET_KEYS else value for key, value in config.items()}
    try:
        return Side(label="test", config=shown, plan=report.as_json(read_and_decide(reading, TODAY)))
    except InvalidStack as invalid:
        raise AssertionError(f"{dict(settings)} is no stack: {invalid}") from None


def _happened(steps: tuple[Step, ...]) -> str:
    happened = {STAYS}
    for step in steps:
        kind = step.type.rsplit(":", 1)[1]
        paths = {change.path for change in step.changes}
        moves = step.op in (Op.REPLACE, Op.DELETE) or (step.op is Op.CREATE and kind == "AgentPool")
        if kind == "ManagedCluster" and moves:
            happened.add(CLUSTER)
        if kind == "AgentPool" and (moves or ("orchestratorVersion",) in paths):
            happened.add(NODES)
        in_the_pod = any(path[:2] == ("spec", "template") for path in paths)
        if kind == "Deployment" and step.name.startswith("model") and (moves or in_the_pod):
            happened.add(PODS)
    return min(happened, key=CLASSES.index)
