"""What a stack asks of Azure, by Resource Manager's own names: from this follow permissions and registrations."""

from __future__ import annotations

from planning.plan import StackPlan

#: Resource types that every stack declares. A test holds them against what the program registers.
ALWAYS = (
    "Microsoft.Resources/subscriptions/resourceGroups",
    "Microsoft.ContainerService/managedClusters",
    "Microsoft.ContainerService/managedClusters/agentPools",
    "Microsoft.Authorization/roleAssignments",
)

#: Namespaces that every subscription has: https://learn.microsoft.com/azure/azure-resource-manager/management/resource-providers-and-types
BUILT_IN = frozenset({"Microsoft.Resources", "Microsoft.Authorization"})

#: AKS makes these in the node resource group, and says MissingSubscriptionRegistration where they are not registered.
#: https://learn.microsoft.com/troubleshoot/azure/azure-kubernetes/error-codes/missingsubscriptionregistration-error
BEHIND_AKS = ("Microsoft.Compute", "Microsoft.Network", "Microsoft.Storage")


def resource_types(_: StackPlan) -> tuple[str, ...]:
    """The types that the stack declares."""
    return ALWAYS


def actions(plan: StackPlan) -> tuple[str, ...]:
    """What the deployer must be allowed to do, in the words of role definitions."""
    verbs = [f"{type_}/{verb}" for type_ in resource_types(plan) for verb in ("read", "write", "delete")]
    return (*verbs, "Microsoft.ContainerService/managedClusters/listClusterUserCredential/action")


def providers(plan: StackPlan) -> tuple[str, ...]:
    """Namespaces that must be registered in the subscription."""
    declared = {type_.partition("/")[0] for type_ in resource_types(plan)}
    return tuple(sorted((declared - BUILT_IN) | set(BEHIND_AKS)))
