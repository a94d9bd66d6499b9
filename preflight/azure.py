"""What Azure must have before the stack can be created: the checks, each a function of the plan."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from azure.core.exceptions import ResourceNotFoundError

from planning import catalogue
from planning.capacity import GpuPoolPlan
from planning.cluster import SYSTEM_FAMILY, SYSTEM_VCPUS, SYSTEM_VM_SIZE, ClusterPlan
from planning.existing_cluster import MIN_KUBERNETES, ExistingClusterPlan
from planning.key_vault import KeyVaultPlan
from planning.plan import StackPlan
from preflight import needs
from preflight.checks import Check, NotDone, Once, Result, Status
from preflight.resource_manager import ResourceManager, asking

#: https://learn.microsoft.com/rest/api/keyvault/keyvault/secrets/get: of a secret, all but its value.
VAULT_API = "2023-07-01"
QUOTA_PAGE = "https://portal.azure.com/#view/Microsoft_Azure_Capacity/QuotaMenuBlade/~/myQuotas"


def checks(plan: StackPlan, azure: ResourceManager) -> list[Check]:
    """Everything that Resource Manager is asked; nothing, where the stack has nothing in Azure."""
    if not plan.pools_to_make:
        return []
    existing, cluster = Once(lambda: _existing(plan, azure)), plan.cluster

    def about_the_cluster() -> Iterator[Result]:
        if isinstance(cluster, ClusterPlan):
            yield from _kubernetes(cluster, azure, existing())
        else:
            yield from _existing_cluster(plan, cluster, azure)

    def check(name: str, find: Callable[[], Iterator[Result]]) -> Check:
        def signed_in() -> Iterator[Result]:
            if not azure.signed_in:
                raise NotDone("needs the subscription: see there")
            yield from find()

        return Check(name=name, find=signed_in)

    return [
        Check(name="subscription", find=lambda: _subscription(azure)),
        check("roles", lambda: _roles(plan, azure)),
        check("providers", lambda: _providers(plan, azure)),
        check("kubernetes" if isinstance(cluster, ClusterPlan) else "cluster", about_the_cluster),
        check("vm-sizes", lambda: _vm_sizes(plan, azure)),
        check("quota", lambda: _quota(plan, azure, existing())),
        *(
            check("reservation", lambda: _reservations(plan, azure, existing()))
            for _ in plan.gpu_pools[:1]
            if any(pool.capacity_reservation_group for pool in plan.gpu_pools)
        ),
        *([check("key-vault", lambda: _key_vault(vault, azure))] if (vault := plan.key_vault) else ()),
    ]


def _word(value: object) -> str:
    """Azure's own word: the clients make enumerations of those that they know."""
    return str(value.value if isinstance(value, Enum) else value)


@dataclass(frozen=True, kw_only=True)
class Existing:
    """What an earlier update has left of this stack; nothing before the first."""

    kubernetes_version: str | None  # of the control plane
    nodes: Mapping[str, int]  # by VM size


def _existing(plan: StackPlan, azure: ResourceManager) -> Existing:
    group, name, theirs = plan.names.resource_group, plan.names.cluster, False
    if isinstance(plan.cluster, ExistingClusterPlan):
        group, name, theirs = plan.cluster.resource_group, plan.cluster.name, True
    ours = {pool.agent_pool_name for pool in plan.gpu_pools}
    with asking(f"cluster {name}"):
        try:
            cluster = azure.containers.managed_clusters.get(group, name)
            pools = list(azure.containers.agent_pools.list(group, name))
        except ResourceNotFoundError:
            return Existing(kubernetes_version=None, nodes={})
        nodes: dict[str, int] = {}
        for pool in [pool for pool in pools if not theirs or pool.name in ours]:
            size = pool.properties.vm_size.lower()
            nodes[size] = nodes.get(size, 0) + int(pool.properties.count or 0)
        properties = cluster.properties
        return Existing(
            kubernetes_version=properties.current_kubernetes_version or properties.kubernetes_version, nodes=nodes
        )


def _subscription(azure: ResourceManager) -> Iterator[Result]:
    with asking("the subscription"):
        try:
            found = azure.subscriptions.subscriptions.get(azure.subscription)
            name, state = found.display_name, _word(found.state)
        except ResourceNotFoundError:
            remedy = "Name another one in ARM_SUBSCRIPTION_ID, or sign in with an account that sees it."
            message = f"subscription {azure.subscription} is not there for this sign-in"
            yield Result(check="subscription", status=Status.PROBLEM, message=message, remedy=remedy)
            return
    message = f"{name} ({azure.subscription}) is {state}"
    good = state == "Enabled"
    remedy = "" if good else "Nothing can be created in it until it is Enabled: look at its billing."
    yield Result(check="subscription", status=Status.OK if good else Status.PROBLEM, message=message, remedy=remedy)


# Permissions.


def _roles(plan: StackPlan, azure: ResourceManager) -> Iterator[Result]:
    subscription = f"/subscriptions/{azure.subscription}"
    group = f"{subscription}/resourceGroups/{plan.names.resource_group}"
    # The group need not exist: what is granted for the subscription, and for a group of its name, counts.
    if actions := needs.actions(plan):
        yield _allowed(azure, subscription, group, actions)
    for scope, actions in needs.actions_elsewhere(plan).items():
        yield _allowed(azure, scope, scope, actions)


def _allowed(azure: ResourceManager, listed: str, target: str, actions: Sequence[str]) -> Result:
    """Whether the deployer may do all of this to `target`; the grants are listed for the scope `listed`."""
    principal = azure.principal
    with asking("role assignments"):
        roles, conditional = _held(azure, listed, target)
        names = sorted({role.role_name for role in roles})
        lacking = [
            action
            for action in actions
            if not any(_grants(permission, action) for role in roles for permission in role.permissions)
        ]
    has = f"{principal} has {', '.join(names) or 'no role'} for {target.rsplit('/', 1)[1]}"
    if lacking:
        return Result(
            check="roles",
            status=Status.PROBLEM,
            message=f"{has}, and lacks {len(lacking)} of {len(actions)} permissions: {', '.join(lacking[:4])}"
            + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""),
            remedy=_grant_command(principal, listed, lacking),
        )
    if conditional:
        remedy = "It must allow the roles that the program grants: see the report's role assignments in the preview."
        return Result(check="roles", status=Status.WARNING, message=f"{has}, under a condition", remedy=remedy)
    return Result(check="roles", status=Status.OK, message=f"{has}: all {len(actions)} permissions are there")


def _held(azure: ResourceManager, listed: str, target: str) -> tuple[list[Any], bool]:
    """The deployer's roles at `target`, and whether a condition limits what may be granted with them."""
    client = azure.authorization
    assigned = list(client.role_assignments.list_for_scope(listed, filter=f"assignedTo('{azure.principal}')"))
    here = [one for one in assigned if _covers(one.scope, target)]
    ids = dict.fromkeys(one.role_definition_id for one in here)
    conditional = any(one.condition and "roleAssignments" in one.condition for one in here)
    return [client.role_definitions.get_by_id(id_) for id_ in ids], conditional


def _grant_command(principal: str, scope: str, lacking: Sequence[str]) -> str:
    """The smallest built-in role that is enough."""
    only_grants = all(action.startswith("Microsoft.Authorization/") for action in lacking)
    role = "Role Based Access Control Administrator" if only_grants else "Owner"
    command = f'Ask for it: az role assignment create --assignee {principal} --role "{role}" --scope {scope}'
    return command if only_grants else f"{command} (or Contributor and Role Based Access Control Administrator)"


def _covers(scope: str, target: str) -> bool:
    """Whether a grant at `scope` holds at `target`: management groups listed for a subscription are above it."""
    if scope.lower().startswith("/providers/microsoft.management/managementgroups/"):
        return True
    return f"{target}/".lower().startswith(f"{scope.rstrip('/')}/".lower())


def _grants(permission: Any, action: str) -> bool:
    """https://learn.microsoft.com/azure/role-based-access-control/role-definitions: wildcards, case does not count."""

    return _matches(action, permission.actions) and not _matches(action, permission.not_actions)


def _grants_data(permission: Any, action: str) -> bool:
    """The same of what is inside a resource: a cluster's objects."""
    return _matches(action, permission.data_actions) and not _matches(action, permission.not_data_actions)


def _matches(action: str, patterns: list[str] | None) -> bool:
    return any(fnmatch.fnmatchcase(action.lower(), pattern.lower()) for pattern in patterns or ())


def _providers(plan: StackPlan, azure: ResourceManager) -> Iterator[Result]:
    client = azure.resources
    region = plan.cluster.location
    for namespace in needs.providers(plan):
        with asking(f"resource provider {namespace}"):
            provider = client.providers.get(namespace)
            state = str(provider.registration_state)
            offered = {str(kind.resource_type): kind.locations or [] for kind in provider.resource_types or []}
            where = {kind: {place.replace(" ", "").lower() for place in places} for kind, places in offered.items()}
        for type_ in needs.regional(plan):
            owner, _, kind = type_.partition("/")
            if owner == namespace and where.get(kind) and region not in where[kind]:
                message = f"{type_} is not offered in {region}; it is in {', '.join(sorted(where[kind]))}"
                remedy = "Take the add-on out of add-ons, or choose another region."
                yield Result(check="providers", status=Status.PROBLEM, message=message, remedy=remedy)
        good = state == "Registered"
        remedy = "" if good else f"az provider register --namespace {namespace} --wait"
        status = Status.OK if good else Status.PROBLEM
        yield Result(check="providers", status=status, message=f"{namespace} is {state}", remedy=remedy)


# The cluster.


def _existing_cluster(plan: StackPlan, cluster: ExistingClusterPlan, azure: ResourceManager) -> Iterator[Result]:
    """Whether a cluster that is not the stack's is what the plan takes it for."""

    def result(status: Status, message: str, remedy: str = "") -> Result:
        return Result(check="cluster", status=status, message=message, remedy=remedy)

    subscription = str(cluster.id).split("/")[2]
    if subscription.lower() != azure.subscription.lower():
        remedy = f"Sign in to it, or name it in ARM_SUBSCRIPTION_ID: {subscription}."
        message = f"cluster {cluster.name} is in another subscription than {azure.subscription}"
        yield result(Status.PROBLEM, message, remedy)
        return
    with asking(f"cluster {cluster.name}"):
        try:
            found = azure.containers.managed_clusters.get(cluster.resource_group, cluster.name)
        except ResourceNotFoundError:
            remedy = "Correct existing-cluster.id, or ask its owner for Reader on it."
            yield result(Status.PROBLEM, f"cluster {cluster.name} is not there for this sign-in", remedy)
            return
        objections = [*_objections(plan, cluster, found), *_locked_out(cluster, found, azure)]
    yield from (result(*objection) for objection in objections)
    if not objections:
        yield result(Status.OK, f"cluster {cluster.name} is as the plan needs it")


def _objections(plan: StackPlan, cluster: ExistingClusterPlan, found: Any) -> Iterator[tuple[Status, str, str]]:
    properties, name = found.properties, cluster.name
    update, network = f"its owner runs `az aks update --ids {cluster.id} ", properties.network_profile
    version = str(properties.current_kubernetes_version or properties.kubernetes_version)
    if str(found.location).lower() != cluster.location:
        message = f"cluster {name} is in {found.location}, the stack in {cluster.location}"
        yield Status.PROBLEM, message, f"Set azure-native:location to {found.location}."
    if _by_number(version)[:2] < _by_number(MIN_KUBERNETES):
        message = f"cluster {name} has Kubernetes {version}; the stack's pods need {MIN_KUBERNETES}"
        yield Status.PROBLEM, message, f"Its owner runs `az aks upgrade --ids {cluster.id}`."
    if properties.aad_profile is None:
        remedy = f"Let {update}--enable-aad`, or hand over a kubeconfig: aks-vllm:kubeconfig."
        yield Status.PROBLEM, f"cluster {name} has no sign-in with Entra ID, by which Pulumi reaches it", remedy
    if _word(getattr(network, "network_policy", None) or "none") == "none":
        message = f"cluster {name} has no network policy engine: whatever runs in it reaches vLLM past the edge"
        yield Status.WARNING, message, f"Let {update}--network-policy cilium` (or calico)."
    if plan.weight_store is not None:
        issuer, identity = (
            properties.oidc_issuer_profile,
            getattr(properties.security_profile, "workload_identity", None),
        )
        if not (issuer and issuer.enabled and identity and identity.enabled):
            remedy = f"Let {update}--enable-oidc-issuer --enable-workload-identity`, or set weights: {{source: "
            remedy += "hugging-face}."
            message = f"cluster {name} has no OIDC issuer with workload identity: its pods cannot read the weights"
            yield Status.PROBLEM, message, remedy
    subnets = {pool.vnet_subnet_id for pool in properties.agent_pool_profiles or [] if pool.vnet_subnet_id}
    if subnets and cluster.subnet_id is None:
        remedy = f"Set network: {{subnet-id: {sorted(subnets)[0]}}}, or one of the same network."
        yield Status.PROBLEM, f"cluster {name} lies in a subnet of its owner, and the stack names none", remedy
    if plan.name_policies and _word(getattr(network, "network_dataplane", None)) != "cilium":
        remedy = "Delete existing-cluster.fqdn-policies."
        yield Status.PROBLEM, f"cluster {name} has no Cilium, and so no policies by name", remedy


def _locked_out(cluster: ExistingClusterPlan, found: Any, azure: ResourceManager) -> Iterator[tuple[Status, str, str]]:
    """Where Azure decides who may write what in the cluster: whether the deployer may."""
    if not getattr(found.properties.aad_profile, "enable_azure_rbac", False) or cluster.id is None:
        return
    roles, _ = _held(azure, cluster.id, cluster.id)
    lacking = [
        action
        for action in needs.IN_CLUSTER
        if not any(_grants_data(permission, action) for role in roles for permission in role.permissions)
    ]
    if lacking:
        role, principal = "Azure Kubernetes Service RBAC Cluster Admin", azure.principal
        remedy = f'Ask for it: az role assignment create --assignee {principal} --role "{role}" --scope {cluster.id}'
        yield Status.PROBLEM, f"{principal} may not write in cluster {cluster.name}: {', '.join(lacking)}", remedy


def _kubernetes(cluster: ClusterPlan, azure: ResourceManager, existing: Existing) -> Iterator[Result]:
    wanted, region = cluster.kubernetes_version, cluster.location
    minor = ".".join(wanted.split(".")[:2])
    with asking(f"Kubernetes versions in {region}"):
        listed = azure.containers.managed_clusters.list_kubernetes_versions(region).values_property
        offered = {version.version: version for version in listed}
        patches = {patch for version in listed for patch in (version.patch_versions or {})}
        found = offered.get(minor)
        plans = [_word(name) for name in (found.capabilities.support_plan if found else [])]
        preview = bool(found and found.is_preview)
    known = ", ".join(sorted(offered, key=_by_number))
    there = found is not None and (wanted == minor or wanted in patches)
    latest = max(((found.patch_versions or {}) if found else {}), key=_by_number, default=wanted)

    def result(status: Status, message: str, remedy: str = "") -> Result:
        return Result(check="kubernetes", status=status, message=message, remedy=remedy)

    if not there:
        remedy = f"Set kubernetes-version to one of them, for example {max(offered, key=_by_number, default='1.36')}."
        shown = known if found is None else ", ".join(sorted(found.patch_versions or {}, key=_by_number))
        yield result(Status.PROBLEM, f"AKS has no {wanted} in {region}; it has {shown}", remedy)
    elif preview:
        yield result(Status.PROBLEM, f"{wanted} is a preview in {region}", f"AKS has {known}: take one that is not.")
    elif "KubernetesOfficial" not in plans and cluster.sku_tier != "Premium":
        remedy = f"Set kubernetes-version to a newer one; AKS has {known}."
        message = f"{wanted} has only long-term support in {region}, for Premium; this is {cluster.sku_tier}"
        yield result(Status.PROBLEM, message, remedy)
    elif (has := existing.kubernetes_version) and abs(_by_number(minor)[1] - _by_number(has)[1]) > 1:
        step = f"1.{_by_number(has)[1] + 1}"
        message = f"the cluster has {has}, and AKS upgrades one minor version at a time: {wanted} is not the next one"
        yield result(Status.PROBLEM, message, f"Set kubernetes-version to {step} first.")
    elif (has := existing.kubernetes_version) and _by_number(minor)[1] < _by_number(has)[1]:
        yield result(Status.PROBLEM, f"the cluster has {has}, and AKS does not go back", "Set it to that or later.")
    else:
        newest = f", which is {latest} today" if wanted == minor and not existing.kubernetes_version else ""
        yield result(Status.OK, f"AKS has {wanted} in {region}{newest}")


def _by_number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


# Machines.


@dataclass(frozen=True, kw_only=True)
class _Size:
    """A pool's machines at its largest."""

    name: str
    vcpus: int
    family: str
    nodes: int
    pool: str
    zones: tuple[str, ...]  # empty: any
    spot: bool = False


def _sizes(plan: StackPlan) -> list[_Size]:
    pools = [
        _Size(
            name=pool.vm_size,
            vcpus=catalogue.vm_size(pool.vm_size).vcpus,
            family=catalogue.vm_size(pool.vm_size).quota_family,
            nodes=pool.max_count,
            pool=pool.agent_pool_name,
            zones=pool.zones,
            spot=pool.spot,
        )
        for pool in plan.gpu_pools
    ]
    if isinstance(plan.cluster, ExistingClusterPlan):
        return pools
    system = plan.cluster.system_pool
    own = _Size(
        name=system.vm_size,
        vcpus=SYSTEM_VCPUS,
        family=SYSTEM_FAMILY,
        nodes=system.count,
        pool=system.name,
        zones=system.zones,
    )
    return [*pools, own]


def _vm_sizes(plan: StackPlan, azure: ResourceManager) -> Iterator[Result]:
    region = plan.cluster.location
    with asking(f"VM sizes in {region}"):
        listed = azure.compute.resource_skus.list(filter=f"location eq '{region}'")
        offered = {sku.name.lower(): _offer(sku) for sku in listed if sku.resource_type == "virtualMachines"}
    for size in _sizes(plan):
        yield _vm_size(size, offered.get(size.name.lower()), region)


@dataclass(frozen=True, kw_only=True)
class _Offer:
    """One row of the SKU list: https://learn.microsoft.com/rest/api/compute/resource-skus/list"""

    family: str
    vcpus: int | None
    zones: tuple[str, ...]  # open to this subscription
    refused: str  # the reason why the whole region is closed to it; empty: it is open


def _offer(sku: Any) -> _Offer:
    closed, refused = set(), ""
    for restriction in sku.restrictions or []:
        if _word(restriction.type) == "Zone":
            closed |= set(restriction.restriction_info.zones or [])
        else:
            refused = _word(restriction.reason_code)
    zones = {zone for location in sku.location_info or [] for zone in location.zones or []}
    capabilities = {capability.name: capability.value for capability in sku.capabilities or []}
    vcpus = capabilities.get("vCPUs")
    return _Offer(
        family=str(sku.family),
        vcpus=None if vcpus is None else int(vcpus),
        zones=tuple(sorted(zones - closed)),
        refused=refused,
    )


def _vm_size(size: _Size, offer: _Offer | None, region: str) -> Result:
    def result(status: Status, message: str, remedy: str = "") -> Result:
        return Result(check="vm-sizes", status=status, message=message, remedy=remedy)

    elsewhere = f"az vm list-skus --size {size.name} --all --query '[].locations' shows where there is one."
    if offer is None:
        message = f"{size.name} (pool {size.pool}) is not offered in {region}"
        return result(Status.PROBLEM, message, f"Set another vm-size or location: {elsewhere}")
    if offer.refused:
        message = f"{size.name} (pool {size.pool}) is in {region}, but not for this subscription: {offer.refused}"
        remedy = f"Ask Azure support for access to it in {region}, or use another region: {elsewhere}"
        return result(Status.PROBLEM, message, remedy)
    if closed := sorted(set(size.zones) - set(offer.zones)):
        message = f"{size.name} (pool {size.pool}) is not to be had in zone {', '.join(closed)} of {region}; "
        message += f"it is in {', '.join(offer.zones) or 'none'}"
        what = "gpu-nodes.zones" if size.name != SYSTEM_VM_SIZE else "location"
        return result(Status.PROBLEM, message, f"Set another {what}, or ask Azure support for access to the zone.")
    if offer.vcpus is not None and offer.vcpus != size.vcpus:
        message = f"{size.name} has {offer.vcpus} vCPUs in {region}, and {size.vcpus} in presets/vm-sizes.yaml"
        return result(Status.WARNING, message, "Correct it there: quota and layout follow from it.")
    if offer.family.lower() != size.family.lower():
        message = f"the quota of {size.name} is counted in {offer.family}, and presets/vm-sizes.yaml says {size.family}"
        return result(Status.WARNING, message, "Correct it there: the quota check looks at the wrong family.")
    zones = f"in zones {', '.join(offer.zones)}" if offer.zones else "without zones"
    return result(Status.OK, f"{size.name} (pool {size.pool}) is offered in {region} {zones}")


def _quota(plan: StackPlan, azure: ResourceManager, existing: Existing) -> Iterator[Result]:
    region = plan.cluster.location
    with asking(f"quota in {region}"):
        listed = {str(row.name.value).lower(): row for row in azure.compute.usage.list(region)}
        used = {name: (int(row.current_value), int(row.limit)) for name, row in listed.items()}
    if not used:
        raise NotDone(f"quota in {region}: Azure names no family at all", "Is the region's name right?")
    regular = [size for size in _sizes(plan) if not size.spot]
    rows = [(family, [s for s in regular if s.family == family]) for family in dict.fromkeys(s.family for s in regular)]
    rows.append(("cores", regular))
    if spot := [size for size in _sizes(plan) if size.spot]:
        rows.append(("lowPriorityCores", spot))  # spot has a quota of its own, for all families together
    for name, members in rows:
        current, limit = used.get(name.lower(), (0, 0))
        needed = sum(size.nodes * size.vcpus for size in members)
        nodes = {size.name.lower(): size for size in members}
        has = sum(existing.nodes.get(name, 0) * size.vcpus for name, size in nodes.items())
        more = max(0, needed - has)
        what = " and ".join(f"{size.nodes} × {size.name}" for size in members)
        label = {"cores": "all families (cores)", "lowPriorityCores": "spot (lowPriorityCores)"}.get(name, name)
        message = f"{label} in {region}: {current} of {limit} vCPUs are used; the stack needs {needed} ({what})"
        message += f", and has {min(has, needed)} of them" if has else ""
        if current + more > limit:
            short = current + more - limit
            remedy = f"Ask for a limit of at least {current + more}: {QUOTA_PAGE}; or lower replicas and gpu-nodes."
            yield Result(check="quota", status=Status.PROBLEM, message=f"{message}: {short} too few", remedy=remedy)
        else:
            yield Result(check="quota", status=Status.OK, message=f"{message}: enough")


# The vault.


def _key_vault(plan: KeyVaultPlan, azure: ResourceManager) -> Iterator[Result]:
    """Whether it opens by roles, to the cluster's network, and has what the plan reads of it; never a value."""

    def result(status: Status, message: str, remedy: str = "") -> Result:
        return Result(check="key-vault", status=status, message=message, remedy=remedy)

    name, subscription = plan.vault, plan.id.split("/")[2]
    resources = azure.resources_of(subscription).resources

    def properties_of(id_: str) -> dict[str, Any]:
        return dict(resources.get_by_id(id_.lstrip("/"), api_version=VAULT_API).properties)

    with asking(f"key vault {name}"):
        try:
            found = properties_of(plan.id)
        except ResourceNotFoundError:
            remedy = "Correct key-vault.id, or ask whoever owns it for Reader on it."
            yield result(Status.PROBLEM, f"key vault {name} is not there for this sign-in", remedy)
            return
        by_roles = bool(found.get("enableRbacAuthorization"))
        rules = found.get("networkAcls") or {}
        states = (found.get("publicNetworkAccess"), rules.get("defaultAction"))
        closed = {"disabled", "deny"} & {str(state).lower() for state in states}
    if not by_roles:
        remedy = f"Its owner runs `az keyvault update --name {name} --enable-rbac-authorization true`."
        message = f"key vault {name} opens by access policies, and the stack's identities have roles"
        yield result(Status.PROBLEM, message, remedy)
    if closed:
        remedy = "Let the cluster's subnet in (a rule, or a private endpoint in its network), or its pods wait in vain."
        yield result(Status.WARNING, f"key vault {name} does not answer everybody on the internet", remedy)
    for secret in plan.secrets:
        what = f"{secret.secret} in key vault {name}"
        with asking(what):
            try:
                attributes = properties_of(plan.scope(secret)).get("attributes") or {}
            except ResourceNotFoundError:
                remedy = (
                    f"`az keyvault secret show --vault-name {name} --name {secret.secret} --query id` looks for it."
                )
                # What lies behind a certificate is the vault's own, and may not be shown here.
                status = Status.WARNING if secret is plan.certificate else Status.PROBLEM
                yield result(status, f"Resource Manager knows of no {what}", remedy)
                continue
            ended = attributes.get("exp") is not None and float(attributes["exp"]) <= time.time()
        if attributes.get("enabled") is False or ended:
            word, remedy = "has expired" if ended else "is disabled", "Put a new version there."
            yield result(Status.PROBLEM, f"{what} {word}", remedy)
        elif by_roles:
            yield result(Status.OK, f"{what} is there")


# Reserved capacity.


def _reservations(plan: StackPlan, azure: ResourceManager, existing: Existing) -> Iterator[Result]:
    for pool in plan.gpu_pools:
        if pool.capacity_reservation_group is not None:
            yield _reservation(pool, pool.capacity_reservation_group, plan.cluster.location, azure, existing)


def _reservation(pool: GpuPoolPlan, group: str, region: str, azure: ResourceManager, existing: Existing) -> Result:
    """Whether a group (its ARM id) has room for the pool: https://learn.microsoft.com/azure/aks/use-capacity-reservation-groups"""

    def result(status: Status, message: str, remedy: str = "") -> Result:
        return Result(check="reservation", status=status, message=message, remedy=remedy)

    _, _, subscription, _, resource_group, *_, name = group.split("/")
    client = azure.compute_of(subscription)
    with asking(f"capacity reservation group {name}"):
        try:
            found = client.capacity_reservation_groups.get(resource_group, name)
        except ResourceNotFoundError:
            remedy = "Correct gpu-nodes.capacity-reservation-group, or ask whoever owns it for Reader on it."
            return result(Status.PROBLEM, f"capacity reservation group {name} is not there for this sign-in", remedy)
        where = str(found.location)
        rows = list(client.capacity_reservations.list_by_capacity_reservation_group(resource_group, name))
        fitting = [
            row
            for row in rows
            if str(row.sku.name).lower() == pool.vm_size.lower()
            and (not pool.zones or set(row.zones or []) & set(pool.zones))
        ]
        reserved = sum(int(row.sku.capacity or 0) for row in fitting)
        taken = sum(len(row.properties.virtual_machines_associated or []) for row in fitting)
    if where != region:
        return result(
            Status.PROBLEM,
            f"capacity reservation group {name} is in {where}, the stack in {region}",
            "Set one of the two.",
        )
    own = min(existing.nodes.get(pool.vm_size.lower(), 0), taken)
    message = f"{name} reserves {reserved} × {pool.vm_size}, {taken} of them taken; pool {pool.agent_pool_name} needs "
    message += f"{pool.max_count}" + (f" and has {own}" if own else "")
    if reserved - taken + own < pool.max_count:
        remedy = "Azure makes the other nodes without a reservation, if it has them: raise it, or lower gpu-nodes.max."
        return result(Status.WARNING, message, remedy)
    return result(Status.OK, message)
