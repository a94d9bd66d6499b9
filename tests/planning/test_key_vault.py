"""A vault that holds the token: what it stands in for, who reads it, and what it does not go together with."""

from __future__ import annotations

from typing import Any

import pytest

from planning.findings import InvalidStack, Severity
from planning.plan import StackPlan, read_and_decide
from planning.stack_file import from_pulumi
from tests.components.harness import stack_config

ID = (
    "/subscriptions/00000000-0000-0000-0000-00000000aaaa/resourceGroups/rg-platform/providers"
    "/Microsoft.KeyVault/vaults/platform"
)
VAULT = {"id": ID, "hf-token": "hugging-face"}
CERTIFICATE = {"id": ID, "certificate": "llm-example-com"}


def decided(extra: dict[str, str] | None = None, **settings: Any) -> StackPlan:
    named = {key.replace("_", "-"): value for key, value in settings.items()}
    bag = {**stack_config({"key-vault": VAULT, **named}), **(extra or {})}
    return read_and_decide(from_pulumi(bag, set(extra or ()), "test"))


def refusals(extra: dict[str, str] | None = None, **settings: Any) -> str:
    with pytest.raises(InvalidStack) as refused:
        decided(extra, **settings)
    return str(refused.value)


def test_a_vault_is_a_token_so_no_step_is_left_to_do() -> None:
    plan = decided()
    assert not [f for f in plan.findings if f.severity is Severity.STEP], "the missing token is told all the same"
    assert plan.needs_hf_token and not plan.has_hf_token


def test_replicas_that_download_read_it_themselves() -> None:
    vault = decided().key_vault
    assert vault is not None and vault.token is not None
    assert vault.token.service_accounts == ("model",)
    scope = vault.scope(vault.token)
    assert scope == f"{ID}/secrets/hugging-face", "the role must be on the one secret, not on the vault"


def test_where_weights_are_streamed_only_the_upload_reads_it() -> None:
    vault = decided(weights={"source": "azure-blob"}, revision="a" * 40).key_vault
    assert vault is not None and vault.token is not None
    accounts = vault.token.service_accounts
    assert accounts == ("weights.upload",), "a pod that signs in for its weights could read the token"


def test_an_open_model_reads_no_vault() -> None:
    assert decided(preset="qwen3-8b").key_vault is None


def test_the_token_in_two_places_is_refused() -> None:
    said = refusals({"aks-vllm:hf-token": "[secret]"})
    assert "key-vault.hf-token = (hidden): stands beside hf-token" in said


def test_a_cluster_of_somebody_elses_is_refused_with_its_reason() -> None:
    cluster = "/subscriptions/00000000-0000-0000-0000-00000000aaaa/resourceGroups/rg/providers"
    said = refusals(existing_cluster={"id": f"{cluster}/Microsoft.ContainerService/managedClusters/platform"})
    assert "needs the Secrets Store add-on" in said


def test_a_certificate_in_a_vault_is_tls_and_the_edge_alone_reads_it() -> None:
    plan = decided(key_vault=CERTIFICATE, preset="qwen3-8b")
    vault = plan.key_vault
    assert vault is not None and vault.certificate is not None and vault.token is None
    assert vault.certificate.service_accounts == ("edge",)
    assert plan.edge.tls and plan.edge.scheme == "https"
    assert not [f for f in plan.findings if "clear text" in f.message]
    public = {"access": "public", "host": "llm.example.com", "keys": {"team-a": {"sha256": "a" * 64}}}
    assert decided(key_vault=CERTIFICATE, preset="qwen3-8b", edge=public).edge.public


def test_a_vault_with_a_certificate_alone_leaves_the_token_to_do() -> None:
    steps = [f for f in decided(key_vault=CERTIFICATE).findings if f.severity is Severity.STEP]
    assert any("hf-token is not set" in step.message for step in steps)


def test_the_certificate_in_two_places_is_refused() -> None:
    said = refusals(key_vault=CERTIFICATE, edge={"tls-secret": "edge-tls"})
    assert "key-vault.certificate = llm-example-com: stands beside edge.tls-secret" in said


@pytest.mark.parametrize(
    ("vault", "message"),
    [
        ({"id": "platform", "hf-token": "a"}, "must be the id of a vault"),
        ({"id": ID, "hf-token": "my_secret"}, "must be a secret's name in the vault"),
        ({"id": ID, "certificate": "a.b"}, "key-vault.certificate = a.b: must be a certificate's name in the vault"),
        ({"id": ID, "certificate": "a.b"}, "for example key-vault.certificate: llm-example-com"),
        ({"id": ID}, "names nothing that the stack reads"),
        ({"hf-token": "a"}, "key-vault.id"),
        ({**VAULT, "hf-tokn": "a"}, "is not a key of this program"),
    ],
    ids=["id", "name", "certificate", "example", "no-name", "no-id", "misspelt"],
)
def test_a_wrong_vault_is_told_by_its_key(vault: dict[str, str], message: str) -> None:
    assert message in refusals(key_vault=vault)


def test_a_token_in_the_place_of_its_name_is_not_repeated() -> None:
    token = "hf_" + "thisIsNotARealToken" * 2
    assert token not in refusals(key_vault={"id": ID, "hf-token": token})
