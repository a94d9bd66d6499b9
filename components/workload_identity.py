"""An identity of Azure that service accounts of the cluster sign in as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
from pulumi_azure_native import managedidentity

from components.grants import grant


@dataclass(frozen=True, kw_only=True)
class WorkloadIdentity:
    """Its client id, and what must stand before a pod can use it."""

    client_id: pulumi.Output[str]
    ready: list[pulumi.Resource]


def workload_identity(
    name: str,
    *,
    physical: str,
    group: pulumi.Input[str],
    location: str,
    tags: Mapping[str, str],
    role: str,
    scope: pulumi.Input[str],
    issuer: pulumi.Input[str],
    namespace: pulumi.Input[str],
    accounts: Sequence[tuple[str, str]],
    parent: pulumi.Resource,
) -> WorkloadIdentity:
    """An identity with one role (a GUID) on `scope`. `accounts` are (credential's name, service account)."""
    identity = managedidentity.UserAssignedIdentity(
        name,
        resource_name_=physical,
        resource_group_name=group,
        location=location,
        tags=tags,
        opts=pulumi.ResourceOptions(parent=parent),
    )
    granted = grant(
        f"{name}-grant",
        role=role,
        scope=scope,
        principal_id=identity.principal_id,
        opts=pulumi.ResourceOptions(parent=parent),
    )
    ready: list[pulumi.Resource] = [granted]
    before: list[pulumi.Resource] = []
    for credential, account in accounts:
        before = [
            managedidentity.FederatedIdentityCredential(
                f"{name}-{account}",
                federated_identity_credential_resource_name=credential,
                resource_group_name=group,
                resource_name_=identity.name,
                issuer=issuer,
                subject=pulumi.Output.concat("system:serviceaccount:", namespace, ":", account),
                audiences=["api://AzureADTokenExchange"],
                # One at a time: Azure refuses a second write to one identity with 409.
                opts=pulumi.ResourceOptions(parent=parent, depends_on=before, deleted_with=identity),
            )
        ]
        ready += before
    return WorkloadIdentity(client_id=identity.client_id, ready=ready)
