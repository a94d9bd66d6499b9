"""Key Vault: the Hugging Face token of the team's own vault, mounted by the Secrets Store where weights are fetched.

The stack so holds no value: neither its configuration nor its state has anything that a preview could print.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planning import weight_source
from planning.findings import Problem
from planning.weight_source import TOKEN_FILE, UploadPlan

if TYPE_CHECKING:
    from planning.plan import ModelPlan
    from planning.settings import Settings

#: Key Vault Secrets User. https://learn.microsoft.com/azure/role-based-access-control/built-in-roles/security
SECRETS_USER = "4633458b-17de-408a-b874-0445c86b69e6"
#: Of the add-on, whose configuration is all strings. https://learn.microsoft.com/azure/aks/csi-secrets-store-driver
ADD_ON = "azureKeyvaultSecretsProvider"
ADD_ON_CONFIG = {"enableSecretRotation": "true", "rotationPollInterval": "2m"}
CLASS = "hugging-face-token"  # the SecretProviderClass


@dataclass(frozen=True, kw_only=True)
class KeyVaultPlan:
    """One secret of one vault, and who reads it."""

    id: str
    secret: str  # its name in the vault, which is not secret
    file: str  # its name where it is mounted
    secret_class: str  # the SecretProviderClass
    service_accounts: tuple[str, ...]  # in the models' namespace; only pods that fetch weights run as them

    @property
    def vault(self) -> str:
        """Its name."""
        return self.id.rpartition("/")[2]

    @property
    def scope(self) -> str:
        """Of the role: this secret, and nothing else in the vault."""
        return f"{self.id}/secrets/{self.secret}"


def plan(settings: Settings, models: Sequence[ModelPlan], uploads: Sequence[UploadPlan]) -> KeyVaultPlan | None:
    """None without a vault, and where nothing that is served is gated."""
    asked = settings.key_vault
    readers = [model.name for model in models if model.weights.before.sees_token]
    readers += [weight_source.UPLOAD_SERVICE_ACCOUNT] if any(upload.task.sees_token for upload in uploads) else []
    if asked is None or not readers:
        return None
    return KeyVaultPlan(
        id=asked.id,
        secret=asked.hf_token,
        file=TOKEN_FILE.rpartition("/")[2],
        secret_class=CLASS,
        service_accounts=tuple(readers),
    )


def problems(settings: Settings, source: str) -> Iterator[Problem]:
    """What does not go together with a vault."""
    asked = settings.key_vault
    if asked is None:
        return

    def problem(key: str, value: object, limit: str, remedy: str) -> Problem:
        return Problem(key=f"aks-vllm:{key}", value=value, limit=limit, source=source, remedy=remedy)

    if settings.hf_token:
        limit = "stands beside hf-token: the token in two places"
        yield problem("key-vault.hf-token", asked.hf_token, limit, "keep one: `pulumi config rm aks-vllm:hf-token`")
    if settings.existing_cluster is not None or settings.kubeconfig:
        limit = "needs the Secrets Store add-on with rotation, which the stack switches on only in a cluster of its own"
        yield problem("key-vault", "(a map)", limit, "set hf-token instead on a cluster that exists")
    if len(settings.models) > weight_source.FEDERATED_CREDENTIALS_MAX - 1:
        limit = f"is read by at most {weight_source.FEDERATED_CREDENTIALS_MAX - 1} models and the upload Job: so many "
        limit += "service accounts may share an identity of Azure"
        yield problem("key-vault", "(a map)", limit, "divide the models over two stacks")
