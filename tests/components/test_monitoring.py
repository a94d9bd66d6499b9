"""Metrics: declared where they are asked for, and every PodMonitor finds a port of the pods that it names."""

from __future__ import annotations

import pytest

from planning.names import names
from sandbox.engine import Recording
from tests.components.harness import CLUSTER, DEPLOYMENT, GRANT, Record

ASSOCIATION = "azure-native:monitor:DataCollectionRuleAssociation"
GRAFANA = "azure-native:dashboard:Grafana"
POD_MONITOR = "kubernetes:azmonitoring.coreos.com/v1:PodMonitor"
RULE = "azure-native:monitor:DataCollectionRule"


def _watched(recorded: Record, *add_ons: str) -> Recording:
    return recorded(add_ons=["managed-prometheus", *add_ons])


def test_nothing_is_declared_unless_it_is_asked_for(recorded: Record) -> None:
    plain = recorded()
    assert not [r for r in plain.registrations if ":monitor:" in r.type or r.type in (GRAFANA, POD_MONITOR)]
    off = plain.one(CLUSTER).inputs["azureMonitorProfile"]
    assert off == {"metrics": {"enabled": False}}, "left out, the agents of before would stay"
    assert "grafana" not in plain.outputs


def test_the_stream_of_the_agents_comes_from_the_rule_and_goes_to_the_workspace(recorded: Record) -> None:
    recording = _watched(recorded)
    assert recording.one(CLUSTER).inputs["azureMonitorProfile"] == {"metrics": {"enabled": True}}
    rule = recording.one(RULE).inputs
    (source,), (flow,) = rule["dataSources"]["prometheusForwarder"], rule["dataFlows"]
    (account,) = rule["destinations"]["monitoringAccounts"]
    assert source["streams"] == flow["streams"] == ["Microsoft-PrometheusMetrics"]
    assert flow["destinations"] == [account["name"]]
    needs = recording.one(ASSOCIATION).property_dependencies
    assert [urn.rpartition("::")[2] for urn in needs["resourceUri"]] == ["cluster-managed-cluster"]
    assert [urn.rpartition("::")[2] for urn in needs["dataCollectionRuleId"]] == ["monitoring-rule"]
    assert not recording.of_type(GRAFANA), "that is another add-on"


def test_every_pod_monitor_names_a_port_that_its_pods_have(recorded: Record) -> None:
    """A misspelt port is no error anywhere: the metrics are just not there."""
    recording = _watched(recorded)
    pods = [r.inputs["spec"]["template"] for r in recording.of_type(DEPLOYMENT)]
    monitors = recording.of_type(POD_MONITOR)
    assert {monitor.name for monitor in monitors} == {"metrics-replicas", "metrics-edge"}
    for monitor in monitors:
        spec = monitor.inputs["spec"]
        chosen = [pod for pod in pods if spec["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()]
        assert chosen, f"{monitor.name} finds no pod"
        (target,) = spec["podMetricsEndpoints"]
        for pod in chosen:
            ports = {port["name"] for container in pod["spec"]["containers"] for port in container.get("ports", [])}
            assert target["port"] in ports
            assert set(spec["podTargetLabels"]) <= set(pod["metadata"]["labels"])


def test_the_agents_wait_for_nothing_that_is_in_the_cluster(recorded: Record) -> None:
    """Their kind comes with the add-on, minutes after the cluster: the GPU pools are waited for, and take longer."""
    monitor = _watched(recorded).of_type(POD_MONITOR)[0]
    assert "kubernetes::access-provider" in monitor.provider


def test_grafana_reads_the_workspace_and_nothing_else(recorded: Record) -> None:
    recording = _watched(recorded, "managed-grafana")
    grafana = recording.one(GRAFANA)
    assert grafana.inputs["identity"] == {"type": "SystemAssigned"}
    assert grafana.inputs["properties"]["apiKey"] == "Disabled"
    granted = recording.one(GRANT, "monitoring-grafana-grant")
    assert {urn.rpartition("::")[2] for urn in granted.property_dependencies["scope"]} == {"monitoring-workspace"}
    assert {urn.rpartition("::")[2] for urn in granted.property_dependencies["principalId"]} == {"monitoring-grafana"}
    assert "grafana" in recording.outputs


@pytest.mark.parametrize("stack", ["prod", "a" * 45, "Team_A", "-"])
def test_names_keep_azures_limits_for_every_stack(stack: str) -> None:
    made = names(stack)
    assert 2 <= len(made.grafana) <= 23
    assert len(made.data_collection_endpoint) <= 44
    assert len(made.data_collection_rule) <= 64


def test_two_stacks_with_one_beginning_do_not_share_a_grafana() -> None:
    long = "inference-production-"
    assert names(f"{long}eu").grafana != names(f"{long}us").grafana
