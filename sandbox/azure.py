"""Azure Resource Manager, simulated: what the azure-native provider and the service behind it would do with this stack.

Strict in the names, types and values of `azure_schema` and `azure-rules.yaml`, so that what passes here is not refused
by Azure for its form. A managed cluster is the real control plane of `control_plane`; agent pools are KWOK nodes in it.

Failures can be ordered: `AKS_VLLM_FAULTS="create AgentPool=AllocationFailed, delete ManagedCluster=SkuNotAvailable"`
fails each operation named, after it has begun, with a code of `azure-rules.yaml`. Without the variable the next run
goes on from there.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import hashlib
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import yaml
from pulumi.provider.experimental import provider as sdk
from pulumi.provider.experimental.property_value import PropertyValue

from sandbox.azure_schema import Problem, ResourceSchema, schema
from sandbox.state import UnreadableStateError, write_atomically
from sandbox.values import (
    UNKNOWN,
    Change,
    Secret,
    Value,
    covers,
    differences,
    from_properties,
    has_unknown,
    masked,
    parse_path,
    reveal,
    show_path,
    to_properties,
)
from sandbox.values import Path as PropertyPath

FAULTS = "AKS_VLLM_FAULTS"
GROUP = "azure-native:resources:ResourceGroup"
CLUSTER = "azure-native:containerservice:ManagedCluster"
POOL = "azure-native:containerservice:AgentPool"
GRANT = "azure-native:authorization:RoleAssignment"
IDENTITY = "azure-native:managedidentity:UserAssignedIdentity"
CREDENTIAL = "azure-native:managedidentity:FederatedIdentityCredential"
ACCOUNT = "azure-native:storage:StorageAccount"
CONTAINER = "azure-native:storage:BlobContainer"
NETWORK = "azure-native:network:VirtualNetwork"
GRAFANA = "azure-native:dashboard:Grafana"
PUBLIC_IP = "azure-native:network:PublicIPAddress"
#: Roles that a cluster's identity needs before AKS begins, by what they are on.
#: https://learn.microsoft.com/azure/aks/configure-azure-cni-overlay, https://learn.microsoft.com/azure/aks/use-managed-identity
NETWORK_CONTRIBUTOR, IDENTITY_OPERATOR = "4d97b98b-1d4f-4787-a291-c67834d212e7", "f1a07417-d97a-45cb-824c-7a7467783830"

#: What a cluster in memory answers, which has no API server: the form of AKS's own, leading nowhere.
STAND_IN_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: existing, cluster: {server: "https://existing.invalid:443"}}]
users:
- name: clusterUser
  user: {exec: {command: kubelogin, args: [get-token, --server-id, aks]}}
contexts: [{name: existing, context: {cluster: existing, user: clusterUser}}]
current-context: existing
"""

#: Microsoft Learn, considerations and restrictions for federated identity credentials.
CREDENTIALS_MAX = 20
#: Pods that a node takes where the pool does not say (Microsoft Learn, Azure CNI Overlay).
DEFAULT_MAX_PODS = 250
#: GiB of a node's disk where the pool does not say (Microsoft Learn, AKS node OS disk).
DEFAULT_OS_DISK = 128

Json = dict[str, Any]


class AzureError(Exception):
    """An answer of Resource Manager other than success: HTTP status, code and message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.code = code


class Plane(Protocol):
    """The part of `control_plane.ControlPlane` that stands for a managed cluster."""

    folder: Path

    def start(self, binaries: Path) -> None: ...

    def stop(self) -> None: ...

    def running(self) -> bool: ...

    def add_node(self, name: str, labels: dict[str, str], taints: list[Json], capacity: dict[str, str]) -> None: ...

    def remove_node(self, name: str) -> None: ...

    def user_kubeconfig(self) -> str: ...


@cache
def rules() -> Json:
    """What `azure-rules.yaml` says."""
    return _yaml(Path(__file__).with_name("azure-rules.yaml"))


@cache
def vm_sizes() -> Mapping[str, Json]:
    """VM sizes with `vcpus`, `memory-gib`, `quota-family` and, where they have GPUs, `gpus`."""
    with_gpus = _yaml(Path(__file__).parents[1] / "presets" / "vm-sizes.yaml")["vm-sizes"]
    return rules()["vm-sizes"] | with_gpus


def _yaml(path: Path) -> Json:
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  both are safe


class SimulatedAzure(sdk.Provider):
    """One subscription. Without a file it lives in memory; without a control plane its clusters have no API server.

    `operation_seconds` is how long each step of a long-running operation takes. `binaries` gives the folder that
    `Plane.start` needs. `neighbour` gives the control plane of another stack's folder beside this file's: the
    subscription is one, and a stack may use a cluster that another one has made. Safe to use from several threads.
    """

    def __init__(
        self,
        *,
        location: str,
        file: Path | None = None,
        plane: Plane | None = None,
        neighbour: Callable[[Path], Plane] | None = None,
        binaries: Callable[[], Path] = Path,
        progress: Callable[[str], None] = lambda _: None,
        operation_seconds: float = 0,
    ) -> None:
        self._location = location
        self._file = file
        self._plane = plane
        self._neighbour = neighbour
        self._binaries = binaries
        self._progress = progress
        self._seconds = operation_seconds
        self._lock = threading.RLock()
        self._busy: dict[str, str] = {}  # cluster -> the operation under way on it
        self._cancelled = threading.Event()
        self._resources = self._load()
        self._asked = ""  # the cluster whose credentials were asked for

    # What the provider does before it calls Azure.

    async def check(self, request: sdk.CheckRequest) -> sdk.CheckResponse:
        """Complete the inputs with a location and a name, and refuse what Azure would refuse for its form."""
        type_ = _bare_type(request.type)
        rule, described = rules()["resources"].get(type_), schema(type_)
        if rule is None or described is None:
            failure = sdk.CheckFailure("", f"the simulated Azure has no {type_}; deploy it with the Pulumi CLI")
            return sdk.CheckResponse(inputs=request.new_inputs, failures=[failure])
        inputs, old = from_properties(request.new_inputs), from_properties(request.old_inputs)
        inputs = {key: value for key, value in inputs.items() if value is not None}
        if self._location and described.takes("location"):
            inputs.setdefault("location", self._location)
        if rule["name"] not in inputs:
            inputs[rule["name"]] = old.get(rule["name"]) or _made_up_name(type_, request.name, request.random_seed)
        problems = [*described.problems(inputs, rules()["choices"]), *_broken_rules(inputs, rule)]
        failures = [sdk.CheckFailure(path, reason) for path, reason in problems]
        return sdk.CheckResponse(inputs=to_properties(inputs), failures=failures)

    async def diff(self, request: sdk.DiffRequest) -> sdk.DiffResponse:
        """Compare new inputs with old inputs, which the engine adds to the SDK's request as `old_inputs`."""
        rule = rules()["resources"][_bare_type(request.type)]
        old, new = from_properties(vars(request)["old_inputs"]), from_properties(request.new_inputs)
        ignored = [parse_path(path) for path in request.ignore_changes]
        changes = [c for c in differences(old, new) if not any(covers(path, c.path) for path in ignored)]
        fixed = [parse_path(path) for path in rule["replace"]]
        replaces = [c for c in changes if any(covers(pattern, c.path) for pattern in fixed)]
        renamed = reveal(old.get(rule["name"])) != reveal(new.get(rule["name"]))
        return sdk.DiffResponse(
            changes=bool(changes),
            replaces=[show_path(change.path) for change in replaces],
            # Two resources cannot have one name.
            delete_before_replace=bool(replaces) and not renamed,
            diffs=sorted({str(change.path[0]) for change in changes}),
            detailed_diff={show_path(change.path): _detail(change, change in replaces) for change in changes},
        )

    def predicted_id(self, type_: str, inputs: dict[str, PropertyValue]) -> str | None:
        """The id that a creation will give, so that an interrupted one can be deleted; None while it is unknown."""
        plain = from_properties(inputs)
        return None if has_unknown(plain) else self._id(type_, plain)

    # Operations.

    async def create(self, request: sdk.CreateRequest) -> sdk.CreateResponse:
        """PUT a resource that must not exist yet, unless an interrupted creation of the same URN has left it."""
        type_, inputs = _bare_type(request.type), from_properties(request.properties)
        if request.preview:
            return sdk.CreateResponse(properties=to_properties(_schema(type_).preview_outputs(inputs)))
        id_ = self._id(type_, inputs)
        found = self._resources.get(id_.lower())
        if found is not None and found["urn"] != request.urn:
            raise AzureError(409, "Conflict", f"{id_} already exists and belongs to {found['urn']}")
        self._put("create", type_, id_, request.urn, inputs, dict((found or {}).get("nodes", {})))
        return sdk.CreateResponse(resource_id=id_, properties=self._outputs(id_, inputs))

    async def update(self, request: sdk.UpdateRequest) -> sdk.UpdateResponse:
        """PUT a resource that exists; Azure refuses to change some properties that the provider sends it."""
        type_, inputs, id_ = _bare_type(request.type), from_properties(request.news), request.resource_id
        if request.preview:
            preview = _schema(type_).preview_outputs(inputs)
            known = from_properties(request.olds)
            outputs = {key: known.get(key, UNKNOWN) if value is UNKNOWN else value for key, value in preview.items()}
            return sdk.UpdateResponse(properties=to_properties(outputs))
        found = self._existing(id_)
        immutable = rules()["resources"][type_].get("immutable")
        if immutable and found["state"] == "Succeeded" and ("while-used" not in immutable or self._user_of(id_)):
            fixed = [parse_path(path) for path in immutable["properties"]]
            for change in differences(found["inputs"], masked(inputs)):
                if any(covers(pattern, change.path) for pattern in fixed):
                    name, old, new = show_path(change.path), change.old, change.new
                    message = f"changing property {name!r} from {old!r} to {new!r} is not allowed"
                    raise AzureError(400, immutable["code"], f"{message} ({immutable['source']})")
        for name in rules()["resources"][type_].get("keeps", ()):
            if name in found["inputs"]:
                inputs[name] = _filled(found["inputs"][name], inputs.get(name, {}))
        self._put("update", type_, id_, request.urn, inputs, dict(found.get("nodes", {})))
        return sdk.UpdateResponse(properties=self._outputs(id_, inputs))

    async def read(self, request: sdk.ReadRequest) -> sdk.ReadResponse:
        """GET a resource; what changed since the last look is carried into the inputs, as azure-native does it."""
        if request.resource_id.lower() not in self._resources:
            return sdk.ReadResponse(resource_id="")
        described = _schema(_bare_type(request.type))
        inputs, before = from_properties(request.inputs), from_properties(request.properties)
        outputs = self._outputs(request.resource_id, inputs)
        after = described.only_inputs(from_properties(outputs))
        carried = _carried(inputs, described.only_inputs(before), after)
        return sdk.ReadResponse(request.resource_id, properties=outputs, inputs=to_properties(carried))

    async def delete(self, request: sdk.DeleteRequest) -> None:
        """DELETE a resource with everything under it; one that is gone already is no error."""
        id_, type_ = request.resource_id, _bare_type(request.type)
        with self._lock:
            found = self._resources.get(id_.lower())
        if found is None:
            return
        with self._operation("delete", type_, id_):
            if type_.startswith("azure-native:network:"):
                self._require_unused(id_)
            self._set_state(found, "Deleting")
            self._work("delete", type_, id_)
            if type_ == POOL:
                self._remove_nodes(list(found["nodes"]))
            under = [r for key, r in self._resources.items() if key == id_.lower() or key.startswith(id_.lower() + "/")]
            if any(resource["type"] == CLUSTER for resource in under) and self._plane:
                self._progress(f"{_title(type_, id_)}: stopping the control plane")
                self._plane.stop()
                shutil.rmtree(self._plane.folder, ignore_errors=True)
            with self._lock:
                for resource in under:
                    del self._resources[resource["id"].lower()]
                self._save()

    async def cancel(self) -> None:
        """End long-running operations between two steps; what was begun goes on with the next update."""
        self._cancelled.set()

    async def invoke(self, request: sdk.InvokeRequest) -> sdk.InvokeResponse:
        """The three functions that the program uses."""
        arguments = from_properties(request.args)
        if request.tok == "azure-native:authorization:getClientConfig":
            return sdk.InvokeResponse(return_value=to_properties(rules()["client"]))
        if request.tok == "azure-native:containerservice:listManagedClusterUserCredentials":
            group, name = reveal(arguments.get("resourceGroupName")), reveal(arguments.get("resourceName"))
            id_ = self._id(CLUSTER, {"resourceGroupName": group, "resourceName": name})
            if self._existing(id_)["state"] != "Succeeded":
                raise AzureError(409, "OperationNotAllowed", f"{name} is not provisioned yet")
            self._asked = id_
            kubeconfig = STAND_IN_KUBECONFIG if self._file is None else self.resume().user_kubeconfig()
            kubeconfig = base64.b64encode(kubeconfig.encode()).decode()
            listed = {"kubeconfigs": [{"name": "clusterUser", "value": kubeconfig}]}
            return sdk.InvokeResponse(return_value=to_properties(listed))
        if request.tok == "azure-native:containerservice:getManagedCluster":
            names = {key: reveal(arguments.get(key)) for key in ("resourceGroupName", "resourceName")}
            id_ = self._id(CLUSTER, names)
            return sdk.InvokeResponse(return_value={**self._outputs(id_, {}), "id": PropertyValue(id_)})
        failure = sdk.CheckFailure("", f"the simulated Azure has no function {request.tok}")
        return sdk.InvokeResponse(failures=[failure])

    def cluster(self) -> str | None:
        """The cluster that the stack's objects are in, its own or another stack's; None: no cluster of Azure's."""
        with self._lock:
            own = [r["id"] for r in self._resources.values() if r["type"] in (CLUSTER, POOL)]
        return _cluster_of(own[0]) if own else self._asked or None

    def there(self) -> bool:
        """Whether that cluster still is: another stack's may have gone."""
        cluster = self.cluster()
        return cluster is not None and self._found(cluster) is not None

    def plane(self) -> Plane:
        """The control plane of the cluster, running or not. Raises AzureError where there is none."""
        cluster = self.cluster()
        found = self._found(cluster) if cluster else None
        plane = self._plane if cluster is None else found[1] if found else None
        if plane is None:
            raise AzureError(404, "ResourceNotFound", f"{cluster or 'a cluster'} is not there, or has no control plane")
        return plane

    def resume(self) -> Plane:
        """The same, started again if this machine was restarted in between."""
        plane = self.plane()
        with self._lock:
            if not plane.running():
                plane.start(self._binaries())
        return plane

    # Resource Manager.

    def _put(self, verb: str, type_: str, id_: str, urn: str, inputs: dict[str, Value], nodes: dict[str, Json]) -> None:
        with self._operation(verb, type_, id_):
            self._admit(type_, id_, inputs)
            # Secrets are no business of a file in clear; nothing here ever compares them.
            entry = {"id": id_, "type": type_, "urn": urn, "inputs": masked(inputs), "nodes": nodes}
            with self._lock:
                self._resources[id_.lower()] = entry
            self._set_state(entry, "Creating" if verb == "create" else "Updating")
            try:
                self._work(verb, type_, id_)
                if type_ == CLUSTER:
                    if self._plane:
                        self._plane.start(self._binaries())
                    for pool in reveal(inputs).get("agentPoolProfiles", []):
                        self._bring_nodes(entry, pool["name"], pool, id_, "system")
                if type_ == POOL:
                    plain = reveal(inputs)
                    self._bring_nodes(entry, plain["agentPoolName"], plain, _cluster_of(id_), "user")
            except AzureError as problem:
                if problem.code != "Cancelled":
                    self._set_state(entry, "Failed")
                raise
            self._set_state(entry, "Succeeded")

    @contextmanager
    def _operation(self, verb: str, type_: str, id_: str) -> Generator[None]:
        """Azure runs one operation on a cluster and its pools at a time (Azure/AKS#2880), and on an identity's
        credentials (Microsoft Learn, considerations and restrictions for federated identity credentials)."""
        key = (_parent(id_) if type_ == CREDENTIAL else _cluster_of(id_)).lower()
        words = f"{verb} {_title(type_, id_)}"
        with self._lock:
            if key in self._busy:
                message = f"{words}: another operation ({self._busy[key]}) is in progress; try again when it is done"
                raise AzureError(409, _BUSY.get(type_, "OperationNotAllowed"), message)
            self._busy[key] = words
        try:
            yield
        finally:
            with self._lock:
                del self._busy[key]

    def _admit(self, type_: str, id_: str, inputs: dict[str, Value]) -> None:
        """What only the service knows: parents, sizes, quota, and other resources."""
        plain = reveal(inputs)
        with self._lock:
            resources = dict(self._resources)
        if type_ != GROUP and "resourceGroupName" in plain:
            group, theirs = self._id(GROUP, plain), type_ == POOL and _cluster_of(id_).lower() not in resources
            if group.lower() not in resources and not theirs:
                raise AzureError(404, "ResourceGroupNotFound", f"resource group {plain['resourceGroupName']!r}")
        for path in rules()["resources"][type_].get("refers", []):
            for where, other in _at(plain, parse_path(path)):
                self._require_known(f"{_title(type_, id_)}: {show_path(where)}", str(other), resources)
        if _cluster_of(id_) != id_ and self._existing(_cluster_of(id_))["state"] != "Succeeded":
            raise AzureError(409, "OperationNotAllowed", f"the cluster of {_title(type_, id_)} is not ready")
        if type_ == CLUSTER:
            self._require_grants(plain, resources)
            for pool in plain.get("agentPoolProfiles", []):
                self._require_subnet(pool, plain.get("networkProfile", {}), resources)
        if type_ == POOL:
            self._require_subnet(plain, {}, resources)
        if type_ in (CREDENTIAL, CONTAINER) and _parent(id_).lower() not in resources:
            raise AzureError(404, "ParentResourceNotFound", f"{_parent(id_)} does not exist")
        if type_ in (CREDENTIAL, ACCOUNT, CONTAINER):
            self._admit_storage(type_, id_, plain, resources)
        if type_ == CLUSTER and any(r["type"] == CLUSTER and r["id"] != id_ for r in resources.values()):
            raise AzureError(
                400, "NotSupportedInTheSandbox", "this machine runs one control plane: one cluster a stack"
            )
        if type_ == GRANT:
            same = ("scope", "principalId", "roleDefinitionId")
            for other in resources.values():
                if other["type"] == GRANT and other["id"] != id_ and all(other["inputs"][k] == plain[k] for k in same):
                    raise AzureError(409, "RoleAssignmentExists", f"the same grant exists as {other['id']}")
        if type_ in (CLUSTER, POOL):
            self._require_quota(type_, id_, plain, resources)

    def _require_known(self, what: str, id_: str, resources: Mapping[str, Json]) -> None:
        """Something else that must be there; what lies in a group that the stack did not make is taken to exist."""
        group = "/".join(id_.lower().split("/")[:5])
        if group in resources and id_.lower() not in resources:
            raise AzureError(404, "ReferencedResourceNotFound", f"{what} names {id_}, which does not exist")

    def _require_subnet(self, pool: Json, profile: Json, resources: Mapping[str, Json]) -> None:
        id_ = pool.get("vnetSubnetID")
        if not id_:
            return
        network, _, name = id_.partition("/subnets/")
        self._require_known("vnetSubnetID", network, resources)
        if network.lower() not in resources:
            return
        subnets = {each["name"]: each for each in resources[network.lower()]["inputs"].get("subnets", [])}
        if name not in subnets:
            raise AzureError(404, "SubnetNotFound", f"{network} has no subnet {name!r}")
        if profile.get("outboundType") == "userAssignedNATGateway" and not subnets[name].get("natGateway"):
            message = f"outboundType userAssignedNATGateway: no NAT gateway is attached to subnet {name!r}"
            raise AzureError(400, "InvalidUserAssignedNATGateway", message)

    def _require_grants(self, plain: Json, resources: Mapping[str, Json]) -> None:
        """An identity of the stack's own joins a network and uses a kubelet identity only with a role there."""
        assigned = (plain.get("identity") or {}).get("userAssignedIdentities") or []
        for identity in assigned:
            self._require_known("identity", identity, resources)
        kubelet = (plain.get("identityProfile") or {}).get("kubeletidentity", {}).get("resourceId")
        pools = plain.get("agentPoolProfiles", [])
        wanted = {pool["vnetSubnetID"]: NETWORK_CONTRIBUTOR for pool in pools if pool.get("vnetSubnetID")}
        wanted |= {kubelet: IDENTITY_OPERATOR} if kubelet else {}
        held = [r["inputs"] for r in resources.values() if r["type"] == GRANT]
        for scope, role in wanted.items() if assigned else ():
            who = {_guid(identity, "principal") for identity in assigned}
            if not any(
                scope.lower().strip("/").startswith(each["scope"].lower().strip("/"))
                and each["roleDefinitionId"].endswith(role)
                and each["principalId"] in who
                for each in held
            ):
                message = f"the cluster's identity needs role {role} on {scope} before the cluster is made"
                raise AzureError(403, "LinkedAuthorizationFailed", message)

    def _require_unused(self, id_: str) -> None:
        """Networks and what they are made of are not deleted from under what uses them."""
        if user := self._user_of(id_):
            raise AzureError(409, "InUseCannotBeDeleted", f"{id_} is used by {user}")

    def _user_of(self, id_: str) -> str | None:
        """Id of something that names this resource, or what is in it, among its properties."""
        with self._lock:
            others = [r for r in self._resources.values() if not r["id"].lower().startswith(id_.lower())]
        for other in others:
            text = json.dumps(other["inputs"]).lower()
            if other["type"] != GRANT and (f'"{id_.lower()}"' in text or f'"{id_.lower()}/' in text):
                return other["id"]
        return None

    def _admit_storage(self, type_: str, id_: str, plain: Json, resources: Mapping[str, Json]) -> None:
        """Accounts and containers, and the credentials of identities that come for them."""
        others = [r for r in resources.values() if r["type"] == type_ and r["id"].lower() != id_.lower()]
        if type_ == ACCOUNT and any(other["inputs"]["accountName"] == plain["accountName"] for other in others):
            raise AzureError(409, "StorageAccountAlreadyTaken", f"the account name {plain['accountName']} is taken")
        permits = type_ == CONTAINER and resources[_parent(id_).lower()]["inputs"].get("allowBlobPublicAccess", False)
        if type_ == CONTAINER and plain.get("publicAccess", "None") != "None" and not permits:
            raise AzureError(409, "PublicAccessNotPermitted", f"{id_}: its account permits no public access")
        if type_ == CREDENTIAL:
            siblings = [other["inputs"] for other in others if _parent(other["id"]).lower() == _parent(id_).lower()]
            if len(plain["audiences"]) != 1:
                raise AzureError(400, "BadRequest", f"{id_}: audiences must hold one value")
            if len(siblings) >= CREDENTIALS_MAX:
                raise AzureError(400, "BadRequest", f"{_parent(id_)} has {CREDENTIALS_MAX} credentials already")
            if any(other["issuer"] == plain["issuer"] and other["subject"] == plain["subject"] for other in siblings):
                raise AzureError(409, "Conflict", f"{id_}: its issuer and subject are another credential's")

    def _require_quota(self, type_: str, id_: str, plain: Json, resources: Mapping[str, Json]) -> None:
        pools = plain.get("agentPoolProfiles", []) if type_ == CLUSTER else [plain]
        region = plain["location"] if type_ == CLUSTER else self._existing(_cluster_of(id_))["inputs"]["location"]
        used: dict[str, int] = {}
        for other in resources.values():
            if other["id"] != id_ and other["type"] in (CLUSTER, POOL):
                inputs = other["inputs"]
                for pool in inputs.get("agentPoolProfiles", []) if other["type"] == CLUSTER else [inputs]:
                    size = _vm_size(pool["vmSize"])
                    used[size["quota-family"]] = used.get(size["quota-family"], 0) + _count(pool) * size["vcpus"]
        quota = rules()["quota"]
        for pool in pools:
            size = _vm_size(pool["vmSize"])
            family, wanted = size["quota-family"], _count(pool) * size["vcpus"]
            left = quota["families"].get(family, quota["default"]) - used.get(family, 0)
            if wanted > left:
                message = (
                    f"{_count(pool)} x {pool['vmSize']} need {wanted} vCPUs of family {family} in {region}, {left} are "
                    "left; ask for more quota, or take fewer nodes"
                )
                raise AzureError(403, "InsufficientVCPUQuota", message)
            used[family] = used.get(family, 0) + wanted

    def _work(self, verb: str, type_: str, id_: str) -> None:
        """One step of a long-running operation; ordered failures happen here."""
        if type_ in (CLUSTER, POOL):
            self._progress(f"{_title(type_, id_)}: {verb} accepted")
            self._pause()
        code = _ordered_faults().get((verb, type_.rsplit(":", 1)[1]))
        if code:
            fault = rules()["faults"].get(code)
            if fault is None:
                known = ", ".join(rules()["faults"])
                raise AzureError(400, "UnknownFault", f"{FAULTS} orders {code!r}; azure-rules.yaml has {known}")
            raise AzureError(fault["status"], code, fault["message"])

    def _pause(self) -> None:
        if self._cancelled.wait(self._seconds):
            raise AzureError(499, "Cancelled", "stopped; Azure has begun it and the next update goes on from here")

    # Nodes.

    def _bring_nodes(self, entry: Json, pool_name: str, pool: Json, cluster: str, mode: str) -> None:
        """Bring the pool's nodes to its count, labels and taints, one after the other."""
        size, prefix = (
            _vm_size(pool["vmSize"]),
            f"aks-{pool_name}-{binascii.crc32(cluster.lower().encode()) % 10**8:08d}",
        )
        wanted = [f"{prefix}-vmss{number:06d}" for number in range(_count(pool))]
        leaving = [name for name in entry["nodes"] if name.startswith(f"{prefix}-") and name not in wanted]
        # Noted before they exist: a killed run's nodes must be found again.
        entry["nodes"] |= {name: {"pool": pool_name} for name in wanted}
        with self._lock:
            self._save()
        owner, plane = self._existing(cluster)["inputs"], self._plane_of(cluster)
        for number, name in enumerate(wanted, 1):
            self._pause()
            if plane:
                plane.add_node(name, _labels(pool_name, pool, owner, mode), _taints(pool), _capacity(pool, size))
            self._progress(f"node pool {pool_name}: {number}/{len(wanted)} nodes ready")
        self._remove_nodes(leaving)
        for name in leaving:
            del entry["nodes"][name]

    def _remove_nodes(self, names: list[str]) -> None:
        for name in names:
            if self._plane:
                self.resume().remove_node(name)

    def _plane_of(self, cluster: str) -> Plane | None:
        found = self._found(cluster)
        return found[1] if found else None

    # What Azure keeps and answers.

    def _id(self, type_: str, inputs: Mapping[str, Value]) -> str:
        plain = reveal(dict(inputs))
        plain |= {key: plain[key].strip("/") for key in ("scope", "resourceUri") if key in plain}
        group = f"/subscriptions/{rules()['client']['subscriptionId']}/resourceGroups/{plain.get('resourceGroupName')}"
        providers = f"{group}/providers"
        parents = {
            "group": group,
            "cluster": f"{providers}/Microsoft.ContainerService/managedClusters/{plain.get('resourceName')}",
            "identity": f"{providers}/Microsoft.ManagedIdentity/userAssignedIdentities/{plain.get('resourceName')}",
            "account": f"{providers}/Microsoft.Storage/storageAccounts/{plain.get('accountName')}",
        }
        return rules()["resources"][type_]["id"].format(**rules()["client"] | plain | parents)

    def _existing(self, id_: str) -> Json:
        found = self._found(id_)
        if found is None:
            raise AzureError(404, "ResourceNotFound", f"{id_} does not exist")
        return found[0]

    def _found(self, id_: str) -> tuple[Json, Plane | None] | None:
        """A resource of this stack, or another stack's cluster; with the control plane that clusters here have."""
        with self._lock:
            own = self._resources.get(id_.lower())
        if own is not None:
            return own, self._plane
        if self._file is None and re.search(r"(?i)/managedClusters/[^/]+$", id_):  # in a group that is not the stack's
            inputs = {"location": self._location, "kubernetesVersion": "1.36", "oidcIssuerProfile": {"enabled": True}}
            return {"id": id_, "type": CLUSTER, "urn": "", "inputs": inputs, "nodes": {}, "state": "Succeeded"}, None
        if self._file is None or self._neighbour is None:
            return None
        for other in sorted(self._file.parent.parent.glob("*/azure.json")):
            entry = _resources_of(other).get(id_.lower()) if other != self._file else None
            if entry is not None and entry["type"] == CLUSTER:
                return entry, self._neighbour(other.parent)
        return None

    def _outputs(self, id_: str, inputs: Mapping[str, Value]) -> dict[str, PropertyValue]:
        """What GET answers: what was sent, the service's defaults, and what only the service knows."""
        entry = self._existing(id_)
        type_, known = entry["type"], entry["inputs"]
        rule, declared = rules()["resources"][type_], _schema(type_).outputs
        values: Json = dict(rule.get("defaults", {}))
        for key, value in known.items():
            secret = isinstance(inputs.get(key), Secret)  # the file has only its mask
            values[key] = inputs[key] if secret else _filled(values.get(key), value)
        values |= {"name": id_.rsplit("/", 1)[1], "type": rule["arm-type"], "provisioningState": entry["state"]}
        values |= {"azureApiVersion": rule["api-version"]} if "api-version" in rule else {}
        if type_ == GROUP:
            values["properties"] = {"provisioningState": entry["state"]}
        if type_ == CLUSTER:
            values |= self._cluster_outputs(id_, values)
        if type_ == POOL:
            values["currentOrchestratorVersion"] = values.get("orchestratorVersion")
        if type_ == PUBLIC_IP:
            values["ipAddress"] = f"20.{'.'.join(str(b) for b in uuid.UUID(_guid(id_, 'address')).bytes[:3])}"
        if type_ == NETWORK:
            subnets = values.get("subnets", [])
            values["subnets"] = [each | {"id": f"{id_}/subnets/{each['name']}"} for each in subnets]
        if type_ == ACCOUNT:
            location = values["location"]
            values |= {"primaryEndpoints": {"blob": f"https://{values['name']}.blob.core.windows.net/"}}
            values |= {
                "primaryLocation": location,
                "statusOfPrimary": "available",
                "creationTime": "2026-01-01T00:00:00Z",
            }
        if type_ == GRAFANA:
            identity = {"principalId": _guid(id_, "principal"), "tenantId": rules()["client"]["tenantId"]}
            host = f"{values['name']}-{_guid(id_, 'dns')[:8]}.{values['location']}.grafana.azure.com"
            values["identity"] = values["identity"] | identity
            values["properties"] = values["properties"] | {"endpoint": f"https://{host}"}
        if type_ == IDENTITY:
            values |= {"principalId": _guid(id_, "principal"), "clientId": _guid(id_, "client")}
            values["tenantId"] = rules()["client"]["tenantId"]
        return to_properties({key: value for key, value in values.items() if key in declared and value is not None})

    def _cluster_outputs(self, id_: str, values: Json) -> Json:
        prefix, region = values.get("dnsPrefix", values["name"]), values["location"]
        with self._lock:
            pools = [r["inputs"] for r in self._resources.values() if r["type"] == POOL and _cluster_of(r["id"]) == id_]
        kept = ("resourceGroupName", "resourceName", "agentPoolName")
        own = [{k: v for k, v in pool.items() if k not in kept} | {"name": pool["agentPoolName"]} for pool in pools]
        found: Json = {
            "fqdn": f"{prefix}-{_guid(id_, 'dns')[:8]}.hcp.{region}.azmk8s.io",
            "currentKubernetesVersion": values.get("kubernetesVersion"),
            "nodeResourceGroup": values.get("nodeResourceGroup") or f"MC_{id_.split('/')[4]}_{values['name']}_{region}",
            "resourceUID": _guid(id_, "resource"),
            "agentPoolProfiles": [*values.get("agentPoolProfiles", []), *own],
            "identityProfile": values.get("identityProfile")
            or {"kubeletidentity": {"clientId": _guid(id_, "kubelet"), "objectId": _guid(id_, "object")}},
        }
        if values.get("oidcIssuerProfile", {}).get("enabled"):
            issuer = f"https://{region}.oic.prod-aks.azure.com/{_guid(id_, 'tenant')}/{_guid(id_, 'issuer')}/"
            found["oidcIssuerProfile"] = {"enabled": True, "issuerURL": issuer}
        identity = dict(values.get("identity") or {})
        if identity:
            identity |= {"principalId": _guid(id_, "principal"), "tenantId": rules()["client"]["tenantId"]}
            assigned = identity.get("userAssignedIdentities")
            if assigned:  # a list goes in, a mapping comes out
                identity["userAssignedIdentities"] = {i: {"principalId": _guid(i, "principal")} for i in assigned}
            found["identity"] = identity
        return found

    def _set_state(self, entry: Json, state: str) -> None:
        with self._lock:
            entry["state"] = state
            self._save()

    def _load(self) -> dict[str, Json]:
        return {} if self._file is None else _resources_of(self._file)

    def _save(self) -> None:
        if self._file is not None:
            resources = list(self._resources.values())
            write_atomically(self._file, json.dumps({"resources": resources}, indent=1))


def _resources_of(file: Path) -> dict[str, Json]:
    """What a file of the simulated Azure holds, by id in lower case."""
    if not file.exists():
        return {}
    try:
        return {resource["id"].lower(): resource for resource in json.loads(file.read_text())["resources"]}
    except (ValueError, KeyError, TypeError) as problem:
        raise UnreadableStateError(
            f"{file}: not the simulated Azure's file ({type(problem).__name__}); remove the stack with "
            "`python -m sandbox destroy`"
        ) from None


def _detail(change: Change, replaces: bool) -> sdk.PropertyDiff:
    kind = "ADD" if change.old is None else "DELETE" if change.new is None else "UPDATE"
    return sdk.PropertyDiff(sdk.PropertyDiffKind[f"{kind}_REPLACE" if replaces else kind], input_diff=True)


def _bare_type(type_: str) -> str:
    """A request's type keeps its parents' types in front."""
    return type_.rsplit("$", 1)[-1]


def _schema(type_: str) -> ResourceSchema:
    found = schema(type_)
    if found is None:
        raise AzureError(404, "InvalidResourceType", type_)
    return found


def _cluster_of(id_: str) -> str:
    """The cluster that a pool or a maintenance configuration belongs to; anything else is its own."""
    return re.split(r"/(?:agentPools|maintenanceConfigurations)/", id_)[0]


def _parent(id_: str) -> str:
    """What a credential or a container belongs to."""
    return re.split("/(?:federatedIdentityCredentials|blobServices)/", id_)[0]


#: What Azure calls a second operation where it is not OperationNotAllowed.
_BUSY = {CREDENTIAL: "ConcurrentFederatedIdentityCredentialsWritesForSingleManagedIdentity"}


def _title(type_: str, id_: str) -> str:
    return f"{type_.rsplit(':', 1)[1]} {id_.rsplit('/', 1)[1]}"


def _guid(id_: str, purpose: str) -> str:
    """The same for the same resource: a second update must not see another one."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{id_.lower()}#{purpose}"))


def _made_up_name(type_: str, logical: str, seed: bytes) -> str:
    digest = hashlib.sha256(seed).hexdigest()
    return str(uuid.uuid5(uuid.NAMESPACE_URL, digest)) if type_ == GRANT else f"{logical}{digest[:8]}"


def _ordered_faults() -> dict[tuple[str, str], str]:
    ordered = re.findall(r"(create|update|delete) (\w+)=(\w+)", os.environ.get(FAULTS, ""))
    return {(verb, type_): code for verb, type_, code in ordered}


def _filled(default: Value, value: Value) -> Value:
    """What was sent, with the service's defaults where nothing was."""
    if isinstance(default, dict) and isinstance(value, dict):
        return {**default, **{key: _filled(default.get(key), item) for key, item in value.items()}}
    return value


def _carried(inputs: Value, before: Value, after: Value) -> Value:
    """The inputs with every change between two looks at the resource; defaults that did not change stay out."""
    if isinstance(inputs, Secret):
        return inputs
    if not isinstance(before, dict) or not isinstance(after, dict) or not isinstance(inputs, dict):
        return inputs if before == after else after
    kept = dict(inputs)
    for key in {**before, **after}:
        if before.get(key) == after.get(key):
            continue
        if key in after:
            kept[key] = _carried(kept.get(key), before.get(key), after[key])
        else:
            kept.pop(key, None)
    return kept


# Node pools.


def _vm_size(name: str) -> Json:
    size = vm_sizes().get(name)
    if size is None:
        near = difflib.get_close_matches(name, vm_sizes(), 1)
        hint = f"; did you mean {near[0]}?" if near else "; add it to presets/vm-sizes.yaml"
        raise AzureError(400, "VMSizeNotSupported", f"no VM size {name!r} in this catalogue{hint}")
    return size


def _count(pool: Json) -> int:
    return pool.get("count", rules()["resources"][POOL]["defaults"]["count"])


def _labels(name: str, pool: Json, cluster: Json, mode: str) -> dict[str, str]:
    """The labels that AKS sets (Microsoft Learn, reserved system labels in AKS), and the pool's own."""
    labels = {
        "agentpool": name,
        "kubernetes.azure.com/agentpool": name,
        "kubernetes.azure.com/cluster": cluster.get("nodeResourceGroup", ""),
        "kubernetes.azure.com/mode": mode,
        "node.kubernetes.io/instance-type": pool["vmSize"],
        "topology.kubernetes.io/region": cluster["location"],
    }
    if _vm_size(pool["vmSize"]).get("gpus"):
        labels["kubernetes.azure.com/accelerator"] = "nvidia"
    return labels | pool.get("nodeLabels", {})


def _taints(pool: Json) -> list[Json]:
    taints = []
    for text in pool.get("nodeTaints", []):
        key_and_value, effect = text.rsplit(":", 1)
        key, _, value = key_and_value.partition("=")
        taints.append({"key": key, "value": value, "effect": effect})
    return taints


def _capacity(pool: Json, size: Json) -> dict[str, str]:
    capacity = {
        "cpu": str(size["vcpus"]),
        "memory": f"{size['memory-gib']}Gi",
        "pods": str(pool.get("maxPods", DEFAULT_MAX_PODS)),
        "ephemeral-storage": f"{pool.get('osDiskSizeGB', DEFAULT_OS_DISK)}Gi",
    }
    return capacity | ({"nvidia.com/gpu": str(size["gpus"])} if size.get("gpus") else {})


# Rules.


def _broken_rules(inputs: Mapping[str, Value], rule: Json) -> Iterator[Problem]:
    """Patterns, ranges, and properties that need or exclude one another."""
    for pattern in rule.get("patterns", []):
        for path, value in _at(dict(inputs), parse_path(pattern["property"])):
            if isinstance(value, str) and not re.fullmatch(pattern["pattern"], value):
                yield show_path(path), f"is {value!r}; must be {pattern['says']} ({pattern['source']})"
    for limits in rule.get("ranges", []):
        low, high = limits["minimum"], limits["maximum"]
        for path, value in _at(dict(inputs), parse_path(limits["property"])):
            if isinstance(value, int | float) and not low <= value <= high:
                yield show_path(path), f"is {value}; must be {low} to {high} ({limits['source']})"
    for need in rule.get("needs", []):
        if not all(_holds(inputs, path, wanted) for path, wanted in need["when"].items()):
            continue
        why = f"{need['says']} ({need['source']})"
        required, excluded = need.get("properties", []), need.get("without", [])
        for name in required:
            if inputs.get(name) is None:
                yield name, f"is required here: {why}"
        for name in excluded:
            if inputs.get(name) is not None:
                yield name, f"must not be set here: {why}"
        if not required and not excluded:
            yield next(iter(need["when"])), why


def _holds(inputs: Mapping[str, Value], path: str, wanted: Value) -> bool:
    found = [value for _, value in _at(dict(inputs), parse_path(path))] or [None]
    choices = wanted if isinstance(wanted, list) else [wanted]
    return any(value in choices for value in found if value is not UNKNOWN)


def _at(value: Value, pattern: PropertyPath, path: PropertyPath = ()) -> Iterator[tuple[PropertyPath, Value]]:
    """Every value that a pattern with `*` points at, with its path."""
    value = value.value if isinstance(value, Secret) else value
    if not pattern:
        yield path, value
        return
    head, rest = pattern[0], pattern[1:]
    if head == "*" and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _at(item, rest, (*path, index))
    elif isinstance(value, dict) and head in value and value[head] is not None:
        yield from _at(value[head], rest, (*path, head))
