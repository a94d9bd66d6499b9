"""A registry of one's own: every image comes from it, under its own path, and the report says how it gets there."""

from __future__ import annotations

import dataclasses

import pytest

from planning import catalogue, diff, report, stack_file
from planning.cluster import ClusterPlan, GrantPlan
from planning.diff import Side
from planning.findings import InvalidStack
from planning.plan import StackPlan, read_and_decide
from planning.registry import images_of

SUBSCRIPTION = "/subscriptions/00000000-0000-0000-0000-000000000000"
ID = f"{SUBSCRIPTION}/resourceGroups/rg-platform/providers/Microsoft.ContainerRegistry/registries/MyRegistry"
CLUSTER = f"{SUBSCRIPTION}/resourceGroups/rg/providers/Microsoft.ContainerService/managedClusters/platform"
HOST = "registry.login-server=myregistry.azurecr.io"
GRANTED = (HOST, f"registry.id={ID}")
DIGEST = f"sha256:{'b' * 64}"


def decided(*overrides: str, stack: str = "dev") -> StackPlan:
    return read_and_decide(stack_file.from_file(stack, overrides=overrides))


def refused(*overrides: str) -> dict[str, str]:
    with pytest.raises(InvalidStack) as caught:
        decided(*overrides)
    return {problem.key.partition(":")[2]: str(problem) for problem in caught.value.problems}


def grants(*overrides: str) -> list[GrantPlan]:
    cluster = decided(*overrides).cluster
    assert isinstance(cluster, ClusterPlan)
    return [grant for grant in cluster.grants if grant.name == "registry"]


@pytest.mark.parametrize(
    "overrides",
    [(), ("weights={source: azure-blob}", f"revision={'a' * 40}"), ("edge={access: internal}",)],
    ids=["downloaded", "streamed", "edge"],
)
def test_no_image_of_a_stack_comes_from_anywhere_else(overrides: tuple[str, ...]) -> None:
    images = {image.repository for image in images_of(decided(HOST, *overrides))}
    assert {image.partition("/")[0] for image in images} == {"myregistry.azurecr.io"}
    assert images >= {
        "myregistry.azurecr.io/vllm/vllm-openai",
        "myregistry.azurecr.io/library/haproxy",
        "myregistry.azurecr.io/nvidia/k8s-device-plugin",
    }


def test_the_path_and_the_digest_of_home_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    home = catalogue.image
    monkeypatch.setattr(catalogue, "image", lambda key: dataclasses.replace(home(key), digest=DIGEST))
    plan = decided(HOST)
    assert plan.models[0].image.reference == f"myregistry.azurecr.io/vllm/vllm-openai:v0.33.0@{DIGEST}"
    assert plan.registry is not None
    (copy,) = [each for each in plan.registry.images if each.target.startswith("vllm/")]
    assert copy.source == f"docker.io/vllm/vllm-openai@{DIGEST}", "a tag may have moved by the time it is copied"
    assert copy.target == "vllm/vllm-openai:v0.33.0"


def test_the_report_prints_the_commands_that_fill_the_registry() -> None:
    plan = decided(HOST)
    for said in (report.as_text(plan), report.as_markdown(plan)):
        lines = [line.strip() for line in said.splitlines()]
        at = lines.index("--source nvcr.io/nvidia/k8s-device-plugin:v0.19.3 \\")
        assert lines[at - 1 : at + 2] == [
            "az acr import --name myregistry \\",
            "--source nvcr.io/nvidia/k8s-device-plugin:v0.19.3 \\",
            "--image nvidia/k8s-device-plugin:v0.19.3",
        ]
    other = decided("registry.login-server=harbor.example.com:8443").registry
    assert other is not None
    assert {image.command.partition(" ")[0] for image in other.images} == {"skopeo"}


def test_only_what_the_stack_runs_must_be_in_the_registry() -> None:
    guest = decided(HOST, f"existing-cluster={{id: {CLUSTER}, device-plugin: false}}").registry
    assert guest is not None
    assert {image.target.partition(":")[0] for image in guest.images} == {"vllm/vllm-openai", "library/haproxy"}


def test_the_identity_of_the_nodes_may_pull_where_the_id_is_known() -> None:
    (grant,) = grants(*GRANTED)
    assert (grant.scope, grant.identity) == (ID, "kubelet")
    assert grant.role == "7f951dda-4ed3-4680-a7ca-43fe172d538d", "AcrPull"
    (grant,) = grants(*GRANTED, "registry.abac=true")
    assert grant.role == "b93aa761-3e63-49ed-ac28-beffa264f7ac", "Container Registry Repository Reader"
    assert grants(HOST) == []
    assert any("lets the nodes pull" in finding.message for finding in decided(HOST).findings)
    assert not any("lets the nodes pull" in finding.message for finding in decided(*GRANTED).findings)


@pytest.mark.parametrize("host", ["myregistry.azurecr.io", "myregistry-a1b2c3.azurecr.io", "myregistry.azurecr.us"])
def test_every_address_that_azure_gives_a_registry_is_taken(host: str) -> None:
    plan = decided(f"registry.login-server={host}", f"registry.id={ID}").registry
    assert plan is not None
    assert all("--name myregistry " in image.command for image in plan.images)


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (("registry.login-server=https://myregistry.azurecr.io",), "registry.login-server", "without https://"),
        (("registry.login-server=myregistry.azurecr.io/team",), "registry.login-server", "without a path behind it"),
        (("registry.login-server=myregistry",), "registry.login-server", "must be a registry's host name"),
        (("registry.login-server=MyRegistry.azurecr.io",), "registry.login-server", "must be a registry's host name"),
        ((f"registry.id={ID}",), "registry.login-server", "is required"),
        ((HOST, "registry.id=myregistry"), "registry.id", "must be the id of an Azure registry"),
        (("registry.login-server=other.azurecr.io", f"registry.id={ID}"), "registry.login-server",
         "is not the address of registry MyRegistry"),
        (("registry.login-server=ghcr.io", f"registry.id={ID}"), "registry.login-server",
         "is no address of an Azure registry"),
        ((HOST, "registry.abac=true"), "registry.abac", "has no effect without registry.id"),
        ((*GRANTED, f"existing-cluster.id={CLUSTER}"), "registry.id", "`az aks update --attach-acr"),
        ((HOST, "registry.user=x"), "registry.user", "is not a key"),
    ],
)  # fmt: skip
def test_a_registry_that_cannot_be_is_refused_with_the_remedy(overrides: tuple[str, ...], key: str, words: str) -> None:
    told = refused(*overrides)
    assert set(told) == {key}, told
    assert words in told[key]


def test_a_reviewer_is_told_that_images_come_from_elsewhere() -> None:
    sides = [Side(label="x", config={}, plan=report.as_json(plan)) for plan in (decided(), decided(HOST))]
    lines = {line.what: (line.before, line.after) for line in diff.compare(*sides, "dev").stack_lines}
    assert lines["Images"] == ("from the public registries", "from myregistry.azurecr.io")
