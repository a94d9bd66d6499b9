"""How this program reaches the cluster's API: the deployer's grant, a kubeconfig and the Kubernetes provider."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as kubernetes
from pulumi_azure_native import authorization, containerservice

from components.cluster import Cluster
from components.gpu_pool import GpuPool
from components.grants import grant
from planning.cluster import ClusterPlan
from planning.kubeconfig import for_kubelogin

#: Azure Kubernetes Service RBAC Cluster Admin.
#: https://learn.microsoft.com/azure/role-based-access-control/built-in-roles
RBAC_CLUSTER_ADMIN = "b1ff04bb-8a4e-4dc4-8eb5-8693973ce19b"


@dataclass(frozen=True, kw_only=True)
class KubernetesAccessArgs:
    """The cluster, how its users sign in, and the pools that must stand before anything is scheduled."""

    plan: ClusterPlan
    cluster: Cluster
    pools: Sequence[GpuPool]


class KubernetesAccess(pulumi.ComponentResource):
    """Whatever lives in the cluster takes `in_cluster`, and so waits for the grant and for the GPU pools."""

    kubeconfig: pulumi.Output[str]
    in_cluster: pulumi.ResourceOptions

    def __init__(self, name: str, args: KubernetesAccessArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:KubernetesAccess", name, None, opts)
        cluster = args.cluster.managed_cluster
        deployer = authorization.get_client_config_output()

        # Local accounts are off and Azure decides who may do what: without this even the cluster's creator may not.
        # It takes up to five minutes to apply; the first GPU pool, created meanwhile, takes longer.
        granted = grant(
            f"{name}-deployer",
            role=RBAC_CLUSTER_ADMIN,
            scope=cluster.id,
            principal_id=deployer.object_id,
            principal_type=None,
            opts=pulumi.ResourceOptions(parent=self),
        )
        credentials = containerservice.list_managed_cluster_user_credentials_output(
            resource_group_name=args.cluster.resource_group.name,
            resource_name=cluster.name,
            format="exec",
            # Without it the call is made at the first preview, when there is no cluster to ask.
            opts=pulumi.InvokeOutputOptions(parent=self, depends_on=[cluster, granted]),
        )
        # Invokes never return secrets: this is the first place that can mark it.
        self.kubeconfig = pulumi.Output.secret(credentials).apply(
            lambda listed: for_kubelogin(base64.b64decode(listed.kubeconfigs[0].value).decode(), args.plan.kubelogin)
        )
        provider = kubernetes.Provider(
            f"{name}-provider",
            kubeconfig=self.kubeconfig,
            # Known from day one: a changed or not yet known kubeconfig would plan to replace every Kubernetes object.
            cluster_identifier=args.cluster.physical_name,
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=[granted, *(pool.agent_pool for pool in args.pools)],
                # A new cluster of the same name is empty: without this, what was in the old one would be taken for
                # still there.
                replace_with=[cluster],
            ),
        )
        # Deleting the cluster deletes what is in it: no call to an API that may be gone already. `delete_unreachable`
        # would do the same whenever the network is down, and leave the objects behind.
        self.in_cluster = pulumi.ResourceOptions(providers={"kubernetes": provider}, deleted_with=cluster)
        self.register_outputs({"kubeconfig": self.kubeconfig})
