"""What Azure is asked before a deployment: every check, when all is well, when it is not, and when nobody answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError

from planning.command_line import planned
from planning.plan import StackPlan
from preflight import azure, checks, needs, web
from preflight.account import Account
from preflight.checks import Result, Status
from preflight.resource_manager import ResourceManager
from sandbox.__main__ import read_config
from sandbox.azure import rules
from sandbox.engine import record
from tests.preflight.front import (
    ACCESS_ADMINISTRATOR,
    CONTRIBUTOR,
    MALFORMED,
    OTHER_SHAPE,
    OWNER,
    PATIENCE,
    PRINCIPAL,
    RBAC_CLUSTER_ADMIN,
    REGION,
    SILENT,
    SUBSCRIPTION,
    Broken,
    Front,
    SignedIn,
)

ROOT = Path(__file__).parents[2]
#: Check, and the questions that it asks.
QUESTIONS = {
    "subscription": ["subscription"],
    "roles": ["assignments", "roles"],
    "providers": ["providers"],
    "kubernetes": ["cluster", "versions"],
    "vm-sizes": ["skus"],
    "quota": ["cluster", "usages"],
}
FIRST = {check: questions[0] for check, questions in QUESTIONS.items()}
SECOND = {check: questions[1] for check, questions in QUESTIONS.items() if len(questions) > 1}
H100 = "Standard_ND96isr_H100_v5"
SUBNET = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg-network/providers/Microsoft.Network/virtualNetworks/v/subnets/s"
)


@pytest.fixture(scope="module")
def plan() -> StackPlan:
    """One node of eight H100s and three system nodes, in production."""
    return planned("prod", [])


def look(front: Front, plan: StackPlan, *, arm: str = "", account: Account | None = None) -> dict[str, list[Result]]:
    account = account or Account({"ARM_SUBSCRIPTION_ID": SUBSCRIPTION}, SignedIn())
    manager = ResourceManager(account, arm or front.endpoints.arm)
    found: dict[str, list[Result]] = {}
    for result in checks.run(azure.checks(plan, manager), deadline_seconds=300):
        found.setdefault(result.check, []).append(result)
    return found


def only(results: list[Result], status: Status) -> Result:
    bad = [result for result in results if result.status is not Status.OK]
    assert [result.status for result in bad] == [status], results
    return bad[0]


def test_where_all_is_well_every_check_says_so_and_nothing_is_changed(front: Front, plan: StackPlan) -> None:
    found = look(front, plan)
    assert list(found) == list(QUESTIONS)
    assert {result.status for results in found.values() for result in results} == {Status.OK}
    assert {method for method, _ in front.asked} == {"GET"}, "looking must not write"
    assert {name for _, name in front.asked} == {question for asked in QUESTIONS.values() for question in asked}
    assert f"0 of 192 vCPUs are used; the stack needs 96 (1 × {H100}): enough" in found["quota"][0].message
    assert "40 of 1000 vCPUs are used; the stack needs 108" in found["quota"][-1].message
    assert found["kubernetes"][0].message == "AKS has 1.36 in eastus, which is 1.36.10 today", "10 is more than 2"


@pytest.mark.parametrize("broken_questions", [FIRST, SECOND], ids=["first-question", "second-question"])
@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (SILENT, "did not answer within"),
        (Broken(401), "does not take the sign-in"),
        (Broken(403, text='{"error": {"code": "AuthorizationFailed", "message": "no"}}'), "AuthorizationFailed"),
        (Broken(429), "too many requests"),
        (Broken(429, {"Retry-After": "3600"}), "too many requests"),
        (Broken(503), "HTTP 503"),
        (MALFORMED, "JSON"),
        (OTHER_SHAPE, "documented form"),
    ],
    ids=["silent", "401", "403", "429", "429-for-an-hour", "503", "malformed", "other-shape"],
)
def test_what_cannot_be_found_out_is_not_done_with_the_reason(
    front: Front,
    plan: StackPlan,
    monkeypatch: pytest.MonkeyPatch,
    broken_questions: dict[str, str],
    broken: Broken,
    words: str,
) -> None:
    if broken is SILENT:
        monkeypatch.setattr(web, "TIMEOUT_SECONDS", PATIENCE)
    front.broken = dict.fromkeys(broken_questions.values(), broken)
    found = look(front, plan)
    for check in broken_questions:
        said = found[check][0]
        assert said.status is Status.NOT_DONE, (check, found[check])
        assert words in said.message
        assert said.remedy, "somebody must know what to do about it"
        assert "Traceback" not in said.message
        assert "should not have happened" not in said.message


@pytest.mark.parametrize("question", sorted({question for questions in QUESTIONS.values() for question in questions}))
def test_what_is_not_done_hides_nothing_else(front: Front, plan: StackPlan, question: str) -> None:
    front.broken[question] = Broken(503)
    found = look(front, plan)
    assert list(found) == list(QUESTIONS)
    for name, results in found.items():
        expected = Status.NOT_DONE if question in QUESTIONS[name] else Status.OK
        assert {result.status for result in results} == {expected}, (name, results)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_moment_of_weakness_is_tried_again(front: Front, plan: StackPlan, status: int) -> None:
    questions = {question for asked in QUESTIONS.values() for question in asked}
    front.weak = {question: [Broken(status, {"Retry-After": "0"}), Broken(status)] for question in questions}
    found = look(front, plan)
    assert {result.status for results in found.values() for result in results} == {Status.OK}, found
    assert not any(front.weak.values()), "every question was asked three times"


def test_an_azure_that_cannot_be_reached_is_said_of_each_check(front: Front, plan: StackPlan) -> None:
    found = look(front, plan, arm="https://127.0.0.1:1")
    for name in QUESTIONS:
        assert found[name][0].status is Status.NOT_DONE
        assert "cannot reach Azure" in found[name][0].message


@pytest.mark.parametrize(
    ("credential", "words"),
    [
        (
            Account({"ARM_SUBSCRIPTION_ID": SUBSCRIPTION}, SignedIn(refusal=ClientAuthenticationError("Run az"))),
            "Run az",
        ),
        (Account({"ARM_SUBSCRIPTION_ID": SUBSCRIPTION}, SignedIn(refusal=OSError("no route"))), "no route"),
    ],
    ids=["not-signed-in", "no-network"],
)
def test_without_a_sign_in_one_check_says_so_and_the_others_point_there(
    front: Front, plan: StackPlan, credential: SignedIn, words: str
) -> None:
    found = look(front, plan, account=Account({"ARM_SUBSCRIPTION_ID": SUBSCRIPTION}, credential))
    assert words in found["subscription"][0].message
    assert {results[0].message for name, results in found.items() if name != "subscription"} == {
        "needs the subscription: see there"
    }
    assert front.asked == []


def test_a_token_is_asked_for_once(front: Front, plan: StackPlan) -> None:
    credential = SignedIn()
    look(front, plan, account=Account({"ARM_SUBSCRIPTION_ID": SUBSCRIPTION}, credential))
    assert credential.given == 1, "each question to the Azure CLI takes a second"


def test_a_token_without_a_name_leaves_only_the_roles_undone(front: Front, plan: StackPlan) -> None:
    found = look(front, plan, account=Account({"ARM_SUBSCRIPTION_ID": SUBSCRIPTION}, SignedIn(claims={"upn": "x"})))
    assert only([r for results in found.values() for r in results], Status.NOT_DONE).check == "roles"


# Subscription.


@pytest.mark.parametrize("state", ["Disabled", "Warned", "PastDue"])
def test_a_subscription_that_is_not_enabled_is_a_problem(front: Front, plan: StackPlan, state: str) -> None:
    front.state = state
    assert f"is {state}" in only(look(front, plan)["subscription"], Status.PROBLEM).message


def test_a_subscription_that_the_sign_in_does_not_see_is_a_problem(front: Front, plan: StackPlan) -> None:
    front.broken["subscription"] = Broken(404, text='{"error": {"code": "SubscriptionNotFound", "message": "no"}}')
    assert "ARM_SUBSCRIPTION_ID" in only(look(front, plan)["subscription"], Status.PROBLEM).remedy


# Roles.


@pytest.mark.parametrize(
    ("assigned", "lacks"),
    [
        ([("/subscriptions/{s}", OWNER, None)], None),
        ([("/subscriptions/{s}", CONTRIBUTOR, None), ("/subscriptions/{s}", ACCESS_ADMINISTRATOR, None)], None),
        ([("/providers/Microsoft.Management/managementGroups/all", OWNER, None)], None),
        ([("/subscriptions/{S}/resourcegroups/RG-AKS-VLLM-PROD", OWNER, None)], None),
        ([("/subscriptions/{s}", CONTRIBUTOR, None)], "Microsoft.Authorization/roleAssignments/write"),
        ([("/subscriptions/{s}", ACCESS_ADMINISTRATOR, None)], "resourceGroups/write"),
        ([("/subscriptions/{s}/resourceGroups/other", OWNER, None)], "resourceGroups/write"),
        ([("/subscriptions/{s}/resourceGroups/rg-aks-vllm", OWNER, None)], "resourceGroups/write"),
        ([], "has no role"),
    ],
    ids=[
        "owner",
        "two-roles",
        "management-group",
        "group",
        "contributor",
        "only-access",
        "elsewhere",
        "prefix",
        "none",
    ],
)
def test_permissions_that_the_deployer_lacks_are_named(
    front: Front, plan: StackPlan, assigned: list[tuple[str, str, str | None]], lacks: str | None
) -> None:
    front.assigned = [(s.format(s=SUBSCRIPTION, S=SUBSCRIPTION.upper()), role, c) for s, role, c in assigned]
    results = look(front, plan)["roles"]
    if lacks is None:
        assert {result.status for result in results} == {Status.OK}
        return
    problem = only(results, Status.PROBLEM)
    assert lacks in problem.message
    assert "az role assignment create" in problem.remedy
    assert PRINCIPAL in problem.remedy


def test_what_is_lacking_for_grants_alone_needs_no_owner(front: Front, plan: StackPlan) -> None:
    front.assigned = [(f"/subscriptions/{SUBSCRIPTION}", CONTRIBUTOR, None)]
    remedy = only(look(front, plan)["roles"], Status.PROBLEM).remedy
    assert '"Role Based Access Control Administrator"' in remedy
    assert "Owner" not in remedy, "the smallest role that is enough"


def test_a_grant_under_a_condition_is_a_warning(front: Front, plan: StackPlan) -> None:
    condition = "((!(ActionMatches{'Microsoft.Authorization/roleAssignments/write'})))"
    front.assigned = [(f"/subscriptions/{SUBSCRIPTION}", OWNER, condition)]
    assert "roles that the program grants" in only(look(front, plan)["roles"], Status.WARNING).remedy


# Providers.


@pytest.mark.parametrize("state", ["NotRegistered", "Registering", "Unregistered"])
def test_a_provider_that_is_not_registered_comes_with_the_command(front: Front, plan: StackPlan, state: str) -> None:
    front.unregistered["Microsoft.ContainerService"] = state
    problem = only(look(front, plan)["providers"], Status.PROBLEM)
    assert problem.message == f"Microsoft.ContainerService is {state}"
    assert problem.remedy == "az provider register --namespace Microsoft.ContainerService --wait"


# Kubernetes.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda front: front.versions.pop("1.36"), "AKS has no 1.36 in eastus; it has 1.34, 1.35"),
        (lambda front: front.previews.add("1.36"), "is a preview"),
        (lambda front: front.versions.update({"1.36": ["AKSLongTermSupport"]}), "only long-term support"),
        (lambda front: _cluster(front, "1.34.9"), "one minor version at a time"),
        (lambda front: _cluster(front, "1.37.0"), "does not go back"),
    ],
    ids=["gone", "preview", "long-term", "two-steps", "back"],
)
def test_a_kubernetes_version_that_cannot_be_had_is_a_problem(
    front: Front, plan: StackPlan, change: Callable[[Front], object], words: str
) -> None:
    change(front)
    assert words in only(look(front, plan)["kubernetes"], Status.PROBLEM).message


@pytest.mark.parametrize(("patch", "status"), [("1.36.2", Status.OK), ("1.36.3", Status.PROBLEM)])
def test_a_patch_version_must_be_one_that_is_offered(front: Front, patch: str, status: Status) -> None:
    found = look(front, planned("prod", [f"kubernetes-version={patch}"]))["kubernetes"]
    assert [result.status for result in found] == [status], found


def test_the_next_version_of_a_cluster_is_fine(front: Front, plan: StackPlan) -> None:
    _cluster(front, "1.35.2")
    assert look(front, plan)["kubernetes"][0].status is Status.OK


def _cluster(front: Front, version: str, pools: dict[str, tuple[str, int]] | None = None) -> None:
    front.cluster = {"name": "aks-vllm-prod", "location": REGION, "properties": {"currentKubernetesVersion": version}}
    front.pools = [
        {"name": name, "properties": {"vmSize": size, "count": count}} for name, (size, count) in (pools or {}).items()
    ]


# A cluster that is not the stack's.

THEIRS = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg-platform/providers/Microsoft.ContainerService/managedClusters"
    "/platform"
)
AS_NEEDED = {
    "currentKubernetesVersion": "1.35.2",
    "aadProfile": {"managed": True},
    "networkProfile": {"networkPolicy": "cilium", "networkDataplane": "cilium"},
    "oidcIssuerProfile": {"enabled": True, "issuerURL": "https://issuer.example/"},
    "securityProfile": {"workloadIdentity": {"enabled": True}},
}
IN_GROUP = (f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg-platform", CONTRIBUTOR, None)


def on_theirs(front: Front, *overrides: str, **properties: object) -> dict[str, list[Result]]:
    merged = {key: value for key, value in {**AS_NEEDED, **properties}.items() if value is not None}
    front.cluster = {"name": "platform", "location": REGION, "properties": merged}
    front.assigned = [IN_GROUP, *front.assigned]
    return look(front, planned("prod", [f"existing-cluster.id={THEIRS}", *overrides]))


def test_a_cluster_that_is_as_needed_is_said_to_be_so(front: Front) -> None:
    found = on_theirs(front)
    assert list(found) == ["subscription", "roles", "providers", "cluster", "vm-sizes", "quota"]
    assert {result.status for results in found.values() for result in results} == {Status.OK}
    assert [result.message for result in found["cluster"]] == ["cluster platform is as the plan needs it"]
    assert len(found["vm-sizes"]) == 1, "system nodes are its owner's"
    assert {method for method, _ in front.asked} == {"GET"}


@pytest.mark.parametrize(
    ("properties", "status", "words"),
    [
        ({"currentKubernetesVersion": "1.33.9"}, Status.PROBLEM, "has Kubernetes 1.33.9; the stack's pods need 1.34"),
        ({"aadProfile": None}, Status.PROBLEM, "no sign-in with Entra ID"),
        ({"networkProfile": {"networkPolicy": "none"}}, Status.WARNING, "no network policy engine"),
        ({"networkProfile": {}}, Status.WARNING, "no network policy engine"),
        ({"oidcIssuerProfile": None}, Status.PROBLEM, "no OIDC issuer with workload identity"),
        ({"securityProfile": None}, Status.PROBLEM, "no OIDC issuer with workload identity"),
        (
            {"agentPoolProfiles": [{"name": "system", "vnetSubnetID": "/subscriptions/s/subnets/nodes"}]},
            Status.PROBLEM,
            "lies in a subnet of its owner, and the stack names none",
        ),
    ],
)
def test_what_a_cluster_lacks_is_told_with_what_its_owner_does(
    front: Front, properties: dict[str, object], status: Status, words: str
) -> None:
    problem = only(on_theirs(front, **properties)["cluster"], status)
    assert words in problem.message
    assert problem.remedy


def test_whoever_may_make_pools_may_not_write_in_the_cluster_by_that_alone(front: Front) -> None:
    azures = {"managed": True, "enableAzureRBAC": True}
    problem = only(on_theirs(front, aadProfile=azures)["cluster"], Status.PROBLEM)
    assert "may not write in cluster platform: Microsoft.ContainerService/managedClusters/namespaces" in problem.message
    assert f'--role "Azure Kubernetes Service RBAC Cluster Admin" --scope {THEIRS}' in problem.remedy
    front.assigned.append((THEIRS, RBAC_CLUSTER_ADMIN, None))
    assert on_theirs(front, aadProfile=azures)["cluster"][0].status is Status.OK


def test_names_are_not_filtered_without_cilium(front: Front) -> None:
    calico = {"networkPolicy": "calico", "networkDataplane": "azure"}
    found = on_theirs(front, "existing-cluster.fqdn-policies=true", networkProfile=calico)
    assert "no Cilium" in only(found["cluster"], Status.PROBLEM).message


def test_a_cluster_that_is_not_there_or_elsewhere_is_a_problem(front: Front) -> None:
    plan = planned("prod", [f"existing-cluster.id={THEIRS}"])
    assert "is not there for this sign-in" in only(look(front, plan)["cluster"], Status.PROBLEM).message
    front.cluster = {"name": "platform", "location": "westus", "properties": AS_NEEDED}
    assert "is in westus, the stack in eastus" in only(look(front, plan)["cluster"], Status.PROBLEM).message
    other = THEIRS.replace(SUBSCRIPTION, "11111111-1111-1111-1111-111111111111")
    found = look(front, planned("prod", [f"existing-cluster.id={other}", "weights={source: hugging-face}"]))
    assert "is in another subscription" in only(found["cluster"], Status.PROBLEM).message


def test_only_pools_of_the_stacks_own_count_as_what_it_has_already(front: Front) -> None:
    plan = planned("prod", [f"existing-cluster.id={THEIRS}"])
    _cluster(front, "1.36.2", {"theirs": (H100, 1)})
    assert "and has" not in look(front, plan)["quota"][0].message
    _cluster(front, "1.36.2", {plan.gpu_pools[0].agent_pool_name: (H100, 1)})
    assert "and has 96 of them" in look(front, plan)["quota"][0].message


def test_a_stack_that_has_nothing_in_azure_asks_azure_nothing(front: Front) -> None:
    plan = planned("prod", ["kubeconfig={secure: v1:x}", "weights={source: hugging-face}"])
    assert look(front, plan) == {}
    assert front.asked == []


@pytest.mark.parametrize("weights", ["hugging-face", "azure-blob"])
def test_what_is_asked_for_is_what_the_stack_declares_in_a_cluster_of_somebody_elses(weights: str) -> None:
    settings = [f"existing-cluster.id={THEIRS}", f"weights={{source: {weights}}}", f"revision={'a' * 40}"]
    plan = planned("dev", settings)
    config = read_config(ROOT / "stacks" / "Pulumi.dev.yaml", settings, "hf_x")
    recorded = record(ROOT, "dev", config.values, config.secret_keys)
    declared = {each.type for each in recorded.registrations if each.type.startswith("azure-native:")}
    arm = {rules()["resources"][type_]["arm-type"].removeprefix("Microsoft.Resources/") for type_ in declared}
    asked = {type_.removeprefix("Microsoft.Resources/subscriptions/") for type_ in needs.resource_types(plan)}
    assert asked == arm


# VM sizes.


def test_a_size_that_the_region_does_not_have_is_a_problem(front: Front, plan: StackPlan) -> None:
    front.missing_sizes.add(H100)
    problem = only(look(front, plan)["vm-sizes"], Status.PROBLEM)
    assert problem.message == f"{H100} (pool {plan.gpu_pools[0].agent_pool_name}) is not offered in {REGION}"
    assert "az vm list-skus" in problem.remedy


@pytest.mark.parametrize("reason", ["NotAvailableForSubscription", "QuotaId"])
def test_a_size_closed_to_the_subscription_is_a_problem(front: Front, plan: StackPlan, reason: str) -> None:
    front.restrictions[H100] = [
        {"type": "Location", "values": [REGION], "restrictionInfo": {"locations": [REGION]}, "reasonCode": reason}
    ]
    assert reason in only(look(front, plan)["vm-sizes"], Status.PROBLEM).message


def test_zones_closed_to_the_subscription_are_not_offered(front: Front, plan: StackPlan) -> None:
    info = {"locations": [REGION], "zones": ["2"]}
    front.restrictions[H100] = [{"type": "Zone", "values": [REGION], "restrictionInfo": info, "reasonCode": "QuotaId"}]
    results = look(front, plan)["vm-sizes"]
    assert {result.status for result in results} == {Status.OK}
    assert results[0].message.endswith("in zones 1, 3")


@pytest.mark.parametrize(("key", "value", "words"), [("vcpus", 95, "95 vCPUs"), ("quota-family", "other", "in other")])
def test_a_catalogue_that_differs_from_azure_is_a_warning(
    front: Front, plan: StackPlan, monkeypatch: pytest.MonkeyPatch, key: str, value: object, words: str
) -> None:
    from tests.preflight import front as module

    sizes = {**module.vm_sizes()}
    sizes[H100] = {**sizes[H100], key: value}
    monkeypatch.setattr(module, "vm_sizes", lambda: sizes)
    warning = only(look(front, plan)["vm-sizes"], Status.WARNING)
    assert words in warning.message
    assert "Correct it there" in warning.remedy


# Quota.


def test_quota_that_is_too_small_says_by_how_much_and_what_to_ask_for(front: Front, plan: StackPlan) -> None:
    front.used["standardndsh100v5family"] = 144
    problem = only(look(front, plan)["quota"], Status.PROBLEM)
    assert problem.message.startswith("standardNDSH100v5Family in eastus: 144 of 192 vCPUs are used")
    assert problem.message.endswith("48 too few")
    assert "at least 240" in problem.remedy


def test_the_limit_of_all_families_together_counts_too(front: Front, plan: StackPlan) -> None:
    front.limits["cores"] = 100
    assert only(look(front, plan)["quota"], Status.PROBLEM).message.startswith("all families (cores)")


def test_a_family_that_azure_does_not_name_has_no_quota(
    front: Front, plan: StackPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.preflight import front as module

    small = {name: size for name, size in module.vm_sizes().items() if name != H100}
    monkeypatch.setattr(module, "vm_sizes", lambda: small)
    front.limits["standardndsh100v5family"] = 0
    assert "0 of 0 vCPUs" in only(look(front, plan)["quota"], Status.PROBLEM).message


def test_nodes_that_the_stack_already_has_are_not_needed_again(front: Front, plan: StackPlan) -> None:
    front.used |= {"standardndsh100v5family": 192, "standardddsv5family": 100, "cores": 1000}
    _cluster(front, "1.36.1", {"system": ("Standard_D4ds_v5", 3), "h100x8": (H100.upper(), 1)})
    results = look(front, plan)["quota"]
    assert {result.status for result in results} == {Status.OK}, "a second update of a full subscription works"
    assert "has 96 of them" in results[0].message


def test_only_the_nodes_that_are_new_are_counted(front: Front) -> None:
    front.used["standardndsh100v5family"] = 150
    _cluster(front, "1.36.1", {"h100x8": (H100, 1)})
    grown = planned("prod", ["replicas=4"])
    assert grown.gpu_pools[0].max_count == 2
    assert only(look(front, grown)["quota"], Status.PROBLEM).message.endswith("has 96 of them: 54 too few")


def test_two_pools_of_one_family_share_its_quota(front: Front, plan: StackPlan) -> None:
    pool = plan.gpu_pools[0]
    both = dataclasses.replace(plan, gpu_pools=(pool, dataclasses.replace(pool, name="second")))
    front.used["standardndsh100v5family"] = 96
    problem = only(look(front, both)["quota"], Status.PROBLEM)
    assert "needs 192" in problem.message


def test_the_quota_checked_is_the_quota_planned(front: Front) -> None:
    """The report counts once, the check counts again: they must agree."""
    for stack in ("dev", "prod", "sandbox"):
        plan = planned(stack, [])
        counted: dict[str, int] = {}
        for size in azure._sizes(plan):
            counted[size.family] = counted.get(size.family, 0) + size.nodes * size.vcpus
        said: dict[str, int] = {}
        for need in plan.quota:
            said[need.family] = said.get(need.family, 0) + need.vcpus
        assert counted == said


# What the stack needs.


IN_VAULT = [
    "key-vault.id=/subscriptions/00000000-0000-0000-0000-00000000dddd/resourceGroups/rg-platform/providers"
    "/Microsoft.KeyVault/vaults/platform",
    "key-vault.hf-token=hugging-face",
]


def assert_needs_are_declared(stack: str, changes: list[str]) -> None:
    config = read_config(ROOT / f"stacks/Pulumi.{stack}.yaml", changes, "hf_" + "x" * 34)
    recording = record(ROOT, stack, config.values, config.secret_keys)
    declared = {r.type for r in recording.registrations if r.type.startswith("azure-native:")}
    names = {rules()["resources"][token]["arm-type"].lower() for token in declared}
    found = needs.resource_types(planned(stack, changes))
    assert {type_.replace("/subscriptions/", "/").lower() for type_ in found} == names, "correct preflight/needs.py"


@pytest.mark.parametrize("stack", ["dev", "prod", "sandbox"])
def test_the_needs_are_what_the_program_declares(stack: str) -> None:
    """Another resource in a component is another permission, and perhaps another registration."""
    assert_needs_are_declared(stack, [])


@pytest.mark.parametrize(
    "changes",
    [
        ["budget={usd-per-month: 9000, contacts: [a@example.com], first-month: 2026-12}"],
        ["add-ons=[log-analytics, defender, azure-policy]"],
        ["add-ons=[managed-prometheus]"],
        ["add-ons=[managed-prometheus, managed-grafana]"],
        [f"network.subnet-id={SUBNET}"],
        IN_VAULT,
        [*IN_VAULT, "weights.source=hugging-face"],
    ],
    ids=["budget", "add-ons", "metrics", "grafana", "own-subnet", "vault", "vault-without-weights"],
)
def test_the_needs_follow_the_settings(changes: list[str]) -> None:
    assert_needs_are_declared("prod", changes)


def test_what_add_ons_need_is_registered_too() -> None:
    plan = planned("prod", ["add-ons=[log-analytics, defender, azure-policy]"])
    assert {"Microsoft.Security", "Microsoft.PolicyInsights"} <= {*needs.providers(plan)}
    assert "Microsoft.Consumption" not in needs.providers(plan), "every subscription has it"
    watched = needs.providers(planned("prod", ["add-ons=[managed-prometheus, managed-grafana]"]))
    metrics = {"Microsoft.AlertsManagement", "Microsoft.Dashboard", "Microsoft.Insights", "Microsoft.Monitor"}
    assert metrics <= {*watched}


def test_an_add_on_that_the_region_has_not_is_told_before_the_cluster_is_paid_for(front: Front) -> None:
    plan = planned("prod", ["add-ons=[managed-prometheus, managed-grafana]"])
    assert {result.status for result in look(front, plan)["providers"]} == {Status.OK}
    front.grafana_in = ["West Europe"]
    told = [result.message for result in look(front, plan)["providers"] if result.status is Status.PROBLEM]
    assert [message.partition(" is not offered in eastus; it is in westeurope")[0] for message in told] == [
        "Microsoft.Dashboard/grafana",
        "Microsoft.Monitor/accounts",
    ]


def test_a_subnet_of_somebody_else_is_asked_for_on_its_own(front: Front) -> None:
    """Owner of the stack's own group is not enough: the network's group is another one."""
    front.assigned = [(f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg-aks-vllm-prod", OWNER, None)]
    results = look(front, planned("prod", [f"network.subnet-id={SUBNET}"]))["roles"]
    assert [result.status for result in results] == [Status.OK, Status.PROBLEM]
    assert "subnets/join/action" in results[1].message
    assert f"--scope {SUBNET}" in results[1].remedy


# The vault.


def test_a_vault_that_has_the_token_and_opens_by_roles_is_good(front: Front) -> None:
    (result,) = look(front, planned("prod", IN_VAULT))["key-vault"]
    assert (result.status, result.message) == (Status.OK, "hugging-face in key vault platform is there")


@pytest.mark.parametrize(
    ("vault", "secrets", "words"),
    [
        (None, {}, ["key vault platform is not there"]),
        ({"enableRbacAuthorization": True}, {}, ["knows of no hugging-face"]),
        ({"enableRbacAuthorization": True}, {"hugging-face": {"enabled": False}}, ["is disabled"]),
        ({"enableRbacAuthorization": True}, {"hugging-face": {"enabled": True, "exp": 1}}, ["has expired"]),
        ({"enableRbacAuthorization": False}, {}, ["opens by access policies", "knows of no hugging-face"]),
    ],
    ids=["no-vault", "no-secret", "disabled", "expired", "two-at-once"],
)
def test_a_vault_that_would_leave_pods_waiting_is_a_problem(
    front: Front, vault: dict[str, Any] | None, secrets: dict[str, Any], words: list[str]
) -> None:
    front.vault, front.vault_secrets = vault, secrets
    results = look(front, planned("prod", IN_VAULT))["key-vault"]
    assert [result.status for result in results] == [Status.PROBLEM] * len(words), results
    for result, said in zip(results, words, strict=True):
        assert said in result.message and result.remedy


@pytest.mark.parametrize(
    "rules", [{"publicNetworkAccess": "disabled"}, {"networkAcls": {"defaultAction": "Deny"}}], ids=["off", "firewall"]
)
def test_a_vault_behind_a_firewall_is_told(front: Front, rules: dict[str, Any]) -> None:
    front.vault = {"enableRbacAuthorization": True, **rules}
    warning, good = look(front, planned("prod", IN_VAULT))["key-vault"]
    assert (warning.status, good.status) == (Status.WARNING, Status.OK)


def test_the_right_to_grant_on_the_secret_is_looked_at(front: Front) -> None:
    front.assigned = [(f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg-aks-vllm-prod", OWNER, None)]
    problem = only(look(front, planned("prod", IN_VAULT))["roles"], Status.PROBLEM)
    assert "has no role for hugging-face" in problem.message


# Zones, spot and reservations.


@pytest.mark.parametrize(("zones", "status"), [("['1']", Status.OK), ("['2']", Status.PROBLEM)])
def test_a_zone_that_is_closed_is_a_problem_where_it_is_asked_for(front: Front, zones: str, status: Status) -> None:
    info = {"locations": [REGION], "zones": ["2"]}
    front.restrictions[H100] = [{"type": "Zone", "values": [REGION], "restrictionInfo": info, "reasonCode": "QuotaId"}]
    result = look(front, planned("prod", [f"gpu-nodes.zones={zones}"]))["vm-sizes"][0]
    assert result.status is status, result
    assert status is Status.OK or "not to be had in zone 2" in result.message


def test_spot_nodes_have_a_quota_of_their_own(front: Front) -> None:
    front.used["lowprioritycores"] = 10
    front.limits["lowprioritycores"] = 40
    results = look(front, planned("dev", ["gpu-nodes.spot=true"]))["quota"]
    problem = only(results, Status.PROBLEM)
    assert problem.message.startswith("spot (lowPriorityCores) in eastus: 10 of 40 vCPUs are used; the stack needs 40")
    assert not any("NCadsH100" in result.message for result in results if result is not problem), "not the family's"


RESERVED = "/subscriptions/00000000-0000-0000-0000-00000000dddd/resourceGroups/rg-gpus/providers/Microsoft.Compute"
RESERVED += "/capacityReservationGroups/h100"


@pytest.mark.parametrize(
    ("rows", "status", "words"),
    [
        ([(H100, 1, 0, [])], Status.OK, "reserves 1 × Standard_ND96isr_H100_v5, 0 of them taken"),
        ([(H100, 2, 1, [])], Status.OK, "needs 1"),
        ([(H100, 1, 1, [])], Status.WARNING, "1 of them taken"),
        ([("Standard_D4ds_v5", 9, 0, [])], Status.WARNING, "reserves 0"),
        ([], Status.WARNING, "reserves 0"),
        (None, Status.PROBLEM, "is not there"),
    ],
    ids=["enough", "one-left", "taken", "other-size", "empty", "missing"],
)
def test_reserved_capacity_must_be_there_and_free(
    front: Front, rows: list[tuple[str, int, int, list[str]]] | None, status: Status, words: str
) -> None:
    front.reserved = rows
    (result,) = look(front, planned("prod", [f"gpu-nodes.capacity-reservation-group={RESERVED}"]))["reservation"]
    assert result.status is status, result
    assert words in result.message
    assert (status is Status.OK) == (result.remedy == "")


def test_a_reservation_taken_by_this_stack_is_enough(front: Front) -> None:
    front.reserved = [(H100, 1, 1, [])]
    _cluster(front, "1.36.1", {"h100x8": (H100, 1)})
    found = look(front, planned("prod", [f"gpu-nodes.capacity-reservation-group={RESERVED}"]))
    assert found["reservation"][0].status is Status.OK


def test_a_reservation_of_another_region_is_a_problem(front: Front) -> None:
    front.reserved, front.reserved_in = [(H100, 1, 0, [])], "westeurope"
    found = look(front, planned("prod", [f"gpu-nodes.capacity-reservation-group={RESERVED}"]))
    assert "is in westeurope, the stack in eastus" in only(found["reservation"], Status.PROBLEM).message
