"""Azure Monitor's managed Prometheus for a cluster of the stack's own, and Azure Managed Grafana to look at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planning import network_policy
from planning.findings import Finding, Problem, Severity

if TYPE_CHECKING:
    from planning.settings import Settings

#: The add-ons' names in the stack file.
PROMETHEUS, GRAFANA = "managed-prometheus", "managed-grafana"
#: The one stream of the add-on's data collection rule.
#: https://learn.microsoft.com/azure/azure-monitor/containers/kubernetes-monitoring-enable
STREAM = "Microsoft-PrometheusMetrics"
#: Seconds between two looks: the add-on's own for its targets.
#: https://learn.microsoft.com/azure/azure-monitor/containers/prometheus-metrics-scrape-default
SCRAPE_SECONDS = 30
PATH = "/metrics"


@dataclass(frozen=True, kw_only=True)
class PodMonitorPlan:
    """Pods of the models' namespace whose metrics are fetched."""

    name: str
    why: str
    pods: Mapping[str, str]  # their labels
    port: str  # its name in the container


@dataclass(frozen=True, kw_only=True)
class MonitoringPlan:
    """Where metrics go, and which of the stack's own are fetched beside those of nodes and Kubernetes."""

    grafana: bool
    pod_monitors: tuple[PodMonitorPlan, ...]
    path: str
    seconds: int  # between two looks
    kept_label: str  # of a pod, beside its metrics: the model that it serves


def plan(settings: Settings) -> MonitoringPlan | None:
    """None without the add-on."""
    add_ons = settings.add_ons or ()
    if PROMETHEUS not in add_ons:
        return None
    return MonitoringPlan(
        grafana=GRAFANA in add_ons,
        pod_monitors=(
            PodMonitorPlan(
                name="replicas",
                why="Requests, latencies, tokens and the KV cache, of every replica.",
                pods=network_policy.ENGINE,
                port="http",
            ),
            PodMonitorPlan(
                name="edge",
                why="What clients were answered, and what was refused them.",
                pods=network_policy.EDGE,
                port="admin",
            ),
        ),
        path=PATH,
        seconds=SCRAPE_SECONDS,
        kept_label="app.kubernetes.io/instance",
    )


def problems(settings: Settings, source: str) -> Iterator[Problem]:
    """What does not go together."""
    add_ons = settings.add_ons or ()
    if GRAFANA in add_ons and PROMETHEUS not in add_ons:
        limit, remedy = f"needs {PROMETHEUS}, whose metrics it draws", f"write add-ons: [{PROMETHEUS}, {GRAFANA}]"
        yield Problem(key="aks-vllm:add-ons", value=GRAFANA, limit=limit, source=source, remedy=remedy)


def findings(plan: MonitoringPlan | None) -> Iterator[Finding]:
    """What is paid for it beside the nodes."""
    if plan is None:
        return
    also = ", and for Grafana by the hour and user" if plan.grafana else ""
    yield Finding(
        severity=Severity.NOTE,
        subject="stack",
        message=f"Azure charges for managed Prometheus by the samples that it stores and reads{also}, at prices that "
        "are not known here.",
        remedy="docs/monitoring.md says what is collected.",
    )
