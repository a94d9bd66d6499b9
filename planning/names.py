"""Physical names: pure functions of the stack's name, within Azure's limits.

Logical names (Pulumi identity) are literals in the components. A physical name may change without replacing state;
a logical one may not.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

# https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules
RESOURCE_GROUP_MAX = 90
CLUSTER_MAX = 63
NODE_RESOURCE_GROUP_MAX = 80
DNS_PREFIX_MAX = 54
STORAGE_ACCOUNT_MAX = 24
GRAFANA_MAX = 23
# https://github.com/Azure/prometheus-collector, AddonBicepTemplate
DATA_COLLECTION_ENDPOINT_MAX = 44

#: Lower-case letters, digits and hyphens are what all four may hold; a DNS prefix ends in a letter or digit.
_PLAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Names:
    """What Azure shows. `stack` is the Pulumi stack's name."""

    resource_group: str
    cluster: str
    node_resource_group: str
    dns_prefix: str
    virtual_network: str  # this and what follows lie in the resource group, and are unique there by their type
    network_security_group: str
    nat_gateway: str
    public_ip: str
    cluster_identity: str
    kubelet_identity: str
    log_analytics: str
    budget: str
    monitor_workspace: str  # where Prometheus' metrics are
    data_collection_endpoint: str
    data_collection_rule: str
    grafana: str
    token_reader: str  # identity of whoever fetches weights with the token of a vault
    certificate_reader: str  # identity of the edge, whose certificate is in a vault
    weights_reader: str  # identity of the replicas that stream their weights
    weights_uploader: str  # identity of the Jobs that put them there


def names(stack: str) -> Names:
    """Names for one stack. Two stacks never share one: what is cut or replaced comes back as a hash."""
    longest = min(
        RESOURCE_GROUP_MAX - len("rg-aks-vllm-"),
        NODE_RESOURCE_GROUP_MAX - len("rg-aks-vllm--nodes"),
        CLUSTER_MAX - len("aks-vllm-"),
        DNS_PREFIX_MAX - len("aks-vllm-"),
    )
    if not _PLAIN.fullmatch(stack) or len(stack) > longest:
        stack = _cut(longest, re.sub(r"[^a-z0-9]+", "-", stack.lower()).strip("-"), of=stack)
    return Names(
        resource_group=f"rg-aks-vllm-{stack}",
        cluster=f"aks-vllm-{stack}",
        node_resource_group=f"rg-aks-vllm-{stack}-nodes",
        dns_prefix=f"aks-vllm-{stack}",
        virtual_network=f"vnet-{stack}",
        network_security_group=f"nsg-{stack}",
        nat_gateway=f"nat-{stack}",
        public_ip=f"pip-{stack}",
        cluster_identity=f"id-aks-{stack}",
        kubelet_identity=f"id-kubelet-{stack}",
        log_analytics=f"log-aks-vllm-{stack}",
        budget=f"budget-{stack}",
        monitor_workspace=f"amw-{stack}",
        data_collection_endpoint=_within(DATA_COLLECTION_ENDPOINT_MAX, "dce-", stack),
        data_collection_rule=f"dcr-{stack}",
        grafana=_within(GRAFANA_MAX, "graf-", stack),
        token_reader=f"id-aks-vllm-{stack}-token-reader",
        certificate_reader=f"id-aks-vllm-{stack}-certificate-reader",
        weights_reader=f"id-aks-vllm-{stack}-weights-reader",
        weights_uploader=f"id-aks-vllm-{stack}-weights-uploader",
    )


def _within(longest: int, prefix: str, stack: str) -> str:
    """The name, or as much of it as fits with a hash of the stack's."""
    left = longest - len(prefix)
    return prefix + (stack if len(stack) <= left else _cut(left, stack, of=stack))


def _cut(longest: int, text: str, *, of: str) -> str:
    return f"{text[: longest - 9]}-{hashlib.sha256(of.encode()).hexdigest()[:8]}".lstrip("-")


def storage_account(stack: str, subscription: str) -> str:
    """The name of the weights' storage account, which no account of anybody's may have already.

    With the subscription's id in its hash, as everybody has a stack called prod; known only where the program is signed
    in, so the report cannot show it. Lower-case letters and digits.
    """
    digest = hashlib.sha256(f"{subscription.lower()}/{stack}".encode()).hexdigest()
    return f"vllmweights{digest}"[:STORAGE_ACCOUNT_MAX]
