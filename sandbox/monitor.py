"""The engine's side of the Pulumi SDK: what the program's SDK calls instead of a gRPC stub.

`pulumi.runtime.Settings` takes any object with the methods of the resource monitor and of the engine service, so the
unmodified program runs in this process, without a socket.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from google.protobuf.empty_pb2 import Empty  # ty: ignore[missing-module-member]  (made at run time)
from pulumi.runtime.proto import engine_pb2, resource_pb2

from sandbox.values import Value, from_property, from_struct, to_struct

STACK_TYPE = "pulumi:pulumi:Stack"

#: Not advertised: transforms and hooks (they need a callback server), invoke gating (the SDK then gates by itself) and
#: output values (the SDK sends them to remote components alone, which are refused here).
FEATURES = (
    resource_pb2.RESOURCE_MONITOR_FEATURE_SECRETS,
    resource_pb2.RESOURCE_MONITOR_FEATURE_RESOURCE_REFERENCES,
    resource_pb2.RESOURCE_MONITOR_FEATURE_ALIAS_SPECS,
    resource_pb2.RESOURCE_MONITOR_FEATURE_REPLACEMENT_TRIGGER,
    resource_pb2.RESOURCE_MONITOR_FEATURE_DELETED_WITH,
    resource_pb2.RESOURCE_MONITOR_FEATURE_REPLACE_WITH,
)


@dataclass(frozen=True, kw_only=True)
class Alias:
    """An earlier identity of a resource: a whole URN, or the parts of it that were different."""

    urn: str = ""
    name: str = ""
    type: str = ""
    stack: str = ""
    project: str = ""
    parent: str = ""  # URN
    no_parent: bool = False


@dataclass(frozen=True, kw_only=True)
class Registration:
    """One resource exactly as the program declared it, options included, before any provider saw it."""

    urn: str
    type: str
    name: str
    custom: bool
    parent: str  # URN; empty for the stack alone
    inputs: Mapping[str, Value]  # plain data; secrets as `Secret`, what only an update can tell as `UNKNOWN`
    protect: bool | None = None  # None: as the parent
    retain_on_delete: bool | None = None  # None: as the parent
    ignore_changes: tuple[str, ...] = ()
    replace_on_changes: tuple[str, ...] = ()
    delete_before_replace: bool | None = None  # None: as the provider says
    depends_on: tuple[str, ...] = ()  # URNs, explicit dependencies and those through properties
    property_dependencies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    custom_timeouts: Mapping[str, str] = field(default_factory=dict)  # operation -> Go duration such as "90m"
    deleted_with: str = ""
    replace_with: tuple[str, ...] = ()
    replacement_trigger: Value = None
    aliases: tuple[Alias, ...] = ()
    provider: str = ""  # `<urn>::<id>`; empty: the package's default provider
    additional_secret_outputs: tuple[str, ...] = ()

    @property
    def package(self) -> str:
        """The package whose provider manages the resource."""
        return self.type.split(":", 1)[0]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a resource looks like after its registration; `outputs` without a key means unknown in a preview."""

    id: str = ""  # empty: unknown
    outputs: Mapping[str, Value] = field(default_factory=dict)


class Registrar(Protocol):
    """Who decides what a registration does (see `deployment.Deployment`)."""

    project: str
    stack: str
    dry_run: bool

    def register(self, registration: Registration) -> Answer: ...

    def register_outputs(self, urn: str, outputs: dict[str, Value]) -> None: ...

    def invoke(self, token: str, provider: str, arguments: dict[str, Value]) -> dict[str, Value] | None: ...

    def log(self, severity: str, text: str, urn: str) -> None: ...

    def refuse(self, what: str) -> Exception: ...


def make_urn(stack: str, project: str, parent: str, type_: str, name: str) -> str:
    """`urn:pulumi:<stack>::<project>::<parent types>$<type>::<name>`; the stack's own type is left out."""
    parent_type = parent.split("::")[2] if parent else ""
    qualified = f"{parent_type}${type_}" if parent_type and parent_type != STACK_TYPE else type_
    return f"urn:pulumi:{stack}::{project}::{qualified}::{name}"


_DURATION = re.compile(r"(?P<count>\d+(?:\.\d+)?)(?P<unit>h|ms|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def seconds(duration: str) -> float:
    """A Go duration such as `1h30m` in seconds.

    Raises ValueError.
    """
    parts = list(_DURATION.finditer(duration))
    if not parts or "".join(part[0] for part in parts) != duration:
        raise ValueError(f"{duration!r} is not a duration such as 90s, 30m or 1h30m")
    return sum(float(part["count"]) * _SECONDS[part["unit"]] for part in parts)


class Monitor:
    """The resource monitor. Method names are those of the gRPC service."""

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar

    def GetDeploymentInfo(self, request: object) -> resource_pb2.DeploymentInfo:  # noqa: N802
        return resource_pb2.DeploymentInfo(supportedFeatures=FEATURES, dryRun=self._registrar.dry_run)

    def RegisterResource(self, request: Any) -> resource_pb2.RegisterResourceResponse:  # noqa: N802
        if request.remote:
            raise self._registrar.refuse(f"{request.name}: the embedded engine has no remote components")
        if request.importId:
            raise self._registrar.refuse(f"{request.name}: the embedded engine does not import; use the Pulumi CLI")
        registration = self._registration(request)
        answer = self._registrar.register(registration)
        return resource_pb2.RegisterResourceResponse(
            urn=registration.urn, id=answer.id, object=to_struct(answer.outputs)
        )

    def RegisterResourceOutputs(self, request: Any) -> Empty:  # noqa: N802
        self._registrar.register_outputs(request.urn, from_struct(request.outputs))
        return Empty()

    def ReadResource(self, request: Any) -> None:  # noqa: N802
        raise self._registrar.refuse(f"{request.name}: the embedded engine does not read resources of other programs")

    def Invoke(self, request: Any) -> resource_pb2.ResourceInvokeResponse:  # noqa: N802
        result = self._registrar.invoke(request.tok, request.provider, from_struct(request.args))
        if result is None:
            return resource_pb2.ResourceInvokeResponse(unknown=True)
        fields: dict[str, Any] = {"return": to_struct(result)}
        return resource_pb2.ResourceInvokeResponse(**fields)

    def SignalAndWaitForShutdown(self, request: object) -> Empty:  # noqa: N802
        return Empty()

    def _registration(self, request: Any) -> Registration:
        timeouts = request.customTimeouts
        return Registration(
            urn=make_urn(self._registrar.stack, self._registrar.project, request.parent, request.type, request.name),
            type=request.type,
            name=request.name,
            custom=request.custom,
            parent=request.parent,
            inputs=from_struct(request.object),
            protect=request.protect if request.HasField("protect") else None,
            retain_on_delete=request.retainOnDelete if request.HasField("retainOnDelete") else None,
            ignore_changes=tuple(request.ignoreChanges),
            replace_on_changes=tuple(request.replaceOnChanges),
            delete_before_replace=request.deleteBeforeReplace if request.deleteBeforeReplaceDefined else None,
            depends_on=tuple(sorted(request.dependencies)),
            property_dependencies={k: tuple(sorted(v.urns)) for k, v in sorted(request.propertyDependencies.items())},
            custom_timeouts={
                operation: getattr(timeouts, operation)
                for operation in ("create", "update", "delete")
                if getattr(timeouts, operation)
            },
            deleted_with=request.deletedWith,
            replace_with=tuple(request.replace_with),
            replacement_trigger=self._trigger(request),
            aliases=tuple(self._alias(alias) for alias in request.aliases),
            provider=request.provider,
            additional_secret_outputs=tuple(request.additionalSecretOutputs),
        )

    @staticmethod
    def _trigger(request: Any) -> Value:
        from pulumi.provider.experimental.property_value import PropertyValue

        if not request.HasField("replacement_trigger"):
            return None
        return from_property(PropertyValue.unmarshal(request.replacement_trigger))

    @staticmethod
    def _alias(alias: Any) -> Alias:
        if alias.urn:
            return Alias(urn=alias.urn)
        spec = alias.spec
        return Alias(
            name=spec.name,
            type=spec.type,
            stack=spec.stack,
            project=spec.project,
            parent=spec.parentUrn,
            no_parent=spec.noParent,
        )


_SEVERITIES = {engine_pb2.INFO: "info", engine_pb2.WARNING: "warning", engine_pb2.ERROR: "error"}


class EngineLog:
    """The engine service: log messages of the program. Debug messages are many, and are dropped."""

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar

    def Log(self, request: Any) -> Empty:  # noqa: N802
        if request.severity in _SEVERITIES:
            self._registrar.log(_SEVERITIES[request.severity], request.message, request.urn)
        return Empty()

    def RequirePulumiVersion(self, request: object) -> Empty:  # noqa: N802
        return Empty()
