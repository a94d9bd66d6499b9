"""VM sizes, GPU pools, quota and price."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GpuPoolPlan:
    """One AKS agent pool of GPU nodes; models of the same VM size share it."""

    name: str  # ^[a-z][a-z0-9]{0,10}$, from the VM size's row, never from a setting
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
    price_date: str
    price_region: str
