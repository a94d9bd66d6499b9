"""The AKS cluster, with the resource group, the identities and the network that it stands on."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_azure_native import containerservice, managedidentity, operationalinsights, resources

from components.grants import grant
from components.network import Network, NetworkArgs
from planning.cluster import ClusterPlan, SystemPoolPlan
from planning.key_vault import ADD_ON, ADD_ON_CONFIG
from planning.names import Names
from planning.roles import MANAGED_IDENTITY_OPERATOR, NETWORK_CONTRIBUTOR


@dataclass(frozen=True, kw_only=True)
class ClusterArgs:
    """What the cluster is (`plan`) and what Azure calls it (`names`)."""

    plan: ClusterPlan
    names: Names


class Cluster(pulumi.ComponentResource):
    """Resource group, identities, network and managed cluster with its system pool. GPU pools are `GpuPool`s."""

    plan: ClusterPlan
    resource_group: resources.ResourceGroup
    managed_cluster: containerservice.ManagedCluster
    name: pulumi.Output[str]
    group_name: pulumi.Output[str]  # of the resource group that the cluster is in
    issuer_url: pulumi.Output[str]  # of its service accounts' tokens
    kubernetes_version: str
    identifier: str  # known before the cluster exists, unlike `name`
    node_subnet_id: pulumi.Input[str]
    workspace_id: pulumi.Output[str] | None  # of Log Analytics, where the control plane's logs go

    def __init__(self, name: str, args: ClusterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:Cluster", name, None, opts)
        self.plan = plan = args.plan
        names = args.names
        self.kubernetes_version, self.identifier = plan.kubernetes_version, names.cluster

        self.resource_group = resources.ResourceGroup(
            f"{name}-resource-group",
            resource_group_name=names.resource_group,
            location=plan.location,
            tags=plan.tags,
            # Whoever deletes the group deletes the cluster in it.
            opts=pulumi.ResourceOptions(parent=self, protect=plan.protect),
        )
        own = self._identity(f"{name}-identity", names.cluster_identity, plan)
        kubelet = self._identity(f"{name}-kubelet-identity", names.kubelet_identity, plan)
        network = None
        self.node_subnet_id = plan.network.subnet_id or ""
        if plan.network.subnet_id is None:
            network_args = NetworkArgs(plan=plan, names=names, resource_group=self.resource_group)
            network = Network("network", network_args, pulumi.ResourceOptions(parent=self))
            self.node_subnet_id = network.node_subnet_id

        # All of them before the cluster: AKS checks what its identity may do when it begins.
        grants = {"kubelet-identity": (own, kubelet.id, MANAGED_IDENTITY_OPERATOR)}
        if network is not None:
            grants["network"] = (own, network.virtual_network.id, NETWORK_CONTRIBUTOR)
        who = {"cluster": own, "kubelet": kubelet}
        grants |= {
            each.name: (who[each.identity], pulumi.Output.from_input(each.scope), each.role) for each in plan.grants
        }
        granted = [
            grant(
                f"{name}-{on}-grant",
                role=role,
                scope=scope,
                principal_id=identity.principal_id,
                opts=pulumi.ResourceOptions(parent=self),
            )
            for on, (identity, scope, role) in grants.items()
        ]
        self.workspace_id = None
        if plan.logs is not None:
            workspace = operationalinsights.Workspace(
                f"{name}-log-analytics",
                workspace_name=names.log_analytics,
                resource_group_name=self.resource_group.name,
                location=plan.location,
                tags=plan.tags,
                sku=operationalinsights.WorkspaceSkuArgs(name="PerGB2018"),
                retention_in_days=plan.logs.days,
                opts=pulumi.ResourceOptions(parent=self),
            )
            self.workspace_id = workspace.id
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
            identity=containerservice.ManagedClusterIdentityArgs(
                type=containerservice.ResourceIdentityType.USER_ASSIGNED, user_assigned_identities=[own.id]
            ),
            # What pulls images: known beforehand, so that a registry can be opened to it before the first pod.
            identity_profile={
                "kubeletidentity": containerservice.UserAssignedIdentityArgs(
                    resource_id=kubelet.id, client_id=kubelet.client_id, object_id=kubelet.principal_id
                )
            },
            agent_pool_profiles=[_system_pool(plan.system_pool, self.node_subnet_id)],
            network_profile=_network(plan),
            api_server_access_profile=_access(plan, network),
            auto_scaler_profile=_autoscaler(plan),
            # Every automatic upgrade replaces GPU nodes at a time nobody chose, and a drained one-node pool is an
            # outage: the Kubernetes version of the stack file is the only thing that starts one.
            auto_upgrade_profile=containerservice.ManagedClusterAutoUpgradeProfileArgs(
                upgrade_channel="none", node_os_upgrade_channel="None"
            ),
            enable_rbac=True,
            disable_local_accounts=True,
            aad_profile=containerservice.ManagedClusterAADProfileArgs(managed=True, enable_azure_rbac=True),
            oidc_issuer_profile=containerservice.ManagedClusterOIDCIssuerProfileArgs(enabled=True),
            security_profile=_security(plan, self.workspace_id),
            # What is off is said, too: what an update leaves out stays as it was.
            # https://github.com/hashicorp/terraform-provider-azurerm, internal/services/containers/kubernetes_addons.go
            addon_profiles=_add_ons(plan),
            azure_monitor_profile=_metrics(plan),
            opts=pulumi.ResourceOptions(
                parent=self,
                protect=plan.protect,
                depends_on=granted,
                # Azure reports every pool here, the GPU pools too. After a refresh an edit of the inline list would
                # set all of them to Scaling (pulumi-azure-native#4264) and removing one deletes nothing (#1686).
                ignore_changes=["agentPoolProfiles"],
            ),
        )
        self.name, self.group_name = self.managed_cluster.name, self.resource_group.name
        self.issuer_url = self.managed_cluster.oidc_issuer_profile.apply(
            lambda profile: profile.issuer_url if profile else ""
        )
        self.register_outputs({"clusterName": self.name})

    def _identity(self, name: str, physical: str, plan: ClusterPlan) -> managedidentity.UserAssignedIdentity:
        return managedidentity.UserAssignedIdentity(
            name,
            resource_name_=physical,
            resource_group_name=self.resource_group.name,
            location=plan.location,
            tags=plan.tags,
            opts=pulumi.ResourceOptions(parent=self),
        )


def _system_pool(
    pool: SystemPoolPlan, subnet: pulumi.Input[str]
) -> containerservice.ManagedClusterAgentPoolProfileArgs:
    return containerservice.ManagedClusterAgentPoolProfileArgs(
        name=pool.name,
        mode="System",
        type="VirtualMachineScaleSets",
        vm_size=pool.vm_size,
        count=pool.count,
        availability_zones=list(pool.zones) or None,
        vnet_subnet_id=subnet,
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
        outbound_type=plan.network.outbound_type,
        pod_cidr=plan.network.pod_cidr,
        service_cidr=plan.network.service_cidr,
        dns_service_ip=plan.network.dns_service_ip,
        # Absent where it is off: the API refuses an explicit false (pulumi-azure-native#4206).
        advanced_networking=containerservice.AdvancedNetworkingArgs(
            enabled=True,
            security=containerservice.AdvancedNetworkingSecurityArgs(enabled=True, advanced_network_policies="FQDN"),
        )
        if plan.policies_by_name
        else None,
    )


def _add_ons(plan: ClusterPlan) -> dict[str, containerservice.ManagedClusterAddonProfileArgs]:
    return {
        "azurepolicy": containerservice.ManagedClusterAddonProfileArgs(enabled=plan.azure_policy),
        ADD_ON: containerservice.ManagedClusterAddonProfileArgs(
            enabled=plan.secrets_store, config=ADD_ON_CONFIG if plan.secrets_store else None
        ),
    }


def _metrics(plan: ClusterPlan) -> containerservice.ManagedClusterAzureMonitorProfileArgs:
    """The agents that fetch metrics; where they send them is `monitoring.Monitoring`'s."""
    return containerservice.ManagedClusterAzureMonitorProfileArgs(
        metrics=containerservice.ManagedClusterAzureMonitorProfileMetricsArgs(enabled=plan.managed_prometheus)
    )


def _access(plan: ClusterPlan, network: Network | None) -> containerservice.ManagedClusterAPIServerAccessProfileArgs:
    ranges: list[pulumi.Input[str]] = list(plan.api_server.authorized_ip_ranges)
    if ranges and network is not None:
        # AKS adds a load balancer's address by itself, but not the NAT gateway's, which its nodes call from.
        ranges.append(pulumi.Output.concat(network.egress_ip, "/32"))
    return containerservice.ManagedClusterAPIServerAccessProfileArgs(
        disable_run_command=True,  # `az aks command invoke` would go around these rules
        enable_private_cluster=True if plan.api_server.private else None,
        private_dns_zone="system" if plan.api_server.private else None,
        enable_private_cluster_public_fqdn=False if plan.api_server.private else None,
        authorized_ip_ranges=ranges or None,
    )


def _security(
    plan: ClusterPlan, workspace: pulumi.Output[str] | None
) -> containerservice.ManagedClusterSecurityProfileArgs:
    return containerservice.ManagedClusterSecurityProfileArgs(
        workload_identity=containerservice.ManagedClusterSecurityProfileWorkloadIdentityArgs(enabled=True),
        image_cleaner=containerservice.ManagedClusterSecurityProfileImageCleanerArgs(
            enabled=plan.image_cleaner_hours is not None, interval_hours=plan.image_cleaner_hours
        ),
        defender=containerservice.ManagedClusterSecurityProfileDefenderArgs(
            log_analytics_workspace_resource_id=workspace if plan.defender else None,
            security_monitoring=containerservice.ManagedClusterSecurityProfileDefenderSecurityMonitoringArgs(
                enabled=plan.defender
            ),
        ),
    )


def _autoscaler(plan: ClusterPlan) -> containerservice.ManagedClusterPropertiesAutoScalerProfileArgs:
    return containerservice.ManagedClusterPropertiesAutoScalerProfileArgs(
        # GPU nodes need longer than the default 15 minutes; the autoscaler would give them up and start again.
        max_node_provision_time=f"{plan.max_node_provision_minutes}m",
        # It kills what is left of a node's pods after that, answers under way included. A string in the API.
        max_graceful_termination_sec=str(plan.max_graceful_termination_seconds),
        # Every model pod has emptyDir volumes, which by default keep an idle GPU node for ever. A string in the API.
        skip_nodes_with_local_storage="false",
    )
