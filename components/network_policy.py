"""Who may talk to whom: the NetworkPolicies of the models' namespace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes import apiextensions, meta, networking

from components.model_access import ModelAccess
from components.weights import WeightStore
from planning.network_policy import DNS, DNS_PORT, HTTPS_PORT, NamePolicyPlan, NetworkPolicyPlan, Peer, Rule

#: Kubernetes itself puts this label on every namespace.
NAMESPACE = "kubernetes.io/metadata.name"


@dataclass(frozen=True, kw_only=True)
class NetworkPoliciesArgs:
    """The policies, and where they hold."""

    plans: Sequence[NetworkPolicyPlan]
    by_name: Sequence[NamePolicyPlan]
    store: WeightStore | None  # that policies by name let through
    access: ModelAccess


class NetworkPolicies(pulumi.ComponentResource):
    """One object for each policy; together they are all that is let through."""

    def __init__(self, name: str, args: NetworkPoliciesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:NetworkPolicies", name, None, opts)
        labels = {"app.kubernetes.io/part-of": "aks-vllm", "app.kubernetes.io/managed-by": "pulumi"}
        for plan in args.plans:
            networking.v1.NetworkPolicy(
                f"{name}-{plan.name}",
                metadata=meta.v1.ObjectMetaArgs(
                    name=plan.name,
                    namespace=args.access.namespace,
                    labels=labels,
                    annotations={"aks-vllm/why": plan.why},
                ),
                spec=_spec(plan),
                opts=pulumi.ResourceOptions(parent=self),
            )
        for plan in args.by_name:
            apiextensions.CustomResource(
                f"{name}-names-{plan.name}",
                api_version="cilium.io/v2",
                kind="CiliumNetworkPolicy",
                metadata=meta.v1.ObjectMetaArgs(
                    name=plan.name,
                    namespace=args.access.namespace,
                    labels=labels,
                    annotations={"aks-vllm/why": plan.why},
                ),
                spec=_spec_by_name(plan, args.store.account_name if args.store else None),
                opts=pulumi.ResourceOptions(parent=self),
            )
        self.register_outputs({})


def _spec_by_name(plan: NamePolicyPlan, account: pulumi.Output[str] | None) -> dict[str, object]:
    """https://docs.cilium.io/en/stable/security/policy/language/#dns-based"""
    hosts: list[pulumi.Input[str]] = list(plan.hosts)
    if account is not None:
        hosts.append(pulumi.Output.concat(account, ".", plan.storage_endpoint))
    server = {f"k8s:{key}": value for key, value in DNS.pods.items()}
    server["k8s:io.kubernetes.pod.namespace"] = DNS.namespace or ""
    # Cilium learns a name's addresses from the answers that pass it: without the first rule no name is ever known.
    answers = {"ports": [{"port": str(DNS_PORT), "protocol": "ANY"}], "rules": {"dns": [{"matchPattern": "*"}]}}
    return {
        "endpointSelector": {"matchLabels": dict(plan.pods)},
        "egress": [
            {"toEndpoints": [{"matchLabels": server}], "toPorts": [answers]},
            {
                "toFQDNs": [{"matchName": host} for host in hosts],
                "toPorts": [{"ports": [{"port": str(HTTPS_PORT), "protocol": "TCP"}]}],
            },
        ],
    }


def _spec(plan: NetworkPolicyPlan) -> networking.v1.NetworkPolicySpecArgs:
    # A policy without rules is about both directions: that is what refuses.
    types = ["Ingress"] if plan.ingress else []
    types += ["Egress"] if plan.egress else []
    return networking.v1.NetworkPolicySpecArgs(
        pod_selector=meta.v1.LabelSelectorArgs(match_labels=plan.pods or None),
        policy_types=types or ["Ingress", "Egress"],
        ingress=[
            networking.v1.NetworkPolicyIngressRuleArgs(from_=_peers(rule), ports=_ports(rule)) for rule in plan.ingress
        ]
        or None,
        egress=[networking.v1.NetworkPolicyEgressRuleArgs(to=_peers(rule), ports=_ports(rule)) for rule in plan.egress]
        or None,
    )


def _peers(rule: Rule) -> list[networking.v1.NetworkPolicyPeerArgs] | None:
    """None, and not an empty list, for anybody."""
    return [_peer(peer) for peer in rule.peers] or None


def _peer(peer: Peer) -> networking.v1.NetworkPolicyPeerArgs:
    if peer.cidr is not None:
        block = networking.v1.IPBlockArgs(cidr=peer.cidr, except_=list(peer.without))
        return networking.v1.NetworkPolicyPeerArgs(ip_block=block)
    return networking.v1.NetworkPolicyPeerArgs(
        pod_selector=meta.v1.LabelSelectorArgs(match_labels=peer.pods or None),
        # Both selectors in one peer: pods with these labels in that namespace, and not either of the two.
        namespace_selector=meta.v1.LabelSelectorArgs(match_labels={NAMESPACE: peer.namespace})
        if peer.namespace
        else None,
    )


def _ports(rule: Rule) -> list[networking.v1.NetworkPolicyPortArgs]:
    return [networking.v1.NetworkPolicyPortArgs(protocol=protocol, port=port) for protocol, port in rule.ports]
