"""A role for somebody on something."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import pulumi
from pulumi_azure_native import authorization


def grant(
    name: str,
    *,
    role: str,
    scope: pulumi.Input[str],
    principal_id: pulumi.Input[str],
    principal_type: str | None = "ServicePrincipal",
    opts: pulumi.ResourceOptions,
) -> authorization.RoleAssignment:
    """A role assignment; `role` is a built-in role's GUID, `scope` and `principal_id` are what and who.

    `principal_type` None lets Azure look it up: a person or a pipeline's service principal. A managed identity that was
    made a moment ago is found only if it is said to be a ServicePrincipal.
    """
    scope, principal_id = pulumi.Output.from_input(scope), pulumi.Output.from_input(principal_id)
    return authorization.RoleAssignment(
        name,
        # The same grant gets the same name, so that a second attempt finds it instead of RoleAssignmentExists.
        role_assignment_name=pulumi.Output.all(scope, principal_id).apply(lambda parts: _name(parts, role)),
        scope=scope,
        role_definition_id=scope.apply(lambda path: f"{_subscription(path)}{_DEFINITIONS}{role}"),
        principal_id=principal_id,
        # Left out, the SDK would fill in "User" (Azure/azure-rest-api-specs#21664), and everybody else is refused with
        # UnmatchedPrincipalType.
        principal_type=pulumi.Output.from_input(principal_type),
        opts=opts,
    )


_DEFINITIONS = "/providers/Microsoft.Authorization/roleDefinitions/"


def _subscription(scope: str) -> str:
    """`/subscriptions/<id>`, with which every scope of ours begins."""
    return "/".join(scope.split("/")[:3])


def _name(scope_and_principal: Sequence[str], role: str) -> str:
    scope, principal = scope_and_principal
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{scope.lower()}/{role}/{principal}"))
