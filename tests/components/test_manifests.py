"""What is declared in the cluster is what Kubernetes knows and its strictest Pod Security level admits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from kubernetes import client

from sandbox.engine import Recording, Registration
from tests.components.harness import DEPLOYMENT, SERVICE, Record

_CONTAINER = re.compile(r"(?:[Ll]ist\[(?P<item>.+)\]|[Dd]ict[(\[]str, (?P<value>.+)[)\]])")


def _unknown_fields(value: Any, type_: str, path: str = "") -> Iterator[str]:
    """Paths in `value` that the Kubernetes API of the official client does not have."""
    if match := _CONTAINER.fullmatch(type_):
        items = value.items() if isinstance(value, Mapping) else enumerate(value if isinstance(value, list) else ())
        for key, item in items:
            yield from _unknown_fields(item, match["item"] or match["value"], f"{path}[{key}]")
        return
    model = getattr(client, type_, None)
    if model is None or not isinstance(value, Mapping):
        return
    types = {wire: model.openapi_types[name] for name, wire in model.attribute_map.items()}
    for key, item in value.items():
        if key not in types:
            yield f"{path}.{key}"
        else:
            yield from _unknown_fields(item, types[key], f"{path}.{key}")


def _kind(registration: Registration) -> str:
    """`kubernetes:apps/v1:Deployment` is V1Deployment in the official client."""
    _, group_version, kind = registration.type.split(":")
    return group_version.split("/")[-1].capitalize() + kind


def _objects(recording: Recording) -> list[Registration]:
    return [r for r in recording.registrations if r.type.startswith("kubernetes:")]


def test_every_field_is_one_that_kubernetes_knows(recorded: Record) -> None:
    objects = _objects(recorded())
    assert len(objects) >= 8
    for registration in objects:
        assert hasattr(client, _kind(registration)), f"{registration.type} is not a kind of the official client"
        assert list(_unknown_fields(registration.inputs, _kind(registration))) == [], "the API server drops typos"


def test_the_search_for_unknown_fields_finds_a_typo() -> None:
    typo = {"spec": {"template": {"spec": {"containers": [{"name": "x", "imagePullPolicies": "Always"}]}}}}
    assert list(_unknown_fields(typo, "V1Deployment")) == [".spec.template.spec.containers[0].imagePullPolicies"]


def test_model_pods_meet_the_restricted_level_their_namespace_enforces(recorded: Record) -> None:
    recording = recorded()
    namespace = recording.one("kubernetes:core/v1:Namespace", "models-namespace").inputs["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod = recording.one(DEPLOYMENT, "model-deployment").inputs["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 2000, "the vLLM image's own user"
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= {
        "emptyDir",
        "secret",
        "configMap",
    }


def test_every_empty_dir_has_a_limit(deployment: Registration) -> None:
    volumes = deployment.inputs["spec"]["template"]["spec"]["volumes"]
    unlimited = [v["name"] for v in volumes if "emptyDir" in v and not v["emptyDir"].get("sizeLimit")]
    assert not unlimited, "without a limit a pod may fill the node's disk or half its memory"


def test_every_path_the_plan_names_lies_on_a_mounted_volume(deployment: Registration) -> None:
    pod = deployment.inputs["spec"]["template"]["spec"]
    (download,), (vllm,) = pod["initContainers"], pod["containers"]
    model = vllm["args"][0]
    assert any(model.startswith(f"{m['mountPath']}/") for m in vllm["volumeMounts"] if m["name"] == "weights"), model
    assert any(model in part for part in download["command"]), "the download must fill the directory that vLLM reads"


def test_gpus_and_memory_are_reserved_and_cpu_is_not_throttled(deployment: Registration) -> None:
    (vllm,) = deployment.inputs["spec"]["template"]["spec"]["containers"]
    requests, limits = vllm["resources"]["requests"], vllm["resources"]["limits"]
    assert {key: value for key, value in requests.items() if key != "cpu"} == limits
    assert requests["nvidia.com/gpu"] == vllm["args"][vllm["args"].index("--tensor-parallel-size") + 1]
    assert "cpu" in requests, "without a request the scheduler gives the cores away"


def test_vllm_is_process_one_and_gets_the_signal(deployment: Registration) -> None:
    (vllm,) = deployment.inputs["spec"]["template"]["spec"]["containers"]
    assert vllm["command"][0] == "vllm", "a shell in front of vLLM keeps SIGTERM to itself"


def test_the_name_of_a_model_stands_for_its_ready_replicas(recorded: Record) -> None:
    service = recorded().one(SERVICE, "model-service").inputs
    assert "publishNotReadyAddresses" not in service["spec"], "the edge would send requests to loading replicas"
    assert service["spec"]["clusterIP"] == "None", "the edge would see one address and could not choose"
    assert service["spec"]["selector"].items() <= service["metadata"]["labels"].items(), "monitors select by label"


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_every_probe_asks_health_on_the_named_port_and_is_patient(deployment: Registration, probe: str) -> None:
    (vllm,) = deployment.inputs["spec"]["template"]["spec"]["containers"]
    assert vllm[probe]["httpGet"] == {"path": "/health", "port": "http"}
    assert [port["name"] for port in vllm["ports"]] == ["http"]
    assert vllm[probe]["timeoutSeconds"] == 5, "one second misfires while the CPU is busy"


def test_edge_pods_meet_the_restricted_level_and_write_nowhere(recorded: Record) -> None:
    pod = recorded().one(DEPLOYMENT, "edge-deployment").inputs["spec"]["template"]["spec"]
    (haproxy,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 99, "the image names its user, and the kubelet checks numbers only"
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert haproxy["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_haproxy_is_process_one_beside_its_files(recorded: Record) -> None:
    (haproxy,) = recorded().one(DEPLOYMENT, "edge-deployment").inputs["spec"]["template"]["spec"]["containers"]
    assert haproxy["command"][0] == "haproxy", "a shell in front of it keeps the stop signal to itself"
    assert haproxy["workingDir"] == haproxy["volumeMounts"][0]["mountPath"], "the certificate is read from there again"


def test_the_edge_stays_off_gpu_nodes_and_on_two_of_the_others(recorded: Record) -> None:
    pod = recorded().one(DEPLOYMENT, "edge-deployment").inputs["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"kubernetes.azure.com/mode": "system"}
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["CriticalAddonsOnly"]
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["whenUnsatisfiable"] == "DoNotSchedule"


def test_the_edge_is_private_until_it_is_said_to_be_public(recorded: Record) -> None:
    annotations = recorded().one(SERVICE, "edge-service").inputs["metadata"]["annotations"]
    assert annotations == {"service.beta.kubernetes.io/azure-load-balancer-internal": "true"}
