"""On a cluster of somebody else's a stack decides what is its own, and refuses settings about what is not."""

from __future__ import annotations

import pytest

from planning import existing_cluster, stack_file
from planning.existing_cluster import ExistingClusterPlan
from planning.findings import InvalidStack, Severity
from planning.plan import StackPlan, read_and_decide
from planning.settings import GpuNodes, NetworkSettings, Settings

SUBSCRIPTION = "/subscriptions/00000000-0000-0000-0000-000000000000"
ID = f"{SUBSCRIPTION}/resourceGroups/rg-platform/providers/Microsoft.ContainerService/managedClusters/platform"
SUBNET = f"{SUBSCRIPTION}/resourceGroups/rg-net/providers/Microsoft.Network/virtualNetworks/hub/subnets/gpu"
BY_ID = f"existing-cluster.id={ID}"
BY_KUBECONFIG = "kubeconfig={secure: v1:encrypted}"
BLOB = ("weights={source: azure-blob}", f"revision={'a' * 40}")


def decided(*overrides: str, stack: str = "dev") -> StackPlan:
    return read_and_decide(stack_file.from_file(stack, overrides=overrides))


def refused(*overrides: str, stack: str = "dev") -> dict[str, str]:
    """Key -> what was said of it."""
    with pytest.raises(InvalidStack) as caught:
        decided(*overrides, stack=stack)
    return {problem.key.partition(":")[2]: str(problem) for problem in caught.value.problems}


def said(plan: StackPlan) -> str:
    return "\n".join(str(finding) for finding in plan.findings)


OWNERS = {
    "kubernetes-version": "1.36",
    "api-server-access": "private",
    "authorized-ip-ranges": "[203.0.113.0/24]",
    "maintenance.day": "Monday",
    "add-ons": "[image-cleaner]",
    "budget": "{usd-per-month: 9, contacts: [a@b.example], first-month: 2026-12}",
    "network.vnet-cidr": "10.0.0.0/16",
    "network.node-subnet-cidr": "10.0.0.0/20",
    "network.pod-cidr": "10.1.0.0/16",
    "network.service-cidr": "10.2.0.0/16",
    "network.dns-service-ip": "10.2.0.10",
    "network.outbound": "load-balancer",
    "protect": "true",
    "tags.team": "x",
    "existing-cluster.fqdn-policies": "true",
}


@pytest.mark.parametrize("key", OWNERS)
@pytest.mark.parametrize("form", [BY_ID, BY_KUBECONFIG], ids=["id", "kubeconfig"])
def test_a_setting_about_what_is_not_the_stacks_is_refused_with_the_remedy(form: str, key: str) -> None:
    told = refused(form, f"{key}={OWNERS[key]}")
    named = key.partition(".")[0] if key.startswith(("tags", "maintenance")) else key
    assert "has no effect" in told[named]
    assert "delete the line" in told[named]


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        ((BY_KUBECONFIG, "gpu-nodes.zones=[1]"), "gpu-nodes.zones", "they are there already"),
        ((BY_KUBECONFIG, "gpu-nodes.vcpu-quota=400"), "gpu-nodes.vcpu-quota", "they are there already"),
        ((BY_KUBECONFIG, f"network.subnet-id={SUBNET}"), "network.subnet-id", "they are there already"),
        ((BY_KUBECONFIG, "kubelogin=msi"), "kubelogin", "the kubeconfig says how to sign in"),
        ((BY_KUBECONFIG, *BLOB), "weights.source", "set weights: {source: hugging-face}, or existing-cluster.id"),
        ((BY_ID, "existing-cluster.taints=[x]"), "existing-cluster.taints", "the GPU nodes are the stack's own"),
        ((BY_ID, "network.subnet-id=gpu"), "network.subnet-id", "is not the id of a subnet"),
        ((BY_ID, BY_KUBECONFIG), "kubeconfig", "the cluster in two places"),
        (("existing-cluster={}",), "existing-cluster", "names no cluster"),
        (("existing-cluster.id=platform",), "existing-cluster.id", "must be the id of an AKS cluster"),
        ((BY_ID, "existing-cluster.namespace=Chat"), "existing-cluster.namespace", "must be the name of a namespace"),
        ((BY_ID, "existing-cluster.namespace=kube-system"), "existing-cluster.namespace", "is not the stack's"),
        ((BY_ID, "existing-cluster.idd=x"), "existing-cluster.idd", "did you mean id?"),
        (("kubeconfig=apiVersion",), "kubeconfig", "must be encrypted"),
        (("kube-config=hidden-word",), "kube-config", "(hidden)"),
    ],
)  # fmt: skip
def test_what_cannot_stand_is_told_with_its_remedy(overrides: tuple[str, ...], key: str, words: str) -> None:
    told = refused(*overrides)
    assert set(told) == {key}, told
    assert words in told[key]
    assert "hidden-word" not in told[key]


def test_everything_wrong_is_told_at_once() -> None:
    told = refused(BY_KUBECONFIG, "kubernetes-version=1.36", "network.pod-cidr=10.1.0.0/16", "tags.a=b", *BLOB)
    assert set(told) == {"kubernetes-version", "network.pod-cidr", "tags", "weights.source"}


def test_production_by_kubeconfig_must_say_that_it_downloads() -> None:
    told = refused(BY_KUBECONFIG, stack="prod")
    assert "azure-blob, the default of a production stack" in told["weights.source"]
    assert decided(BY_KUBECONFIG, "weights={source: hugging-face}", stack="prod").weight_store is None


def test_with_an_id_only_the_pools_are_made_and_nobody_takes_them_for_another_stacks() -> None:
    plan, own = decided(BY_ID), decided()
    assert plan.cluster == ExistingClusterPlan(
        id=ID,
        location="eastus",
        subnet_id=None,
        kubelogin="azurecli",
        has_resource_group=False,
        protect=False,
        tags={"managed-by": "pulumi", "aks-vllm-stack": "dev"},
    )
    assert plan.pools_to_make == plan.gpu_pools
    assert [need.family for need in plan.quota] == ["StandardNCadsH100v5Family"], "system nodes are there already"
    names, selectors = set(), set()
    for found in (own, plan, decided(BY_ID, "existing-cluster.namespace=chat")):
        names |= {found.gpu_pools[0].agent_pool_name}
        selectors |= {tuple(sorted(found.models[0].node_selector.items()))}
        assert found.models[0].node_selector.items() <= found.gpu_pools[0].labels.items()
    assert (len(names), len(selectors)) == (3, 3), "stacks that share a cluster would share pools or pods"


def test_with_a_kubeconfig_the_nodes_are_known_by_their_size_and_by_what_the_settings_add() -> None:
    plan = decided(BY_KUBECONFIG, "existing-cluster.node-labels={team: ml}", "existing-cluster.taints=[dedicated]")
    (model,) = plan.models
    assert model.node_selector == {"node.kubernetes.io/instance-type": "Standard_NC40ads_H100_v5", "team": "ml"}
    assert model.tolerated_taints == ("nvidia.com/gpu", "sku", "dedicated")
    assert (plan.pools_to_make, plan.quota) == ((), ())


@pytest.mark.parametrize(
    ("overrides", "brought"),
    [
        ((BY_ID,), True),
        ((BY_KUBECONFIG,), False),
        ((BY_ID, "existing-cluster.device-plugin=false"), False),
        ((BY_KUBECONFIG, "existing-cluster.device-plugin=true"), True),
    ],
)
def test_the_device_plugin_is_brought_where_nodes_are_new_unless_said_otherwise(
    overrides: tuple[str, ...], brought: bool
) -> None:
    assert (decided(*overrides).device_plugin is not None) == brought


def test_weights_in_blob_storage_get_a_group_of_the_stacks_own_and_need_an_issuer() -> None:
    plan = decided(BY_ID, *BLOB)
    assert isinstance(plan.cluster, ExistingClusterPlan)
    assert plan.cluster.has_resource_group
    assert "an OIDC issuer and workload identity" in said(plan)
    assert decided(BY_ID, *BLOB, "protect=true", "tags.team=x").cluster.protect, "there is something to protect"


def test_names_are_filtered_only_where_the_cluster_is_said_to_do_it() -> None:
    assert not decided(BY_ID, *BLOB).name_policies
    open_ = [policy.name for policy in decided(BY_ID, *BLOB).network_policies if policy.name == "weights-model"]
    assert open_ == ["weights-model"], "without one its replicas reach no storage"
    assert decided(BY_ID, *BLOB, "existing-cluster.fqdn-policies=true").name_policies
    production = decided(BY_ID, *BLOB, stack="prod")
    (finding,) = [each for each in production.findings if "fqdn-policies" in each.remedy]
    assert finding.severity is Severity.WARNING


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((BY_ID,), "does not own cluster platform in rg-platform"),
        ((BY_ID,), "A stack that had a cluster of its own until now deletes it with this update"),
        ((BY_ID,), "Kubernetes 1.34 or later; a network policy engine (Cilium or Calico)"),
        ((BY_ID, f"network.subnet-id={SUBNET}"), "the right to join the subnet"),
        ((BY_ID, "gpu-nodes={min: 1, max: 2}"), "max-graceful-termination-sec"),
        ((BY_KUBECONFIG,), "1 node node.kubernetes.io/instance-type=Standard_NC40ads_H100_v5 with the NVIDIA driver, "
         "each offering nvidia.com/gpu: 1"),
    ],
)  # fmt: skip
def test_the_report_says_what_is_not_the_stacks_and_what_must_be_true_of_it(
    overrides: tuple[str, ...], words: str
) -> None:
    assert words in said(decided(*overrides))


def test_the_edge_asks_the_dns_server_that_kubernetes_names() -> None:
    edge = decided(BY_ID).edge
    assert "parse-resolv-conf" in edge.files["haproxy.cfg"]
    assert "CLUSTER_DNS" not in edge.env
    assert "parse-resolv-conf" not in decided().edge.files["haproxy.cfg"]


def test_two_stacks_of_one_cluster_share_no_name_that_is_one_in_the_whole_cluster() -> None:
    here, there = decided(BY_ID), decided(BY_ID, "existing-cluster.namespace=chat")
    assert here.namespace != there.namespace
    assert not {each.name for each in here.priorities} & {each.name for each in there.priorities}


#: Settings that mean the same on a cluster of somebody else's, or are refused there for a reason of their own.
APPLY = {
    *("location", "environment", "models", "gpu_nodes", "existing_cluster", "kubeconfig", "kubelogin", "protect"),
    *("max_answer_tokens", "hf_token", "registry", "network", "tags", "edge", "flat"),
    *("key_vault", "benchmark", "benchmark_key"),
}


def test_of_every_setting_it_is_decided_whose_it_is() -> None:
    """A new one that means a cluster of the stack's own would else do nothing, and say nothing."""
    assert set(Settings.model_fields) - set(existing_cluster._OWNERS) == APPLY
    assert set(NetworkSettings.model_fields) - set(existing_cluster._OWNERS_NETWORK) == {"subnet_id"}
    assert set(GpuNodes.model_fields) - set(existing_cluster._OWNERS_NODES) == {"min", "max"}
