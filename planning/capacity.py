"""VM sizes, GPU pools, quota and price."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planning import catalogue
from planning.catalogue import VmSize
from planning.findings import Finding, Severity
from planning.parallelism import LayoutError, sizes_that_hold
from planning.placement import Demand, nodes_needed

if TYPE_CHECKING:
    from planning.settings import GpuNodes

__all__ = ["CostPlan", "GpuPoolPlan", "QuotaNeed", "cost", "gpu_pool", "quota_needs", "sizes_that_hold"]

#: The taint that keeps other pods off GPU nodes; AKS sets none (AKS docs, best practices for GPU pools).
GPU_TAINT = "nvidia.com/gpu=present:NoSchedule"
POOL_LABEL = "aks-vllm/pool"
#: AKS sets both on spot nodes; a pool that does not declare them is never up to date (pulumi-azure-native#959).
SPOT_LABEL = "kubernetes.azure.com/scalesetpriority"
SPOT_TAINT = f"{SPOT_LABEL}=spot:NoSchedule"
DRIVER = "Install"  # AKS installs the NVIDIA driver

#: Characters of an agent pool's name (AKS: 12), the last of them a hash.
POOL_NAME_MAX, POOL_HASH = 12, 4

#: An AKS agent pool has at most 1,000 nodes (AKS docs, quotas).
POOL_NODES_MAX = 1000

#: Minutes until creating a pool counts as failed: 5 to 10 are usual and 34 have been seen for AKS (Azure/AKS#2980).
CREATE_TIMEOUT_MINUTES = 60

#: Hours in a month of Azure's price pages.
HOURS_PER_MONTH = 730


@dataclass(frozen=True, kw_only=True)
class GpuPoolPlan:
    """One AKS agent pool of GPU nodes; models of the same VM size share it."""

    name: str  # from the VM size's row, never from a setting
    agent_pool_name: str  # what Azure calls it, ^[a-z][a-z0-9]{0,11}$: another one where Azure cannot change the pool
    create_first: bool  # a pool that is replaced is made before the old one goes: quota holds both
    vm_size: str
    count: int  # ARM wants it even when an autoscaler owns the number
    autoscale: bool
    min_count: int
    max_count: int
    gpus_per_node: int
    labels: Mapping[str, str]
    taints: tuple[str, ...]  # "key=value:Effect"
    os_disk_size_gb: int
    max_surge: str  # "0": an update needs no spare GPU node
    max_unavailable: str  # "1"
    drain_timeout_minutes: int
    driver: str  # Install: AKS installs the NVIDIA driver
    create_timeout_minutes: int
    zones: tuple[str, ...]
    spot: bool
    capacity_reservation_group: str | None  # ARM id
    os_disk_type: str = "Ephemeral"  # Managed where the VM's own disk is too small for images and weights


@dataclass(frozen=True, kw_only=True)
class QuotaNeed:
    """vCPUs that the subscription must have left in one family of one region."""

    family: str
    vcpus: int
    vm_size: str
    nodes: int


@dataclass(frozen=True, kw_only=True)
class CostPlan:
    """List prices, US dollars; None where the catalogue has no price for the region."""

    gpu_pools_per_hour: float | None
    gpu_pools_per_month: float | None  # 730 hours
    price_date: str  # the oldest of the prices used; "unknown" where one has no date
    price_region: str


def gpu_pool(
    vm: VmSize,
    demands: Sequence[Demand],
    *,
    nodes: GpuNodes,
    subnet: str,
    owner: str = "",
    drain_timeout_minutes: int,
) -> GpuPoolPlan:
    """The pool that the models of one VM size share; without bounds it has as many nodes as they need.

    `subnet` names the subnet that its nodes lie in, `owner` the stack's namespace where it shares the cluster with
    other stacks: neither its pools nor its pods may be taken for theirs. Raises LayoutError (key `gpu-nodes`) where the
    models do not fit on `nodes.max`, for bounds that cannot be, and (key `gpu-nodes.vcpu-quota`) for a quota that is
    too small.
    """
    min_nodes, max_nodes = nodes.min, nodes.max
    needed = nodes_needed(vm.gpus, demands)
    least = needed if min_nodes is None else min_nodes
    most = max(needed, least) if max_nodes is None else max_nodes
    if min_nodes is None:
        least = min(least, most)
    shown = f"{{min: {least}, max: {most}}}"
    if least < 0 or most < least or most > POOL_NODES_MAX:
        raise LayoutError(
            key="gpu-nodes",
            value=shown,
            limit=f"0 <= min <= max <= {POOL_NODES_MAX}",
            remedy="leave it out for as many nodes as the models need",
        )
    if needed > most:
        replicas = sum(each.replicas for each in demands)
        gpus = sum(each.replicas * each.gpus for each in demands)
        raise LayoutError(
            key="gpu-nodes",
            value=shown,
            limit=f"{replicas} replicas with {gpus} GPUs need {needed} nodes of {vm.name} with {vm.gpus} GPUs each",
            remedy=f"set max to {needed} or higher, or lower replicas",
        )
    if nodes.vcpu_quota is not None and most * vm.vcpus > nodes.vcpu_quota:
        raise LayoutError(
            key="gpu-nodes.vcpu-quota",
            value=nodes.vcpu_quota,
            limit=f"{most} nodes of {vm.name} need {most * vm.vcpus} vCPUs of {vm.quota_family}",
            remedy="ask for more quota in the Azure portal (Usage + quotas), or lower gpu-nodes.max",
        )
    taints = (GPU_TAINT, *([SPOT_TAINT] if nodes.spot else ()))
    mark = f"-{hashlib.sha256(owner.encode()).hexdigest()[:POOL_HASH]}" if owner else ""
    labels = {POOL_LABEL: f"{vm.pool}{mark}"} | ({SPOT_LABEL: "spot"} if nodes.spot else {})
    fixed = (vm.name, vm.os_disk_type, vm.os_disk_gib, DRIVER, sorted(nodes.zones), nodes.spot, subnet.lower())
    if nodes.capacity_reservation_group:  # only where there is one: the name of every other pool stays what it is
        fixed = (*fixed, nodes.capacity_reservation_group.lower())
    fixed = (*fixed, owner) if owner else fixed
    return GpuPoolPlan(
        name=vm.pool,
        agent_pool_name=_agent_pool_name(vm.pool, fixed),
        create_first=nodes.vcpu_quota is not None and 2 * most * vm.vcpus <= nodes.vcpu_quota,
        vm_size=vm.name,
        count=max(least, needed),
        autoscale=least != most,
        min_count=least,
        max_count=most,
        gpus_per_node=vm.gpus,
        labels=labels,
        taints=taints,
        zones=tuple(nodes.zones),
        spot=nodes.spot,
        capacity_reservation_group=nodes.capacity_reservation_group,
        os_disk_type=vm.os_disk_type,
        os_disk_size_gb=vm.os_disk_gib,
        max_surge="0",
        max_unavailable="1",
        drain_timeout_minutes=drain_timeout_minutes,
        driver=DRIVER,
        create_timeout_minutes=CREATE_TIMEOUT_MINUTES,
    )


def _agent_pool_name(base: str, fixed: tuple[object, ...]) -> str:
    """A name that changes with whatever of the pool Azure cannot change: a pool with another name can be built beside
    the old one, where one of the same name must go first."""
    digest = hashlib.sha256(json.dumps(fixed).encode()).hexdigest()[:POOL_HASH]
    return f"{base[: POOL_NAME_MAX - POOL_HASH]}{digest}"


def quota_needs(pools: Sequence[GpuPoolPlan]) -> tuple[QuotaNeed, ...]:
    """vCPUs each pool needs at its largest. No update needs more: GPU pools are updated without a surge node."""
    return tuple(
        QuotaNeed(
            family=catalogue.vm_size(pool.vm_size).quota_family,
            vcpus=pool.max_count * catalogue.vm_size(pool.vm_size).vcpus,
            vm_size=pool.vm_size,
            nodes=pool.max_count,
        )
        for pool in pools
    )


def cost(pools: Sequence[GpuPoolPlan], location: str) -> tuple[CostPlan, tuple[Finding, ...]]:
    """What the GPU pools cost at list price with the nodes they start with; None where a price is not known."""
    hourly: float | None = 0.0
    dates: set[str] = set()
    findings = []
    for pool in pools:
        vm = catalogue.vm_size(pool.vm_size)
        price = vm.price_per_hour.get(location)
        if price is None:
            hourly = None
            known = ", ".join(f"{region} {usd:g}" for region, usd in vm.price_per_hour.items()) or "none"
            findings.append(
                Finding(
                    severity=Severity.WARNING,
                    subject="stack",
                    message=f"The price of {vm.name} in {location} is not known (known, US dollars an hour: {known}), "
                    f"so the cost of pool {pool.name} is not either.",
                    remedy="Look it up at https://prices.azure.com/api/retail/prices and add it with its date to "
                    "presets/vm-sizes.yaml.",
                )
            )
            continue
        dates.add(vm.price_date or "unknown")
        hourly = None if hourly is None else hourly + price * pool.count
        if pool.max_count > pool.count:
            findings.append(
                Finding(
                    severity=Severity.NOTE,
                    subject="stack",
                    message=f"The autoscaler may grow {pool.name} from {pool.count} to {pool.max_count} nodes: "
                    f"{price * pool.max_count:,.2f} instead of {price * pool.count:,.2f} US dollars an hour.",
                    remedy="Lower gpu-nodes.max to bound it.",
                )
            )
    plan = CostPlan(
        gpu_pools_per_hour=None if hourly is None else round(hourly, 4),
        gpu_pools_per_month=None if hourly is None else round(hourly * HOURS_PER_MONTH, 2),
        price_date="unknown" if "unknown" in dates or not dates else min(dates),
        price_region=location,
    )
    return plan, tuple(findings)
