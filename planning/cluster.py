"""The AKS cluster: tiers, identities, add-ons, maintenance and budget; its network is in `network`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planning import catalogue, monitoring, network, registry, roles
from planning.findings import Finding, Problem, Severity
from planning.network import ApiServerPlan, NetworkPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planning.capacity import GpuPoolPlan
    from planning.settings import Settings

#: At least two nodes of four vCPUs, not of the B series: https://learn.microsoft.com/azure/aks/use-system-pools
SYSTEM_VM_SIZE, SYSTEM_VCPUS, SYSTEM_FAMILY = "Standard_D4ds_v5", 4, "standardDDSv5Family"
SYSTEM_NODES = {"production": 3, "development": 2}
SYSTEM_TAINTS = ("CriticalAddonsOnly=true:NoSchedule",)
SKU_TIERS = {"production": "Standard", "development": "Free"}  # Standard has the uptime SLA
ZONES = ("1", "2", "3")

#: The autoscaler's default of 15 is shorter than allocating, booting and installing the driver of a GPU node.
MAX_NODE_PROVISION_MINUTES = 30
#: The autoscaler's own default: https://learn.microsoft.com/azure/aks/cluster-autoscaler. Longer answers raise it.
GRACEFUL_TERMINATION_SECONDS = 600
#: Hours between two looks of the image cleaner (24 to 2160): https://learn.microsoft.com/azure/aks/image-cleaner
IMAGE_CLEANER_HOURS = 168
#: Days that the control plane's logs are kept; the first 31 cost nothing extra (Log Analytics pricing).
LOG_DAYS = 30
#: What the control plane logs is worth keeping: who changed what, who was refused, what the autoscaler decided.
#: https://learn.microsoft.com/azure/aks/monitor-aks-reference#resource-logs
LOG_CATEGORIES = ("kube-audit-admin", "guard", "cluster-autoscaler", "kube-controller-manager")
#: Per cent of the budget: what is spent, and what is forecast to be.
BUDGET_SPENT, BUDGET_FORECAST = 80, 100


@dataclass(frozen=True, kw_only=True)
class SystemPoolPlan:
    """The pool that runs the cluster's own pods; no model is placed on it."""

    name: str
    vm_size: str
    count: int
    zones: tuple[str, ...]  # empty: the region has none
    taints: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GrantPlan:
    """A role of one of the cluster's identities on something that is not the stack's."""

    name: str
    scope: str
    role: str  # GUID
    identity: str = "cluster"  # or "kubelet", which pulls images


@dataclass(frozen=True, kw_only=True)
class MaintenancePlan:
    """A weekly window, UTC."""

    day: str
    start: str  # hh:mm
    hours: int


@dataclass(frozen=True, kw_only=True)
class LogsPlan:
    """What of the control plane's logs is kept, and for how many days."""

    categories: tuple[str, ...]
    days: int


@dataclass(frozen=True, kw_only=True)
class BudgetPlan:
    """A monthly budget of the resource group, US dollars."""

    usd_per_month: int
    contacts: tuple[str, ...]
    start_date: str  # first day of its first month
    spent_percent: int
    forecast_percent: int


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """One AKS cluster with its network, in a resource group of its own."""

    location: str
    kubernetes_version: str
    sku_tier: str  # Free | Standard | Premium
    network: NetworkPlan
    api_server: ApiServerPlan
    kubelogin: str  # azurecli | workloadidentity | spn | msi: how kubeconfig users sign in
    protect: bool  # Pulumi protects what must not vanish
    tags: Mapping[str, str]
    system_pool: SystemPoolPlan
    max_node_provision_minutes: int  # how long the cluster autoscaler waits for a GPU node
    max_graceful_termination_seconds: int  # how long it waits for the pods of a node that it takes away
    grants: tuple[GrantPlan, ...]
    maintenance: MaintenancePlan
    logs: LogsPlan | None
    policies_by_name: bool  # Cilium filters names, not only addresses: Advanced Container Networking Services
    azure_policy: bool
    secrets_store: bool  # mounts what a vault holds
    defender: bool
    managed_prometheus: bool
    image_cleaner_hours: int | None
    budget: BudgetPlan | None


def cluster(settings: Settings, stack: str, *, policies_by_name: bool) -> ClusterPlan:
    """The cluster as it is set, unchecked: `problems` says whether it can be."""
    production = settings.environment == "production"
    add_ons = _add_ons(settings)
    return ClusterPlan(
        location=settings.location,
        kubernetes_version=settings.kubernetes_version,
        sku_tier=SKU_TIERS[settings.environment],
        network=network.network(settings.network),
        api_server=network.api_server(settings),
        kubelogin=settings.kubelogin,
        protect=production if settings.protect is None else settings.protect,
        tags={"managed-by": "pulumi", "aks-vllm-stack": stack, **settings.tags},
        system_pool=SystemPoolPlan(
            name="system",
            vm_size=SYSTEM_VM_SIZE,
            count=SYSTEM_NODES[settings.environment],
            zones=ZONES if settings.location in catalogue.regions()["with-zones"] else (),
            taints=SYSTEM_TAINTS,
        ),
        max_node_provision_minutes=MAX_NODE_PROVISION_MINUTES,
        max_graceful_termination_seconds=GRACEFUL_TERMINATION_SECONDS,
        grants=tuple(_grants(settings)),
        maintenance=MaintenancePlan(
            day=settings.maintenance.day, start=settings.maintenance.start, hours=settings.maintenance.hours
        ),
        logs=LogsPlan(categories=LOG_CATEGORIES, days=LOG_DAYS) if "log-analytics" in add_ons else None,
        policies_by_name=policies_by_name,
        azure_policy="azure-policy" in add_ons,
        secrets_store=settings.key_vault is not None,
        defender="defender" in add_ons,
        managed_prometheus=monitoring.PROMETHEUS in add_ons,
        image_cleaner_hours=IMAGE_CLEANER_HOURS if "image-cleaner" in add_ons else None,
        budget=_budget(settings),
    )


def nodes(plan: ClusterPlan, pools: Sequence[GpuPoolPlan]) -> int:
    """Nodes that the cluster may have at once: its pools at their largest, and a surge node of the system pool."""
    return plan.system_pool.count + 1 + sum(pool.max_count * (2 if pool.create_first else 1) for pool in pools)


def problems(settings: Settings, source: str) -> Iterator[Problem]:
    """What of the cluster's settings Azure is known to refuse, but for its address ranges."""

    def problem(key: str, value: object, limit: str, remedy: str) -> Problem:
        full = "azure-native:location" if key == "location" else f"aks-vllm:{key}"
        return Problem(key=full, value=value, limit=limit, source=source, remedy=remedy)

    regions = catalogue.regions()
    known = (*regions["with-zones"], *regions["without-zones"])
    if settings.location not in known and settings.location != "unknown":
        near = difflib.get_close_matches(settings.location, known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        yield problem(
            "location",
            settings.location,
            "is not a region of Azure that is known here",
            f"{meant}`az account list-locations -o table` lists them, presets/regions.yaml takes a new one",
        )
    minor = ".".join(settings.kubernetes_version.split(".")[:2])
    versions = catalogue.kubernetes_versions()
    if minor not in versions:
        yield problem(
            "kubernetes-version",
            settings.kubernetes_version,
            "is not a version that AKS is known to support",
            f"choose one of {', '.join(versions)}; `az aks get-versions -l {settings.location}` lists today's, "
            "presets/kubernetes-versions.yaml takes a new one",
        )
    if "defender" in (settings.add_ons or ()) and "log-analytics" not in (settings.add_ons or ()):
        remedy = "write add-ons: [defender, log-analytics]"
        yield problem("add-ons", "defender", "needs log-analytics, where it keeps what it saw", remedy)
    pool = settings.gpu_nodes
    if pool.spot and settings.environment == "production":
        limit = "is refused in production: a spot node goes with 30 seconds' notice, and no answer that is under way "
        limit += "can be finished in that time"
        yield problem("gpu-nodes.spot", True, limit, "set it to false, or environment to development")
    if pool.spot and pool.capacity_reservation_group:
        limit = "excludes capacity-reservation-group: reserved capacity is not sold as spot"
        yield problem("gpu-nodes.spot", True, limit, "keep one of the two")
    if pool.zones and settings.location in regions["without-zones"]:
        limit = f"are zones, and {settings.location} has none"
        yield problem("gpu-nodes.zones", ", ".join(pool.zones), limit, "delete the line, or choose another region")


def findings(plan: ClusterPlan) -> Iterator[Finding]:
    """What the cluster's settings mean for people."""
    yield from network.findings(plan.api_server, plan.network)
    if plan.policies_by_name:
        yield Finding(
            severity=Severity.NOTE,
            subject="stack",
            message="Of the internet, replicas reach Entra ID and their storage account alone, by name: Azure "
            "charges each node for it (Advanced Container Networking Services), at a price that is not known here.",
            remedy="https://learn.microsoft.com/azure/aks/advanced-container-networking-services-overview",
        )
    until = catalogue.kubernetes_versions().get(".".join(plan.kubernetes_version.split(".")[:2]))
    yield Finding(
        severity=Severity.NOTE,
        subject="stack",
        message=f"AKS supports Kubernetes {plan.kubernetes_version} "
        + (f"until {until}." if until else "for as long as it has announced by then: no end was known yet."),
        remedy="Nothing upgrades by itself; raise kubernetes-version before then. Every GPU node is drained for it.",
    )


def _add_ons(settings: Settings) -> Sequence[str]:
    default = ("log-analytics",) if settings.environment == "production" else ()
    return default if settings.add_ons is None else settings.add_ons


def _grants(settings: Settings) -> Iterator[GrantPlan]:
    """The cluster's own network and identities are granted where they are declared."""
    if subnet := settings.network.subnet_id:
        yield GrantPlan(name="subnet", scope=subnet, role=roles.NETWORK_CONTRIBUTOR)
    if group := settings.gpu_nodes.capacity_reservation_group:
        yield GrantPlan(name="capacity-reservation", scope=group, role=roles.CONTRIBUTOR)
    if settings.registry and settings.registry.id:
        role = registry.pull_role(settings.registry)
        yield GrantPlan(name="registry", scope=settings.registry.id, role=role, identity="kubelet")


def _budget(settings: Settings) -> BudgetPlan | None:
    if settings.budget is None:
        return None
    return BudgetPlan(
        usd_per_month=settings.budget.usd_per_month,
        contacts=tuple(settings.budget.contacts),
        start_date=f"{settings.budget.first_month}-01T00:00:00Z",
        spent_percent=BUDGET_SPENT,
        forecast_percent=BUDGET_FORECAST,
    )
