"""Networks and clusters that Azure would refuse are refused before anything is declared, all at once."""

from __future__ import annotations

import pytest

from planning import stack_file
from planning.cluster import ClusterPlan
from planning.findings import InvalidStack, Severity
from planning.plan import StackPlan, read_and_decide

SUBNET = (
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg-net/providers/Microsoft.Network"
    "/virtualNetworks/hub/subnets/aks"
)


def decided(*overrides: str, stack: str = "dev") -> StackPlan:
    return read_and_decide(stack_file.from_file(stack, overrides=overrides))


def own(*overrides: str, stack: str = "dev") -> ClusterPlan:
    cluster = decided(*overrides, stack=stack).cluster
    assert isinstance(cluster, ClusterPlan)
    return cluster


def refused(*overrides: str, stack: str = "dev") -> dict[str, list[str]]:
    """Key -> what was said of it."""
    with pytest.raises(InvalidStack) as caught:
        decided(*overrides, stack=stack)
    told: dict[str, list[str]] = {}
    for problem in caught.value.problems:
        told.setdefault(problem.key.partition(":")[2], []).append(str(problem))
    return told


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("network.pod-cidr=10.224.128.0/17", "network.pod-cidr", "overlaps vnet-cidr 10.224.0.0/16"),
        ("network.service-cidr=10.244.0.0/16", "network.service-cidr", "overlaps pod-cidr 10.244.0.0/16"),
        ("network.service-cidr=172.30.0.0/20", "network.service-cidr", "overlaps 172.30.0.0/16, which AKS keeps"),
        ("network.pod-cidr=172.16.0.0/12", "network.pod-cidr", "overlaps 172.31.0.0/16, which AKS keeps"),
        ("network.service-cidr=11.0.0.0/8", "network.service-cidr", "must be smaller than a /12"),
        ("network.service-cidr=10.245.0.0/29", "network.service-cidr", "too small"),
        ("network.dns-service-ip=10.245.0.1", "network.dns-service-ip", "behind its first address"),
        ("network.dns-service-ip=10.9.0.10", "network.dns-service-ip", "must lie in service-cidr"),
        ("network.dns-service-ip=dns", "network.dns-service-ip", "is not an IPv4 address"),
        ("network.node-subnet-cidr=10.1.0.0/20", "network.node-subnet-cidr", "does not lie in vnet-cidr"),
        ("network.node-subnet-cidr=10.224.0.0/29", "network.node-subnet-cidr", "has 8 addresses; 4 nodes"),
        ("network.pod-cidr=10.244.0.0/23", "network.pod-cidr", "holds a /24 for each of 2 nodes"),
        ("network.vnet-cidr=10.224.0.1/16", "network.vnet-cidr", "has bits set behind its prefix"),
        ("network.vnet-cidr=many", "network.vnet-cidr", "is not an IPv4 range"),
        ("network.subnet-id=aks", "network.subnet-id", "is not the id of a subnet"),
        ("network.outbound=load-balancer", "network.outbound", "goes with a subnet of your own"),
        ("network.vnet-cird=10.0.0.0/8", "network.vnet-cird", "did you mean vnet-cidr?"),
        ("api-server-access=authorized-ranges", "api-server-access", "needs authorized-ip-ranges"),
        ("authorized-ip-ranges=[203.0.113.0/24]", "authorized-ip-ranges", "goes with api-server-access"),
        ("kubernetes-version=1.99", "kubernetes-version", "is not a version that AKS is known to support"),
        ("azure-native:location=eastsu", "location", "did you mean eastus?"),
        ("gpu-nodes={zones: [1], spot: true, min: 2, max: 1}", "gpu-nodes", "min must not exceed max"),
        ("gpu-nodes.zones=[4]", "gpu-nodes.zones", "must be a list of 1, 2 and 3"),
        ("gpu-nodes.capacity-reservation-group=mine", "gpu-nodes.capacity-reservation-group", "must be the id of"),
        ("gpu-nodes.vcpu-quota=10", "gpu-nodes.vcpu-quota", "1 nodes of Standard_NC40ads_H100_v5 need 40 vCPUs"),
        ("budget={usd-per-month: 0, contacts: [a@b.c], first-month: 2026-12}", "budget.usd-per-month", "at least 1"),
        ("budget={usd-per-month: 9, contacts: [nobody], first-month: 2026-12}", "budget.contacts", "mail addresses"),
        ("budget={usd-per-month: 9, contacts: [a@b.c], first-month: soon}", "budget.first-month", "must be a month"),
        ("maintenance.start=25:00", "maintenance.start", "must be a time of day"),
        ("maintenance.hours=3", "maintenance.hours", "at least 4"),
        ("add-ons=[defender]", "add-ons", "needs log-analytics"),
        ("add-ons=[managed-grafana]", "add-ons", "needs managed-prometheus"),
        ("add-ons=[gatekeeper]", "add-ons", "must be one of azure-policy"),
    ],
)
def test_what_azure_refuses_is_told_with_the_limit(override: str, key: str, words: str) -> None:
    told = refused(override)
    assert set(told) == {key}, told
    assert words in " ".join(told[key])
    assert "(--set)" in " ".join(told[key])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[203.0.113.0/24, 10.0.0.0/8]", "10.0.0.0/8, an address of a private network"),
        ("[0.0.0.0/0]", "is the whole internet"),
        ("[here]", "here, which is not an IPv4 range"),
        (str([f"203.0.{n}.0/24" for n in range(201)]), "has 201 entries; AKS takes 200"),
    ],
)
def test_ranges_that_would_let_in_nobody_or_everybody_are_refused(text: str, words: str) -> None:
    told = refused("api-server-access=authorized-ranges", f"authorized-ip-ranges={text}")
    assert words in " ".join(told["authorized-ip-ranges"])


def test_everything_wrong_with_a_network_is_told_at_once() -> None:
    told = refused(
        "network.pod-cidr=10.224.0.0/16", "network.service-cidr=11.0.0.0/8", "api-server-access=authorized-ranges"
    )
    assert {"network.pod-cidr", "network.service-cidr", "api-server-access"} <= set(told)


def test_production_refuses_an_api_server_that_everybody_may_try() -> None:
    assert "is refused in production" in refused("api-server-access=public", stack="prod")["api-server-access"][0]


def test_production_refuses_spot_because_no_answer_can_be_finished_in_its_notice() -> None:
    assert "30 seconds" in refused("gpu-nodes.spot=true", stack="prod")["gpu-nodes.spot"][0]


@pytest.mark.parametrize(
    ("stack", "overrides", "access", "words"),
    [
        ("prod", [], "private", "neither a laptop nor a hosted runner"),
        ("dev", [], "public", "answers on the internet"),
        (
            "prod",
            ["api-server-access=authorized-ranges", "authorized-ip-ranges=[203.0.113.0/24, 198.51.100.7/32]"],
            "authorized-ranges",
            "203.0.113.0/24 and 198.51.100.7/32",
        ),
    ],
)
def test_the_report_says_what_the_choice_of_access_means(
    stack: str, overrides: list[str], access: str, words: str
) -> None:
    assert own(*overrides, stack=stack).api_server.access == access
    assert [f for f in decided(*overrides, stack=stack).findings if words in f.message], (
        "whoever deploys must know before"
    )


def test_a_subnet_of_ones_own_takes_the_place_of_the_network_and_is_granted() -> None:
    settings = (f"network.subnet-id={SUBNET}", "network.outbound=user-defined-routing")
    cluster = own(*settings)
    assert cluster.network.outbound_type == "userDefinedRouting"
    assert [(grant.scope, grant.name) for grant in cluster.grants] == [(SUBNET, "subnet")]
    assert [f for f in decided(*settings).findings if "route table" in f.message]


def test_the_system_pool_is_spread_over_zones_where_the_region_has_some() -> None:
    assert own().system_pool.zones == ("1", "2", "3")
    assert own("azure-native:location=westus").system_pool.zones == ()


def test_zones_in_a_region_without_any_are_refused() -> None:
    told = refused("azure-native:location=westus", "gpu-nodes.zones=[1]")
    assert "westus has none" in told["gpu-nodes.zones"][0]


def test_a_size_in_a_region_where_nobody_has_had_it_is_a_warning() -> None:
    """The list is not all there is: only Azure can refuse."""
    (finding,) = [f for f in decided("azure-native:location=norwayeast").findings if "has not been seen" in f.message]
    assert finding.severity is Severity.WARNING
    assert "make preflight" in finding.remedy


def test_the_control_planes_logs_are_kept_in_production() -> None:
    logs = own(stack="prod").logs
    assert logs is not None
    assert "kube-audit-admin" in logs.categories
    assert own().logs is None
