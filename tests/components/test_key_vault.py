"""A vault that holds the token: what is declared for it, and that no value comes by the program."""

from __future__ import annotations

import os

from sandbox.engine import Recording
from tests.components.harness import CLUSTER, DEPLOYMENT, GRANT, JOB, SECRET, Record

CREDENTIAL = "azure-native:managedidentity:FederatedIdentityCredential"
CLASS = "kubernetes:secrets-store.csi.x-k8s.io/v1:SecretProviderClass"
ID = (
    "/subscriptions/00000000-0000-0000-0000-00000000aaaa/resourceGroups/rg-platform/providers"
    "/Microsoft.KeyVault/vaults/platform"
)
VAULT = {"id": ID, "hf-token": "hugging-face"}


def _vaulted(recorded: Record, **settings: object) -> Recording:
    return recorded(key_vault=VAULT, **settings)


def test_the_add_on_rotates_and_its_configuration_is_text(recorded: Record) -> None:
    add_ons = _vaulted(recorded).one(CLUSTER).inputs["addonProfiles"]
    config = {"enableSecretRotation": "true", "rotationPollInterval": "2m"}
    assert add_ons["azureKeyvaultSecretsProvider"] == {"enabled": True, "config": config}
    off = recorded().one(CLUSTER).inputs["addonProfiles"]
    assert off["azureKeyvaultSecretsProvider"] == {"enabled": False}, "left out, the add-on would stay"


def test_the_class_names_the_secret_and_copies_nothing_into_the_cluster(recorded: Record) -> None:
    recording = _vaulted(recorded)
    spec = recording.one(CLASS).inputs["spec"]
    assert "secretObjects" not in spec and not recording.of_type(SECRET), "the token would be in a Secret too"
    assert spec["parameters"]["usePodIdentity"] == "false", "a string, as every parameter"
    assert spec["parameters"]["keyvaultName"] == "platform"
    lines = "objectName: hugging-face\n    objectType: secret\n    objectAlias: token\n"
    assert spec["parameters"]["objects"] == f"array:\n  - |\n    {lines}"


def test_only_the_init_container_mounts_it_as_the_file_it_looks_for(recorded: Record) -> None:
    pod = _vaulted(recorded).one(DEPLOYMENT, "model-deployment").inputs["spec"]["template"]["spec"]
    (volume,) = [v for v in pod["volumes"] if "csi" in v]
    assert volume["csi"] == {
        "driver": "secrets-store.csi.k8s.io",
        "readOnly": True,
        "volumeAttributes": {"secretProviderClass": "hugging-face-token"},
    }
    (fetch,), (server,) = pod["initContainers"], pod["containers"]
    (mount,) = [m for m in fetch["volumeMounts"] if m["name"] == volume["name"]]
    assert "subPath" not in mount, "such a mount is never renewed"
    assert {"name": "HF_TOKEN_PATH", "value": f"{mount['mountPath']}/token"} in fetch["env"]
    assert volume["name"] not in {m["name"] for m in server["volumeMounts"]}, "what faces the network sees no token"


def test_the_role_is_on_one_secret_and_the_service_account_signs_in_for_it(recorded: Record) -> None:
    recording = _vaulted(recorded)
    (granted,) = [r for r in recording.of_type(GRANT) if "vaults" in str(r.inputs["scope"])]
    assert granted.inputs["scope"] == f"{ID}/secrets/hugging-face"
    assert "4633458b-17de-408a-b874-0445c86b69e6" in granted.inputs["roleDefinitionId"]
    assert recording.one(CREDENTIAL).inputs["subject"] == "system:serviceaccount:vllm:model"


def test_the_edge_mounts_the_certificate_beside_its_configuration_and_signs_in_as_itself(recorded: Record) -> None:
    recording = recorded(preset="qwen3-8b", key_vault={"id": ID, "certificate": "llm-example-com"})
    edge = recording.one(DEPLOYMENT, "edge-deployment").inputs["spec"]["template"]["spec"]
    (volume,) = [v for v in edge["volumes"] if "csi" in v]
    assert volume["csi"]["volumeAttributes"] == {"secretProviderClass": "edge-certificate"}
    (container,) = edge["containers"]
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == volume["name"]]
    # HAProxy runs in the configuration's folder: the file that it is told of is this one.
    assert mount["mountPath"] == os.path.normpath(f"{container['workingDir']}/../certificate")
    assert "subPath" not in mount, "such a mount is never renewed"
    assert "objectAlias: edge.pem" in recording.one(CLASS).inputs["spec"]["parameters"]["objects"]
    assert recording.one(CREDENTIAL).inputs["subject"] == "system:serviceaccount:vllm:edge"
    (granted,) = [r for r in recording.of_type(GRANT) if "vaults" in str(r.inputs["scope"])]
    assert granted.inputs["scope"] == f"{ID}/secrets/llm-example-com"
    waits = {urn.rpartition("::")[2] for urn in recording.one(DEPLOYMENT, "edge-deployment").depends_on}
    assert {"models-key-vault-certificate-class", "models-key-vault-certificate-reader-grant"} <= waits


def test_token_and_certificate_have_an_identity_each(recorded: Record) -> None:
    recording = recorded(key_vault={**VAULT, "certificate": "llm-example-com"})
    subjects = {r.name: r.inputs["subject"].rpartition(":")[2] for r in recording.of_type(CREDENTIAL)}
    assert subjects == {
        "models-key-vault-reader-model": "model",
        "models-key-vault-certificate-reader-edge": "edge",
    }, "the edge, which faces the network, must not be able to read the token"


def test_only_the_upload_job_has_the_volume_where_weights_are_streamed(recorded: Record) -> None:
    recording = _vaulted(recorded, weights={"source": "azure-blob"}, revision="a" * 40)
    job = recording.one(JOB).inputs["spec"]["template"]["spec"]
    pod = recording.one(DEPLOYMENT, "model-deployment").inputs["spec"]["template"]["spec"]
    assert [v["name"] for v in job["volumes"] if "csi" in v] == ["token"]
    assert not [v for v in pod["volumes"] if "csi" in v]
