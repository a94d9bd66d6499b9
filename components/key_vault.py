"""The way from a secret in the team's own vault to the pods that need it."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_azure_native import authorization
from pulumi_kubernetes import apiextensions, core, meta

from components.cluster import Cluster
from components.workload_identity import workload_identity
from planning.key_vault import KeyVaultPlan, VaultSecretPlan
from planning.names import Names
from planning.roles import VAULT_SECRETS_USER


@dataclass(frozen=True, kw_only=True)
class KeyVaultArgs:
    """What is read and by whom (`plan`), the cluster whose service accounts they are, and where they live."""

    plan: KeyVaultPlan
    cluster: Cluster
    names: Names


@dataclass(frozen=True, kw_only=True)
class Mounted:
    """A secret that pods can mount, once what makes it readable stands."""

    secret_class: str  # a SecretProviderClass
    ready: list[pulumi.Resource]

    def volume(self, name: str) -> core.v1.VolumeArgs:
        """Written when the pod is made, from the vault's newest version, and again when that changes."""
        csi = core.v1.CSIVolumeSourceArgs(
            driver="secrets-store.csi.k8s.io",
            read_only=True,
            volume_attributes={"secretProviderClass": self.secret_class},
        )
        return core.v1.VolumeArgs(name=name, csi=csi)


class KeyVault(pulumi.ComponentResource):
    """For each secret an identity that may read it alone, and the SecretProviderClass that mounts it.

    No value comes by here.
    """

    token: Mounted | None
    certificate: Mounted | None

    def __init__(
        self,
        name: str,
        args: KeyVaultArgs,
        namespace: pulumi.Output[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("aks-vllm:index:KeyVault", name, None, opts)
        self.token = self.certificate = None
        if (token := args.plan.token) is not None:
            self.token = self._mounted(name, token, args.names.token_reader, "token", args, namespace)
        if (certificate := args.plan.certificate) is not None:
            reader, purpose = args.names.certificate_reader, "certificate"
            self.certificate = self._mounted(f"{name}-{purpose}", certificate, reader, purpose, args, namespace)
        self.register_outputs({})

    def _mounted(
        self,
        name: str,
        secret: VaultSecretPlan,
        reader: str,
        purpose: str,
        args: KeyVaultArgs,
        namespace: pulumi.Output[str],
    ) -> Mounted:
        cluster = args.cluster
        identity = workload_identity(
            f"{name}-reader",
            physical=reader,
            group=cluster.resource_group.name,
            location=cluster.plan.location,
            tags=cluster.plan.tags,
            role=VAULT_SECRETS_USER,
            scope=args.plan.scope(secret),
            issuer=cluster.issuer_url,
            namespace=namespace,
            accounts=[(f"{purpose}-{account.replace('.', '-')}", account) for account in secret.service_accounts],
            parent=self,
        )
        entry = f"objectName: {secret.secret}\nobjectType: secret\nobjectAlias: {secret.file}\n"
        provider_class = apiextensions.CustomResource(
            f"{name}-class",
            api_version="secrets-store.csi.x-k8s.io/v1",
            kind="SecretProviderClass",
            metadata=meta.v1.ObjectMetaArgs(
                name=secret.secret_class,
                namespace=namespace,
                labels={"app.kubernetes.io/part-of": "aks-vllm", "app.kubernetes.io/managed-by": "pulumi"},
            ),
            # No secretObjects: a copy as a Secret of Kubernetes would be one more place that holds it.
            spec={
                "provider": "azure",
                "parameters": {
                    "usePodIdentity": "false",
                    "clientID": identity.client_id,
                    "keyvaultName": args.plan.vault,
                    "tenantId": authorization.get_client_config_output().tenant_id,
                    "objects": "array:\n  - |\n" + "".join(f"    {line}\n" for line in entry.splitlines()),
                },
            },
            opts=pulumi.ResourceOptions(parent=self),
        )
        return Mounted(secret_class=secret.secret_class, ready=[*identity.ready, provider_class])
