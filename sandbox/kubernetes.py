"""Kubernetes resources in the embedded engine: what the Pulumi Kubernetes provider does, as far as this stack needs it.

Server-side apply, names made up where the program gives none, replacement where Kubernetes cannot change a field, and
waiting until an object is ready. With `--engine cli` the real provider takes this one's place.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubernetes.utils.quantity import parse_quantity
from pulumi.provider.experimental import provider as sdk
from pulumi.provider.experimental.property_value import PropertyValue

from sandbox.cluster_api import (
    APPLY,
    ClusterApi,
    ClusterError,
    ConflictError,
    Json,
    NotFoundError,
    UnreachableError,
)
from sandbox.readiness import GaveUpError, skips_await, stuck_reason, waiting_for
from sandbox.values import (
    Change,
    Value,
    covers,
    differences,
    from_properties,
    has_unknown,
    parse_path,
    reveal,
    show_path,
    to_properties,
    with_secrets_of,
)
from sandbox.values import (
    Path as PropertyPath,
)

MANAGER = "pulumi-kubernetes"
AUTONAMED = "pulumi.com/autonamed"
#: Seconds to wait for an object where the program sets no timeout; the default of the Pulumi Kubernetes provider.
DEFAULT_TIMEOUT = 600.0
#: Seconds between two looks at an object that is waited for.
POLL = 0.3

#: Fields that cannot change in place, by kind; the others follow for every kind. Source: the `forceNew` properties of
#: the Pulumi Kubernetes provider. A Secret's and a ConfigMap's data is among them, so that its users roll with it.
REPLACES: dict[str, tuple[str, ...]] = {
    "ConfigMap": ("data", "binaryData"),
    "Secret": ("data", "stringData", "type"),
    "Deployment": ("spec.selector",),
    "DaemonSet": ("spec.selector",),
    "StatefulSet": ("spec.selector", "spec.serviceName", "spec.volumeClaimTemplates", "spec.podManagementPolicy"),
    "Job": ("spec.selector", "spec.template"),
    "Service": ("spec.clusterIP",),
    "StorageClass": ("parameters", "provisioner"),
    "RoleBinding": ("roleRef",),
    "ClusterRoleBinding": ("roleRef",),
}
ALWAYS_REPLACES = ("apiVersion", "kind", "metadata.name", "metadata.namespace")
#: Packages of the provider that are no objects of the API server.
NOT_OBJECTS = ("helm.sh/", "kustomize", "yaml")


class KubernetesProvider(sdk.Provider):
    """Manages the objects of one cluster, reached with a kubeconfig as the program hands it out.

    `path` is a folder to look for the kubeconfig's sign-in plug-in first. Nothing is called before it is needed: a
    preview can check and compare without a cluster.
    """

    def __init__(self, kubeconfig: str, path: Path | None, progress: Callable[[str], None]) -> None:
        self._kubeconfig = kubeconfig
        self._path = path
        self._progress = progress
        self._lock = threading.Lock()
        self._connected: ClusterApi | None = None
        self._cancelled = threading.Event()
        self._offline = False
        self._owners: dict[tuple[str, str], str] = {}

    async def check(self, request: sdk.CheckRequest) -> sdk.CheckResponse:
        """Complete the inputs: kind and apiVersion from the token, a name where there is none."""
        api_version, kind = _api_version_and_kind(request.type)
        if api_version.startswith(NOT_OBJECTS):
            failure = sdk.CheckFailure("", f"the sandbox has no {api_version}:{kind}; declare its objects one by one")
            return sdk.CheckResponse(inputs=request.new_inputs, failures=[failure])
        old, new = from_properties(request.old_inputs), _without_nulls(from_properties(request.new_inputs))
        new = {"apiVersion": api_version, "kind": kind} | new
        metadata = new.get("metadata", {})
        if isinstance(metadata, dict) and not metadata.get("name"):
            kept = _old_name(old)
            annotations = metadata.get("annotations", {}) | {AUTONAMED: "true"}
            new["metadata"] = metadata | {"name": kept, "annotations": annotations}
            # A replacement lives beside the old object for a while: it needs a name of its own.
            if not kept or any(_replaces(new["kind"], change.path) for change in differences(old, new)):
                new["metadata"]["name"] = f"{request.name}-{secrets.token_hex(4)}"
        return sdk.CheckResponse(inputs=to_properties(new), failures=self._shared(request, new))

    async def diff(self, request: sdk.DiffRequest) -> sdk.DiffResponse:
        """Compare new inputs with old inputs, which the engine adds to the SDK's request as `old_inputs`."""
        old = from_properties(vars(request)["old_inputs"])
        new = from_properties(request.new_inputs)
        ignored = [parse_path(path) for path in request.ignore_changes]
        changes = [c for c in differences(old, new) if not any(covers(path, c.path) for path in ignored)]
        replacing = [change for change in changes if _replaces(new["kind"], change.path)]
        return sdk.DiffResponse(
            changes=bool(changes),
            replaces=[show_path(change.path) for change in replacing],
            # Two objects cannot have one name.
            delete_before_replace=bool(replacing) and reveal(_name(old)) == reveal(_name(new)),
            diffs=sorted({str(change.path[0]) for change in changes}),
            detailed_diff={show_path(c.path): sdk.PropertyDiff(_diff_kind(c, c in replacing), True) for c in changes},
        )

    async def create(self, request: sdk.CreateRequest) -> sdk.CreateResponse:
        """Apply an object that must not exist yet, unless an interrupted creation of ours has left it."""
        inputs = from_properties(request.properties)
        if request.preview:
            # What a dry run makes up (uid, times) is not what the update will give: the inputs are all that is known.
            self._dry_run(inputs, creates=True)
            return sdk.CreateResponse(properties=request.properties)
        self._refuse_foreign(inputs)
        live = await self._wait(self._apply(inputs), request.timeout, deadline="create")
        return sdk.CreateResponse(resource_id=_id(live), properties=_outputs(live, inputs))

    async def update(self, request: sdk.UpdateRequest) -> sdk.UpdateResponse:
        """Apply the new inputs; fields that are no longer declared go back to their defaults."""
        inputs = from_properties(request.news)
        if request.preview:
            judged = self._dry_run(inputs)
            return sdk.UpdateResponse(properties=_outputs(judged, inputs) if judged else request.olds | request.news)
        live = await self._wait(self._apply(inputs), request.timeout, deadline="update")
        return sdk.UpdateResponse(properties=_outputs(live, inputs))

    async def read(self, request: sdk.ReadRequest) -> sdk.ReadResponse:
        """The live object, and of it as inputs what the program declares: so drift shows. A missing one has no id."""
        inputs = from_properties(request.inputs)
        path = self._path_by_id(request.type, request.resource_id)
        live = self._api().get(path) if path else None
        if live is None:
            return sdk.ReadResponse(resource_id="", properties={}, inputs={})
        seen = with_secrets_of(_managed(_with_string_data(live, inputs), reveal(inputs)), inputs, _secret_parts(live))
        return sdk.ReadResponse(
            resource_id=request.resource_id, properties=_outputs(live, inputs), inputs=to_properties(seen)
        )

    async def delete(self, request: sdk.DeleteRequest) -> None:
        """Delete an object and wait until it is gone, with all that it owns."""
        api, path = self._api(), self._path_by_id(request.type, request.resource_id)
        if path is None or api.get(path) is None:
            return
        with contextlib.suppress(NotFoundError):
            options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
            api.request("DELETE", path, body=options)
        limit = request.timeout or DEFAULT_TIMEOUT
        until = time.monotonic() + limit
        while (live := api.get(path)) is not None and not skips_await(live):
            if time.monotonic() > until:
                raise ClusterError(f"{_title(live)} is not gone after {limit:.0f} s{_finalizers(live)}")
            await self._pause(_title(live))

    async def cancel(self) -> None:
        """Stop waiting; what was applied stays, and the next update goes on from there."""
        self._cancelled.set()

    def predicted_id(self, _type: str, inputs: dict[str, PropertyValue]) -> str | None:
        """The id that a creation will give, so that an interrupted one can be deleted; None while it is unknown."""
        plain = from_properties(inputs)
        return None if has_unknown(plain) else _id(plain)

    def _shared(self, request: sdk.CheckRequest, inputs: Json) -> list[sdk.CheckFailure]:
        """Two resources that mean one object would take turns in overwriting it."""
        if has_unknown(inputs) or "metadata" not in inputs:
            return []
        with self._lock:
            owner = self._owners.setdefault((request.type.rpartition("$")[2], _id(inputs)), request.urn)
        if owner == request.urn:
            return []
        return [
            sdk.CheckFailure(
                "metadata.name", f"{_title(inputs)} is declared already, by {owner}; name one of them anew"
            )
        ]

    # The cluster.

    def _api(self) -> ClusterApi:
        with self._lock:
            if self._connected is None:
                self._connected = ClusterApi.connect(self._kubeconfig, self._path)
            return self._connected

    def _path_of(self, inputs: Json) -> str:
        plain = reveal(inputs)
        metadata = plain["metadata"]
        return self._api().path(plain["apiVersion"], plain["kind"], metadata.get("namespace", ""), metadata["name"])

    def _path_by_id(self, type_: str, id_: str) -> str | None:
        """None when the cluster does not serve the kind (any more): then there is no such object either."""
        namespace, _, name = id_.rpartition("/")
        try:
            return self._api().path(*_api_version_and_kind(type_), namespace, name)
        except NotFoundError:
            return None

    def _refuse_foreign(self, inputs: Json) -> None:
        found = self._api().get(self._path_of(inputs))
        if found is not None and not _applied_by_us(found):
            raise ClusterError(f"{_title(inputs)} already exists and is not managed by this stack; rename or remove it")

    def _apply(self, inputs: Json, *, dry_run: bool = False) -> Json:
        query = {"fieldManager": MANAGER, "force": "false"} | ({"dryRun": "All"} if dry_run else {})
        path = self._path_of(inputs)
        try:
            return self._api().request("PATCH", path, body=reveal(inputs), query=query, content_type=APPLY)
        except ConflictError as problem:
            remedy = "let only one of the two set it: declare it no longer, or keep the other from it"
            raise ConflictError(f"{_title(inputs)}: {problem}; {remedy}") from None

    def _dry_run(self, inputs: Json, *, creates: bool = False) -> Json | None:
        """Let the API server judge the object at preview; None when it cannot.

        The object's namespace or kind may be part of the same preview, and a preview needs no running cluster.
        """
        if has_unknown(inputs) or self._offline:
            return None
        try:
            if creates:
                self._refuse_foreign(inputs)
            return self._apply(inputs, dry_run=True)
        except NotFoundError:
            return None
        except UnreachableError as problem:
            self._offline = True
            self._progress(f"{problem}; compared with the last known state only")
            return None

    async def _wait(self, live: Json, limit: float, *, deadline: str) -> Json:
        """Wait until the object is ready; the reason why it is not goes to people, and into the error."""
        limit = limit or DEFAULT_TIMEOUT
        until, said, title = time.monotonic() + limit, "", _title(live)
        api, path = self._api(), self._path_of(live)
        while True:
            try:
                missing = waiting_for(api, live)
            except GaveUpError as problem:
                raise ClusterError(_sentence(f"{title}: {problem}", stuck_reason(api, live, patient=False))) from None
            if missing is None:
                return live
            words = _sentence(f"{title}: {missing}", stuck_reason(api, live))
            if words != said:
                self._progress(words)
                said = words
            if time.monotonic() > until:
                reason = stuck_reason(api, live, patient=False)
                late = f"not ready after {limit:g} s (the resource's {deadline} timeout)"
                raise ClusterError(_sentence(f"{title}: {missing}", reason, late))
            await self._pause(title)
            found = api.get(path)
            if found is None:
                raise ClusterError(f"{title} was deleted by somebody else while it was waited for")
            live = found

    async def _pause(self, title: str) -> None:
        if self._cancelled.is_set():
            raise ClusterError(f"{title}: stopped while waiting; the next update goes on from here")
        await asyncio.sleep(POLL)


def _api_version_and_kind(type_: str) -> tuple[str, str]:
    """`kubernetes:core/v1:Secret` (after the parents' types, if any) is `v1` and `Secret`."""
    api_version, _, kind = type_.rsplit("$", 1)[-1].removeprefix("kubernetes:").rpartition(":")
    return api_version.removeprefix("core/"), kind


def _without_nulls(value: Any) -> Any:
    """Applying a null would claim the field; the program means that it has nothing to say."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _sentence(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _replaces(kind: str, path: PropertyPath) -> bool:
    return any(covers(parse_path(pattern), path) for pattern in (*ALWAYS_REPLACES, *REPLACES.get(kind, ())))


def _diff_kind(change: Change, replaces: bool) -> sdk.PropertyDiffKind:
    word = "ADD" if change.old is None else "DELETE" if change.new is None else "UPDATE"
    return sdk.PropertyDiffKind[f"{word}_REPLACE" if replaces else word]


def _name(inputs: Json) -> Value:
    return (inputs.get("metadata") or {}).get("name")


def _old_name(old: Json) -> Value:
    """The name made up earlier, if it was made up."""
    annotations = (old.get("metadata") or {}).get("annotations") or {}
    return _name(old) if annotations.get(AUTONAMED) == "true" else None


def _id(inputs: Json) -> str:
    metadata = reveal(inputs["metadata"])
    return "/".join(filter(None, [metadata.get("namespace"), metadata["name"]]))


def _title(inputs: Json) -> str:
    return f"{reveal(inputs['kind'])} {_id(inputs)}"


def _applied_by_us(live: Json) -> bool:
    return any(field["manager"] == MANAGER for field in live["metadata"].get("managedFields", []))


def _finalizers(live: Json) -> str:
    held = live["metadata"].get("finalizers") or []
    return f"; held by finalizers {', '.join(held)}" if held else ""


def _secret_parts(live: Json) -> tuple[str, ...]:
    return ("data", "stringData") if live["kind"] == "Secret" else ()


def _outputs(live: Json, inputs: Json) -> dict[str, PropertyValue]:
    """The object without its field managers; secret where the inputs are, and all of a Secret's data."""
    shown = live | {"metadata": {key: value for key, value in live["metadata"].items() if key != "managedFields"}}
    shown = _with_string_data(shown, inputs)
    return to_properties(with_secrets_of(shown, inputs, _secret_parts(live)))


def _with_string_data(live: Json, inputs: Json) -> Json:
    """`stringData` is write-only: read it back out of `data`, for the keys that were written so."""
    written = reveal(inputs).get("stringData")
    if live["kind"] != "Secret" or not written:
        return live
    data = live.get("data") or {}
    return live | {"stringData": {key: _decoded(data[key]) for key in written if key in data}}


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text).decode()
    except (binascii.Error, UnicodeDecodeError):
        return text


def _managed(live: Any, inputs: Any) -> Any:
    """Of a live value, the part that the inputs speak of; written as the inputs write it where it means the same."""
    if isinstance(live, dict) and isinstance(inputs, dict):
        return {key: _managed(live[key], value) for key, value in inputs.items() if key in live}
    if isinstance(live, list) and isinstance(inputs, list):
        speaking = [*inputs, *([None] * (len(live) - len(inputs)))]
        return [_managed(item, like) for item, like in zip(live, speaking, strict=False)]
    return inputs if _same_quantity(live, inputs) else live


def _same_quantity(live: Any, declared: Any) -> bool:
    """Kubernetes writes `1000m` CPU as `1`."""
    if not isinstance(live, str) or not isinstance(declared, str):
        return False
    try:
        return parse_quantity(live) == parse_quantity(declared)
    except ValueError:
        return False
