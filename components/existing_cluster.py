"""A cluster that somebody else makes: nothing of it is declared, and what the stack needs to know of it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pulumi
from pulumi_azure_native import containerservice, resources

from planning.existing_cluster import ExistingClusterPlan
from planning.names import Names


@dataclass(frozen=True, kw_only=True)
class ExistingClusterArgs:
    """Which cluster it is (`plan`), and what the stack's own group beside it is called (`names`)."""

    plan: ExistingClusterPlan
    names: Names


class ExistingCluster(pulumi.ComponentResource):
    """What `Cluster` tells of a cluster, of one that is not the stack's."""

    resource_group: resources.ResourceGroup | None  # the stack's own, for what it keeps beside the cluster
    managed_cluster: None  # nothing here may wait for it, replace it or be deleted with it
    name: str
    group_name: str
    kubernetes_version: None  # of new pools: whatever the control plane has
    identifier: str | None  # None: the Kubernetes provider goes by the API server's address
    node_subnet_id: str | None

    def __init__(self, name: str, args: ExistingClusterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:ExistingCluster", name, None, opts)
        plan = args.plan
        self.managed_cluster = self.kubernetes_version = None
        self.name, self.group_name = plan.name, plan.resource_group
        # Two clusters of one name in two groups are two.
        self.identifier = plan.id.lower() if plan.id else None
        self.node_subnet_id = plan.subnet_id
        self.resource_group = None
        if plan.has_resource_group:
            self.resource_group = resources.ResourceGroup(
                f"{name}-resource-group",
                resource_group_name=args.names.resource_group,
                location=plan.location,
                tags=plan.tags,
                # Whoever deletes the group deletes the weights in it.
                opts=pulumi.ResourceOptions(parent=self, protect=plan.protect),
            )
        self.register_outputs({"clusterName": self.name})

    @cached_property
    def issuer_url(self) -> pulumi.Output[str]:
        """Of the tokens of its service accounts; an update stops here where the cluster has no issuer."""
        found = containerservice.get_managed_cluster_output(
            resource_group_name=self.group_name,
            resource_name=self.name,
            opts=pulumi.InvokeOutputOptions(parent=self),
        )
        return found.apply(lambda cluster: _issuer(cluster, self.name))


def _issuer(cluster: containerservice.GetManagedClusterResult, name: str) -> str:
    profile = cluster.oidc_issuer_profile
    if profile is None or not profile.issuer_url:
        lacks = f"cluster {name} has no OIDC issuer, so that its pods cannot sign in to the weights' storage"
        turn_on = "its owner runs `az aks update --enable-oidc-issuer --enable-workload-identity`"
        raise pulumi.RunError(f"{lacks}: {turn_on}, or set weights: {{source: hugging-face}}")
    return profile.issuer_url
