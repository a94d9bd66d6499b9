"""Key Vault: what a team's own vault holds for the stack, mounted by the Secrets Store where it is needed alone.

The stack so holds no value: neither its configuration nor its state has anything that a preview could print.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planning import edge, weight_source
from planning.findings import Problem
from planning.weight_source import TOKEN_FILE, UploadPlan

if TYPE_CHECKING:
    from planning.plan import ModelPlan
    from planning.settings import Settings

#: Of the add-on, whose configuration is all strings. https://learn.microsoft.com/azure/aks/csi-secrets-store-driver
ADD_ON = "azureKeyvaultSecretsProvider"
ADD_ON_CONFIG = {"enableSecretRotation": "true", "rotationPollInterval": "2m"}
#: The SecretProviderClasses.
TOKEN_CLASS, CERTIFICATE_CLASS = "hugging-face-token", "edge-certificate"


@dataclass(frozen=True, kw_only=True)
class VaultSecretPlan:
    """One secret of the vault, and who reads it."""

    secret: str  # its name in the vault, which is not secret
    file: str  # its name where it is mounted
    secret_class: str  # the SecretProviderClass
    service_accounts: tuple[str, ...]  # in the models' namespace; no other pods run as them


@dataclass(frozen=True, kw_only=True)
class KeyVaultPlan:
    """One vault."""

    id: str
    token: VaultSecretPlan | None  # of Hugging Face; None: nothing that is served needs it
    certificate: VaultSecretPlan | None  # of the edge

    @property
    def vault(self) -> str:
        """Its name."""
        return self.id.rpartition("/")[2]

    @property
    def secrets(self) -> tuple[VaultSecretPlan, ...]:
        """All that is read of it."""
        return tuple(filter(None, (self.token, self.certificate)))

    def scope(self, secret: VaultSecretPlan) -> str:
        """Of the role: this secret, and nothing else in the vault."""
        return f"{self.id}/secrets/{secret.secret}"


def plan(settings: Settings, models: Sequence[ModelPlan], uploads: Sequence[UploadPlan]) -> KeyVaultPlan | None:
    """None without a vault, and where nothing of it is needed."""
    asked = settings.key_vault
    if asked is None:
        return None
    readers = [model.name for model in models if model.weights.before.sees_token]
    readers += [weight_source.UPLOAD_SERVICE_ACCOUNT] if any(upload.task.sees_token for upload in uploads) else []
    token = certificate = None
    if asked.hf_token and readers:
        token = VaultSecretPlan(
            secret=asked.hf_token,
            file=TOKEN_FILE.rpartition("/")[2],
            secret_class=TOKEN_CLASS,
            service_accounts=tuple(readers),
        )
    if asked.certificate:
        certificate = VaultSecretPlan(
            secret=asked.certificate,
            file=edge.CERTIFICATE_FILE,
            secret_class=CERTIFICATE_CLASS,
            service_accounts=(edge.NAME,),
        )
    found = KeyVaultPlan(id=asked.id, token=token, certificate=certificate)
    return found if found.secrets else None


def problems(settings: Settings, source: str) -> Iterator[Problem]:
    """What does not go together with a vault."""
    asked = settings.key_vault
    if asked is None:
        return

    def problem(key: str, value: object, limit: str, remedy: str) -> Problem:
        return Problem(key=f"aks-vllm:{key}", value=value, limit=limit, source=source, remedy=remedy)

    if not asked.hf_token and not asked.certificate:
        remedy = "name what the vault holds: hf-token, certificate or both"
        yield problem("key-vault", "(a map)", "names nothing that the stack reads", remedy)
    if asked.hf_token and settings.hf_token:
        limit = "stands beside hf-token: the token in two places"
        yield problem("key-vault.hf-token", asked.hf_token, limit, "keep one: `pulumi config rm aks-vllm:hf-token`")
    if asked.certificate and settings.edge.tls_secret:
        limit = "stands beside edge.tls-secret: the certificate in two places"
        yield problem("key-vault.certificate", asked.certificate, limit, "keep one of the two")
    if settings.existing_cluster is not None or settings.kubeconfig:
        limit = "needs the Secrets Store add-on with rotation, which the stack switches on only in a cluster of its own"
        remedy = "set hf-token and edge.tls-secret instead on a cluster that exists"
        yield problem("key-vault", "(a map)", limit, remedy)
    if asked.hf_token and len(settings.models) > weight_source.FEDERATED_CREDENTIALS_MAX - 1:
        limit = f"is read by at most {weight_source.FEDERATED_CREDENTIALS_MAX - 1} models and the upload Job: so many "
        limit += "service accounts may share an identity of Azure"
        yield problem("key-vault", "(a map)", limit, "divide the models over two stacks")
