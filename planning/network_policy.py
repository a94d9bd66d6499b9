"""Who may talk to whom in the models' namespace: everything else is refused, both ways.

Kubernetes' NetworkPolicy, as Cilium enforces it on AKS: pods are selected by labels, and an address block never matches
a pod or a node, so that "the internet" below is that and nothing else. The kubelet's probes come from the node of the
pod and are always let through; `kubectl port-forward` comes out inside the pod and is not seen at all.
https://learn.microsoft.com/azure/aks/azure-cni-powered-by-cilium
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: The labels that tell the namespace's pods apart; the components that declare them use these.
ENGINE = {"app.kubernetes.io/name": "vllm"}
EDGE = {"app.kubernetes.io/name": "vllm-edge"}
BENCHMARK = {"app.kubernetes.io/name": "vllm-benchmark"}
UPLOAD = {"app.kubernetes.io/name": "weights-upload"}

DNS_PORT = 53
HTTPS_PORT = 443
INTERNET = "0.0.0.0/0"
#: What of it is not the internet: RFC 1918, RFC 6598, RFC 3927 with Azure's instance metadata, and Azure's own agent
#: endpoint. https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
PRIVATE = (
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "168.63.129.16/32",
)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Pods with these labels, or addresses."""

    pods: Mapping[str, str] = field(default_factory=dict)
    namespace: str | None = None  # of the pods; None: the policy's own
    cidr: str | None = None
    without: tuple[str, ...] = ()  # parts of the cidr that are not meant


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Connections that are let through."""

    peers: tuple[Peer, ...]  # the other end; none: anybody
    ports: tuple[tuple[str, int], ...]  # (TCP | UDP, port of whoever is connected to)


@dataclass(frozen=True, kw_only=True)
class NetworkPolicyPlan:
    """One NetworkPolicy. What no policy of a pod lets through is refused."""

    name: str
    why: str  # for people: an annotation, and a line of the report
    pods: Mapping[str, str]  # that it is about, by label; empty: every pod of the namespace
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NamePolicyPlan:
    """HTTPS connections to these names: a CiliumNetworkPolicy, as a NetworkPolicy knows addresses only."""

    name: str
    why: str
    pods: Mapping[str, str]
    hosts: tuple[str, ...]
    storage_endpoint: str  # what follows the storage account's name, which is known when the account is


#: Where a pod with a workload identity gets its token.
#: https://learn.microsoft.com/azure/aks/workload-identity-overview
ENTRA_ID = "login.microsoftonline.com"
#: https://learn.microsoft.com/azure/storage/common/storage-account-overview#storage-account-endpoints
BLOB_ENDPOINT = "blob.core.windows.net"

#: The cluster's DNS server: CoreDNS, under the name that AKS kept.
DNS = Peer(namespace="kube-system", pods={"k8s-app": "kube-dns"})
#: Who reads metrics: Azure Monitor's managed Prometheus, and one that is run in a namespace `monitoring` with its
#: chart's labels. https://github.com/Azure/prometheus-collector, https://github.com/prometheus-community/helm-charts
SCRAPERS = (
    Peer(namespace="kube-system", pods={"rsName": "ama-metrics"}),
    Peer(namespace="monitoring", pods={"app.kubernetes.io/name": "prometheus"}),
)


def name_policies(streaming: Sequence[str]) -> tuple[NamePolicyPlan, ...]:
    """What replicas of models that stream their weights may reach outside of the cluster."""
    return tuple(
        NamePolicyPlan(
            name=f"weights-{model}",
            why=f"Of the internet, replicas of {model} reach Entra ID and the stack's storage account alone.",
            pods=replicas_of(model),
            hosts=(ENTRA_ID,),
            storage_endpoint=BLOB_ENDPOINT,
        )
        for model in streaming
    )


def replicas_of(model: str) -> dict[str, str]:
    """The labels of one model's replicas."""
    return {**ENGINE, "app.kubernetes.io/instance": model}


def network_policies(
    *,
    engine_port: int,
    edge_port: int,
    edge_metrics_port: int,
    downloading: Sequence[str],
    uploads: bool,
    benchmark: bool = False,
) -> tuple[NetworkPolicyPlan, ...]:
    """The policies of the models' namespace; `downloading` are the models whose replicas fetch weights from the Hub."""
    engine, metrics = (("TCP", engine_port),), (("TCP", edge_metrics_port),)
    return (
        NetworkPolicyPlan(name="default-deny", why="Nothing is open that is not opened below.", pods={}),
        NetworkPolicyPlan(
            name="dns",
            why="Every pod may ask the cluster's DNS server.",
            pods={},
            egress=(Rule(peers=(DNS,), ports=(("UDP", DNS_PORT), ("TCP", DNS_PORT))),),
        ),
        NetworkPolicyPlan(
            name="edge",
            why="Whoever reaches the load balancer may talk to the edge, and the edge to the replicas.",
            pods=EDGE,
            ingress=(
                # Anybody: a load balancer hides who they are. Keys and the balancer's own network decide.
                Rule(peers=(), ports=(("TCP", edge_port),)),
                Rule(peers=SCRAPERS, ports=metrics),
            ),
            egress=(Rule(peers=(Peer(pods=ENGINE),), ports=engine),),
        ),
        NetworkPolicyPlan(
            name="replicas",
            why="Only the edge may ask a replica, and Prometheus, as metrics have no port of their own.",
            pods=ENGINE,
            ingress=(Rule(peers=(Peer(pods=EDGE), *SCRAPERS), ports=engine),),
        ),
        *(
            NetworkPolicyPlan(
                name=name,
                # A policy knows addresses, not names.
                why="Pods that fetch or store weights may open HTTPS connections to public addresses.",
                pods=pods,
                egress=(Rule(peers=(Peer(cidr=INTERNET, without=PRIVATE),), ports=(("TCP", HTTPS_PORT),)),),
            )
            for name, pods in (
                *((f"weights-{model}", replicas_of(model)) for model in downloading),
                *((("weights-upload", UPLOAD),) if uploads else ()),
                *((("benchmark-tokenizer", BENCHMARK),) if benchmark else ()),
            )
        ),
        *(
            (
                NetworkPolicyPlan(
                    name="benchmark",
                    why="The benchmark asks the edge, as clients do.",
                    pods=BENCHMARK,
                    egress=(Rule(peers=(Peer(pods=EDGE),), ports=(("TCP", edge_port),)),),
                ),
            )
            if benchmark
            else ()
        ),
    )
