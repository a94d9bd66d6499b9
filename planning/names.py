"""Physical names: pure functions of the stack's name, within Azure's limits.

Logical names (Pulumi identity) are literals in the components. A physical name may change without replacing state;
a logical one may not.
"""

from __future__ import annotations

from dataclasses import dataclass

# https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules
RESOURCE_GROUP_MAX = 90
CLUSTER_MAX = 63
NODE_RESOURCE_GROUP_MAX = 80
DNS_PREFIX_MAX = 54


@dataclass(frozen=True, kw_only=True)
class Names:
    """What Azure shows. `stack` is the Pulumi stack's name."""

    resource_group: str
    cluster: str
    node_resource_group: str
    dns_prefix: str


def names(stack: str) -> Names:
    """Names for one stack."""
    return Names(
        resource_group=f"rg-aks-vllm-{stack}"[:RESOURCE_GROUP_MAX],
        cluster=f"aks-vllm-{stack}"[:CLUSTER_MAX],
        node_resource_group=f"rg-aks-vllm-{stack}-nodes"[:NODE_RESOURCE_GROUP_MAX],
        dns_prefix=f"aks-vllm-{stack}"[:DNS_PREFIX_MAX],
    )
