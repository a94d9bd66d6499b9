"""Weights that are streamed: who may do what, what waits for what, and where the token goes."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.engine import Recording, Registration
from tests.components.harness import BLOB_CONTAINER, DEPLOYMENT, GRANT, JOB, STORAGE_ACCOUNT, TOKEN, Record

IDENTITY = "azure-native:managedidentity:UserAssignedIdentity"
CREDENTIAL = "azure-native:managedidentity:FederatedIdentityCredential"
SERVICE_ACCOUNT = "kubernetes:core/v1:ServiceAccount"
READER, CONTRIBUTOR = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1", "ba92f5b4-2d11-453d-a403-e96b0029c9fe"
WEBHOOK = ("azure.workload.identity/use", "true")


@pytest.fixture(scope="session")
def streamed(recorded: Record) -> Recording:
    """A gated model that streams its weights."""
    return recorded(weights={"source": "azure-blob"})


def pod(registration: Registration) -> dict[str, Any]:
    return registration.inputs["spec"]["template"]["spec"]


def secrets(of: dict[str, Any]) -> list[str]:
    return [volume["name"] for volume in of["volumes"] if "secret" in volume]


def test_the_account_has_no_key_and_lets_nobody_in_without_a_role(streamed: Recording) -> None:
    account = streamed.one(STORAGE_ACCOUNT).inputs
    assert account["allowSharedKeyAccess"] is False
    assert account["allowBlobPublicAccess"] is False
    assert (account["minimumTlsVersion"], account["enableHttpsTrafficOnly"]) == ("TLS1_2", True)
    assert streamed.one(BLOB_CONTAINER).inputs["publicAccess"] == "None"


def test_replicas_may_read_and_only_the_upload_may_write(streamed: Recording) -> None:
    grants = {r.name: r.inputs["roleDefinitionId"] for r in streamed.of_type(GRANT) if r.name.startswith("weights-")}
    assert grants.keys() == {"weights-reader-grant", "weights-uploader-grant"}
    subjects = {r.name: r.inputs["subject"] for r in streamed.of_type(CREDENTIAL)}
    assert subjects == {
        "weights-reader-model": "system:serviceaccount:vllm:model",
        "weights-uploader-weights.upload": "system:serviceaccount:vllm:weights.upload",
    }
    assert len(streamed.of_type(IDENTITY)) >= 2, "one identity for both could change what the next replica serves"


def test_pods_sign_in_as_the_service_account_that_the_identity_trusts(streamed: Recording) -> None:
    for kind, account in ((DEPLOYMENT, "model"), (JOB, "weights.upload")):
        workload = next(r for r in streamed.of_type(kind) if not r.name.startswith("edge"))
        assert WEBHOOK in workload.inputs["spec"]["template"]["metadata"]["labels"].items()
        assert pod(workload)["serviceAccountName"] == account
    accounts = [r.inputs["metadata"] for r in streamed.of_type(SERVICE_ACCOUNT)]
    marked = {m["name"] for m in accounts if "azure.workload.identity/client-id" in (m.get("annotations") or {})}
    assert marked == {"model", "weights.upload"}


def test_the_token_reaches_the_upload_and_nothing_that_serves(streamed: Recording) -> None:
    job, server = pod(streamed.one(JOB)), pod(streamed.one(DEPLOYMENT, "model-deployment"))
    assert secrets(job) == ["token"]
    assert secrets(server) == []
    assert TOKEN not in str(streamed.one(JOB).inputs)


def test_replicas_wait_for_the_upload_and_the_upload_for_its_role(streamed: Recording) -> None:
    job = streamed.one(JOB)
    assert job.urn in streamed.one(DEPLOYMENT, "model-deployment").depends_on, "they would stream half a model"
    waits = {urn.rpartition("::")[2] for urn in job.depends_on}
    assert {"weights-uploader-grant", "weights-uploader-weights.upload"} <= waits


def test_the_upload_takes_no_gpu_and_meets_the_restricted_level(streamed: Recording) -> None:
    (container,) = pod(streamed.one(JOB))["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert pod(streamed.one(JOB))["securityContext"]["runAsNonRoot"] is True
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError", "why it failed would be in its log only"


def test_what_is_streamed_lies_on_no_disk(streamed: Recording) -> None:
    server = pod(streamed.one(DEPLOYMENT, "model-deployment"))
    assert "weights" not in {volume["name"] for volume in server["volumes"]}
    for container in (*server["initContainers"], *server["containers"]):
        names = {variable["name"] for variable in container["env"]}
        assert "AZURE_STORAGE_ACCOUNT_NAME" in names, f"{container['name']} does not know which account"


def test_a_storage_class_is_a_claim_that_ends_with_its_pod(recorded: Record) -> None:
    server = pod(recorded(weights={"storage-class": "local"}).one(DEPLOYMENT, "model-deployment"))
    (weights,) = [volume for volume in server["volumes"] if volume["name"] == "weights"]
    claim = weights["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["storageClassName"] == "local"
    assert claim["accessModes"] == ["ReadWriteOnce"]
    assert claim["resources"]["requests"]["storage"].endswith("Gi")
