"""Policies: a stack that holds them all, one that violates each, and none that passes because nothing is there."""

from __future__ import annotations

import copy
import datetime
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gitops import policies
from policy import rules
from policy.rules import SECRET, Exemption, Outcome, Resource, Stack
from tests.components.harness import recorded_preview

DIGEST = f"sha256:{'a' * 64}"
COMMIT = "6f6073b423013f6a7d4d9f39144961bfbfbc386b"
TODAY = datetime.date(2026, 11, 26)
Resources = dict[str, Resource]


def resource(type_: str, name: str, props: dict[str, Any], *, protect: bool = False) -> Resource:
    return Resource(
        urn=f"urn:pulumi:prod::aks-vllm::{type_}::{name}", type=type_, name=name, props=props, protect=protect
    )


def workload(name: str, labels: dict[str, str], container: dict[str, Any], volumes: list[Any]) -> Resource:
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [container], "volumes": volumes}}
    return resource("kubernetes:apps/v1:Deployment", name, {"spec": {"template": pod}})


def holding() -> Resources:
    """A production stack that breaks no policy."""
    vllm = {
        "name": "vllm",
        "image": f"vllm/vllm-openai:v0.33.0@{DIGEST}",
        "command": ["vllm", "serve"],
        "args": [f"/models/llama/{COMMIT}"],
        "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
        "resources": {"limits": {"nvidia.com/gpu": "4"}},
    }
    proxy = {"name": "haproxy", "image": f"haproxy:3.2@{DIGEST}"}
    files = [
        {"secret": {"items": [{"key": "tls.crt", "path": "tls.crt"}]}},
        {"secret": {"items": [{"key": "keys.map", "path": "keys.map"}]}},
    ]
    found = [
        resource(rules.RESOURCE_GROUP, "group", {"location": "eastus"}, protect=True),
        resource(
            rules.CLUSTER,
            "cluster",
            {"location": "eastus", "sku": {"tier": "Standard"}, "disableLocalAccounts": True},
            protect=True,
        ),
        resource(
            rules.POOL,
            "pool",
            {"vmSize": "Standard_ND96isr_H100_v5", "count": 1, "nodeTaints": ["nvidia.com/gpu=present:NoSchedule"]},
        ),
        resource(rules.BUDGET, "budget", {"amount": 80000}),
        resource(rules.KUBERNETES_SECRET, "token", {"stringData": SECRET}),
        workload("model", {"app": "vllm"}, vllm, []),
        workload("edge", {"app": "edge"}, proxy, [{"name": "files", "projected": {"sources": files}}]),
        resource(rules.SERVICE, "model-service", {"spec": {"type": "ClusterIP", "selector": {"app": "vllm"}}}),
        resource(rules.SERVICE, "edge-service", {"spec": {"type": "LoadBalancer", "selector": {"app": "edge"}}}),
        resource(
            rules.NETWORK_POLICY,
            "from-edge",
            {
                "spec": {
                    "podSelector": {"matchLabels": {"app": "vllm"}},
                    "policyTypes": ["Ingress"],
                    "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "edge"}}}]}],
                }
            },
        ),
    ]
    return {each.name: each for each in found}


def changed(name: str, change: Callable[[Any], object]) -> Callable[[Resources], object]:
    """A change of one resource's properties."""

    def apply(stack: Resources) -> None:
        props = copy.deepcopy(dict(stack[name].props))
        change(props)
        stack[name] = replace(stack[name], props=props)

    return apply


def container(name: str, **values: Any) -> Callable[[Resources], object]:
    return changed(name, lambda props: props["spec"]["template"]["spec"]["containers"][0].update(values))


def unprotected(stack: Resources) -> None:
    stack["cluster"] = replace(stack["cluster"], protect=False)


def ingress(stack: Resources) -> None:
    stack["ingress"] = resource("kubernetes:networking.k8s.io/v1:Ingress", "ingress", {"spec": {"rules": []}})


#: Policy, what breaks it, the resource that is named, and words of the message.
VIOLATIONS: tuple[tuple[str, Callable[[Resources], object], str, str], ...] = (
    (
        "no-open-endpoint",
        changed("model-service", lambda props: props["spec"].update(type="LoadBalancer")),
        "model-service",
        "leads to vLLM itself",
    ),
    (
        "no-open-endpoint",
        changed("model-service", lambda props: props["spec"].update(type="NodePort")),
        "model-service",
        "is of type NodePort",
    ),
    (
        "no-open-endpoint",
        changed("edge", lambda props: props["spec"]["template"]["spec"]["volumes"][0]["projected"]["sources"].pop(0)),
        "edge-service",
        "reachable from the internet without TLS",
    ),
    (
        "no-open-endpoint",
        changed("edge", lambda props: props["spec"]["template"]["spec"]["volumes"][0]["projected"]["sources"].pop(1)),
        "edge-service",
        "reachable from the internet without API keys",
    ),
    ("no-open-endpoint", ingress, "ingress", "without TLS"),
    ("pinned-images", container("model", image="vllm/vllm-openai:v0.33.0"), "model", "runs vllm/vllm-openai:v0.33.0"),
    ("pinned-images", container("edge", image="haproxy"), "edge", "can change under its tag"),
    (
        "no-plain-secret",
        container("model", args=[f"/models/{COMMIT}", "hf_" + "notARealToken" * 3]),
        "model",
        "args[1] holds what looks like a secret in clear",
    ),
    (
        "no-plain-secret",
        container("model", env=[{"name": "VLLM_API_KEY", "value": "letmein"}]),
        "model",
        "gets VLLM_API_KEY in its environment",
    ),
    (
        "no-plain-secret",
        changed("token", lambda props: props.update(stringData={"token": "x"})),
        "token",
        "stringData is not marked secret",
    ),
    (
        "engine-behind-network-policy",
        lambda stack: stack.pop("from-edge"),
        "model",
        "no NetworkPolicy selects its pods",
    ),
    (
        "engine-behind-network-policy",
        changed("from-edge", lambda props: props["spec"].update(policyTypes=["Egress"])),
        "model",
        "no NetworkPolicy selects its pods",
    ),
    (
        "engine-behind-network-policy",
        changed("from-edge", lambda props: props["spec"]["podSelector"]["matchLabels"].update(app="other")),
        "model",
        "no NetworkPolicy selects its pods",
    ),
    (
        "engine-behind-network-policy",
        changed("from-edge", lambda props: props["spec"].update(ingress=[{"ports": [{"port": 8000}]}])),
        "from-edge",
        "lets everybody in",
    ),
    (
        "gpu-pools-tainted",
        changed("pool", lambda props: props.pop("nodeTaints")),
        "pool",
        "has GPUs (Standard_ND96isr_H100_v5)",
    ),
    ("production-protected", unprotected, "cluster", "is not protected"),
    (
        "local-accounts-off",
        changed("cluster", lambda props: props.update(disableLocalAccounts=False)),
        "cluster",
        "allows local accounts",
    ),
    (
        "local-accounts-off",
        changed("cluster", lambda props: props.pop("disableLocalAccounts")),
        "cluster",
        "allows local",
    ),
    ("pinned-model-revision", container("model", args=["/models/llama/main"]), "model", "no commit in its command"),
    ("within-budget", lambda stack: stack.pop("budget"), "", "the stack has no budget"),
    ("within-budget", changed("pool", lambda props: props.update(count=2)), "", "may cost $143,547 a month"),
    ("within-budget", changed("pool", lambda props: props.update(maxCount=3)), "", "may cost $215,321 a month"),
    (
        "within-budget",
        changed("pool", lambda props: props.update(vmSize="Standard_ND96isr_H200_v5")),
        "pool",
        "has no known price",
    ),
)


def outcomes(stack: Resources, exemptions: list[Exemption] | None = None) -> dict[str, Outcome]:
    found = rules.run(Stack(list(stack.values())), exemptions or [], TODAY)
    return {outcome.rule.name: outcome for outcome in found}


def test_a_stack_can_hold_every_policy() -> None:
    for name, outcome in outcomes(holding()).items():
        assert not outcome.violations, name
        assert outcome.subjects, f"{name} has looked at nothing"


# A function's own id would hold its address, and two processes would collect different tests.
@pytest.mark.parametrize(
    ("policy", "change", "named", "says"), VIOLATIONS, ids=lambda value: "" if callable(value) else str(value)[:40]
)
def test_a_violation_is_told_by_its_policy_alone(policy: str, change: Any, named: str, says: str) -> None:
    stack = holding()
    change(stack)
    broken = {name: outcome for name, outcome in outcomes(stack).items() if outcome.violations}
    assert list(broken) == [policy]
    told = [(each.resource, each.message) for each in broken[policy].violations]
    assert [(name, message) for name, message in told if name == named and says in message], told


def test_every_policy_is_violated_by_some_stack() -> None:
    assert {policy for policy, *_ in VIOLATIONS} == {rule.name for rule in rules.RULES}


VAULT = {
    "id": "/subscriptions/00000000-0000-0000-0000-00000000aaaa/resourceGroups/rg-platform/providers"
    "/Microsoft.KeyVault/vaults/platform",
    "certificate": "llm-example-com",
}


@pytest.mark.parametrize(
    "certificate", [{"edge": {"tls-secret": "edge-tls"}}, {"key-vault": VAULT}], ids=["Secret", "vault"]
)
def test_what_the_program_declares_for_an_endpoint_on_the_internet_holds(certificate: dict[str, Any]) -> None:
    """The stacks above are made by hand: this one shows that the policy looks where the program puts things."""
    edge = {"access": "public", "host": "llm.example.com", "keys": {"team-a": {"sha256": "a" * 64}}}
    settings = {**certificate, "edge": {**edge, **certificate.get("edge", {})}}
    outcomes = rules.run(policies.of_recording(recorded_preview("test", preset="qwen3-8b", **settings)), [])
    (open_endpoint,) = [each for each in outcomes if each.rule.name == "no-open-endpoint"]
    assert open_endpoint.subjects
    assert not open_endpoint.violations


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.name)
def test_none_passes_silently_when_its_resource_is_missing(rule: rules.Rule) -> None:
    outcome = outcomes({})[rule.name]
    assert outcome.subjects == 0
    if rule.needed:
        assert "found nothing to look at" in outcome.violations[0].message
    assert f"{rule.name} | 0 |" in policies.block([outcome]), "the comment shows that nothing was looked at"
    assert "holds |" not in policies.block([outcome])


@pytest.mark.parametrize("policy", ["pinned-images", "production-protected", "pinned-model-revision", "within-budget"])
def test_what_only_production_needs_is_not_asked_of_development(policy: str) -> None:
    change = next(change for name, change, *_ in VIOLATIONS if name == policy)
    stack = holding()
    changed("cluster", lambda props: props["sku"].update(tier=rules.DEVELOPMENT_TIER))(stack)
    change(stack)
    assert not outcomes(stack)[policy].violations


def test_a_stack_on_a_cluster_of_somebody_elses_holds_without_what_its_owner_has() -> None:
    stack = holding()
    for name in ("cluster", "group", "budget"):
        del stack[name]
    found = outcomes(stack)
    assert {name for name, outcome in found.items() if outcome.violations} == set()
    nothing = {name for name, outcome in found.items() if not outcome.subjects}
    assert nothing == {"production-protected", "local-accounts-off", "within-budget"}


def test_a_stack_on_a_cluster_of_somebody_elses_is_taken_for_production() -> None:
    stack = holding()
    del stack["cluster"]
    container("model", image="vllm/vllm-openai:v0.33.0")(stack)
    assert outcomes(stack)["pinned-images"].violations


def test_an_internal_load_balancer_needs_neither_certificate_nor_keys() -> None:
    stack = holding()
    changed("edge", lambda props: props["spec"]["template"]["spec"].update(volumes=[]))(stack)
    changed("edge-service", lambda props: props.update(metadata={"annotations": {rules.INTERNAL: "true"}}))(stack)
    assert not outcomes(stack)["no-open-endpoint"].violations


def exemption(**values: Any) -> Exemption:
    base = Exemption(policy="gpu-pools-tainted", resource="pool", reason="a test", review="none", until=TODAY)
    return replace(base, **values)


@pytest.mark.parametrize(
    ("given", "excused"),
    [
        (exemption(), True),
        (exemption(until=TODAY - datetime.timedelta(days=1)), False),
        (exemption(resource="other"), False),
        (exemption(policy="pinned-images"), False),
    ],
    ids=["its last day", "ended", "another resource", "another policy"],
)
def test_an_exemption_is_for_one_policy_one_resource_and_a_time(given: Exemption, excused: bool) -> None:
    stack = holding()
    changed("pool", lambda props: props.pop("nodeTaints"))(stack)
    outcome = outcomes(stack, [given])["gpu-pools-tainted"]
    assert bool(outcome.violations) is not excused
    assert bool(outcome.exempted) is excused
    if excused:
        assert "exempted" in policies.block([outcome]), "an exemption is shown, not hidden"
        assert "a test" in policies.block([outcome])


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{policy: x, resource: y, reason: z, review: r, until: 2027-01-31}", "policy = x: there is none"),
        ("{policy: within-budget, resource: y, reason: z, until: 2027-01-31}", "they must be policy, reason"),
        ("{policy: within-budget, resource: y, reason: z, review: r, until: soon}", "until = soon: must be a day"),
        ("{policy: within-budget, resource: y, reason: '', review: r, until: 2027-01-31}", "must say why"),
    ],
    ids=["policy", "key", "day", "reason"],
)
def test_an_exemption_that_cannot_stand_is_refused(tmp_path: Path, entry: str, says: str) -> None:
    file = tmp_path / "exemptions.yaml"
    file.write_text(f"exemptions:\n  - {entry}\n")
    with pytest.raises(rules.ExemptionError, match=says):
        rules.exemptions(file)


def test_the_projects_own_exemptions_can_be_read() -> None:
    assert rules.exemptions() == []


def test_a_stack_whose_kubeconfig_is_encrypted_is_looked_at_all_the_same(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    shutil.copy(root / "__main__.py", tmp_path)
    (tmp_path / "stacks").mkdir()
    lines = ("azure-native:location: eastus", "preset: qwen3-8b", "kubeconfig: {secure: v1:not-read-here}")
    settings = "\n".join(f"  {line}" for line in (*lines, "weights: {source: hugging-face}"))
    (tmp_path / "stacks" / "Pulumi.keyed.yaml").write_text(f"config:\n{settings}\n")
    found = policies.graph(tmp_path, "keyed")
    assert [engine.name for engine, _ in found.engines()] == ["model-deployment"]
    assert not found.of(rules.CLUSTER, rules.POOL)
    assert found.production
