"""The AKS cluster and the resource group that holds it."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_azure_native import containerservice, resources

from planning.names import Names
from planning.plan import ClusterPlan, SystemPoolPlan


@dataclass(frozen=True, kw_only=True)
class ClusterArgs:
    """What the cluster is (`plan`) and what Azure calls it (`names`)."""

    plan: ClusterPlan
    names: Names


class Cluster(pulumi.ComponentResource):
    """Resource group and managed cluster with its system pool. GPU pools are `GpuPool`s of their own."""

    resource_group: resources.ResourceGroup
    managed_cluster: containerservice.ManagedCluster
    kubernetes_version: str
    physical_name: str  # known before the cluster exists, unlike `managed_cluster.name`

    def __init__(self, name: str, args: ClusterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:Cluster", name, None, opts)
        plan, names = args.plan, args.names
        self.kubernetes_version, self.physical_name = plan.kubernetes_version, names.cluster

        self.resource_group = resources.ResourceGroup(
            f"{name}-resource-group",
            resource_group_name=names.resource_group,
            location=plan.location,
            tags=plan.tags,
            # Whoever deletes the group deletes the cluster in it.
            opts=pulumi.ResourceOptions(parent=self, protect=plan.protect),
        )
        # The logical names above and below are the cluster's identity in state: renaming one replaces the cluster.
        self.managed_cluster = containerservice.ManagedCluster(
            f"{name}-managed-cluster",
            resource_name_=names.cluster,
            resource_group_name=self.resource_group.name,
            location=plan.location,
            tags=plan.tags,
            dns_prefix=names.dns_prefix,
            node_resource_group=names.node_resource_group,
            kubernetes_version=plan.kubernetes_version,
            sku=containerservice.ManagedClusterSKUArgs(name="Base", tier=plan.sku_tier),
            # AKS grants a system-assigned identity what it needs in its own virtual network and node resource group;
            # a user-assigned one would be one more resource and one more grant to wait for.
            identity=containerservice.ManagedClusterIdentityArgs(
                type=containerservice.ResourceIdentityType.SYSTEM_ASSIGNED
            ),
            agent_pool_profiles=[_system_pool(plan)],
            network_profile=_network(plan),
            auto_scaler_profile=_autoscaler(plan),
            # Every automatic upgrade replaces GPU nodes at a time nobody chose, and a drained one-node pool is an
            # outage: the Kubernetes version of the stack file is the only thing that starts one.
            auto_upgrade_profile=containerservice.ManagedClusterAutoUpgradeProfileArgs(
                upgrade_channel="none", node_os_upgrade_channel="None"
            ),
            enable_rbac=True,
            disable_local_accounts=True,
            aad_profile=containerservice.ManagedClusterAADProfileArgs(managed=True, enable_azure_rbac=True),
            api_server_access_profile=containerservice.ManagedClusterAPIServerAccessProfileArgs(
                disable_run_command=True  # `az aks command invoke` would go around the API server's access rules
            ),
            oidc_issuer_profile=containerservice.ManagedClusterOIDCIssuerProfileArgs(enabled=True),
            security_profile=containerservice.ManagedClusterSecurityProfileArgs(
                workload_identity=containerservice.ManagedClusterSecurityProfileWorkloadIdentityArgs(enabled=True)
            ),
            opts=pulumi.ResourceOptions(
                parent=self,
                protect=plan.protect,
                # Azure reports every pool here, the GPU pools too. After a refresh an edit of the inline list would
                # set all of them to Scaling (pulumi-azure-native#4264) and removing one deletes nothing (#1686).
                ignore_changes=["agentPoolProfiles"],
            ),
        )
        self.register_outputs({"clusterName": self.managed_cluster.name})


def _system_pool(plan: ClusterPlan) -> containerservice.ManagedClusterAgentPoolProfileArgs:
    pool: SystemPoolPlan = plan.system_pool
    return containerservice.ManagedClusterAgentPoolProfileArgs(
        name=pool.name,
        mode="System",
        type="VirtualMachineScaleSets",
        vm_size=pool.vm_size,
        count=pool.count,
        os_type="Linux",
        node_taints=list(pool.taints),
    )


def _network(plan: ClusterPlan) -> containerservice.ContainerServiceNetworkProfileArgs:
    """Pods in an overlay, so that only nodes use subnet addresses; Cilium, so that network policies are enforced."""
    return containerservice.ContainerServiceNetworkProfileArgs(
        network_plugin="azure",
        network_plugin_mode="overlay",
        network_dataplane="cilium",
        network_policy="cilium",
        load_balancer_sku="standard",
        # All of it, always: the provider fills gaps with its own defaults, and changing one later replaces the cluster.
        outbound_type="loadBalancer",
        pod_cidr=plan.pod_cidr,
        service_cidr=plan.service_cidr,
        dns_service_ip=plan.dns_service_ip,
    )


def _autoscaler(plan: ClusterPlan) -> containerservice.ManagedClusterPropertiesAutoScalerProfileArgs:
    return containerservice.ManagedClusterPropertiesAutoScalerProfileArgs(
        # GPU nodes need longer than the default 15 minutes; the autoscaler would give them up and start again.
        max_node_provision_time=f"{plan.max_node_provision_minutes}m",
        # Every model pod has emptyDir volumes, which by default keep an idle GPU node for ever. A string in the API.
        skip_nodes_with_local_storage="false",
    )
