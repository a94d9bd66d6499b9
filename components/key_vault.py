"""The way from a secret in the team's own vault to the pods that fetch weights."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_azure_native import authorization
from pulumi_kubernetes import apiextensions, meta

from components.cluster import Cluster
from components.workload_identity import workload_identity
from planning.key_vault import SECRETS_USER, KeyVaultPlan
from planning.names import Names


@dataclass(frozen=True, kw_only=True)
class KeyVaultArgs:
    """The secret and its readers (`plan`), the cluster whose service accounts they are, and where they live."""

    plan: KeyVaultPlan
    cluster: Cluster
    names: Names


class KeyVault(pulumi.ComponentResource):
    """An identity that may read one secret, and the SecretProviderClass that mounts it. No value comes by here."""

    ready: list[pulumi.Resource]  # what must stand before a pod can mount it

    def __init__(
        self,
        name: str,
        args: KeyVaultArgs,
        namespace: pulumi.Output[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("aks-vllm:index:KeyVault", name, None, opts)
        plan, cluster = args.plan, args.cluster
        identity = workload_identity(
            f"{name}-reader",
            physical=args.names.token_reader,
            group=cluster.resource_group.name,
            location=cluster.plan.location,
            tags=cluster.plan.tags,
            role=SECRETS_USER,
            scope=plan.scope,
            issuer=cluster.issuer_url,
            namespace=namespace,
            accounts=[(f"token-{account.replace('.', '-')}", account) for account in plan.service_accounts],
            parent=self,
        )
        self.ready = identity.ready
        entry = f"objectName: {plan.secret}\nobjectType: secret\nobjectAlias: {plan.file}\n"
        self.ready.append(
            apiextensions.CustomResource(
                f"{name}-class",
                api_version="secrets-store.csi.x-k8s.io/v1",
                kind="SecretProviderClass",
                metadata=meta.v1.ObjectMetaArgs(
                    name=plan.secret_class,
                    namespace=namespace,
                    labels={"app.kubernetes.io/part-of": "aks-vllm", "app.kubernetes.io/managed-by": "pulumi"},
                ),
                # No secretObjects: a copy as a Secret of Kubernetes would be one more place that holds the token.
                spec={
                    "provider": "azure",
                    "parameters": {
                        "usePodIdentity": "false",
                        "clientID": identity.client_id,
                        "keyvaultName": plan.vault,
                        "tenantId": authorization.get_client_config_output().tenant_id,
                        "objects": "array:\n  - |\n" + "".join(f"    {line}\n" for line in entry.splitlines()),
                    },
                },
                opts=pulumi.ResourceOptions(parent=self),
            )
        )
        self.register_outputs({})
