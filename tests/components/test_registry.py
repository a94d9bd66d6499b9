"""Where images are pulled from, and who may pull them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from policy.rules import Resource, Stack, _images
from sandbox.engine import Recording
from tests.components.harness import CLUSTER, GRANT, Record

ID = (
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg-platform/providers"
    "/Microsoft.ContainerRegistry/registries/myregistry"
)


def pulled(recording: Recording) -> set[str]:
    """Every image of every pod."""
    return {image.partition("/")[0] for image in _all(recording)}


def _all(recording: Recording) -> Iterator[str]:
    props: list[Resource] = [
        Resource(urn=each.urn, type=each.type, name=each.name, props=dict[str, Any](each.inputs))
        for each in recording.registrations
    ]
    for _, image in _images(Stack(props)):
        yield image


def test_every_pod_pulls_from_it(recorded: Record) -> None:
    settings = {"preset": "qwen3-8b", "weights": {"source": "azure-blob"}, "revision": "a" * 40}
    found = recorded(registry={"login-server": "myregistry.azurecr.io"}, **settings)
    assert pulled(found) == {"myregistry.azurecr.io"}
    assert len(list(_all(found))) >= 4, "engine, upload, edge and device plugin"
    assert "myregistry.azurecr.io" not in pulled(recorded(**settings))


def test_the_kubelets_identity_is_granted_to_pull_before_the_cluster_is_made(recorded: Record) -> None:
    found = recorded(preset="qwen3-8b", registry={"login-server": "myregistry.azurecr.io", "id": ID})
    grant = found.one(GRANT, "cluster-registry-grant")
    assert grant.inputs["scope"] == ID
    assert str(grant.inputs["roleDefinitionId"]).endswith("/7f951dda-4ed3-4680-a7ca-43fe172d538d")
    (principal,) = grant.property_dependencies["principalId"]
    assert principal.endswith("::cluster-kubelet-identity")
    assert grant.urn in found.one(CLUSTER).depends_on
    others = {each.name for each in recorded(preset="qwen3-8b").of_type(GRANT)}
    assert {each.name for each in found.of_type(GRANT)} - others == {"cluster-registry-grant"}
