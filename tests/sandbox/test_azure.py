"""The simulated Resource Manager refuses what Azure refuses, and its clusters have the nodes that were ordered."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pulumi
import pytest
from pulumi.provider.experimental import provider as sdk

from sandbox.azure import (
    ACCOUNT,
    CLUSTER,
    CONTAINER,
    CREDENTIAL,
    FAULTS,
    GRANT,
    GROUP,
    IDENTITY,
    POOL,
    AzureError,
    SimulatedAzure,
)
from sandbox.engine import Engine, RunFailedError
from sandbox.state import Store, UnreadableStateError
from sandbox.values import UNKNOWN, Secret, from_properties, to_properties

ADMIN = "/providers/Microsoft.Authorization/roleDefinitions/b1ff04bb-8a4e-4dc4-8eb5-8693973ce19b"
GUID = "6f1d4c3a-0000-4000-8000-00000000dddd"

GOOD: dict[str, dict[str, Any]] = {
    GROUP: {"resourceGroupName": "rg", "location": "eastus"},
    CLUSTER: {
        "resourceGroupName": "rg",
        "resourceName": "aks",
        "location": "eastus",
        "dnsPrefix": "aks",
        "kubernetesVersion": "1.36",
        "identity": {"type": "SystemAssigned"},
        "agentPoolProfiles": [{"name": "system", "mode": "System", "vmSize": "Standard_D4ds_v5", "count": 2}],
        "aadProfile": {"managed": True, "enableAzureRBAC": True},
        "disableLocalAccounts": True,
        "oidcIssuerProfile": {"enabled": True},
        "networkProfile": {"networkPlugin": "azure", "networkPluginMode": "overlay"},
    },
    POOL: {
        "resourceGroupName": "rg",
        "resourceName": "aks",
        "agentPoolName": "h100x8",
        "vmSize": "Standard_ND96isr_H100_v5",
        "mode": "User",
        "count": 1,
        "osDiskSizeGB": 1000,
        "gpuProfile": {"driver": "Install"},
        "nodeLabels": {"aks-vllm/pool": "h100x8"},
        "nodeTaints": ["nvidia.com/gpu=present:NoSchedule"],
        "upgradeSettings": {"maxSurge": "0", "maxUnavailable": "1", "drainTimeoutInMinutes": 30},
    },
    GRANT: {"roleAssignmentName": GUID, "scope": "/subscriptions/s", "principalId": GUID, "roleDefinitionId": ADMIN},
    IDENTITY: {"resourceGroupName": "rg", "resourceName": "id-reader", "location": "eastus"},
    CREDENTIAL: {
        "resourceGroupName": "rg",
        "resourceName": "id-reader",
        "federatedIdentityCredentialResourceName": "model-chat",
        "issuer": "https://eastus.oic.prod-aks.azure.com/tenant/issuer/",
        "subject": "system:serviceaccount:vllm:chat",
        "audiences": ["api://AzureADTokenExchange"],
    },
    ACCOUNT: {
        "resourceGroupName": "rg",
        "accountName": "vllmweights0",
        "location": "eastus",
        "kind": "BlockBlobStorage",
        "sku": {"name": "Premium_LRS"},
    },
    CONTAINER: {"resourceGroupName": "rg", "accountName": "vllmweights0", "containerName": "models"},
}


class FakePlane:
    """Keeps the nodes it is told of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[str, dict[str, Any]] = {}
        self.started = 0

    def start(self, binaries: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.started += 1

    def stop(self) -> None:
        self.started = 0
        self.nodes.clear()

    def running(self) -> bool:
        return self.started > 0

    def add_node(self, name: str, labels: dict, taints: list, capacity: dict) -> None:
        self.nodes[name] = {"labels": labels, "taints": taints, "capacity": capacity}

    def remove_node(self, name: str) -> None:
        self.nodes.pop(name, None)

    def user_kubeconfig(self) -> str:
        return "apiVersion: v1"


class Cloud:
    """One subscription, driven through the provider's methods in the engine's order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plane = FakePlane(folder / "plane")
        self.said: list[str] = []
        self.azure = self.reopened()
        self.inputs: dict[str, dict[str, Any]] = {}
        self.outputs: dict[str, dict[str, Any]] = {}

    def reopened(self, operation_seconds: float = 0) -> SimulatedAzure:
        self.azure = SimulatedAzure(
            location="eastus",
            file=self.folder / "azure.json",
            plane=self.plane,
            progress=self.said.append,
            operation_seconds=operation_seconds,
        )
        return self.azure

    def failures(self, type_: str, inputs: Mapping[str, Any]) -> list[str]:
        request = sdk.CheckRequest(_urn(type_), {}, to_properties(inputs), b"seed")
        response = asyncio.run(self.azure.check(request))
        return [f"{failure.property}: {failure.reason}" for failure in response.failures or []]

    def create(self, type_: str, changes: Mapping[str, Any] | None = None, owner: str = "thing") -> str:
        inputs = {**GOOD[type_], **(changes or {})}
        assert self.failures(type_, inputs) == []
        request = sdk.CreateRequest(_urn(type_, owner), to_properties(inputs), 60, preview=False)
        response = asyncio.run(self.azure.create(request))
        assert response.resource_id
        self.inputs[response.resource_id] = inputs
        self.outputs[response.resource_id] = from_properties(response.properties)
        return response.resource_id

    def update(self, type_: str, id_: str, changes: Mapping[str, Any]) -> None:
        news = {**self.inputs[id_], **changes}
        olds = to_properties(self.outputs[id_])
        request = sdk.UpdateRequest(_urn(type_), id_, olds, to_properties(news), 60, [], preview=False)
        self.outputs[id_] = from_properties(asyncio.run(self.azure.update(request)).properties)
        self.inputs[id_] = news

    def diff(self, type_: str, changes: Mapping[str, Any]) -> sdk.DiffResponse:
        request = sdk.DiffRequest(_urn(type_), "id", {}, to_properties({**GOOD[type_], **changes}), [])
        vars(request)["old_inputs"] = to_properties(GOOD[type_])
        return asyncio.run(self.azure.diff(request))

    def read(self, type_: str, id_: str) -> tuple[dict[str, Any], dict[str, Any]]:
        request = sdk.ReadRequest(_urn(type_), id_, to_properties(self.outputs[id_]), to_properties(self.inputs[id_]))
        response = asyncio.run(self.azure.read(request))
        return from_properties(response.properties), from_properties(response.inputs)

    def delete(self, type_: str, id_: str) -> None:
        asyncio.run(self.azure.delete(sdk.DeleteRequest(_urn(type_), id_, {}, 60)))

    def invoke(self, token: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        response = asyncio.run(self.azure.invoke(sdk.InvokeRequest(token, to_properties(arguments))))
        assert not response.failures
        return from_properties(response.return_value)


def _urn(type_: str, name: str = "thing") -> str:
    return f"urn:pulumi:test::aks-vllm::aks-vllm:index:Parent${type_}::{name}"


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


@pytest.fixture
def cluster(cloud: Cloud) -> str:
    """A cluster in its group."""
    cloud.create(GROUP)
    return cloud.create(CLUSTER)


def changed(type_: str, path: str, value: Any) -> dict[str, Any]:
    """Good inputs with one value changed; None removes it."""
    inputs = copy.deepcopy(GOOD[type_])
    *way, last = path.split(".")
    target: Any = inputs
    for step in way:
        target = target[int(step)] if step.isdigit() else target.setdefault(step, {})
    if value is None:
        del target[last]
    else:
        target[last] = value
    return inputs


@pytest.mark.parametrize("type_", GOOD)
def test_what_azure_takes_is_taken(cloud: Cloud, type_: str):
    assert cloud.failures(type_, GOOD[type_]) == []


@pytest.mark.parametrize(
    ("type_", "path", "value", "words"),
    [
        (POOL, "vmSizee", "x", ["vmSizee", "did you mean vmSize"]),
        (POOL, "upgradeSettings.maxSurgee", "0", ["upgradeSettings.maxSurgee", "did you mean maxSurge"]),
        (POOL, "gpuProfile.driver", "install", ["gpuProfile.driver", "'install'", "Install, None"]),
        (POOL, "resourceGroupName", None, ["resourceGroupName", "is required"]),
        (POOL, "count", "one", ["count", "a whole number"]),
        (POOL, "count", True, ["count", "a whole number"]),
        (POOL, "count", 1001, ["count", "0 to 1000", "quotas"]),
        (POOL, "maxPods", 5, ["maxPods", "10 to 250"]),
        (POOL, "agentPoolName", "H100", ["agentPoolName", "'H100'", "lower-case"]),
        (POOL, "agentPoolName", "thirteenchars", ["agentPoolName", "1-12"]),
        (POOL, "nodeTaints", ["nvidia.com/gpu"], ["nodeTaints[0]", "key=value:effect"]),
        (POOL, "nodeTaints", "a=b:NoSchedule", ["nodeTaints", "must be a list"]),
        (POOL, "nodeLabels", {"a": 1}, ["nodeLabels.a", "a string"]),
        (POOL, "upgradeSettings.maxSurge", "a few", ["upgradeSettings.maxSurge", "percentage"]),
        (POOL, "upgradeSettings.drainTimeoutInMinutes", 1, ["drainTimeoutInMinutes", "5 to 1440"]),
        (POOL, "upgradeSettings.maxUnavailable", "0", ["upgradeSettings.maxSurge", "maxUnavailable must be above 0"]),
        (POOL, "enableAutoScaling", True, ["minCount", "maxCount", "azure-native#2943"]),
        (POOL, "maxCount", 3, ["maxCount", "set enableAutoScaling"]),
        (POOL, "spotMaxPrice", 1.0, ["spotMaxPrice", "spot pools"]),
        (POOL, "mode", "System", ["mode", "maxUnavailable cannot be set on a system pool"]),
        (CLUSTER, "resourceName", "aks_", ["resourceName", "ending with a letter or digit"]),
        (CLUSTER, "dnsPrefix", "a" * 55, ["dnsPrefix", "1-54"]),
        (CLUSTER, "aadProfile", None, ["aadProfile", "Microsoft Entra"]),
        (CLUSTER, "agentPoolProfiles.0.name", "System", ["agentPoolProfiles[0].name", "lower-case"]),
        (CLUSTER, "agentPoolProfiles.0.vmsize", "x", ["agentPoolProfiles[0].vmsize", "did you mean vmSize"]),
        (CLUSTER, "sku", {"name": "Base", "tier": "Gold"}, ["sku.tier", "'Gold'", "Premium"]),
        (CLUSTER, "supportPlan", "AKSLongTermSupport", []),
        (GROUP, "resourceGroupName", "rg.", ["resourceGroupName", "not ending with a dot"]),
        (ACCOUNT, "accountName", "vllm-weights", ["accountName", "3-24 lower-case letters and digits"]),
        (ACCOUNT, "sku.name", "Standard_LRS", ["kind", "premium only"]),
        (ACCOUNT, "accessTier", "Hot", ["kind", "no access tiers"]),
        (ACCOUNT, "kind", None, ["kind", "is required"]),
        (ACCOUNT, "minimumTlsVersion", "1.2", ["minimumTlsVersion", "TLS1_2"]),
        (CONTAINER, "containerName", "Models", ["containerName", "3-63 lower-case"]),
        (CONTAINER, "containerName", "a--b", ["containerName", "single hyphens"]),
        (CREDENTIAL, "issuer", "http://issuer", ["issuer", "https"]),
        (CREDENTIAL, "federatedIdentityCredentialResourceName", "m", ["3-120"]),
        (CREDENTIAL, "audiences", None, ["audiences", "is required"]),
        (GRANT, "roleAssignmentName", "admin", ["roleAssignmentName", "a GUID"]),
        (GRANT, "roleDefinitionId", "Cluster Admin", ["roleDefinitionId", "full path"]),
        (GRANT, "principalType", "Robot", ["principalType", "ServicePrincipal"]),
    ],
    ids=lambda value: value.rsplit(":", 1)[-1] if isinstance(value, str) else None,
)
def test_what_azure_refuses_for_its_form_is_refused_with_the_reason(
    cloud: Cloud, type_: str, path: str, value: Any, words: list[str]
):
    told = "\n".join(cloud.failures(type_, changed(type_, path, value)))
    assert bool(told) == bool(words)
    for word in words:
        assert word in told


def test_all_problems_are_told_at_once(cloud: Cloud):
    inputs = changed(POOL, "agentPoolName", "H100") | {"count": 5000, "vmsize": "x"}
    assert len(cloud.failures(POOL, inputs)) == 3


def test_unknown_values_are_not_judged(cloud: Cloud):
    inputs = GOOD[POOL] | {"resourceGroupName": UNKNOWN, "resourceName": UNKNOWN, "count": UNKNOWN}
    assert cloud.failures(POOL, inputs) == []


def test_a_type_without_rules_is_refused_with_the_way_out(cloud: Cloud):
    (told,) = cloud.failures("azure-native:storage:Queue", {})
    assert "Pulumi CLI" in told


def test_a_missing_name_is_made_up_and_kept(cloud: Cloud):
    request = sdk.CheckRequest(_urn(GROUP), {}, {}, b"seed")
    first = from_properties(asyncio.run(cloud.azure.check(request)).inputs)
    assert first["resourceGroupName"].startswith("thing")
    assert first["location"] == "eastus", "the stack's location is the default of every resource that has one"
    again = sdk.CheckRequest(_urn(GROUP), to_properties(first), {}, b"another seed")
    assert from_properties(asyncio.run(cloud.azure.check(again)).inputs) == first


def test_a_preview_knows_what_was_sent_and_nothing_else(cloud: Cloud):
    request = sdk.CreateRequest(_urn(CLUSTER), to_properties(GOOD[CLUSTER]), 60, preview=True)
    outputs = from_properties(asyncio.run(cloud.azure.create(request)).properties)
    assert outputs["dnsPrefix"] == "aks"
    assert outputs["name"] is UNKNOWN, "azure-native does not echo the name: a program must not rely on it"
    assert outputs["oidcIssuerProfile"]["issuerURL"] is UNKNOWN
    assert not (cloud.folder / "azure.json").exists()


@pytest.mark.parametrize(
    ("type_", "changes", "replaces"),
    [
        (POOL, {"count": 2}, []),
        (POOL, {"vmSize": "Standard_ND96isr_H200_v5"}, ["vmSize"]),
        (POOL, {"osDiskSizeGB": 500}, []),
        (CLUSTER, {"kubernetesVersion": "1.37"}, []),
        (CLUSTER, {"location": "westus"}, ["location"]),
        (CLUSTER, {"networkProfile": {"networkPlugin": "none"}}, ["networkProfile.networkPlugin"]),
        (GROUP, {"location": "westus"}, ["location"]),
    ],
    ids=str,
)
def test_the_provider_replaces_what_azure_native_replaces(
    cloud: Cloud, type_: str, changes: dict[str, Any], replaces: list[str]
):
    difference = cloud.diff(type_, changes)
    assert difference.changes
    assert [path for path in difference.replaces or [] if path in replaces] == replaces
    assert bool(difference.replaces) == bool(replaces)
    assert difference.delete_before_replace == bool(replaces), "two resources cannot have one name"


def test_a_cluster_is_a_control_plane_with_its_system_nodes(cloud: Cloud, cluster: str):
    assert cloud.plane.started == 1
    assert len(cloud.plane.nodes) == 2
    (node, *_) = cloud.plane.nodes.values()
    assert node["capacity"] == {"cpu": "4", "memory": "16Gi", "pods": "250", "ephemeral-storage": "128Gi"}
    assert node["labels"]["kubernetes.azure.com/mode"] == "system"
    outputs = cloud.outputs[cluster]
    assert outputs["name"] == "aks"
    assert outputs["provisioningState"] == "Succeeded"
    assert outputs["oidcIssuerProfile"]["issuerURL"].startswith("https://eastus.oic.prod-aks.azure.com/")
    assert outputs["identity"]["principalId"]


def test_what_an_update_of_a_cluster_leaves_out_stays_and_what_it_switches_off_goes(cloud: Cloud, cluster: str):
    policy = {"azurepolicy": {"enabled": True}}
    cloud.update(CLUSTER, cluster, {"addonProfiles": policy, "azureMonitorProfile": {"metrics": {"enabled": True}}})
    cloud.inputs[cluster] = GOOD[CLUSTER]
    cloud.update(CLUSTER, cluster, {"azureMonitorProfile": {"metrics": {"enabled": False}}})
    live, _ = cloud.read(CLUSTER, cluster)
    assert live["addonProfiles"]["azurepolicy"]["enabled"]
    assert not live["azureMonitorProfile"]["metrics"]["enabled"]


def test_a_pool_is_nodes_with_the_gpus_labels_and_taints_of_its_size(cloud: Cloud, cluster: str):
    pool = cloud.create(POOL)
    name, node = next((n, d) for n, d in cloud.plane.nodes.items() if "h100x8" in n)
    assert name.startswith("aks-h100x8-")
    assert name.endswith("-vmss000000")
    assert node["capacity"]["nvidia.com/gpu"] == "8"
    assert (node["capacity"]["cpu"], node["capacity"]["memory"]) == ("96", "1900Gi")
    assert node["taints"] == [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
    labels = {
        "agentpool": "h100x8",
        "kubernetes.azure.com/agentpool": "h100x8",
        "node.kubernetes.io/instance-type": "Standard_ND96isr_H100_v5",
        "aks-vllm/pool": "h100x8",
    }
    assert labels.items() <= node["labels"].items()
    cloud.update(POOL, pool, {"count": 2, "nodeLabels": {"new": "yes"}})
    assert [d["labels"].get("new") for n, d in cloud.plane.nodes.items() if "h100x8" in n] == ["yes", "yes"]
    cloud.update(POOL, pool, {"count": 0})
    assert not [n for n in cloud.plane.nodes if "h100x8" in n]
    cloud.update(POOL, pool, {"count": 1})
    cloud.delete(POOL, pool)
    assert len(cloud.plane.nodes) == 2, "the system pool stays"


def test_long_operations_tell_how_far_they_are(cloud: Cloud, cluster: str):
    cloud.create(POOL)
    assert "AgentPool h100x8: create accepted" in cloud.said
    assert "node pool h100x8: 1/1 nodes ready" in cloud.said


def test_a_deleted_group_takes_everything_in_it_along(cloud: Cloud, cluster: str):
    cloud.create(POOL)
    cloud.create(GRANT, {"scope": cluster})
    group = next(id_ for id_ in cloud.inputs if id_.endswith("/resourceGroups/rg"))
    cloud.delete(GROUP, group)
    assert not cloud.plane.running()
    assert not cloud.plane.folder.exists(), "the next cluster of this name is a new one"
    assert json.loads((cloud.folder / "azure.json").read_text()) == {"resources": []}
    cloud.delete(GROUP, group)


@pytest.mark.parametrize(
    ("type_", "changes", "words"),
    [
        (CLUSTER, {"resourceGroupName": "none"}, "404 ResourceGroupNotFound"),
        (POOL, {"resourceName": "none"}, "404 ResourceNotFound"),
        (POOL, {"count": 3}, "403 InsufficientVCPUQuota: 3 x Standard_ND96isr_H100_v5 need 288 vCPUs"),
        (POOL, {"vmSize": "Standard_ND96isr_H10_v5"}, "did you mean Standard_ND96isr_H100_v5"),
        (CLUSTER, {"resourceName": "other"}, "one cluster a stack"),
    ],
    ids=str,
)
def test_what_only_the_service_knows_is_refused_when_it_is_asked(
    cloud: Cloud, cluster: str, type_: str, changes: dict[str, Any], words: str
):
    before = (cloud.folder / "azure.json").read_text()
    with pytest.raises(AzureError, match=words):
        cloud.create(type_, changes, owner="another")
    assert (cloud.folder / "azure.json").read_text() == before, "a refused request leaves nothing"


def test_quota_is_shared_by_the_pools_of_a_family(cloud: Cloud, cluster: str):
    cloud.create(POOL)
    with pytest.raises(AzureError, match="need 192 vCPUs of family standardNDSH100v5Family in eastus, 96 are left"):
        cloud.create(POOL, {"agentPoolName": "second", "count": 2}, owner="another")
    cloud.create(POOL, {"agentPoolName": "second", "count": 1}, owner="another")


def test_a_second_grant_of_the_same_role_is_a_conflict(cloud: Cloud):
    cloud.create(GRANT)
    with pytest.raises(AzureError, match="409 RoleAssignmentExists"):
        cloud.create(GRANT, {"roleAssignmentName": GUID.replace("d", "e")}, owner="another")


@pytest.mark.parametrize(
    ("changes", "name"), [({"osDiskSizeGB": 500}, "osDiskSizeGB"), ({"gpuProfile": {"driver": "None"}}, "gpuProfile")]
)
def test_azure_refuses_to_change_what_is_immutable(cloud: Cloud, cluster: str, changes: dict[str, Any], name: str):
    pool = cloud.create(POOL)
    with pytest.raises(AzureError, match=rf"400 PropertyChangeNotAllowed: changing property '{name}.*azure-native#959"):
        cloud.update(POOL, pool, changes)


def test_a_second_operation_on_a_cluster_is_a_conflict(cloud: Cloud, cluster: str):
    cloud.reopened(operation_seconds=0.3)
    first = threading.Thread(target=cloud.create, args=(POOL,))
    first.start()
    while not any("accepted" in text and "h100x8" in text for text in cloud.said):
        pass
    with pytest.raises(AzureError, match=r"409 OperationNotAllowed.*create AgentPool h100x8"):
        cloud.create(POOL, {"agentPoolName": "second"}, owner="another")
    first.join()
    cloud.create(POOL, {"agentPoolName": "second"}, owner="another")


def test_a_container_and_a_credential_need_what_they_are_part_of(cloud: Cloud):
    cloud.create(GROUP)
    for child, parent in ((CONTAINER, ACCOUNT), (CREDENTIAL, IDENTITY)):
        with pytest.raises(AzureError, match="404 ParentResourceNotFound"):
            cloud.create(child)
        cloud.create(parent)
        cloud.create(child)


def test_an_account_name_is_one_for_all_and_a_public_container_needs_an_account_that_permits_it(cloud: Cloud):
    cloud.create(GROUP)
    account = cloud.create(ACCOUNT)
    assert cloud.outputs[account]["primaryEndpoints"] == {"blob": "https://vllmweights0.blob.core.windows.net/"}
    cloud.create(GROUP, {"resourceGroupName": "other"}, owner="other")
    with pytest.raises(AzureError, match="409 StorageAccountAlreadyTaken"):
        cloud.create(ACCOUNT, {"resourceGroupName": "other"}, owner="another")
    with pytest.raises(AzureError, match="409 PublicAccessNotPermitted"):
        cloud.create(CONTAINER, {"publicAccess": "Blob"})
    with pytest.raises(AzureError, match="400 AccountPropertyCannotBeUpdated"):
        cloud.update(ACCOUNT, account, {"kind": "StorageV2"})


def test_an_identity_takes_twenty_credentials_each_for_somebody_else(cloud: Cloud):
    cloud.create(GROUP)
    cloud.create(IDENTITY)
    cloud.create(CREDENTIAL)
    with pytest.raises(AzureError, match=r"409 Conflict: .*issuer and subject"):
        cloud.create(CREDENTIAL, {"federatedIdentityCredentialResourceName": "again"}, owner="again")
    for number in range(1, 20):
        name = {"federatedIdentityCredentialResourceName": f"model-{number}", "subject": f"s{number}"}
        cloud.create(CREDENTIAL, name, owner=f"s{number}")
    with pytest.raises(AzureError, match="20 credentials already"):
        cloud.create(CREDENTIAL, {"federatedIdentityCredentialResourceName": "more", "subject": "more"}, owner="more")


def test_an_ordered_failure_leaves_a_failed_pool_that_the_next_attempt_finishes(
    cloud: Cloud, cluster: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(FAULTS, "create AgentPool=AllocationFailed")
    with pytest.raises(AzureError, match=r"409 AllocationFailed: .*sufficient capacity"):
        cloud.create(POOL)
    resources = json.loads((cloud.folder / "azure.json").read_text())["resources"]
    assert [r["state"] for r in resources if r["type"] == POOL] == ["Failed"]
    monkeypatch.delenv(FAULTS)
    cloud.reopened()
    cloud.create(POOL)
    assert [n for n in cloud.plane.nodes if "h100x8" in n]
    with pytest.raises(AzureError, match=r"409 Conflict.*already exists"):
        cloud.create(POOL, owner="another")


def test_an_unknown_failure_is_named(cloud: Cloud, cluster: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(FAULTS, "create AgentPool=Typo")
    with pytest.raises(AzureError, match=r"'Typo'; azure-rules.yaml has AllocationFailed"):
        cloud.create(POOL)


def test_a_cancelled_operation_ends_at_once_and_goes_on_later(cloud: Cloud, cluster: str):
    azure = cloud.reopened(operation_seconds=60)
    asyncio.run(azure.cancel())
    with pytest.raises(AzureError, match="the next update goes on from here"):
        cloud.create(POOL)
    cloud.reopened()
    cloud.create(POOL)


def test_reading_tells_what_changed_and_leaves_defaults_out(cloud: Cloud, cluster: str):
    pool = cloud.create(POOL)
    assert cloud.read(POOL, pool) == (cloud.outputs[pool], GOOD[POOL])
    resources = json.loads((cloud.folder / "azure.json").read_text())
    (found,) = [r for r in resources["resources"] if r["id"] == pool]
    found["inputs"]["count"] = 2
    (cloud.folder / "azure.json").write_text(json.dumps(resources))
    cloud.reopened()
    outputs, inputs = cloud.read(POOL, pool)
    assert outputs["count"] == 2
    assert inputs == GOOD[POOL] | {"count": 2}, "defaults of the service are no inputs of the program"
    assert cloud.read(CLUSTER, cluster)[1]["agentPoolProfiles"][1]["name"] == "h100x8", "Azure lists every pool there"


def test_a_vanished_resource_is_gone(cloud: Cloud, cluster: str):
    (cloud.folder / "azure.json").unlink()
    cloud.reopened()
    request = sdk.ReadRequest(_urn(CLUSTER), cluster, {}, {})
    assert asyncio.run(cloud.azure.read(request)).resource_id == ""


def test_credentials_are_those_of_the_control_plane(cloud: Cloud, cluster: str):
    arguments = {"resourceGroupName": "rg", "resourceName": "aks", "format": "exec"}
    listed = cloud.invoke("azure-native:containerservice:listManagedClusterUserCredentials", arguments)
    assert listed["kubeconfigs"] == [{"name": "clusterUser", "value": "YXBpVmVyc2lvbjogdjE="}]
    assert cloud.invoke("azure-native:authorization:getClientConfig", {})["subscriptionId"] in cluster
    cloud.plane.started = 0
    cloud.invoke("azure-native:containerservice:listManagedClusterUserCredentials", arguments)
    assert cloud.plane.running(), "after a restart of the machine the control plane comes back by itself"


def test_the_file_holds_no_secret_and_a_broken_one_is_named(cloud: Cloud):
    cloud.create(GROUP, {"tags": {"password": Secret("correct horse")}})
    assert "correct horse" not in (cloud.folder / "azure.json").read_text()
    (cloud.folder / "azure.json").write_text("{")
    with pytest.raises(UnreadableStateError, match=r"azure\.json.*destroy"):
        cloud.reopened()


@pytest.mark.parametrize("fault", ["create ManagedCluster", "create AgentPool", "update AgentPool", "delete AgentPool"])
def test_a_stack_converges_after_a_failure_of_any_operation(cloud: Cloud, fault: str, monkeypatch: pytest.MonkeyPatch):
    """The real SDK classes, the real engine; three programs in a row, each run until it succeeds."""
    from pulumi_azure_native import containerservice, resources

    def program(pools: int, count: int) -> None:
        group = resources.ResourceGroup("group", resource_group_name="rg")
        inputs = {k: v for k, v in GOOD[CLUSTER].items() if k not in ("resourceGroupName", "resourceName", "location")}
        cluster = containerservice.ManagedCluster(
            "cluster",
            resource_group_name=group.name,
            resource_name_="aks",
            dns_prefix=inputs["dnsPrefix"],
            agent_pool_profiles=inputs["agentPoolProfiles"],
            opts=pulumi.ResourceOptions(ignore_changes=["agentPoolProfiles"]),
        )
        for number in range(pools):
            containerservice.AgentPool(
                f"pool{number}",
                resource_group_name=group.name,
                resource_name_=cluster.name,
                agent_pool_name=f"pool{number}",
                vm_size="Standard_D4ds_v5",
                count=count,
            )

    def run(verb: str, *arguments: Any) -> Any:
        azure = cloud.reopened()
        store = Store(cloud.folder / "state")
        engine = Engine(project="p", stack="dev", store=store, packages={"azure-native": lambda _: azure})
        if verb == "destroy":
            return engine.destroy({})
        given: dict[str, Any] = {"root": cloud.folder, "config": {"azure-native:location": "eastus"}, "secret_keys": []}
        return getattr(engine, verb)(lambda: program(*arguments), **given)

    failures = 0
    for pools, count in ((1, 1), (1, 2), (0, 0)):
        monkeypatch.setenv(FAULTS, f"{fault}=AllocationFailed")
        try:
            run("up", pools, count)
        except RunFailedError as failed:
            failures += 1
            assert "AllocationFailed" in str(failed)
            monkeypatch.delenv(FAULTS)
            run("up", pools, count)
        assert len(cloud.plane.nodes) == 2 + pools * count
        assert set(run("preview", pools, count).changes) == {"same"}
    assert failures == 1, "the ordered failure has happened, once"
    monkeypatch.delenv(FAULTS, raising=False)
    run("destroy")
    assert not cloud.plane.running()
