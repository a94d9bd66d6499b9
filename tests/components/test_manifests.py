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
    pod = recording.one(DEPLOYMENT).inputs["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 2000, "the vLLM image's own user"
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= {"emptyDir", "secret"}


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


def test_the_service_sends_nobody_to_a_replica_that_is_not_ready(recorded: Record) -> None:
    service = recorded().one(SERVICE).inputs
    assert "publishNotReadyAddresses" not in service["spec"]
    assert service["spec"]["type"] == "ClusterIP", "an endpoint without a gateway stays inside the cluster"
    assert service["spec"]["selector"].items() <= service["metadata"]["labels"].items(), "monitors select by label"


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_every_probe_asks_health_on_the_named_port_and_is_patient(deployment: Registration, probe: str) -> None:
    (vllm,) = deployment.inputs["spec"]["template"]["spec"]["containers"]
    assert vllm[probe]["httpGet"] == {"path": "/health", "port": "http"}
    assert [port["name"] for port in vllm["ports"]] == ["http"]
    assert vllm[probe]["timeoutSeconds"] == 5, "one second misfires while the CPU is busy"
