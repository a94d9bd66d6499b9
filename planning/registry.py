"""A registry of one's own: every image of the stack is pulled from it, under the path that it has at home."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from planning import catalogue, roles
from planning.catalogue import Image
from planning.findings import Finding, Problem, Severity

if TYPE_CHECKING:
    from planning.settings import RegistrySettings, Settings

#: Where Azure's registries are, by cloud.
#: https://learn.microsoft.com/azure/container-registry/container-registry-firewall-access-rules
AZURE_HOSTS = (".azurecr.io", ".azurecr.cn", ".azurecr.us")
#: What a repository without a host is in. https://docs.docker.com/reference/cli/docker/image/pull/
DOCKER_HUB = "docker.io"


@dataclass(frozen=True, kw_only=True)
class MirroredImage:
    """An image that must be in the registry before it is pulled from there."""

    source: str  # with its registry, and by digest where that is known
    target: str  # repository:tag, as the registry is to have it
    command: str  # that copies it


@dataclass(frozen=True, kw_only=True)
class RegistryPlan:
    """The registry, and all that must be in it."""

    login_server: str
    images: tuple[MirroredImage, ...]


def image(key: str, registry: RegistrySettings | None) -> Image:
    """The image behind a key of presets/images.yaml, where the stack pulls it from."""
    home = catalogue.image(key)
    if registry is None:
        return home
    return replace(home, repository=f"{registry.login_server}/{_home(home.repository)[1]}")


def decide(registry: RegistrySettings, plan: Any) -> RegistryPlan:
    """What the registry must hold for a plan that pulls from it."""
    used = set(images_of(plan))
    found = [catalogue.image(key) for key in catalogue.image_keys() if image(key, registry) in used]
    return RegistryPlan(
        login_server=registry.login_server, images=tuple(_mirrored(each, registry.login_server) for each in found)
    )


def images_of(value: Any) -> Iterator[Image]:
    """Wherever a plan has them."""
    if isinstance(value, Image):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from images_of(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from images_of(item)


def pull_role(registry: RegistrySettings) -> str:
    """GUID of the role that lets somebody pull."""
    return roles.REPOSITORY_READER if registry.abac else roles.ACR_PULL


def problems(settings: Settings, source: str, *, own_cluster: bool) -> Iterator[Problem]:
    """What of the registry's settings does not go together."""
    registry = settings.registry
    if registry is None:
        return

    def problem(key: str, value: object, limit: str, remedy: str) -> Problem:
        return Problem(key=f"aks-vllm:registry.{key}", value=value, limit=limit, source=source, remedy=remedy)

    host = registry.login_server
    if registry.id is None and registry.abac:
        limit = "has no effect without registry.id: nobody is granted anything"
        yield problem("abac", True, limit, "set registry.id too, or delete the line")
    if registry.id is None:
        return
    name = registry.id.rpartition("/")[2]
    known = _azure_name(host)
    if not host.endswith(AZURE_HOSTS):
        limit = f"is no address of an Azure registry, and registry.id names one: {name}"
        yield problem("login-server", host, limit, "`az acr show --query loginServer` prints it; or delete registry.id")
    elif known != name.lower():
        limit = f"is not the address of registry {name}, which registry.id names"
        yield problem("login-server", host, limit, f"`az acr show --name {name} --query loginServer` prints it")
    if not own_cluster:
        limit = "has no effect: the identity that pulls is that of the cluster's owner"
        remedy = f"delete the line; the owner runs `az aks update --attach-acr {registry.id}`"
        yield problem("id", registry.id, limit, remedy)


def findings(registry: RegistrySettings, plan: RegistryPlan, *, own_cluster: bool) -> Iterator[Finding]:
    """What must be in the registry, and who lets the nodes pull it."""
    yield Finding(
        severity=Severity.NOTE,
        subject="stack",
        message=f"Every image is pulled from {plan.login_server}: {len(plan.images)} must be there before an update.",
        remedy="The commands under Next copy them; docs/registry.md says what else does.",
    )
    if registry.id is None:
        yield Finding(
            severity=Severity.WARNING if own_cluster else Severity.NOTE,
            subject="stack",
            message=f"Nothing here lets the nodes pull from {plan.login_server}"
            + ("." if own_cluster else ": that is its owner's, as the cluster is."),
            remedy="Set registry.id, and their identity is granted it." if own_cluster else "docs/registry.md",
        )


def _home(repository: str) -> tuple[str, str]:
    """Host and path of a repository as images.yaml has it."""
    host, slash, path = repository.partition("/")
    return (host, path) if slash and "." in host else (DOCKER_HUB, repository)


def _azure_name(login_server: str) -> str:
    """Letters and digits only; with a domain name label, Azure puts a hyphen and a hash behind it."""
    return login_server.partition(".")[0].partition("-")[0]


def _mirrored(home: Image, login_server: str) -> MirroredImage:
    host, path = _home(home.repository)
    source = f"{host}/{path}@{home.digest}" if home.digest else f"{host}/{path}:{home.tag}"
    target = f"{path}:{home.tag}"
    command = f"skopeo copy --all docker://{source} \\\n  docker://{login_server}/{target}"
    if login_server.endswith(AZURE_HOSTS):
        command = f"az acr import --name {_azure_name(login_server)} \\\n  --source {source} \\\n  --image {target}"
    return MirroredImage(source=source, target=target, command=command)
