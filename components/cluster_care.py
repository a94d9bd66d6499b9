"""What watches over a cluster: its logs, its budget, and the window in which AKS works on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_azure_native import consumption, containerservice, monitor

from components.cluster import Cluster
from components.gpu_pool import GpuPool
from planning.cluster import BudgetPlan, ClusterPlan
from planning.names import Names


@dataclass(frozen=True, kw_only=True)
class ClusterCareArgs:
    """The cluster with its plan and physical names, and the pools that must be finished first."""

    plan: ClusterPlan
    names: Names
    cluster: Cluster
    after: Sequence[GpuPool]  # AKS runs one operation per cluster and answers 409 to a second (Azure/AKS#2880)


class ClusterCare(pulumi.ComponentResource):
    """Nothing in it serves anybody, and nothing waits for it."""

    def __init__(self, name: str, args: ClusterCareArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:ClusterCare", name, None, opts)
        plan, group, cluster = args.plan, args.cluster.resource_group, args.cluster.managed_cluster
        if plan.logs is not None:
            monitor.DiagnosticSetting(
                f"{name}-logs",
                name="control-plane",
                resource_uri=cluster.id,
                workspace_id=args.cluster.workspace_id,
                logs=[monitor.DiagnosticsLogSettingsArgs(category=each, enabled=True) for each in plan.logs.categories],
                opts=pulumi.ResourceOptions(parent=self),
            )
        if plan.budget is not None:
            consumption.Budget(
                f"{name}-budget",
                budget_name=args.names.budget,
                scope=group.id,
                category="Cost",
                amount=plan.budget.usd_per_month,
                time_grain="Monthly",
                time_period=consumption.BudgetTimePeriodArgs(start_date=plan.budget.start_date),
                notifications=_notifications(plan.budget),
                opts=pulumi.ResourceOptions(parent=self),
            )
        containerservice.MaintenanceConfiguration(
            f"{name}-maintenance",
            # "default" is the window of AKS's own weekly releases; the two others belong to upgrade channels, which
            # are off.
            config_name="default",
            resource_group_name=group.name,
            resource_name_=cluster.name,
            maintenance_window=containerservice.MaintenanceWindowArgs(
                duration_hours=plan.maintenance.hours,
                start_time=plan.maintenance.start,
                schedule=containerservice.ScheduleArgs(
                    weekly=containerservice.WeeklyScheduleArgs(day_of_week=plan.maintenance.day, interval_weeks=1)
                ),
            ),
            opts=pulumi.ResourceOptions(
                parent=self, depends_on=[pool.agent_pool for pool in args.after], deleted_with=cluster
            ),
        )
        self.register_outputs({})


def _notifications(budget: BudgetPlan) -> dict[str, consumption.NotificationArgs]:
    thresholds = {"spent": (budget.spent_percent, "Actual"), "forecast": (budget.forecast_percent, "Forecasted")}
    return {
        name: consumption.NotificationArgs(
            contact_emails=list(budget.contacts),
            enabled=True,
            operator="GreaterThanOrEqualTo",
            threshold=percent,
            threshold_type=kind,
        )
        for name, (percent, kind) in thresholds.items()
    }
