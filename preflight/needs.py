"""What a stack asks of Azure, by Resource Manager's own names: from this follow permissions and registrations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from planning.existing_cluster import ExistingClusterPlan
from planning.plan import StackPlan

#: Resource types that every stack with a cluster of its own declares. A test holds all of them against what the program
#: registers.
ALWAYS = (
    "Microsoft.Resources/subscriptions/resourceGroups",
    "Microsoft.ManagedIdentity/userAssignedIdentities",
    "Microsoft.ContainerService/managedClusters",
    "Microsoft.ContainerService/managedClusters/agentPools",
    "Microsoft.ContainerService/managedClusters/maintenanceConfigurations",
    "Microsoft.Authorization/roleAssignments",
)
NETWORK = (
    "Microsoft.Network/publicIPAddresses",
    "Microsoft.Network/natGateways",
    "Microsoft.Network/networkSecurityGroups",
    "Microsoft.Network/virtualNetworks",
)
LOGS = ("Microsoft.OperationalInsights/workspaces", "Microsoft.Insights/diagnosticSettings")
METRICS = (
    "Microsoft.Monitor/accounts",
    "Microsoft.Insights/dataCollectionEndpoints",
    "Microsoft.Insights/dataCollectionRules",
    "Microsoft.Insights/dataCollectionRuleAssociations",
)
GRAFANA = ("Microsoft.Dashboard/grafana",)
SIGN_IN = ("Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials",)
#: In a cluster that is not the stack's.
IN_EXISTING = ("Microsoft.ContainerService/managedClusters/agentPools",)
#: For what the stack keeps beside it.
BESIDE_EXISTING = (
    "Microsoft.Resources/subscriptions/resourceGroups",
    "Microsoft.ManagedIdentity/userAssignedIdentities",
    "Microsoft.Authorization/roleAssignments",
)
WEIGHTS = (
    "Microsoft.Storage/storageAccounts",
    "Microsoft.Storage/storageAccounts/blobServices/containers",
)
BUDGET = ("Microsoft.Consumption/budgets",)

#: What is done to resources beside reading, writing and deleting them.
CREDENTIALS = "Microsoft.ContainerService/managedClusters/listClusterUserCredential/action"
ASSIGN = "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"
#: Of a cluster's objects, those that a stack makes which the fewest roles allow.
#: https://learn.microsoft.com/azure/aks/entra-id-authorization
IN_CLUSTER = (
    "Microsoft.ContainerService/managedClusters/namespaces/write",
    "Microsoft.ContainerService/managedClusters/scheduling.k8s.io/priorityclasses/write",
    "Microsoft.ContainerService/managedClusters/apps/deployments/write",
)
GRANT = "Microsoft.Authorization/roleAssignments/write"
#: Of a subnet that is not the stack's: https://learn.microsoft.com/azure/aks/concepts-identity
JOIN = "Microsoft.Network/virtualNetworks/subnets/join/action"

#: Registered in every subscription: https://learn.microsoft.com/azure/azure-resource-manager/management/resource-providers-and-types
BUILT_IN = frozenset({"Microsoft.Resources", "Microsoft.Authorization", "Microsoft.Consumption"})
#: AKS makes these in the node resource group, and says MissingSubscriptionRegistration where they are not registered.
#: https://learn.microsoft.com/troubleshoot/azure/azure-kubernetes/error-codes/missingsubscriptionregistration-error
BEHIND_AKS = ("Microsoft.Compute", "Microsoft.Network", "Microsoft.Storage")
BEHIND_DEFENDER, BEHIND_POLICY = "Microsoft.Security", "Microsoft.PolicyInsights"
#: https://learn.microsoft.com/azure/azure-monitor/containers/kubernetes-monitoring-enable#prerequisites
BEHIND_METRICS = "Microsoft.AlertsManagement"


def resource_types(plan: StackPlan) -> tuple[str, ...]:
    """The types that the stack declares."""
    cluster, weights = plan.cluster, (*WEIGHTS, *SIGN_IN) if plan.weight_store else ()
    if isinstance(cluster, ExistingClusterPlan):
        made = IN_EXISTING if plan.pools_to_make else ()
        return (*made, *(BESIDE_EXISTING if cluster.has_resource_group else ()), *weights)
    return (
        *ALWAYS,
        *(NETWORK if cluster.network.subnet_id is None else ()),
        *(LOGS if cluster.logs else ()),
        *(METRICS if plan.monitoring else ()),
        *(GRAFANA if plan.monitoring and plan.monitoring.grafana else ()),
        *(BUDGET if cluster.budget else ()),
        *(SIGN_IN if plan.key_vault and not weights else ()),
        *weights,
    )


def regional(plan: StackPlan) -> tuple[str, ...]:
    """Of those, what is not to be had in every region that has GPUs."""
    return tuple(type_ for type_ in resource_types(plan) if type_ in ("Microsoft.Monitor/accounts", *GRAFANA))


def actions(plan: StackPlan) -> tuple[str, ...]:
    """What the deployer must be allowed to do in the stack's resource group, in the words of role definitions.

    None where the stack has no group.
    """
    types = resource_types(plan)
    if isinstance(plan.cluster, ExistingClusterPlan):
        return _verbs([type_ for type_ in types if type_ not in IN_EXISTING])
    return (*_verbs(types), CREDENTIALS, ASSIGN)


def actions_elsewhere(plan: StackPlan) -> Mapping[str, tuple[str, ...]]:
    """The same for what is not the stack's, by its id: a cluster, a subnet, a reservation group, a vault's secret."""
    cluster = plan.cluster
    if isinstance(cluster, ExistingClusterPlan):
        there = (*_verbs(IN_EXISTING), "Microsoft.ContainerService/managedClusters/read", CREDENTIALS)
        joined = {cluster.subnet_id: (JOIN,)} if cluster.subnet_id else {}
        return ({cluster.id: there} | joined) if cluster.id else {}
    subnet = cluster.network.subnet_id
    wanted = {grant.scope: (GRANT, JOIN) if grant.scope == subnet else (GRANT,) for grant in cluster.grants}
    vault = plan.key_vault
    return wanted | ({vault.scope(secret): (GRANT,) for secret in vault.secrets} if vault else {})


def providers(plan: StackPlan) -> tuple[str, ...]:
    """Namespaces that must be registered in the subscription."""
    declared = {type_.partition("/")[0] for type_ in resource_types(plan)} - BUILT_IN
    if isinstance(plan.cluster, ExistingClusterPlan):
        return tuple(sorted(declared))
    cluster = plan.cluster
    add_ons = {
        BEHIND_DEFENDER: cluster.defender,
        BEHIND_POLICY: cluster.azure_policy,
        BEHIND_METRICS: cluster.managed_prometheus,
    }
    return tuple(sorted(declared | {*BEHIND_AKS, *(name for name, wanted in add_ons.items() if wanted)}))


def _verbs(types: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{type_}/{verb}" for type_ in types for verb in ("read", "write", "delete"))
