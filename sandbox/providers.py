"""Which provider manages which resource: default providers by package, explicit ones by reference."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

import yaml
from pulumi.provider.experimental.provider import Provider
from pulumi.runtime import rpc

from sandbox.state import ResourceState
from sandbox.values import UNKNOWN, Value, reveal

PROVIDER_TYPE = "pulumi:providers:"

Package = Callable[[Mapping[str, Value]], Provider | None]
"""Makes a package's provider from its configuration; None when that is not known yet (a preview before the cluster)."""


class BadReferenceError(Exception):
    """A provider that cannot be found; the message says which and why."""


def call(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a provider's method in this thread.

    Each call has its own event loop: providers do blocking work, which would stop a shared one.
    """
    return asyncio.run(coroutine)


def must_replace(type_: str, old: Mapping[str, Value], new: Mapping[str, Value]) -> list[str]:
    """Configuration whose change makes another provider of it, and with it replaces all its resources.

    Source: the Kubernetes provider's DiffConfig (pulumi/pulumi-kubernetes): with `clusterIdentifier` only that counts,
    otherwise another active cluster in `kubeconfig`, or one that is not known yet; another user does not.
    """
    if type_ != "pulumi:providers:kubernetes":
        return []
    if "clusterIdentifier" in old or "clusterIdentifier" in new:
        key, was, now = "clusterIdentifier", old.get("clusterIdentifier"), new.get("clusterIdentifier")
    else:
        key, was, now = "kubeconfig", _active_cluster(old.get("kubeconfig")), _active_cluster(new.get("kubeconfig"))
    return [key] if now is UNKNOWN or was != now else []


def _active_cluster(kubeconfig: Value) -> Value:
    """How the current context's cluster is reached; the value itself where it is no kubeconfig."""
    text = reveal(kubeconfig)
    try:
        document = yaml.safe_load(text) if isinstance(text, str) else {}
        contexts = {each["name"]: each["context"] for each in document["contexts"]}
        clusters = {each["name"]: each["cluster"] for each in document["clusters"]}
        return clusters[contexts[document["current-context"]]["cluster"]]
    except (yaml.YAMLError, KeyError, TypeError):
        return text


class Providers:
    """The providers of one run."""

    def __init__(self, packages: Mapping[str, Package], config: Mapping[str, str]) -> None:
        self._packages = packages
        self._config = config
        self._defaults: dict[str, Provider | None] = {}
        self._explicit: dict[str, Provider | None] = {}  # by `<urn>::<id>`
        disabled = config.get("pulumi:disable-default-providers") or "[]"
        self._disabled = set(json.loads(disabled))

    def configure(self, urn: str, id_: str, inputs: Mapping[str, Value]) -> None:
        """Make the provider that a `pulumi:providers:<package>` resource stands for.

        Raises BadReferenceError for a package that this engine does not have.
        """
        package = urn.split("::")[2].rsplit(PROVIDER_TYPE, 1)[1]
        self._explicit[f"{urn}::{id_ or rpc.UNKNOWN}"] = self._make(package, inputs)

    def restore(self, resources: Iterable[ResourceState]) -> None:
        """Make the explicit providers found in the state, unless the program has registered them."""
        for resource in resources:
            if resource.type.startswith(PROVIDER_TYPE) and f"{resource.urn}::{resource.id}" not in self._explicit:
                self.configure(resource.urn, resource.id, resource.inputs)

    def find(self, type_: str, reference: str, what: str) -> Provider | None:
        """The provider of a resource or function; None when it cannot be configured yet.

        Raises BadReferenceError when the reference does not resolve or the default provider is disabled.
        """
        if reference:
            if reference not in self._explicit:
                raise BadReferenceError(f"{what} refers to provider {reference}, which is not registered")
            return self._explicit[reference]
        package = type_.split(":", 1)[0]
        if package in self._disabled or "*" in self._disabled:
            raise BadReferenceError(
                f"{what}: the default provider for {package!r} is disabled (pulumi:disable-default-providers); "
                "pass an explicit provider"
            )
        if package not in self._defaults:
            own = {k.split(":", 1)[1]: v for k, v in self._config.items() if k.startswith(f"{package}:")}
            self._defaults[package] = self._make(package, own)
        return self._defaults[package]

    def all(self) -> list[Provider]:
        """Every provider made so far."""
        made = [*self._defaults.values(), *self._explicit.values()]
        return [provider for provider in made if provider is not None]

    def _make(self, package: str, inputs: Mapping[str, Value]) -> Provider | None:
        if package not in self._packages:
            known = ", ".join(sorted(self._packages))
            raise BadReferenceError(
                f"the embedded engine has no provider {package!r}, only {known}; use the Pulumi CLI"
            )
        return self._packages[package](inputs)
