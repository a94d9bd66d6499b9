"""One agent pool of GPU nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_azure_native import containerservice

from components.cluster import Cluster
from components.existing_cluster import ExistingCluster
from planning.capacity import GpuPoolPlan

#: What this pool sets, the AKS API never changes on an existing pool (PropertyChangeNotAllowed) and the provider would
#: still try to update in place (pulumi-azure-native#959). Wire names: a wrong one never matches, and nothing warns.
IMMUTABLE = (
    "osDiskSizeGB",
    "osDiskType",
    "kubeletDiskType",
    "osType",
    "gpuProfile",
    "type",
    "availabilityZones",
    "scaleSetPriority",
    "scaleSetEvictionPolicy",
    "spotMaxPrice",
    "vnetSubnetID",
    "capacityReservationGroupID",
)


@dataclass(frozen=True, kw_only=True)
class GpuPoolArgs:
    """The pool, its cluster, and the pool that must be finished first, if any."""

    plan: GpuPoolPlan
    cluster: Cluster | ExistingCluster
    after: Sequence[GpuPool]  # AKS runs one operation per cluster and answers 409 to a second (Azure/AKS#2880)


class GpuPool(pulumi.ComponentResource):
    """A user pool, apart from the cluster so that a change to it touches no other pool."""

    agent_pool: containerservice.AgentPool

    def __init__(self, name: str, args: GpuPoolArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:GpuPool", name, None, opts)
        plan = args.plan

        self.agent_pool = containerservice.AgentPool(
            f"{name}-agent-pool",
            agent_pool_name=plan.agent_pool_name,
            resource_group_name=args.cluster.group_name,
            resource_name_=args.cluster.name,
            mode="User",
            type="VirtualMachineScaleSets",
            # The cluster's: nodes follow an upgrade of the control plane in the same update, or its owner's upgrade.
            orchestrator_version=args.cluster.kubernetes_version,
            vm_size=plan.vm_size,
            count=plan.count,  # required even where the autoscaler owns it (pulumi-azure-native#2943)
            enable_auto_scaling=plan.autoscale,
            min_count=plan.min_count if plan.autoscale else None,
            max_count=plan.max_count if plan.autoscale else None,
            scale_down_mode="Delete",  # a deallocated GPU node would keep its quota
            os_type="Linux",
            os_disk_type=plan.os_disk_type,
            os_disk_size_gb=plan.os_disk_size_gb,
            kubelet_disk_type="OS",
            vnet_subnet_id=args.cluster.node_subnet_id,
            availability_zones=list(plan.zones) or None,
            scale_set_priority="Spot" if plan.spot else None,
            # Deleted: a deallocated node would keep its quota. No price limit: evicted for capacity alone.
            scale_set_eviction_policy="Delete" if plan.spot else None,
            spot_max_price=-1 if plan.spot else None,
            capacity_reservation_group_id=plan.capacity_reservation_group,
            gpu_profile=containerservice.GPUProfileArgs(driver=plan.driver),
            node_labels=plan.labels,
            node_taints=list(plan.taints),
            upgrade_settings=containerservice.AgentPoolUpgradeSettingsArgs(
                max_surge=plan.max_surge,
                max_unavailable=plan.max_unavailable,
                drain_timeout_in_minutes=plan.drain_timeout_minutes,
            ),
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=[pool.agent_pool for pool in args.after],
                # The cluster's deletion takes its pools along; deleting one by one would honour disruption budgets.
                deleted_with=args.cluster.managed_cluster,
                # The autoscaler owns the number: an update must not undo its work.
                ignore_changes=["count"] if plan.autoscale else None,
                replace_on_changes=list(IMMUTABLE),
                # A pool that Azure cannot change gets another name; the plan knows whether quota holds both.
                delete_before_replace=not plan.create_first,
                # Fails with a word while the provider's own two hours would still wait for capacity. Updates keep
                # those two hours: they drain node after node.
                custom_timeouts=pulumi.CustomTimeouts(create=f"{plan.create_timeout_minutes}m"),
            ),
        )
        self.register_outputs({})
