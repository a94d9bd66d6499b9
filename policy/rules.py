"""What every stack must hold, checked on its resources. Plain functions: no Pulumi here, so that they run anywhere.

`policy/__main__.py` gives them to the Pulumi CLI; `python -m gitops policy` runs them on what the sandbox records.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
EXEMPTIONS = HERE / "exemptions.yaml"
VM_SIZES = HERE.parent / "presets" / "vm-sizes.yaml"
HOURS_PER_MONTH = 730  # Azure's price pages

#: Stands for every value that is encrypted in state.
SECRET = "[secret]"  # noqa: S105  a mark, not a secret

CLUSTER = "azure-native:containerservice:ManagedCluster"
RESOURCE_GROUP = "azure-native:resources:ResourceGroup"
POOL = "azure-native:containerservice:AgentPool"
BUDGET = "azure-native:consumption:Budget"
SERVICE = "kubernetes:core/v1:Service"
KUBERNETES_SECRET = "kubernetes:core/v1:Secret"  # noqa: S105  a type
SECRET_CLASS = "kubernetes:secrets-store.csi.x-k8s.io/v1:SecretProviderClass"  # noqa: S105  a type
NETWORK_POLICY = "kubernetes:networking.k8s.io/v1:NetworkPolicy"
INGRESSES = ("kubernetes:networking.k8s.io/v1:Ingress", "kubernetes:gateway.networking.k8s.io/v1:Gateway")
#: What holds a pod template, and where.
WORKLOADS = {
    "kubernetes:apps/v1:Deployment": ("spec", "template"),
    "kubernetes:apps/v1:StatefulSet": ("spec", "template"),
    "kubernetes:apps/v1:DaemonSet": ("spec", "template"),
    "kubernetes:batch/v1:Job": ("spec", "template"),
    "kubernetes:leaderworkerset.x-k8s.io/v1:LeaderWorkerSet": ("spec", "leaderWorkerTemplate", "workerTemplate"),
}
GPU = "nvidia.com/gpu"
INTERNAL = "service.beta.kubernetes.io/azure-load-balancer-internal"
#: Development has a control plane without an uptime promise (planning/cluster.py); nothing else has.
DEVELOPMENT_TIER = "Free"


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A resource as it is declared. `props` by the wire's names, with SECRET for what is secret."""

    urn: str
    type: str
    name: str
    props: Mapping[str, Any]
    protect: bool = False


@dataclass(frozen=True, kw_only=True)
class Violation:
    """What breaks a policy, and what to do."""

    resource: str  # its name; "" where it is missing
    message: str


@dataclass(frozen=True)
class Stack:
    """The resources of one stack."""

    resources: Sequence[Resource]

    def of(self, *types: str) -> list[Resource]:
        return [resource for resource in self.resources if resource.type in types]

    def pods(self) -> Iterator[tuple[Resource, Mapping[str, Any]]]:
        """Every workload with its pod template."""
        for resource in self.of(*WORKLOADS):
            template = _at(resource.props, *WORKLOADS[resource.type])
            if isinstance(template, Mapping):
                yield resource, template

    def engines(self) -> list[tuple[Resource, Mapping[str, Any]]]:
        """Workloads that run vLLM: those that ask for GPUs."""
        return [(resource, template) for resource, template in self.pods() if _asks_for_gpus(template)]

    @property
    def production(self) -> bool:
        """A stack on a cluster that is not its own is taken for production."""
        return all(_at(cluster.props, "sku", "tier") != DEVELOPMENT_TIER for cluster in self.of(CLUSTER))


Check = Callable[[Stack], Iterable[Violation]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One policy. `subjects` counts what it looks at: 0 is told, as a policy without a subject holds nothing."""

    name: str
    mandatory: bool  # False: advisory, the update goes on
    description: str
    why: str
    subjects: Callable[[Stack], int]
    check: Check
    needed: bool = True  # a stack without a subject breaks it; False: it need not have one


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a policy found. It holds where there is neither a violation nor nothing to look at."""

    rule: Rule
    subjects: int
    violations: tuple[Violation, ...]
    exempted: tuple[tuple[Violation, str], ...]  # with the reason

    @property
    def refuses(self) -> bool:
        """Whether an update must not go on."""
        return bool(self.violations) and self.rule.mandatory


@dataclass(frozen=True, kw_only=True)
class Exemption:
    """A reviewed entry of exemptions.yaml."""

    policy: str
    resource: str
    reason: str
    review: str
    until: datetime.date


class ExemptionError(Exception):
    """exemptions.yaml cannot stand; the text says what and where."""


# The policies.


def _no_open_endpoint(stack: Stack) -> Iterator[Violation]:
    engines = stack.engines()
    for service in stack.of(SERVICE):
        kind = _at(service.props, "spec", "type") or "ClusterIP"
        if kind == "ClusterIP":
            continue
        selector = _at(service.props, "spec", "selector") or {}
        if any(_matches(selector, template) for _, template in engines):
            yield Violation(
                resource=service.name,
                message=f"is of type {kind} and leads to vLLM itself, which has no TLS and answers on admin routes; "
                "make it ClusterIP and let the edge lead to it",
            )
            continue
        annotations = _at(service.props, "metadata", "annotations") or {}
        if kind == "LoadBalancer" and str(annotations.get(INTERNAL, "")).lower() == "true":
            continue
        behind = [template for _, template in stack.pods() if _matches(selector, template)]
        files = {item for template in behind for item in (*_secret_items(template), *_vault_items(template, stack))}
        for needed, words in (
            ({"tls.crt", "edge.pem"}, "TLS (no pod behind it mounts tls.crt, or edge.pem from a vault)"),
            ({"keys.map"}, "API keys (no pod behind it mounts keys.map)"),
        ):
            if not needed & files:
                yield Violation(resource=service.name, message=f"is reachable from the internet without {words}")
    for ingress in stack.of(*INGRESSES):
        listeners = _at(ingress.props, "spec", "listeners") or ()
        if not _at(ingress.props, "spec", "tls") and not (listeners and all("tls" in each for each in listeners)):
            yield Violation(
                resource=ingress.name, message="is reachable from the internet without TLS; give it a certificate"
            )


def _pinned_images(stack: Stack) -> Iterator[Violation]:
    for resource, image in _images(stack):
        if not re.search(r"@sha256:[0-9a-f]{64}$", image):
            yield Violation(resource=resource.name, message=f"runs {image}, which can change under its tag; `make pin`")


_SECRET_TEXT = re.compile(
    r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|AccountKey=[A-Za-z0-9+/=]{40,}|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\."
)
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|CREDENTIALS?)$", re.IGNORECASE)


def _no_plain_secret(stack: Stack) -> Iterator[Violation]:
    for resource in stack.resources:
        for path, text in _strings(resource.props):
            if _SECRET_TEXT.search(text):
                yield Violation(
                    resource=resource.name, message=f"{path} holds what looks like a secret in clear; mark it secret"
                )
        if resource.type == KUBERNETES_SECRET:
            for key in ("data", "stringData"):
                if any(text != SECRET for _, text in _strings(resource.props.get(key))):
                    yield Violation(
                        resource=resource.name, message=f"{key} is not marked secret: it stands readable in the state"
                    )
    for resource, template in stack.pods():
        for container in _containers(template):
            for variable in container.get("env") or ():
                if _SECRET_NAME.search(variable.get("name", "")) and variable.get("value"):
                    yield Violation(
                        resource=resource.name,
                        message=f"container {container.get('name')} gets {variable['name']} in its environment, where "
                        "every process and `kubectl describe` reads it; mount a file",
                    )


def _behind_policy(stack: Stack) -> Iterator[Violation]:
    policies = stack.of(NETWORK_POLICY)
    for resource, template in stack.engines():
        selecting = [
            policy
            for policy in policies
            if _selects(_at(policy.props, "spec", "podSelector") or {}, template)
            and "Ingress" in (_at(policy.props, "spec", "policyTypes") or ("Ingress",))
        ]
        if not selecting:
            yield Violation(
                resource=resource.name,
                message="no NetworkPolicy selects its pods: whatever runs in the cluster may use vLLM, admin routes "
                "included",
            )
        for policy in selecting:
            if any(not rule.get("from") for rule in _at(policy.props, "spec", "ingress") or ()):
                yield Violation(resource=policy.name, message="lets everybody in: an ingress rule without `from`")


def _tainted(stack: Stack) -> Iterator[Violation]:
    for pool in _gpu_pools(stack):
        if not any(str(taint).partition("=")[0] == GPU for taint in pool.props.get("nodeTaints") or ()):
            yield Violation(
                resource=pool.name,
                message=f"has GPUs ({pool.props.get('vmSize')}) and no taint {GPU}: any pod may take its cores and "
                "memory",
            )


def _protected(stack: Stack) -> Iterator[Violation]:
    if stack.production:
        for resource in stack.of(CLUSTER, RESOURCE_GROUP):
            if not resource.protect:
                yield Violation(
                    resource=resource.name,
                    message="is not protected: one wrong setting deletes it and all that it serves; remove "
                    "aks-vllm:protect",
                )


def _no_local_accounts(stack: Stack) -> Iterator[Violation]:
    for cluster in stack.of(CLUSTER):
        if cluster.props.get("disableLocalAccounts") is not True:
            yield Violation(
                resource=cluster.name,
                message="allows local accounts: a kubeconfig with a certificate that nobody can take back",
            )


_COMMIT = re.compile(r"[0-9a-f]{40}")


def _pinned_revision(stack: Stack) -> Iterator[Violation]:
    for resource, template in stack.engines():
        words = [
            word
            for container in _containers(template)
            for key in ("command", "args")
            for word in container.get(key) or ()
        ]
        # A model's commit is in its path, in `--revision COMMIT`, or in the blob's address.
        if not any(_COMMIT.search(str(word)) for word in words):
            yield Violation(
                resource=resource.name,
                message="reads a model by a name that can change under it (no commit in its command); `make pin`",
            )


def _within_budget(stack: Stack) -> Iterator[Violation]:
    amounts = [float(budget.props["amount"]) for budget in stack.of(BUDGET) if budget.props.get("amount")]
    if not amounts:
        yield Violation(
            resource="", message="the stack has no budget (aks-vllm:budget): nobody is told when it costs more"
        )
        return
    cost, unknown = _monthly_cost(stack)
    for pool in unknown:
        yield Violation(resource=pool, message="has no known price in this region; add it to presets/vm-sizes.yaml")
    if cost > min(amounts):
        yield Violation(
            resource="",
            message=f"the GPU pools may cost ${cost:,.0f} a month at list price with all their nodes; the budget is "
            f"${min(amounts):,.0f}",
        )


RULES: tuple[Rule, ...] = (
    Rule(
        name="no-open-endpoint",
        mandatory=True,
        description="What the internet reaches has TLS and asks for a key; vLLM itself is never reached.",
        why="vLLM checks its key on some routes only, and whoever reaches it pays nothing for GPU hours.",
        subjects=lambda stack: len(stack.of(SERVICE, *INGRESSES)),
        check=_no_open_endpoint,
    ),
    Rule(
        name="pinned-images",
        mandatory=True,
        description="In production, images are pinned by digest.",
        why="A tag can be moved: what was reviewed and what runs are then two things.",
        subjects=lambda stack: len(list(_images(stack))),
        check=lambda stack: _pinned_images(stack) if stack.production else (),
    ),
    Rule(
        name="no-plain-secret",
        mandatory=True,
        description="No secret stands in clear, in state or in a container's environment.",
        why="State, previews and `kubectl describe` are read by more people than a secret may be.",
        subjects=lambda stack: len(stack.resources),
        check=_no_plain_secret,
    ),
    Rule(
        name="engine-behind-network-policy",
        mandatory=True,
        description="A NetworkPolicy decides who reaches the pods of vLLM.",
        why="Without one, every pod of the cluster reaches vLLM without a key, past the edge.",
        subjects=lambda stack: len(stack.engines()),
        check=_behind_policy,
    ),
    Rule(
        name="gpu-pools-tainted",
        mandatory=True,
        description="Pools with GPUs are tainted.",
        why="AKS sets no taint: a pod without GPUs can take the cores that a model needs.",
        subjects=lambda stack: len(_gpu_pools(stack)),
        check=_tainted,
        needed=False,  # an existing cluster brings its own
    ),
    Rule(
        name="production-protected",
        mandatory=True,
        description="Cluster and resource group are protected in production.",
        why="A changed setting could replace the cluster; protection makes that a refused update.",
        subjects=lambda stack: len(stack.of(CLUSTER, RESOURCE_GROUP)),
        check=_protected,
        needed=False,
    ),
    Rule(
        name="local-accounts-off",
        mandatory=True,
        description="The cluster's local accounts are off.",
        why="They go around Entra ID: no name in the log, no way to take access back.",
        subjects=lambda stack: len(stack.of(CLUSTER)),
        check=_no_local_accounts,
        needed=False,
    ),
    Rule(
        name="pinned-model-revision",
        mandatory=True,
        description="In production, models are pinned by commit.",
        why="A repository on Hugging Face can change: weights, tokenizer and chat template with it.",
        subjects=lambda stack: len(stack.engines()),
        check=lambda stack: _pinned_revision(stack) if stack.production else (),
    ),
    Rule(
        name="within-budget",
        mandatory=False,
        description="In production, there is a budget, and the GPU pools at their largest stay within it.",
        why="A node of eight GPUs costs as much in a day as most services in a month.",
        # The budget is the resource group's that the cluster is in: of somebody else's cluster, its owner's.
        subjects=lambda stack: len(_gpu_pools(stack)) if stack.of(CLUSTER) else 0,
        check=lambda stack: _within_budget(stack) if stack.production else (),
        needed=False,
    ),
)


def run(stack: Stack, exemptions: Sequence[Exemption] = (), today: datetime.date | None = None) -> list[Outcome]:
    """Every policy on one stack. An exemption that has ended, or fits nothing, changes nothing."""
    day = today or datetime.datetime.now(datetime.UTC).date()
    return [outcome(rule, stack, exemptions, day) for rule in RULES]


def outcome(rule: Rule, stack: Stack, exemptions: Sequence[Exemption], today: datetime.date) -> Outcome:
    """One policy on one stack."""
    subjects = rule.subjects(stack)
    found = list(rule.check(stack)) if subjects else []
    if not subjects and rule.needed:
        found.append(Violation(resource="", message="found nothing to look at: is the stack empty, or a type renamed?"))
    valid = {(each.policy, each.resource): each.reason for each in exemptions if each.until >= today}
    exempted = [(each, valid[rule.name, each.resource]) for each in found if (rule.name, each.resource) in valid]
    kept = [each for each in found if (rule.name, each.resource) not in valid]
    return Outcome(rule=rule, subjects=subjects, violations=tuple(kept), exempted=tuple(exempted))


def exemptions(file: Path = EXEMPTIONS) -> list[Exemption]:
    """The reviewed exemptions. Raises ExemptionError with everything that is wrong in the file."""
    raw = (yaml.safe_load(file.read_text("utf-8")) or {}).get("exemptions") or []
    names, keys = {rule.name for rule in RULES}, {"policy", "resource", "reason", "review", "until"}
    problems, found = [], []
    for at, entry in enumerate(raw, 1):
        missing = keys - set(entry)
        if missing or set(entry) - keys:
            problems.append(
                f"entry {at}: has the keys {', '.join(sorted(entry))}; they must be {', '.join(sorted(keys))}"
            )
        elif entry["policy"] not in names:
            problems.append(
                f"entry {at}: policy = {entry['policy']}: there is none; they are {', '.join(sorted(names))}"
            )
        elif not isinstance(entry["until"], datetime.date):
            problems.append(f"entry {at}: until = {entry['until']}: must be a day, as 2027-01-31")
        elif not all(isinstance(entry[key], str) and entry[key].strip() for key in ("reason", "review")):
            problems.append(f"entry {at}: reason and review must say why, and where that was agreed")
        else:
            found.append(Exemption(**entry))
    if problems:
        raise ExemptionError("\n".join(f"{file.name}: {problem}" for problem in problems))
    return found


# What the policies look at.


def _at(value: Any, *path: str) -> Any:
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _containers(template: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    spec = template.get("spec") or {}
    for key in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(key) or ()


def _asks_for_gpus(template: Mapping[str, Any]) -> bool:
    return any(GPU in (_at(container, "resources", "limits") or {}) for container in _containers(template))


def _images(stack: Stack) -> Iterator[tuple[Resource, str]]:
    for resource, template in stack.pods():
        for image in sorted({str(container.get("image", "")) for container in _containers(template)}):
            yield resource, image


def _gpu_pools(stack: Stack) -> list[Resource]:
    """Sizes of the families N are those with GPUs: https://learn.microsoft.com/azure/virtual-machines/sizes/overview"""
    return [pool for pool in stack.of(POOL) if str(pool.props.get("vmSize", "")).startswith("Standard_N")]


def _matches(selector: Mapping[str, Any], template: Mapping[str, Any]) -> bool:
    labels = _at(template, "metadata", "labels") or {}
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())


def _selects(selector: Mapping[str, Any], template: Mapping[str, Any]) -> bool:
    """Whether a selector of pods selects these; the empty one selects all."""
    labels = _at(template, "metadata", "labels") or {}
    for expression in selector.get("matchExpressions") or ():
        value, values = labels.get(expression["key"]), expression.get("values") or ()
        held = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not held.get(expression["operator"], False):
            return False
    return all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())


def _secret_items(template: Mapping[str, Any]) -> Iterator[str]:
    """Names of the files that the pods mount from Secrets."""
    for volume in _at(template, "spec", "volumes") or ():
        for source in (volume, *(_at(volume, "projected", "sources") or ())):
            for item in _at(source, "secret", "items") or ():
                yield from (str(item.get("key")), str(item.get("path")).rpartition("/")[2])


def _vault_items(template: Mapping[str, Any], stack: Stack) -> Iterator[str]:
    """Names of the files that the pods mount from a vault."""
    classes = {_at(one.props, "metadata", "name"): one.props for one in stack.of(SECRET_CLASS)}
    for volume in _at(template, "spec", "volumes") or ():
        found = classes.get(_at(volume, "csi", "volumeAttributes", "secretProviderClass"), {})
        yield from re.findall(r"objectAlias: (\S+)", str(_at(found, "spec", "parameters", "objects")))


def _monthly_cost(stack: Stack) -> tuple[float, list[str]]:
    """List price of the GPU pools with all their nodes, US dollars; pools without a known price."""
    sizes = yaml.safe_load(VM_SIZES.read_text("utf-8"))["vm-sizes"]
    regions = [resource.props.get("location") for resource in stack.of(CLUSTER, RESOURCE_GROUP)]
    cost, unknown = 0.0, []
    for pool in _gpu_pools(stack):
        prices = _at(sizes, str(pool.props.get("vmSize")), "price", "usd-per-hour") or {}
        price = next((prices[region] for region in regions if region in prices), None)
        if price is None:
            unknown.append(pool.name)
        else:
            cost += price * HOURS_PER_MONTH * int(pool.props.get("maxCount") or pool.props.get("count") or 0)
    return cost, unknown


def _strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from _strings(item, f"{path}[{at}]")
