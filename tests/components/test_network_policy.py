"""The declared NetworkPolicies, evaluated as Kubernetes defines them, let through what docs/network.md lists, no more.

https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1/
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sandbox.engine import Recording
from tests.components.harness import CLUSTER, DEPLOYMENT, Record

PAGE = Path(__file__).parents[2] / "docs" / "network.md"
POLICY = "kubernetes:networking.k8s.io/v1:NetworkPolicy"
#: Ports of everything that listens anywhere here, and some of what an intruder would try.
PORTS = [("TCP", port) for port in (22, 53, 80, 443, 2375, 4194, 5432, 6443, 8000, 8080, 8404, 8443, 9090, 10250)]
PORTS += [("UDP", 53), ("UDP", 123), ("UDP", 8000), ("SCTP", 8000)]


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod, or an address outside of the cluster."""

    name: str
    address: str
    namespace: str | None = None  # None: not a pod
    labels: Mapping[str, str] = field(default_factory=dict)


ENDS = [
    End("edge", "10.244.0.5", "vllm", {"app.kubernetes.io/name": "vllm-edge", "app.kubernetes.io/instance": "edge"}),
    End("replica", "10.244.1.5", "vllm", {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": "model"}),
    End(
        "another replica",
        "10.244.2.5",
        "vllm",
        {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": "model"},
    ),
    End("upload", "10.244.1.6", "vllm", {"app.kubernetes.io/name": "weights-upload"}),
    End("benchmark", "10.244.0.6", "vllm", {"app.kubernetes.io/name": "vllm-benchmark"}),
    End("a stranger in the namespace", "10.244.1.7", "vllm", {"app": "stranger"}),
    End("DNS", "10.244.0.2", "kube-system", {"k8s-app": "kube-dns"}),
    End("Azure Monitor", "10.244.0.3", "kube-system", {"rsName": "ama-metrics"}),
    End("another system pod", "10.244.0.4", "kube-system", {"k8s-app": "metrics-server"}),
    End("Prometheus", "10.244.0.9", "monitoring", {"app.kubernetes.io/name": "prometheus"}),
    End("Grafana", "10.244.0.10", "monitoring", {"app.kubernetes.io/name": "grafana"}),
    End("a pod", "10.244.3.3", "default", {"app": "web"}),
    End("a pod with the edge's labels elsewhere", "10.244.3.4", "default", {"app.kubernetes.io/name": "vllm-edge"}),
    End("a pod that calls itself Prometheus", "10.244.3.5", "default", {"app.kubernetes.io/name": "prometheus"}),
    End("a DNS server of somebody's", "10.244.3.6", "default", {"k8s-app": "kube-dns"}),
    End("internet", "20.60.40.4"),
    End("a machine in the network", "10.224.0.4"),
    End("a machine of a peered network", "172.20.1.1"),
    End("a machine at home", "192.168.1.10"),
    End("instance metadata", "169.254.169.254"),
    End("Azure's agent endpoint", "168.63.129.16"),
]


def allows(policies: Sequence[Mapping[str, Any]], source: End, to: End, port: tuple[str, int]) -> bool:
    """Both ends must agree, each by any of the policies that select it; an end that none selects agrees to all."""
    return _agrees(policies, "Egress", source, to, port) and _agrees(policies, "Ingress", to, source, port)


def _agrees(policies: Sequence[Mapping[str, Any]], direction: str, pod: End, other: End, port: tuple[str, int]) -> bool:
    about = [p["spec"] for p in policies if direction in p["spec"]["policyTypes"] and _selects(p, pod)]
    key, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    rules = [rule for spec in about for rule in spec.get(key) or ()]
    return not about or any(
        (not rule.get(peers) or any(_matches(peer, other, pod.namespace) for peer in rule[peers]))
        and (not rule.get("ports") or any((p.get("protocol", "TCP"), p["port"]) == port for p in rule["ports"]))
        for rule in rules
    )


def _selects(policy: Mapping[str, Any], pod: End) -> bool:
    return pod.namespace == policy["metadata"]["namespace"] and _labelled(policy["spec"]["podSelector"], pod.labels)


def _labelled(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "this evaluator knows nothing else"
    return selector.get("matchLabels", {}).items() <= labels.items()


def _matches(peer: Mapping[str, Any], end: End, namespace: str | None) -> bool:
    if "ipBlock" in peer:
        # As Cilium does: an address block is never a pod.
        block, address = peer["ipBlock"], ipaddress.ip_address(end.address)
        within = [address in ipaddress.ip_network(cidr) for cidr in (block["cidr"], *block.get("except", ()))]
        return end.namespace is None and within[0] and not any(within[1:])
    if end.namespace is None:
        return False
    if "namespaceSelector" in peer:
        if not _labelled(peer["namespaceSelector"], {"kubernetes.io/metadata.name": end.namespace}):
            return False
    elif end.namespace != namespace:
        return False
    return _labelled(peer.get("podSelector", {}), end.labels)


def policies(recording: Recording) -> list[dict[str, Any]]:
    found = [dict(r.inputs) for r in recording.registrations if r.type == POLICY]
    for policy in found:
        assert policy["metadata"]["namespace"] == "vllm"
    return found


def listed(edge_port: int) -> set[tuple[str, str, tuple[str, int]]]:
    """What the page lets through. It names kinds; `replica` is all of them."""
    alike = {"replica": ["replica", "another replica"]}
    found = set()
    for row in re.findall(r"^\|(?! *from|---)(.+)\|$", PAGE.read_text().split("## Who reaches whom")[1], re.MULTILINE):
        sources, to, ports, _ = (re.sub(r"\(.*?\)", "", cell).strip() for cell in row.split("|"))
        numbers = [edge_port] if "8443" in ports else [int(ports.split()[0])]
        kinds = [protocol for protocol in ("TCP", "UDP") if protocol in ports]
        outside = [end.name for end in ENDS if end.namespace != "vllm"]
        inside = [end.name for end in ENDS if end.namespace == "vllm"]
        sources = sources.replace("every pod of the namespace", ", ".join(inside))
        names = outside if sources.startswith("anybody outside") else sources.split(", ")
        for source in names:
            for one in alike.get(source, [source]):
                for other in alike.get(to.strip(), [to.strip()]):
                    found |= {(one, other, (kind, number)) for kind in kinds for number in numbers}
    return found


def connections() -> Iterator[tuple[End, End, tuple[str, int]]]:
    """Everything that begins or ends at a pod of the models' namespace."""
    for source in ENDS:
        for to in ENDS:
            if source is not to and "vllm" in (source.namespace, to.namespace):
                yield from ((source, to, port) for port in PORTS)


@pytest.mark.parametrize("benchmark", [False, True], ids=["", "benchmark"])
@pytest.mark.parametrize("source", ["hugging-face", "azure-blob"])
@pytest.mark.parametrize(("tls", "port"), [(False, 8080), (True, 8443)], ids=["clear text", "TLS"])
def test_the_declared_policies_let_through_what_the_page_lists_and_no_more(
    recorded: Record, tls: bool, port: int, source: str, benchmark: bool
) -> None:
    edge = {"edge": {"tls-secret": "edge-certificate"}} if tls else {}
    found = policies(recorded(weights={"source": source}, benchmark=benchmark, **edge))
    # Either the replicas fetch weights or the upload does.
    other = "upload" if source == "hugging-face" else "replica"
    wanted = {one for one in listed(port) if not (one[1] == "internet" and other in one[0])}
    if not benchmark:
        wanted = {one for one in wanted if one[0] != "benchmark" or one[1] == "DNS"}
    allowed = {(s.name, to.name, p) for s, to, p in connections() if allows(found, s, to, p)}
    denied = sum(1 for _ in connections()) - len(allowed)
    assert allowed - wanted == set(), "open, and not on the page"
    assert wanted - allowed == set(), "on the page, and refused"
    assert (len(allowed), denied) > (30, 1000), "the matrix has become too small to prove anything"


def test_replicas_that_stream_reach_two_names_and_nothing_else_of_the_internet(recorded: Record) -> None:
    recording = recorded(weights={"source": "azure-blob"})
    (policy,) = [r for r in recording.registrations if r.type == "kubernetes:cilium.io/v2:CiliumNetworkPolicy"]
    spec = policy.inputs["spec"]
    replica = recording.one(DEPLOYMENT, "model-deployment").inputs["spec"]["template"]["metadata"]["labels"]
    assert spec["endpointSelector"]["matchLabels"].items() <= replica.items(), "it is about no pod"
    dns, names = spec["egress"]
    assert dns["toPorts"][0]["rules"], "without it Cilium learns no name's addresses, and nothing is let through"
    assert names["toFQDNs"][0] == {"matchName": "login.microsoftonline.com"}
    assert len(names["toFQDNs"]) == 2, "Entra ID and the storage account, whose name an update tells"
    assert names["toPorts"] == [{"ports": [{"port": "443", "protocol": "TCP"}]}]
    cluster = recording.one(CLUSTER).inputs["networkProfile"]["advancedNetworking"]
    assert cluster["security"]["advancedNetworkPolicies"] == "FQDN", "the policy would be refused or ignored"


def test_without_the_policies_everything_is_open(recorded: Record) -> None:
    """Or the evaluation could not fail."""
    assert all(allows([], source, to, port) for source, to, port in connections())
    found = policies(recorded())
    without = [policy for policy in found if policy["metadata"]["name"] != "default-deny"]
    stranger, web = (next(e for e in ENDS if e.name == name) for name in ("a stranger in the namespace", "a pod"))
    assert allows(without, web, stranger, ("TCP", 22))
    assert not allows(found, web, stranger, ("TCP", 22))


def test_every_pod_that_is_declared_has_the_labels_that_its_policy_selects(recorded: Record) -> None:
    recording = recorded()
    templates = {
        r.name: dict(r.inputs)["spec"]["template"]["metadata"]["labels"]
        for r in recording.registrations
        if r.type == "kubernetes:apps/v1:Deployment"
    }
    selectors = {p["metadata"]["name"]: p["spec"]["podSelector"].get("matchLabels", {}) for p in policies(recording)}
    assert selectors["replicas"].items() <= templates["model-deployment"].items()
    assert selectors["edge"].items() <= templates["edge-deployment"].items()


def test_the_ports_are_those_that_the_pods_listen_on(recorded: Record) -> None:
    recording = recorded()
    listening = {
        port["containerPort"]
        for r in recording.registrations
        if r.type == "kubernetes:apps/v1:Deployment"
        for container in dict(r.inputs)["spec"]["template"]["spec"]["containers"]
        for port in container["ports"]
    }
    opened = {
        port["port"]
        for policy in policies(recording)
        for rule in policy["spec"].get("ingress") or ()
        for port in rule["ports"]
    }
    assert opened == listening
