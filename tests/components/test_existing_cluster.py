"""Exactly what a stack declares on a cluster that is not its own, and how it hangs together."""

from __future__ import annotations

import pytest

from sandbox.engine import InputRefusedError, Recording, Secret, record
from tests.components.harness import AGENT_POOL, GRANT, PROVIDER, RESOURCE_GROUP, ROOT, TOKEN_KEY, Record, stack_config

ID = (
    "/subscriptions/00000000-0000-0000-0000-00000000aaaa/resourceGroups/rg-platform/providers"
    "/Microsoft.ContainerService/managedClusters/platform"
)
SUBNET = (
    "/subscriptions/00000000-0000-0000-0000-00000000aaaa/resourceGroups/rg-net/providers/Microsoft.Network"
    "/virtualNetworks/hub/subnets/gpu"
)
KUBECONFIG = "a-kubeconfig-that-nobody-may-see"
IN_CLUSTER = {
    *("models-namespace", "models-priority-vllm", "models-weights-program", "model-service-account"),
    *("model-disruption-budget", "model-service", "model-deployment", "edge-configuration", "edge-service-account"),
    *("edge-disruption-budget", "edge-deployment", "edge-service", "network-default-deny", "network-dns"),
    *("network-edge", "network-replicas", "network-weights-model"),
}
PLUGIN = {"gpu-runtime-namespace", "gpu-runtime-device-plugin"}
WEIGHTS = {
    *("cluster-resource-group", "weights-account", "weights-container", "weights-reader", "weights-reader-grant"),
    *("weights-reader-model", "weights-uploader", "weights-uploader-grant", "weights-uploader-weights.upload"),
    *("weight-uploads-service-account", "weight-uploads-model", "network-weights-upload"),
}


def names(recording: Recording) -> set[str]:
    return {each.name for each in recording.registrations if each.custom and each.type != PROVIDER}


def by_kubeconfig() -> Recording:
    config = stack_config({"preset": "qwen3-8b"}) | {"aks-vllm:kubeconfig": KUBECONFIG}
    return record(ROOT, "test", config, secret_keys=[TOKEN_KEY, "aks-vllm:kubeconfig"])


def test_with_an_id_the_stack_is_a_pool_and_what_is_in_the_cluster(recorded: Record) -> None:
    found = recorded(preset="qwen3-8b", existing_cluster={"id": ID}, network={"subnet-id": SUBNET})
    assert names(found) == {*IN_CLUSTER, *PLUGIN, "gpu-h100nvlx1-agent-pool"}
    pool = found.one(AGENT_POOL)
    assert (pool.inputs["resourceGroupName"], pool.inputs["resourceName"]) == ("rg-platform", "platform")
    assert pool.inputs["vnetSubnetID"] == SUBNET
    assert "orchestratorVersion" not in pool.inputs, "its owner upgrades the cluster, and with it the pool"
    assert found.one(PROVIDER).inputs["clusterIdentifier"] == ID.lower()
    assert pool.urn in found.one(PROVIDER).depends_on
    assert found.outputs["cluster"] == "platform"


def test_a_device_plugin_that_is_there_is_not_doubled(recorded: Record) -> None:
    found = recorded(preset="qwen3-8b", existing_cluster={"id": ID, "device-plugin": False})
    assert names(found) == {*IN_CLUSTER, "gpu-h100nvlx1-agent-pool"}


def test_weights_lie_in_a_group_of_the_stacks_own_and_trust_the_clusters_issuer(recorded: Record) -> None:
    found = recorded(
        preset="qwen3-8b", existing_cluster={"id": ID}, weights={"source": "azure-blob"}, revision="a" * 40
    )
    assert names(found) == {*IN_CLUSTER, *PLUGIN, *WEIGHTS, "gpu-h100nvlx1-agent-pool"}
    group = found.one(RESOURCE_GROUP)
    assert group.inputs["resourceGroupName"] == "rg-aks-vllm-test"
    account = found.one("azure-native:storage:StorageAccount")
    assert account.property_dependencies["resourceGroupName"] == (group.urn,), "the cluster's own group is not touched"
    credentials = found.of_type("azure-native:managedidentity:FederatedIdentityCredential")
    assert {str(each.inputs["issuer"]).partition("/")[0] for each in credentials} == {"https:"}
    assert len({each.inputs["issuer"] for each in credentials}) == 1
    assert all("/rg-platform" not in str(each.inputs["scope"]) for each in found.of_type(GRANT)), "not ours to grant"


def test_nothing_is_deleted_or_protected_with_a_cluster_that_is_not_the_stacks(recorded: Record) -> None:
    for found in (recorded(preset="qwen3-8b", existing_cluster={"id": ID}), by_kubeconfig()):
        gone = [each.name for each in found.registrations if each.deleted_with or each.replace_with or each.protect]
        assert not gone, "`pulumi destroy` would leave these behind"


def test_with_a_kubeconfig_nothing_is_declared_in_azure_and_it_stays_secret() -> None:
    found = by_kubeconfig()
    assert names(found) == IN_CLUSTER
    assert not [each for each in found.registrations if each.type.startswith("azure-native:")]
    provider = found.one(PROVIDER).inputs
    assert isinstance(provider["kubeconfig"], Secret)
    assert "clusterIdentifier" not in provider, "the provider goes by the API server that the kubeconfig names"
    assert isinstance(found.outputs["kubeconfig"], Secret)
    assert "cluster" not in found.outputs
    assert KUBECONFIG not in str(found.messages)


def test_a_kubeconfig_in_clear_is_refused_without_repeating_it() -> None:
    with pytest.raises(InputRefusedError) as refusal:
        record(ROOT, "test", stack_config({"kubeconfig": KUBECONFIG}), secret_keys=[TOKEN_KEY])
    assert "aks-vllm:kubeconfig = (hidden): must be encrypted" in str(refusal.value)
    assert KUBECONFIG not in str(refusal.value)
