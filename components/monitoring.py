"""Metrics of a cluster of the stack's own: where Azure keeps them, who draws them, and which pods' are fetched."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_azure_native import dashboard, monitor
from pulumi_kubernetes import apiextensions, meta

from components.cluster import Cluster
from components.grants import grant
from components.model_access import ModelAccess
from planning.monitoring import STREAM, MonitoringPlan
from planning.names import Names
from planning.roles import MONITORING_DATA_READER

DESTINATION = "workspace"  # the rule's own name for it


@dataclass(frozen=True, kw_only=True)
class MonitoringArgs:
    """What is watched (`plan`, `cluster`) and what Azure calls the parts (`names`)."""

    plan: MonitoringPlan
    names: Names
    cluster: Cluster


class Monitoring(pulumi.ComponentResource):
    """A workspace, the rule that sends the cluster's metrics there, and a Grafana that may read it."""

    grafana_url: pulumi.Output[str] | None

    def __init__(self, name: str, args: MonitoringArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:Monitoring", name, None, opts)
        names, cluster = args.names, args.cluster
        group, location, tags = cluster.resource_group.name, cluster.plan.location, cluster.plan.tags
        own = pulumi.ResourceOptions(parent=self)
        workspace = monitor.AzureMonitorWorkspace(
            f"{name}-workspace",
            azure_monitor_workspace_name=names.monitor_workspace,
            resource_group_name=group,
            location=location,
            tags=tags,
            opts=own,
        )
        endpoint = monitor.DataCollectionEndpoint(
            f"{name}-endpoint",
            data_collection_endpoint_name=names.data_collection_endpoint,
            resource_group_name=group,
            location=location,
            tags=tags,
            kind="Linux",
            opts=own,
        )
        rule = monitor.DataCollectionRule(
            f"{name}-rule",
            data_collection_rule_name=names.data_collection_rule,
            resource_group_name=group,
            location=location,
            tags=tags,
            kind="Linux",
            data_collection_endpoint_id=endpoint.id,
            data_sources=monitor.DataCollectionRuleDataSourcesArgs(
                prometheus_forwarder=[monitor.PrometheusForwarderDataSourceArgs(name="prometheus", streams=[STREAM])]
            ),
            destinations=monitor.DataCollectionRuleDestinationsArgs(
                monitoring_accounts=[
                    monitor.MonitoringAccountDestinationArgs(name=DESTINATION, account_resource_id=workspace.id)
                ]
            ),
            data_flows=[monitor.DataFlowArgs(streams=[STREAM], destinations=[DESTINATION])],
            opts=own,
        )
        # Until it is there the cluster's agents have nowhere to send anything, and wait.
        monitor.DataCollectionRuleAssociation(
            f"{name}-association",
            association_name=names.data_collection_rule,
            resource_uri=cluster.managed_cluster.id,
            data_collection_rule_id=rule.id,
            opts=own,
        )
        self.grafana_url = _grafana(name, args, workspace, own) if args.plan.grafana else None
        self.register_outputs({})


def _grafana(
    name: str, args: MonitoringArgs, workspace: monitor.AzureMonitorWorkspace, opts: pulumi.ResourceOptions
) -> pulumi.Output[str]:
    """Its address; it signs in to the workspace as itself, and people sign in to it with Entra ID."""
    cluster = args.cluster
    grafana = dashboard.Grafana(
        f"{name}-grafana",
        workspace_name=args.names.grafana,
        resource_group_name=cluster.resource_group.name,
        location=cluster.plan.location,
        tags=cluster.plan.tags,
        sku=dashboard.ResourceSkuArgs(name="Standard"),
        identity=dashboard.ManagedServiceIdentityArgs(type=dashboard.ManagedServiceIdentityType.SYSTEM_ASSIGNED),
        properties=dashboard.ManagedGrafanaPropertiesArgs(
            api_key="Disabled",
            grafana_integrations=dashboard.GrafanaIntegrationsArgs(
                azure_monitor_workspace_integrations=[
                    dashboard.AzureMonitorWorkspaceIntegrationArgs(azure_monitor_workspace_resource_id=workspace.id)
                ]
            ),
        ),
        opts=opts,
    )
    grant(
        f"{name}-grafana-grant",
        role=MONITORING_DATA_READER,
        scope=workspace.id,
        principal_id=grafana.identity.apply(lambda identity: identity.principal_id if identity else ""),
        opts=opts,
    )
    return grafana.properties.endpoint


@dataclass(frozen=True, kw_only=True)
class PodMonitorsArgs:
    """Whose metrics are fetched, and the namespace that they live in."""

    plan: MonitoringPlan
    access: ModelAccess
    after: Monitoring  # the kind comes with the add-on, some time after the cluster says that it is ready


class PodMonitors(pulumi.ComponentResource):
    """What the cluster's agents fetch beside their own targets."""

    def __init__(self, name: str, args: PodMonitorsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:PodMonitors", name, None, opts)
        plan = args.plan
        for each in plan.pod_monitors:
            apiextensions.CustomResource(
                f"{name}-{each.name}",
                # Azure's own group: the Prometheus operator's is read by nobody here.
                api_version="azmonitoring.coreos.com/v1",
                kind="PodMonitor",
                metadata=meta.v1.ObjectMetaArgs(
                    name=each.name,
                    namespace=args.access.namespace,
                    labels={"app.kubernetes.io/part-of": "aks-vllm", "app.kubernetes.io/managed-by": "pulumi"},
                    annotations={"aks-vllm/why": each.why},
                ),
                spec={
                    "selector": {"matchLabels": dict(each.pods)},
                    "podTargetLabels": [plan.kept_label],
                    "podMetricsEndpoints": [{"port": each.port, "path": plan.path, "interval": f"{plan.seconds}s"}],
                },
                opts=pulumi.ResourceOptions(parent=self, depends_on=[args.after]),
            )
        self.register_outputs({})
