"""The StackPlan: everything the stack needs, decided and frozen, before anything is declared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planning.capacity import CostPlan, GpuPoolPlan, QuotaNeed
from planning.catalogue import Image, Preset
from planning.findings import Finding
from planning.memory import MemoryPlan
from planning.names import Names
from planning.parallelism import Layout
from planning.rollout import RolloutPlan
from planning.startup import StartupBudget


@dataclass(frozen=True, kw_only=True)
class SystemPoolPlan:
    """The pool that runs the cluster's own pods; no model is placed on it."""

    name: str
    vm_size: str
    count: int
    taints: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """One AKS cluster and its resource group."""

    location: str
    kubernetes_version: str
    sku_tier: str  # Free | Standard | Premium
    pod_cidr: str
    service_cidr: str
    dns_service_ip: str
    kubelogin: str  # azurecli | workloadidentity | spn | msi: how kubeconfig users sign in
    protect: bool  # Pulumi protects what must not vanish
    tags: Mapping[str, str]
    system_pool: SystemPoolPlan
    max_node_provision_minutes: int  # how long the cluster autoscaler waits for a GPU node


@dataclass(frozen=True, kw_only=True)
class DevicePluginPlan:
    """The NVIDIA device plugin DaemonSet: without it a node is Ready but offers no nvidia.com/gpu."""

    image: Image
    node_label: tuple[str, str]  # only nodes with this label run it


@dataclass(frozen=True, kw_only=True)
class DownloadPlan:
    """The init container that fetches the weights at the pinned revision; the only one that may see the token."""

    image: Image
    command: tuple[str, ...]  # exec form
    env: Mapping[str, str]
    target: str  # directory inside the pod, on the weights volume


@dataclass(frozen=True, kw_only=True)
class PodResources:
    """Requests and limits of one replica (requests equal limits, except cpu, which has no limit)."""

    gpus: int
    cpu: int
    memory_gib: int
    shm_gib: int  # /dev/shm, counts towards memory
    weights_gib: int  # size limit of the weights volume, on the node's OS disk
    cache_gib: int  # size limit of the compile caches' volume


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """One model: one Deployment, one Service, one PodDisruptionBudget."""

    name: str  # the key in `models`, or "model" for the flat keys; a DNS-1123 label
    served_model_name: str  # what clients put into "model"
    preset: Preset
    revision: str | None  # commit on Hugging Face; None is a step still to do in production
    layout: Layout
    memory: MemoryPlan
    image: Image
    command: tuple[str, ...]  # exec form, so that vLLM is PID 1 and gets SIGTERM
    args: tuple[str, ...]
    env: Mapping[str, str]
    port: int
    download: DownloadPlan
    resources: PodResources
    node_selector: Mapping[str, str]
    tolerated_taints: tuple[str, ...]  # keys, tolerated with operator Exists
    startup: StartupBudget
    rollout: RolloutPlan
    config_hash: str  # pod template annotation: changes when anything the engine reads changes


@dataclass(frozen=True, kw_only=True)
class StackPlan:
    """The whole stack. Components receive parts of it and declare them."""

    stack: str
    environment: str  # production | development
    namespace: str
    needs_hf_token: bool  # a gated preset is served
    has_hf_token: bool
    names: Names
    cluster: ClusterPlan
    gpu_pools: tuple[GpuPoolPlan, ...]
    device_plugin: DevicePluginPlan
    models: tuple[ModelPlan, ...]
    cost: CostPlan
    quota: tuple[QuotaNeed, ...]
    findings: tuple[Finding, ...]
