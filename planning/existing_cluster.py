"""A cluster that is there already: what is then the stack's, what is not, and what must be true of the cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planning import weight_source
from planning.capacity import GpuPoolPlan
from planning.cluster import MAX_NODE_PROVISION_MINUTES
from planning.findings import Finding, Problem, Severity
from planning.network import SUBNET_ID
from planning.words import counted, listed

if TYPE_CHECKING:
    from planning.settings import ExistingClusterSettings, GpuNodes, NetworkSettings, Settings

#: The first version with a stable preStop sleep, which every pod of the stack has.
#: https://kubernetes.io/docs/concepts/containers/container-lifecycle-hooks/
MIN_KUBERNETES = "1.34"
#: Every node of every cluster has it. https://kubernetes.io/docs/reference/labels-annotations-taints/
VM_SIZE_LABEL = "node.kubernetes.io/instance-type"
#: Of GPU nodes that others made: the taint of most charts, and the one of AKS's own examples.
#: https://learn.microsoft.com/azure/aks/use-nvidia-gpu
TAINTS = ("nvidia.com/gpu", "sku")
#: Namespaces that are Kubernetes' own, or hold what is not only this stack's.
TAKEN_NAMESPACES = ("default", "gpu-resources")

#: Of settings that are about a cluster of the stack's own, by the field that holds them.
_OWNERS = ("kubernetes_version", "api_server_access", "authorized_ip_ranges", "maintenance", "add_ons", "budget")
_OWNERS_NETWORK = ("vnet_cidr", "node_subnet_cidr", "pod_cidr", "service_cidr", "dns_service_ip", "outbound")
_OWNERS_NODES = ("zones", "spot", "capacity_reservation_group", "vcpu_quota")


@dataclass(frozen=True, kw_only=True)
class ExistingClusterPlan:
    """Somebody else's cluster. Fields that `ClusterPlan` has too mean the same."""

    id: str | None  # of Resource Manager; None: the cluster is known by its kubeconfig alone
    location: str
    subnet_id: str | None  # where the nodes of the GPU pools lie; None: AKS chooses
    kubelogin: str
    has_resource_group: bool  # of the stack, for what it keeps in Azure beside the cluster
    protect: bool
    tags: Mapping[str, str]

    @property
    def name(self) -> str:
        """What Azure calls the cluster."""
        return (self.id or "").rpartition("/")[2]

    @property
    def resource_group(self) -> str:
        """The one that the cluster is in."""
        return (self.id or "").split("/")[4] if self.id else ""

    @property
    def words(self) -> str:
        """How a sentence names it."""
        return f"cluster {self.name} in {self.resource_group}" if self.id else "the cluster of aks-vllm:kubeconfig"


def existing(settings: Settings) -> ExistingClusterSettings | None:
    """What the stack file says of a cluster that exists; None: the stack makes one."""
    from planning.settings import ExistingClusterSettings

    return settings.existing_cluster or (ExistingClusterSettings() if settings.kubeconfig else None)


def plan(settings: Settings, asked: ExistingClusterSettings, stack: str) -> ExistingClusterPlan:
    """The cluster as it is set, unchecked: `problems` says whether it can be."""
    keeps = asked.id is not None and bool(_streamed(settings))
    return ExistingClusterPlan(
        id=asked.id,
        location=settings.location,
        subnet_id=settings.network.subnet_id,
        kubelogin=settings.kubelogin,
        has_resource_group=keeps,
        protect=keeps and (settings.environment == "production" if settings.protect is None else settings.protect),
        tags={"managed-by": "pulumi", "aks-vllm-stack": stack, **settings.tags},
    )


def wants_device_plugin(asked: ExistingClusterSettings) -> bool:
    """Nodes that others made have one already; nodes that the stack makes do not."""
    return asked.id is not None if asked.device_plugin is None else asked.device_plugin


def found(pool: GpuPoolPlan, asked: ExistingClusterSettings) -> GpuPoolPlan:
    """A pool whose nodes are there already: known by their size, and by labels and taints that the settings name."""
    return replace(
        pool, labels={VM_SIZE_LABEL: pool.vm_size, **asked.node_labels}, taints=(*TAINTS, *asked.taints), driver="None"
    )


def problems(settings: Settings, source: str) -> Iterator[Problem]:
    """What does not go together with a cluster of somebody else's."""
    asked = existing(settings)
    if asked is None:
        return
    by_id, streamed = asked.id is not None, _streamed(settings)

    def problem(key: str, value: object, limit: str, remedy: str) -> Problem:
        full = key if key.startswith("aks-vllm:") else f"aks-vllm:{key}"
        return Problem(key=full, value=value, limit=limit, source=source, remedy=remedy)

    if by_id and settings.kubeconfig:
        limit = "stands beside existing-cluster.id: the cluster in two places"
        yield problem("kubeconfig", "(hidden)", limit, "keep one of the two: Azure has a kubeconfig for the id")
    if not by_id and not settings.kubeconfig:
        remedy = "set existing-cluster.id (`az aks show --query id` prints it), or hand over a kubeconfig: `pulumi "
        remedy += "config set --secret aks-vllm:kubeconfig < kubeconfig`"
        yield problem("existing-cluster", "(a map)", "names no cluster", remedy)
        return
    if asked.namespace in TAKEN_NAMESPACES or asked.namespace.startswith("kube-"):
        limit = "is not the stack's: it makes its namespace, and deletes it with all that is in it"
        yield problem("existing-cluster.namespace", asked.namespace, limit, "choose one that is not there yet")
    for key, value, why in _without_effect(settings, asked, streamed):
        yield problem(key, value, f"has no effect: {why}", "delete the line")
    if by_id and settings.network.subnet_id and not SUBNET_ID.fullmatch(settings.network.subnet_id):
        remedy = "`az network vnet subnet show --query id` prints it"
        yield problem("network.subnet-id", settings.network.subnet_id, "is not the id of a subnet", remedy)
    for name in streamed if not by_id else ():
        default = "" if settings.models[name].weights.source else ", the default of a production stack"
        yield problem(
            settings.key(name, "weights.source"),
            f"{weight_source.AZURE_BLOB}{default}",
            "needs Azure, to make the storage account and to let the cluster's pods sign in to it, and with "
            "aks-vllm:kubeconfig the stack has nothing there",
            "set weights: {source: hugging-face}, or existing-cluster.id in the kubeconfig's place",
        )


def findings(
    cluster: ExistingClusterPlan,
    asked: ExistingClusterSettings,
    pools: Sequence[GpuPoolPlan],
    *,
    environment: str,
    streams: bool,
    grace_seconds: int,
) -> Iterator[Finding]:
    """What is not the stack's, and what must be true of it."""
    made = [f"{counted(len(pools), 'GPU pool')} in it"] if cluster.id else []
    made += ["the device plugin"] if wants_device_plugin(asked) else []
    made += [f"namespace {asked.namespace} with what runs in it"]
    made += ["a resource group with the weights' storage account"] if cluster.has_resource_group else []
    yield _note(
        f"The stack makes {listed(made)}. It does not own {cluster.words}, nor its network, identities, Kubernetes "
        "version, add-ons, maintenance and budget: nothing here changes them, and `pulumi destroy` leaves them.",
        "A stack that had a cluster of its own until now deletes it with this update: docs/existing-cluster.md.",
    )
    needs = [
        f"Kubernetes {MIN_KUBERNETES} or later",
        "a network policy engine (Cilium or Calico), without which the policies are stored and hold nobody off",
        "an API server that answers whoever runs Pulumi",
        "a system pool with room for two pods of the edge",
    ]
    if cluster.id:
        needs += [f"region {cluster.location}", "sign-in with Entra ID, and a deployer who may write in all of it"]
        needs += (
            ["no other device plugin on these nodes (else existing-cluster.device-plugin: false)"]
            if wants_device_plugin(asked)
            else ["a device plugin of NVIDIA's that tolerates nvidia.com/gpu"]
        )
        needs += ["the right to join the subnet for the cluster's identity"] if cluster.subnet_id else []
        needs += ["an OIDC issuer and workload identity, for the weights"] if streams else []
        reserved = any(pool.capacity_reservation_group for pool in pools)
        needs += ["Contributor on the capacity reservation group for the cluster's identity"] if reserved else []
        if any(pool.autoscale for pool in pools):
            needs.append(
                f"an autoscaler profile with max-graceful-termination-sec {grace_seconds} or more, max-node-provision-"
                f"time {MAX_NODE_PROVISION_MINUTES}m and skip-nodes-with-local-storage false"
            )
        check = "`make preflight` looks at it."
    else:
        needs.append("a user of the kubeconfig who may write namespaces, PriorityClasses and all that is in them")
        needs += [
            f"{counted(pool.count, 'node')} {VM_SIZE_LABEL}={pool.vm_size} with the NVIDIA driver"
            + ("" if wants_device_plugin(asked) else f", each offering nvidia.com/gpu: {pool.gpus_per_node}")
            for pool in pools
        ]
        check = "`kubectl describe nodes -l kubernetes.azure.com/accelerator=nvidia` shows the GPU nodes."
    yield _note(f"What must be true of the cluster: {'; '.join(needs)}.", check)
    if streams and not asked.fqdn_policies:
        yield Finding(
            severity=Severity.WARNING if environment == "production" else Severity.NOTE,
            subject="stack",
            message="Replicas that stream their weights may open HTTPS connections to any public address: whether "
            "the cluster filters by name is not known here.",
            remedy="Set existing-cluster.fqdn-policies to true where it does (Cilium with Advanced Container "
            "Networking Services).",
        )


def _without_effect(
    settings: Settings, asked: ExistingClusterSettings, streamed: Sequence[str]
) -> Iterator[tuple[str, object, str]]:
    """(key, value, why) of settings that say something about what is not the stack's."""
    owners = "the cluster is not the stack's, and whoever owns it decides that"
    there = "the GPU nodes are not the stack's: they are there already"
    written: list[tuple[str, Settings | NetworkSettings | GpuNodes | ExistingClusterSettings, str]] = []
    written += [(field, settings, owners) for field in _OWNERS]
    written += [(f"network.{field}", settings.network, owners) for field in _OWNERS_NETWORK]
    if asked.id is None:
        written += [("network.subnet_id", settings.network, there)]
        written += [(f"gpu_nodes.{field}", settings.gpu_nodes, there) for field in _OWNERS_NODES]
        written += [("kubelogin", settings, "the kubeconfig says how to sign in")]
    else:
        new = "the GPU nodes are the stack's own, which labels and taints them"
        written += [(f"existing_cluster.{field}", asked, new) for field in ("node_labels", "taints")]
    if not streamed:
        written += [("existing_cluster.fqdn_policies", asked, "no model streams its weights")]
    if asked.id is None or not streamed:
        nothing = "the stack keeps nothing in Azure that could carry it"
        written += [("protect", settings, nothing), ("tags", settings, nothing)]
    for path, holder, why in written:
        field = path.rpartition(".")[2]
        if holder.given(field):
            value = getattr(holder, field)
            yield path.replace("_", "-"), value if isinstance(value, str | int | bool) else "(set)", why


def _streamed(settings: Settings) -> list[str]:
    return [
        name
        for name, model in settings.models.items()
        if weight_source.source(model.weights, settings.environment) == weight_source.AZURE_BLOB
    ]


def _note(message: str, remedy: str) -> Finding:
    return Finding(severity=Severity.NOTE, subject="stack", message=message, remedy=remedy)
