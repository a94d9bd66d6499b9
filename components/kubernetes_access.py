"""How this program reaches the cluster's API: the deployer's grant, a kubeconfig and the Kubernetes provider."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as kubernetes
from pulumi_azure_native import authorization, containerservice

from components.cluster import Cluster
from components.existing_cluster import ExistingCluster
from components.gpu_pool import GpuPool
from components.grants import grant
from planning.cluster import ClusterPlan
from planning.existing_cluster import ExistingClusterPlan
from planning.kubeconfig import for_kubelogin
from planning.roles import RBAC_CLUSTER_ADMIN


@dataclass(frozen=True, kw_only=True)
class KubernetesAccessArgs:
    """The cluster, how its users sign in, and the pools that must stand before anything is scheduled.

    `kubeconfig` is the stack's own secret; None: Azure is asked for one.
    """

    plan: ClusterPlan | ExistingClusterPlan
    cluster: Cluster | ExistingCluster
    pools: Sequence[GpuPool]
    kubeconfig: pulumi.Output[str] | None


class KubernetesAccess(pulumi.ComponentResource):
    """Whatever lives in the cluster takes `in_cluster`, and so waits for the grant and for the GPU pools."""

    kubeconfig: pulumi.Output[str]
    in_cluster: pulumi.ResourceOptions

    def __init__(self, name: str, args: KubernetesAccessArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:KubernetesAccess", name, None, opts)
        own, granted = args.cluster.managed_cluster, list[pulumi.Resource]()
        if own is not None:
            # Local accounts are off and Azure decides who may do what: without this even the cluster's creator may not.
            # It takes up to five minutes to apply; the first GPU pool, created meanwhile, takes longer.
            deployer = grant(
                f"{name}-deployer",
                role=RBAC_CLUSTER_ADMIN,
                scope=own.id,
                principal_id=authorization.get_client_config_output().object_id,
                principal_type=None,
                opts=pulumi.ResourceOptions(parent=self),
            )
            granted = [deployer]
        self.kubeconfig = args.kubeconfig or self._from_azure(args, granted)
        provider = kubernetes.Provider(
            f"{name}-provider",
            kubeconfig=self.kubeconfig,
            # Known from day one: a changed or not yet known kubeconfig would plan to replace every Kubernetes object.
            cluster_identifier=args.cluster.identifier,
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=[*granted, *(pool.agent_pool for pool in args.pools)],
                # A new cluster of the same name is empty: without this, what was in the old one would be taken for
                # still there.
                replace_with=[own] if own else None,
            ),
        )
        # Deleting the cluster deletes what is in it: no call to an API that may be gone already. `delete_unreachable`
        # would do the same whenever the network is down, and leave the objects behind.
        self.in_cluster = pulumi.ResourceOptions(providers={"kubernetes": provider}, deleted_with=own)
        self.register_outputs({"kubeconfig": self.kubeconfig})

    def _from_azure(self, args: KubernetesAccessArgs, granted: Sequence[pulumi.Resource]) -> pulumi.Output[str]:
        own = args.cluster.managed_cluster
        credentials = containerservice.list_managed_cluster_user_credentials_output(
            resource_group_name=args.cluster.group_name,
            resource_name=args.cluster.name,
            format="exec",
            # Without it the call is made at the first preview, when there is no cluster of the stack's own to ask.
            opts=pulumi.InvokeOutputOptions(parent=self, depends_on=[own, *granted] if own else None),
        )
        # Invokes never return secrets: this is the first place that can mark it.
        return pulumi.Output.secret(credentials).apply(
            lambda listed: for_kubelogin(base64.b64decode(listed.kubeconfigs[0].value).decode(), args.plan.kubelogin)
        )
