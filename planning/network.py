"""The network of a cluster: its address ranges, how nodes reach the internet, and who reaches the API server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from planning.findings import Finding, Problem, Severity
from planning.words import listed

if TYPE_CHECKING:
    from planning.settings import NetworkSettings, Settings

#: What AKS keeps for itself: no range of the cluster or its network may lie in it.
#: https://learn.microsoft.com/azure/aks/concepts-network-cni-overview
RESERVED = ("169.254.0.0/16", "172.30.0.0/16", "172.31.0.0/16", "192.0.2.0/24")
#: A service range must be smaller than this. The same page.
SERVICE_PREFIX_ABOVE = 12
#: Azure CNI Overlay gives every node a /24 of the pod range. The same page.
NODE_POD_PREFIX = 24
#: Addresses of a subnet that Azure keeps. https://learn.microsoft.com/azure/virtual-network/virtual-networks-faq
SUBNET_KEPT = 5
#: Internal load balancers of the stack that take an address of the node subnet.
LOAD_BALANCERS = 1
#: Ranges that may call an API server on the internet.
#: https://learn.microsoft.com/azure/aks/api-server-authorized-ip-ranges
AUTHORIZED_RANGES_MAX = 200
#: Ranges that no host on the internet has. RFC 1918, RFC 6598
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
#: Of a service range, the address that the cluster's DNS gets where the settings name none: AKS's own habit.
DNS_OFFSET = 10
#: Minutes after which an idle flow through the NAT gateway is dropped (4 to 120): a download that stalls must live.
#: https://learn.microsoft.com/azure/nat-gateway/nat-gateway-resource
NAT_IDLE_MINUTES = 10

#: https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules
SUBNET_ID = re.compile(
    r"/subscriptions/[0-9a-f-]{36}/resourceGroups/[^/]{1,90}/providers/Microsoft\.Network"
    r"/virtualNetworks/[^/]{1,64}/subnets/[^/]{1,80}",
    re.IGNORECASE,
)
_OUTBOUND = {
    "nat-gateway": "userAssignedNATGateway",
    "load-balancer": "loadBalancer",
    "user-defined-routing": "userDefinedRouting",
}


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """Ranges in CIDR notation. Where `subnet_id` names a subnet that exists, no network is made."""

    subnet_id: str | None
    vnet_cidr: str
    node_subnet_cidr: str
    pod_cidr: str
    service_cidr: str
    dns_service_ip: str
    outbound_type: str  # ARM's word
    nat_idle_minutes: int


@dataclass(frozen=True, kw_only=True)
class ApiServerPlan:
    """Who reaches the cluster's API server: everybody, some ranges, or the network alone."""

    access: str  # private | authorized-ranges | public
    authorized_ip_ranges: tuple[str, ...]

    @property
    def private(self) -> bool:
        """Whether its address is one of the network."""
        return self.access == "private"


def network(settings: NetworkSettings) -> NetworkPlan:
    """The network as it is set, unchecked: `problems` says whether it can be."""
    dns = settings.dns_service_ip
    if dns is None and (service := _network(settings.service_cidr)) is not None:
        dns = str(service.network_address + DNS_OFFSET)
    return NetworkPlan(
        subnet_id=settings.subnet_id,
        vnet_cidr=settings.vnet_cidr,
        node_subnet_cidr=settings.node_subnet_cidr,
        pod_cidr=settings.pod_cidr,
        service_cidr=settings.service_cidr,
        dns_service_ip=dns or "",
        outbound_type=_OUTBOUND[settings.outbound],
        nat_idle_minutes=NAT_IDLE_MINUTES,
    )


def api_server(settings: Settings) -> ApiServerPlan:
    """Private in production and public in development, unless the settings choose."""
    default = "private" if settings.environment == "production" else "public"
    return ApiServerPlan(
        access=settings.api_server_access or default, authorized_ip_ranges=tuple(settings.authorized_ip_ranges)
    )


def problems(settings: Settings, *, nodes: int, source: str) -> Iterator[Problem]:
    """What of the ranges AKS or arithmetic refuses, for a cluster of so many nodes at its largest."""
    found: list[tuple[str, object, str, str]] = []
    ranges = _ranges(settings.network, found)
    found += _overlaps(settings.network, ranges)
    found += _sizes(settings.network, ranges, nodes)
    found += _subnet(settings.network)
    yield from (
        Problem(key=f"aks-vllm:network.{key}", value=value, limit=limit, source=source, remedy=remedy)
        for key, value, limit, remedy in found
    )
    yield from (
        Problem(key=f"aks-vllm:{key}", value=value, limit=limit, source=source, remedy=remedy)
        for key, value, limit, remedy in _access(settings)
    )


def findings(api: ApiServerPlan, plan: NetworkPlan) -> Iterator[Finding]:
    """What the choice of access means for whoever deploys, and what a subnet of somebody else's must bring."""
    words = {
        "private": (
            Severity.WARNING,
            "The cluster's API server has an address in the stack's network alone: neither a laptop nor a hosted "
            "runner reaches it, and an update from there stops at the first Kubernetes object.",
            "Run Pulumi inside the network (a peered network, a VPN or a self-hosted runner), or set api-server-access "
            "to authorized-ranges.",
        ),
        "authorized-ranges": (
            Severity.NOTE,
            f"The cluster's API server answers {listed(api.authorized_ip_ranges)} and the cluster's own nodes, to "
            "whoever signs in with Entra ID and has an Azure role on the cluster; local accounts are off.",
            "Whoever runs Pulumi must come from there; a new range takes about two minutes to apply.",
        ),
        "public": (
            Severity.NOTE,
            "The cluster's API server answers on the internet, to whoever signs in with Entra ID and has an Azure "
            "role on the cluster; local accounts are off.",
            "Set api-server-access to authorized-ranges or private to narrow that.",
        ),
    }
    severity, message, remedy = words[api.access]
    yield Finding(severity=severity, subject="stack", message=message, remedy=remedy)
    if plan.subnet_id is None:
        return
    needs = {
        "userAssignedNATGateway": "a NAT gateway must be attached to it before the cluster is made",
        "userDefinedRouting": "its route table must send 0.0.0.0/0 to an appliance that lets AKS's required hosts and "
        "the GPU driver's through",
    }
    if need := needs.get(plan.outbound_type):
        yield Finding(
            severity=Severity.NOTE,
            subject="stack",
            message=f"The nodes lie in a subnet that exists already, and {need}.",
            remedy="https://learn.microsoft.com/azure/aks/egress-outboundtype",
        )


def _network(text: str) -> IPv4Network | None:
    try:
        return IPv4Network(text)
    except ValueError:
        return None


def _ranges(settings: NetworkSettings, found: list[tuple[str, object, str, str]]) -> dict[str, IPv4Network]:
    """The ranges that are ranges, by key; what is none is told."""
    written = {"pod-cidr": settings.pod_cidr, "service-cidr": settings.service_cidr}
    if settings.subnet_id is None or settings.given("vnet_cidr"):
        written["vnet-cidr"] = settings.vnet_cidr
    if settings.subnet_id is None or settings.given("node_subnet_cidr"):
        written["node-subnet-cidr"] = settings.node_subnet_cidr
    ranges: dict[str, IPv4Network] = {}
    for key, text in written.items():
        parsed = _network(text)
        if parsed is None:
            found.append(
                (key, text, "is not an IPv4 range, or has bits set behind its prefix", "for example 10.1.0.0/16")
            )
        else:
            ranges[key] = parsed
    return ranges


def _overlaps(settings: NetworkSettings, ranges: Mapping[str, IPv4Network]) -> Iterator[tuple[str, object, str, str]]:
    apart = "choose ranges that share no address, and that no peered network uses"
    # What the stack file says comes last, and is told: a default is nobody's mistake. A subnet is told as its network.
    keys = sorted(ranges, key=lambda key: settings.given(key.replace("-", "_")))
    if "vnet-cidr" in ranges and "node-subnet-cidr" in ranges:
        keys.remove("node-subnet-cidr")
    for at, key in enumerate(keys):
        for other in keys[:at]:
            if ranges[key].overlaps(ranges[other]):
                yield key, ranges[key], f"overlaps {other} {ranges[other]}", apart
        for reserved in RESERVED:
            if ranges[key].overlaps(IPv4Network(reserved)):
                yield key, ranges[key], f"overlaps {reserved}, which AKS keeps for itself", apart
    node, vnet = ranges.get("node-subnet-cidr"), ranges.get("vnet-cidr")
    if node is not None and vnet is not None and not node.subnet_of(vnet):
        yield "node-subnet-cidr", node, f"does not lie in vnet-cidr {vnet}", "choose a part of that range"


def _sizes(
    settings: NetworkSettings, ranges: Mapping[str, IPv4Network], nodes: int
) -> Iterator[tuple[str, object, str, str]]:
    service, pods, node = (ranges.get(key) for key in ("service-cidr", "pod-cidr", "node-subnet-cidr"))
    if service is not None and service.prefixlen <= SERVICE_PREFIX_ABOVE:
        limit = f"must be smaller than a /{SERVICE_PREFIX_ABOVE}"
        yield "service-cidr", service, limit, "for example 10.245.0.0/16; a /22 holds a thousand Services"
    if service is not None and service.num_addresses <= DNS_OFFSET + 1 and settings.dns_service_ip is None:
        yield "service-cidr", service, "is too small for the cluster's Services and DNS", "a /22 holds a thousand"
    elif service is not None and settings.dns_service_ip is not None:
        yield from _dns(settings.dns_service_ip, service)
    if pods is not None and (room := 2 ** max(0, NODE_POD_PREFIX - pods.prefixlen) * (pods.prefixlen <= 24)) < nodes:
        limit = f"holds a /{NODE_POD_PREFIX} for each of {room} nodes, and the cluster may grow to {nodes}"
        yield "pod-cidr", pods, limit, "choose a larger range: it cannot grow later"
    needed = nodes + LOAD_BALANCERS + SUBNET_KEPT
    if node is not None and node.num_addresses < needed:
        limit = f"has {node.num_addresses} addresses; {nodes} nodes, a load balancer and Azure's own {SUBNET_KEPT} "
        limit += f"need {needed}"
        yield "node-subnet-cidr", node, limit, "choose a larger range"


def _dns(text: str, service: IPv4Network) -> Iterator[tuple[str, object, str, str]]:
    try:
        address = IPv4Address(text)
    except ValueError:
        yield "dns-service-ip", text, "is not an IPv4 address", f"for example {service.network_address + DNS_OFFSET}"
        return
    # The first address of a service range is the API server's own Service.
    if address not in service or address <= service.network_address + 1 or address == service.broadcast_address:
        limit = f"must lie in service-cidr {service}, behind its first address"
        yield "dns-service-ip", text, limit, f"for example {service.network_address + DNS_OFFSET}, or leave it out"


def _subnet(settings: NetworkSettings) -> Iterator[tuple[str, object, str, str]]:
    if settings.subnet_id is None:
        if settings.given("outbound") and settings.outbound != "nat-gateway":
            limit = "goes with a subnet of your own"
            yield (
                "outbound",
                settings.outbound,
                limit,
                "set subnet-id too, or delete the line: the stack has a NAT gateway",
            )
        return
    if not SUBNET_ID.fullmatch(settings.subnet_id):
        limit = "is not the id of a subnet"
        yield "subnet-id", settings.subnet_id, limit, "`az network vnet subnet show --query id` prints it"


def _access(settings: Settings) -> Iterator[tuple[str, object, str, str]]:
    access, ranges = settings.api_server_access, settings.authorized_ip_ranges
    if access == "public" and settings.environment == "production":
        limit = "is refused in production: every address of the internet could try"
        yield "api-server-access", access, limit, "set it to private, or to authorized-ranges with authorized-ip-ranges"
    if access == "authorized-ranges" and not ranges:
        limit = "needs authorized-ip-ranges"
        yield "api-server-access", access, limit, "list the ranges of those who run Pulumi, as [203.0.113.0/24]"
    if ranges and access != "authorized-ranges":
        limit = f"goes with api-server-access authorized-ranges, which is {access or 'not set'}"
        yield "authorized-ip-ranges", ", ".join(ranges), limit, "set that, or delete the line"
    if len(ranges) > AUTHORIZED_RANGES_MAX:
        limit = f"has {len(ranges)} entries; AKS takes {AUTHORIZED_RANGES_MAX}"
        yield "authorized-ip-ranges", f"{ranges[0]}, …", limit, "merge neighbouring ranges"
    for text in ranges:
        parsed = _network(text)
        if parsed is None:
            limit = f"holds {text}, which is not an IPv4 range"
            yield "authorized-ip-ranges", text, limit, "write an address as 203.0.113.7/32"
        elif parsed.prefixlen == 0:
            yield "authorized-ip-ranges", text, "is the whole internet", "name the ranges of those who run Pulumi"
        elif any(parsed.overlaps(IPv4Network(private)) for private in PRIVATE):
            limit = f"holds {text}, an address of a private network, which the internet never shows"
            yield (
                "authorized-ip-ranges",
                text,
                limit,
                "use the address that the internet sees, or set access to private",
            )
