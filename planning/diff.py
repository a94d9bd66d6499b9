"""What a change means for the people served: two plans of a stack, compared. Pure.

A plan comes as the report's JSON (`docs/report.schema.json`), since the one before may be another revision's, made by
that revision's own planner and presets. A field that no line here knows is shown as it is, under `other`: nothing that
differs is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from planning.findings import Problem, without_tokens
from planning.rolling_update import Course, Pool, Replicas, simulate

Document = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Side:
    """A stack at one moment. With neither plan nor problems there is no such stack."""

    label: str  # "main (1a2b3c4)"
    config: Mapping[str, Any]  # the stack file's, full keys; the value of a secret is compared and never shown
    plan: Document | None = None  # the report's JSON
    problems: tuple[str, ...] = ()  # why there is no plan

    @property
    def exists(self) -> bool:
        """Whether there is such a stack, deployable or not."""
        return self.plan is not None or bool(self.problems)


class Kind(StrEnum):
    """What an update does, worst first."""

    IMPOSSIBLE = "impossible"
    CLUSTER = "cluster-replacement"
    STUCK = "stuck"
    NODES = "node-replacement"
    OUTAGE = "outage"
    ROLLING = "rolling"
    IN_PLACE = "in-place"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Consequence:
    """What the update does to one model, pool or the cluster. `outage_minutes`: nobody is served; 0 = somebody is."""

    kind: Kind
    subject: str
    sentence: str
    outage_minutes: int = 0


@dataclass(frozen=True, kw_only=True)
class Line:
    """One thing that differs, in words."""

    what: str
    before: str  # "" where there was none
    after: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelDiff:
    """One model. `removed` and `added` are options of its command line or variables of its environment."""

    name: str
    is_new: bool
    is_gone: bool
    lines: tuple[Line, ...]
    removed: tuple[str, ...]
    added: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FindingChange:
    """A finding that came (`gained`), went (`lost`) or has other figures than before (`changed`)."""

    change: str
    severity: str
    text: str


@dataclass(frozen=True, kw_only=True)
class StackDiff:
    """Everything that differs, most important first."""

    stack: str
    before: str
    after: str
    verdict: tuple[str, ...]
    consequences: tuple[Consequence, ...]
    models: tuple[ModelDiff, ...]
    stack_lines: tuple[Line, ...]
    findings: tuple[FindingChange, ...]
    settings: tuple[Line, ...]
    other: tuple[Line, ...]
    problems_before: tuple[str, ...]
    problems_after: tuple[str, ...]
    steps: tuple[str, ...]  # still to do before an update, as the stack stands after the change

    @property
    def outage_minutes(self) -> int:
        """The longest time in which a model serves nobody, because of this change."""
        return max((each.outage_minutes for each in self.consequences), default=0)


NOTHING = "Nothing changes for users."

#: Seconds until a new cluster answers; see docs/deploy.md. AKS names no figure.
CLUSTER_SECONDS = 600

#: Of a model's plan, what is in the pod template: where one of these differs, every replica is replaced. The hash
#: stands for image, command, environment and download. tests/components/test_consequences.py compares this list with
#: what the program declares.
IN_THE_POD = (
    "config_hash",
    "preset.gated",
    "port",
    "priority",
    "resources",
    "node_selector",
    "tolerated_taints",
    "startup.startup_probe_period_seconds",
    "startup.startup_probe_failure_threshold",
    "rollout.pre_stop_seconds",
    "rollout.termination_grace_seconds",
)
#: Of a GPU pool's plan, why Azure calls for another pool: its name there is made from these (planning/capacity.py).
REPLACES_POOL = ("vm_size", "os_disk_size_gb", "os_disk_type", "driver", "zones", "spot", "capacity_reservation_group")
#: What replaces the cluster (pulumi-azure-native's list, see sandbox/azure-rules.yaml).
REPLACES_CLUSTER = (
    "cluster.location",
    "cluster.network.pod_cidr",
    "cluster.network.service_cidr",
    "cluster.network.dns_service_ip",
    "cluster.network.outbound_type",
    "names.resource_group",
    "names.cluster",
    "names.node_resource_group",
    "names.dns_prefix",
)
#: What neither an update nor a replacement gets to: Azure refuses it while nodes are in the subnet, and the cluster's
#: own pool is left out of comparisons (components/cluster.py).
KEEPS_CLUSTER = ("cluster.network.node_subnet_cidr", "cluster.network.subnet_id")

TOKEN = "aks-vllm:hf-token"  # noqa: S105  the key, not the value
KUBECONFIG = "aks-vllm:kubeconfig"


def compare(before: Side, after: Side, stack: str) -> StackDiff:
    """The difference between two sides of one stack."""
    old, new = before.plan or {}, after.plan or {}
    both = bool(old and new)
    consequences = tuple(sorted(_consequences(before, after), key=lambda each: list(Kind).index(each.kind)))
    models = tuple(_models(old, new)) if both else ()
    stack_lines = tuple(_lines(STACK_LINES, old, new)) if both else ()
    findings = tuple(_findings(old, new)) if both else ()
    return StackDiff(
        stack=stack,
        before=before.label,
        after=after.label,
        verdict=tuple(_verdict(before, after, consequences)),
        consequences=consequences,
        models=models,
        stack_lines=stack_lines,
        findings=findings,
        settings=tuple(_settings(before.config, after.config)),
        other=tuple(_other(old, new)) if both else (),
        problems_before=before.problems,
        problems_after=after.problems,
        steps=tuple(_finding_text(f) for f in new.get("findings", ()) if f["severity"] == "step"),
    )


# The answer, before its reasons.


def _verdict(before: Side, after: Side, consequences: Sequence[Consequence]) -> Iterator[str]:
    if after.problems:
        yield f"The plan does not stand: {_count(len(after.problems), 'problem')}. It cannot be deployed."
        if before.plan:
            yield "What runs is not touched."
        return
    if after.plan is None:
        yield (
            "The stack file is gone. That alone removes nothing in Azure: `pulumi destroy` does, from a revision that "
            "has the file."
        )
        return
    if before.problems:
        yield f"The plan before the change did not stand ({_count(len(before.problems), 'problem')}); now it does."
        yield from _summary(after.plan)
        return
    if before.plan is None:
        yield "The stack is new."
        yield from _summary(after.plan)
        return
    said = [each.sentence for each in consequences if each.kind not in (Kind.NONE, Kind.IN_PLACE)]
    said += [
        *_uploads(before.plan, after.plan),
        *_measured(before.plan, after.plan),
        *_news(before.plan, after.plan),
        *_endpoint(before.plan, after.plan),
    ]
    said += _exposure(before.plan, after.plan)
    yield from said or [NOTHING]
    yield from (each.sentence for each in consequences if each.kind is Kind.IN_PLACE)
    yield from _money(before.plan, after.plan)


def _summary(plan: Document) -> Iterable[str]:
    return plan.get("verdict", ())


def _uploads(old: Document, new: Document) -> Iterator[str]:
    """Jobs that copy weights before replicas of a new commit can start."""
    there = {upload["model_path"] for upload in old.get("uploads", ())}
    startup = {model["name"]: model["startup"] for model in new["models"]}
    for upload in new.get("uploads", ()):
        if upload["model_path"] not in there:
            name = upload["model"]
            minutes = _minutes(startup[name]["upload_seconds"])
            yield f"{name}: first its weights are uploaded to the storage account, about {minutes} minutes."


def _measured(old: Document, new: Document) -> Iterator[str]:
    """Jobs that put load on the models: a Job that was there already has done so."""
    there = {each["job"] for each in old.get("benchmarks", ())}
    for each in new.get("benchmarks", ()):
        if each["job"] not in there:
            yield f"{each['model']}: a benchmark sends it {each['requests']:,} requests; all others share it with them."


def _news(old: Document, new: Document) -> Iterator[str]:
    """What people notice who send requests."""
    olds = _by_name(old["models"])
    for name, model in _by_name(new["models"]).items():
        was = olds.get(name)
        if was is None:
            continue
        here, there = model["memory"], was["memory"]
        length, former = here["max_model_len"], there["max_model_len"]
        if model["preset"]["name"] != was["preset"]["name"]:
            yield f"{name}: another model answers, {model['preset']['name']} instead of {was['preset']['name']}."
        if model["served_model_name"] != was["served_model_name"]:
            yield (
                f"{name}: clients must ask for {model['served_model_name']}; requests for {was['served_model_name']} "
                "are answered 404, and while replicas of both versions run, either may be."
            )
        if length > former:
            yield f"{name}: requests may be up to {length:,} tokens long instead of {former:,}."
        elif length < former:
            yield f"{name}: requests longer than {length:,} tokens are refused; {former:,} was the limit."
        tokens, earlier = here["kv_cache_tokens"], there["kv_cache_tokens"]
        if tokens != earlier:
            yield (
                f"{name}: {abs(tokens - earlier):,} tokens of KV cache {'gained' if tokens > earlier else 'lost'} in "
                f"each replica ({_percent(earlier, tokens)})."
            )
        at_once, then = _in_all(model), _in_all(was)
        if f"{at_once:.1f}" != f"{then:.1f}":
            yield (
                f"{name}: {at_once:.1f} requests of full length at once in all replicas instead of {then:.1f} "
                f"({_percent(then, at_once)})."
            )
        if here["gpu_memory_utilization"] > there["gpu_memory_utilization"]:
            yield (
                f"{name}: risk: only {_unused(model):.1f} GiB of each GPU stay outside vLLM's share instead of "
                f"{_unused(was):.1f}; what its profile does not see, or the plan's error (± {here['error_gib']:g} "
                "GiB), then ends in an out-of-memory error at start-up or under load."
            )


def _endpoint(old: Document, new: Document) -> Iterator[str]:
    """What changes for clients that call as they did."""
    was, now = old["edge"], new["edge"]
    if "clients" not in was:  # a revision that did not know
        return
    for name, path in now["base_paths"].items():
        former = was["base_paths"].get(name, path)
        if former != path:
            yield f"{name}: clients must call {path} instead of {former}, which is answered 404 from then on."
    closed = [path for path in was["paths"] if path not in now["paths"]]
    opened = [path for path in now["paths"] if path not in was["paths"]]
    if closed:
        yield f"Requests to {_and(closed)} are refused from then on."
    if opened:
        yield f"Exposure: {_and(opened)} can be called, too."
    if was["clients"]:
        yield from _clients(was["clients"], now["clients"])
    if was["max_body_mib"] != now["max_body_mib"]:
        yield f"Requests may be up to {now['max_body_mib']} MiB large instead of {was['max_body_mib']}."


def _clients(was: Mapping[str, int | None], now: Mapping[str, int | None]) -> Iterator[str]:
    gone, added = [name for name in was if name not in now], [name for name in now if name not in was]
    if gone and now:
        yield f"Requests with the key of {_and(gone)} are refused from then on."
    if added:
        yield f"Exposure: {_and(added)} may use the models, too."
    for name in was:
        if name in now and was[name] != now[name]:
            limit, former = (f"{each:,}" if each else "any number" for each in (now[name], was[name]))
            yield f"Requests that {name} may make in a minute: {limit} instead of {former}."


def _exposure(old: Document, new: Document) -> Iterator[str]:
    """Who reaches what."""
    for what, words in (("the API server's access is", _api_server), ("the models' endpoint is", _edge)):
        before, after = _said(words, old), _said(words, new)
        if before != after:
            yield f"Exposure: {what} {after} instead of {before}."


def _money(old: Document, new: Document) -> Iterator[str]:
    then, now = old["cost"]["gpu_pools_per_hour"], new["cost"]["gpu_pools_per_hour"]
    if then == now:
        return
    if then is None or now is None:
        known = "is not known any more" if now is None else "is known now"
        yield f"The price of the GPU nodes {known}: {_hourly(old)} → {_hourly(new)} an hour."
        return
    more = "more" if now > then else "less"
    hours = new["cost"]["gpu_pools_per_month"] - old["cost"]["gpu_pools_per_month"]
    yield f"The GPU nodes cost ${abs(now - then):,.2f} an hour {more} (${abs(hours):,.0f} a month)."


# What the update does.


def _consequences(before: Side, after: Side) -> Iterator[Consequence]:
    if not before.plan or not after.plan:
        return
    old, new = before.plan, after.plan
    if _whose(old) != _whose(new) or old["namespace"] != new["namespace"]:
        yield _moved(old, new)
        return
    if before.config.get(KUBECONFIG) != after.config.get(KUBECONFIG):
        sentence = "The kubeconfig is another one: where it names another API server, everything is made there and "
        sentence += "deleted in the cluster of the old one, an outage of all models; otherwise nothing is touched."
        yield Consequence(kind=Kind.IN_PLACE, subject="cluster", sentence=sentence)
    yield from _cluster(old, new)
    pools = list(_pools(old, new))
    yield from (consequence for consequence, _ in pools)
    rebuilt = {pool for _, pool in pools if pool}
    tokens = before.config.get(TOKEN), after.config.get(TOKEN)
    token = None not in tokens and tokens[0] != tokens[1]
    # To a vault, or back from it, is another volume in the pods that fetch weights; another secret in a vault is not.
    token |= bool(_in_vault(old, "token")) != bool(_in_vault(new, "token"))
    yield from _model_consequences(old, new, token=token, rebuilt=rebuilt)


def _whose(plan: Document) -> str:
    """The cluster that is not the stack's, in words; "" where it is the stack's own."""
    cluster = plan["cluster"]
    if "has_resource_group" not in cluster:
        return ""
    return f"cluster {cluster['id']}" if cluster["id"] else f"the cluster of {KUBECONFIG}"


def _moved(old: Document, new: Document) -> Consequence:
    """Everything goes to another cluster, or to another namespace."""
    was, now = _whose(old), _whose(new)
    seconds = max(model["startup"]["total_seconds"] for model in new["models"])
    minutes = _minutes(seconds if now else seconds + CLUSTER_SECONDS)
    kind = Kind.CLUSTER
    if was == now:
        # The stack's pools are its namespace's.
        kind, pools = (Kind.NODES, " with GPU nodes of its own") if new["cluster"]["id"] else (Kind.OUTAGE, "")
        what = f"Namespace {old['namespace']} is deleted with everything in it, and {new['namespace']} made{pools}"
    elif was:
        what = f"What the stack has in {was} is deleted, and made in {now or 'a cluster of its own'}; the old cluster "
        what += "itself stays"
    else:
        what = "The stack's own cluster is deleted with everything in it, its network and its resource group too, and "
        what += f"the models are made in {now}"
    protected = not was and old["cluster"]["protect"]
    refused = " Pulumi refuses it while the cluster is protected (`aks-vllm:protect`)." if protected else ""
    return Consequence(
        kind=kind,
        subject="cluster",
        outage_minutes=minutes,
        sentence=f"{what}: an outage of all models of about {minutes} minutes, and another address of the endpoint."
        f"{refused}",
    )


def _cluster(old: Document, new: Document) -> Iterator[Consequence]:
    was, now = old["cluster"], new["cluster"]
    if _whose(new):
        return  # Kubernetes and network are its owner's
    moved = [path for path in KEEPS_CLUSTER if _at(old, path) != _at(new, path)]
    if moved:
        words = _and([path.rpartition(".")[2].replace("_", " ") for path in moved])
        yield Consequence(
            kind=Kind.IMPOSSIBLE,
            subject="cluster",
            sentence=f"No update can do this ({words}): a cluster's nodes stay in the subnet that they were made in. "
            "Destroy the stack and deploy it again, or make a second one and move the clients (docs/network.md).",
        )
        return
    changed = [
        path.rpartition(".")[2].replace("_", " ")
        for path in REPLACES_CLUSTER
        if _at(old, path) is not None and _at(old, path) != _at(new, path)
    ]
    if changed:
        minutes = _minutes(CLUSTER_SECONDS + max(model["startup"]["total_seconds"] for model in new["models"]))
        refused = " Pulumi refuses it while the cluster is protected (`aks-vllm:protect`)." if was["protect"] else ""
        yield Consequence(
            kind=Kind.CLUSTER,
            subject="cluster",
            outage_minutes=minutes,
            sentence=f"The cluster is replaced ({_and(changed)}): an outage of all "
            f"models of about {minutes} minutes, and the time Azure takes to delete the old one.{refused}",
        )
        return
    if was["kubernetes_version"] != now["kubernetes_version"]:
        minutes = max(model["rollout"]["drain_outage_minutes"] for model in new["models"])
        drains = " ".join(
            f"{model['name']}: {_sentence(model['rollout']['drain_consequence'])}" for model in new["models"]
        )
        yield Consequence(
            kind=Kind.NODES,
            subject="cluster",
            outage_minutes=minutes,
            sentence=f"Kubernetes goes from {was['kubernetes_version']} to {now['kubernetes_version']}: the control "
            f"plane first, then every GPU node is drained and upgraded, one after the other. {drains}",
        )


def _pools(old: Document, new: Document) -> Iterator[tuple[Consequence, str | None]]:
    """Consequences for nodes, each with the name of the pool that is rebuilt, if one is."""
    olds, news = _by_name(old["gpu_pools"]), _by_name(new["gpu_pools"])
    added, removed = [name for name in news if name not in olds], [name for name in olds if name not in news]
    if added and removed:
        yield (
            Consequence(
                kind=Kind.NODES,
                subject=added[0],
                sentence=f"GPU nodes are replaced: {_pool(news[added[0]])} made first, {_pool(olds[removed[0]])} "
                f"deleted last. Quota must allow both at once, and both are paid for until then.",
            ),
            None,
        )
    elif added or removed:
        for name in added or removed:
            words = f"{_pool(news[name])} added" if added else f"{_pool(olds[name])} deleted at the end"
            yield Consequence(kind=Kind.IN_PLACE, subject=name, sentence=f"GPU nodes: {words}."), None
    for name in [name for name in news if name in olds]:
        was, now = olds[name], news[name]
        changed = [key.replace("_", " ") for key in REPLACES_POOL if key in was and was[key] != now.get(key)]
        if changed or was.get("agent_pool_name") != now.get("agent_pool_name"):
            yield _replaced_pool(now, new, changed), name
        elif now["count"] < was["count"]:
            fewer = was["count"] - now["count"]
            yield (
                Consequence(
                    kind=Kind.NODES,
                    subject=name,
                    sentence=f"{_count(fewer, 'node')} of pool {name} {'is' if fewer == 1 else 'are'} drained and "
                    "removed; replicas on it start again on those that stay, if there is room.",
                ),
                None,
            )
        elif any(was.get(key) != now.get(key) for key in ("count", "min_count", "max_count", "autoscale")):
            text = f"Pool {name} in place: {_nodes(was)} → {_nodes(now)}."
            yield Consequence(kind=Kind.IN_PLACE, subject=name, sentence=text), None


def _replaced_pool(pool: Document, new: Document, changed: Sequence[str]) -> Consequence:
    """A pool that Azure cannot change. Made first, its nodes are there when the old ones are drained."""
    models = [model for model in new["models"] if model["layout"]["pool"] == pool["name"]]
    names, why = _and(model["name"] for model in models), f" ({_and(changed)})" if changed else ""
    if not pool.get("create_first"):
        minutes = _minutes(max(model["startup"]["total_seconds"] for model in models))
        sentence = f"GPU nodes are replaced{why}, the old ones first, as quota does not hold both: an outage of about "
        sentence += f"{minutes} minutes for {names}, and the time Azure takes to delete the old nodes."
    else:
        minutes = 0
        # The disruption budget lets so many go at once; the others serve until those are ready on the new nodes.
        dark = [m for m in models if m["rollout"]["pdb_max_unavailable"] >= m["layout"]["replicas"]]
        sentence = (
            f"GPU nodes are replaced{why}: the new ones are made first, then replicas move when the old ones are "
        )
        sentence += "drained. Quota must allow both, and both are paid for meanwhile."
        if dark:
            minutes = _minutes(max(m["startup"]["restart_seconds"] + m["startup"]["image_seconds"] for m in dark))
            moved = _and(model["name"] for model in dark)
            sentence += f" All replicas of {moved} move at once: an outage of about {minutes} minutes."
    return Consequence(kind=Kind.NODES, subject=pool["name"], outage_minutes=minutes, sentence=sentence)


def _model_consequences(old: Document, new: Document, *, token: bool, rebuilt: set[str]) -> Iterator[Consequence]:
    olds, news = _by_name(old["models"]), _by_name(new["models"])
    rolled = {name for name in news if name in olds and rolls(olds[name], news[name], token_changed=token)}
    courses = simulate(
        {name: _replicas(model) for name, model in olds.items()},
        {name: _replicas(model) for name, model in news.items()},
        rolled,
        _nodes_during(old, new),
    )
    for name, model in news.items():
        course = courses[name]
        if course.stuck:
            yield _stuck(old, new, name, rolled)
        elif name not in olds:
            minutes = _minutes(model["startup"]["total_seconds"])
            yield Consequence(
                kind=Kind.ROLLING,
                subject=name,
                sentence=f"{name} is new: a first answer about {minutes} minutes later.",
            )
        elif model["layout"]["pool"] in rebuilt:
            continue  # said of its nodes
        elif name in rolled:
            yield _rolled(name, olds[name], model, course, rotated=token and bool(model["preset"]["gated"]))
        elif olds[name]["layout"]["replicas"] != model["layout"]["replicas"]:
            counts = f"{olds[name]['layout']['replicas']} → {model['layout']['replicas']} replicas"
            yield Consequence(
                kind=Kind.IN_PLACE,
                subject=name,
                sentence=f"{name}: {counts}, in place; those that stay are not touched.",
            )
    for name in olds:
        if name not in news:
            yield Consequence(kind=Kind.OUTAGE, subject=name, sentence=f"{name} is removed, with its endpoint.")


def rolls(old: Document, new: Document, *, token_changed: bool = False) -> bool:
    """Whether a model's pods are replaced. The token's Secret has another name with every token."""
    if token_changed and new["preset"]["gated"]:
        return True
    return any(_at(old, path) != _at(new, path) for path in IN_THE_POD)


def _rolled(name: str, old: Document, new: Document, course: Course, *, rotated: bool) -> Consequence:
    startup, moved = new["startup"], old["layout"]["pool"] != new["layout"]["pool"]
    fresh = old["image"]["reference"] != new["image"]["reference"] or moved
    minutes = _minutes(startup["restart_seconds"] + (startup["image_seconds"] if fresh else 0))
    why = " for the new Hugging Face token" if rotated else ""
    pull = ", with the image to pull first" if fresh else ""
    if course.fewest_ready == 0:
        answers = _minutes(new["rollout"]["shutdown_timeout_seconds"])
        return Consequence(
            kind=Kind.OUTAGE,
            subject=name,
            outage_minutes=minutes,
            sentence=f"{name}: the update{why} stops serving for about {minutes} minutes{pull}, and up to {answers} "
            "more while the last answers finish: nothing serves until the first new replica is ready.",
        )
    replicas = new["layout"]["replicas"]
    kept = "one replica keeps" if course.fewest_ready == 1 else f"{course.fewest_ready} replicas keep"
    each = _minutes(
        startup["restart_seconds"]
        + (startup["image_seconds"] if fresh else 0)
        + new["rollout"]["pre_stop_seconds"]
        + new["rollout"]["shutdown_timeout_seconds"]
        + new["rollout"]["min_ready_seconds"]
    )
    return Consequence(
        kind=Kind.ROLLING,
        subject=name,
        sentence=f"{name}: rolling update{why}, {kept} serving all the while{pull}; up to {each * replicas} minutes "
        "in all.",
    )


def _stuck(old: Document, new: Document, name: str, rolled: set[str]) -> Consequence:
    """The update that waits for ever, and the way around it that the simulation finds to end."""
    olds, news = _by_name(old["models"]), _by_name(new["models"])
    gone = [other for other in olds if other not in news]
    model = news[name]
    if name not in olds and gone:
        remedy = f"Remove {_and(gone)} in an update of its own first; that is an outage until {name} has started."
        holder = f"{_and(gone)} hold{'s' if len(gone) == 1 else ''} until the end of the update"
    else:
        befores = {key: _replicas(value) for key, value in olds.items()}
        afters = {key: _replicas(value) for key, value in news.items()} | {name: replace(_replicas(model), count=1)}
        course = simulate(befores, afters, rolled | {name}, _nodes_during(old, new))[name]
        holder = "the old ones hold until enough new ones are ready"
        remedy = "Take a node more for the update (gpu-nodes)."
        if not course.stuck:
            minutes = _minutes(model["startup"]["restart_seconds"])
            outage = f" (an outage of about {minutes} minutes)" if course.fewest_ready == 0 else ""
            remedy = f"Make it two updates: the same change with replicas: 1{outage}, then the replicas."
    return Consequence(
        kind=Kind.STUCK,
        subject=name,
        sentence=f"{name}: the update gets stuck: new replicas of {_count(model['layout']['gpus_per_replica'], 'GPU')} "
        f"wait for GPUs that {holder}. {remedy}",
    )


def _replicas(model: Document) -> Replicas:
    layout, rollout = model["layout"], model["rollout"]
    return Replicas(
        pool=layout["pool"],
        count=layout["replicas"],
        gpus=layout["gpus_per_replica"],
        max_surge=rollout["max_surge"],
        max_unavailable=rollout["max_unavailable"],
    )


def _nodes_during(old: Document, new: Document) -> dict[str, Pool]:
    """Pulumi changes pools before what runs on them, and deletes last."""
    pools = {**_by_name(old["gpu_pools"]), **_by_name(new["gpu_pools"])}
    return {
        name: Pool(nodes=pool["max_count"] if pool["autoscale"] else pool["count"], gpus_per_node=pool["gpus_per_node"])
        for name, pool in pools.items()
    }


# Lines: what, and how a plan says it. A line is shown where the two sides say it differently.


def _revision(model: Document) -> str:
    return model["revision"][:12] if model["revision"] else "not pinned"


def _layout(model: Document) -> str:
    layout = model["layout"]
    stages = layout["pipeline_parallel_size"]
    split = f"TP {layout['tensor_parallel_size']}" + (f" PP {stages}" if stages > 1 else "")
    replicas = _count(layout["replicas"], "replica")
    return f"{replicas} × {split}, {layout['replicas_per_node']} to a node, {layout['vm_size']}"


def _fit(model: Document) -> str:
    memory = model["memory"]
    return (
        f"{memory['verdict']}: {memory['weights_gib']:.1f} GiB weights, {memory['available_kv_gib']:.1f} GiB KV cache "
        f"on each {memory['gpu']}"
    )


def _at_once(model: Document) -> str:
    return (
        f"{model['memory']['max_concurrency']:.1f} requests of full length in each replica, {_in_all(model):.1f} in all"
    )


def _start(model: Document) -> str:
    new, there = (_minutes(model["startup"][key]) for key in ("total_seconds", "restart_seconds"))
    return f"about {new} min on a new node, {there} on one that is there"


def _pod(model: Document) -> str:
    pod = model["resources"]
    return (
        f"{_count(pod['gpus'], 'GPU')}, {pod['cpu']} CPUs, {pod['memory_gib']} GiB memory, {pod['shm_gib']} of it "
        f"shared; disk {pod['weights_gib']} GiB weights, {pod['cache_gib']} GiB caches"
    )


def _probe(model: Document) -> str:
    startup = model["startup"]
    return f"{startup['startup_probe_period_seconds'] * startup['startup_probe_failure_threshold']} s"


def _speed(model: Document) -> str:
    serving = model["serving"]
    if not serving["decided"]:
        return serving["not_modelled"]
    users, rate = serving["workload"]["users"], serving["decided"]["rate"]
    token, first = rate["time_per_output_token_ms"], rate["time_to_first_token_ms"]
    return (
        f"{users} users: {token['low']:.0f} to {token['high']:.0f} ms a token, the first after {first['low']:.0f} to "
        f"{first['high']:.0f} ms"
    )


def _weights(model: Document) -> str:
    weights = model["weights"]
    return f"{weights['source']}, {'pods reach the internet' if weights['needs_internet_egress'] else 'no internet'}"


def _token_price(model: Document) -> str:
    price = model["serving"]["decided"]["per_million_output_tokens"]
    return f"${price['low']:,.2f} to ${price['high']:,.2f} per million output tokens at this load"


Say = Callable[[Document], str]

MODEL_LINES: tuple[tuple[str, Say], ...] = (
    ("Model", lambda m: f"{m['preset']['name']} ({m['preset']['model_id']})"),
    ("Revision", _revision),
    ("Clients ask for", lambda m: m["served_model_name"]),
    ("Fit", _fit),
    ("KV cache", lambda m: f"{m['memory']['kv_cache_tokens']:,} tokens in each replica"),
    ("At once", _at_once),
    ("Context", lambda m: f"{m['memory']['max_model_len']:,} tokens"),
    ("Longest that fits", lambda m: f"{m['memory']['longest_max_model_len']:,} tokens"),
    ("Layout", _layout),
    ("Speed", _speed),
    ("Price of tokens", _token_price),
    ("GPU memory unused", lambda m: f"{_unused(m):.1f} GiB of each"),
    ("Weights", _weights),
    ("Image", lambda m: _image(m["image"])),
    ("Start-up", _start),
    ("Start-up probe", _probe),
    ("Pod", _pod),
    ("Last answers get", lambda m: f"{m['rollout']['shutdown_timeout_seconds']} s"),
    ("Updates from now on", lambda m: m["rollout"]["update_consequence"]),
    ("Node drains from now on", lambda m: m["rollout"]["drain_consequence"]),
)


def _hourly(plan: Document) -> str:
    cost = plan["cost"]["gpu_pools_per_hour"]
    return f"not known for {plan['cost']['price_region']}" if cost is None else f"${cost:,.2f}"


def _monthly(plan: Document) -> str:
    cost = plan["cost"]["gpu_pools_per_month"]
    return f"not known for {plan['cost']['price_region']}" if cost is None else f"${cost:,.0f}"


def _quota(plan: Document) -> str:
    return ", ".join(f"{need['vcpus']} vCPUs of {need['family']}" for need in plan["quota"])


def _cluster_words(plan: Document) -> str:
    whose = _whose(plan) or "the stack's own"
    return f"{whose}, namespace {plan['namespace']}"


def _device_plugin(plan: Document) -> str:
    return _image(plan["device_plugin"]["image"]) if plan["device_plugin"] else "the cluster's own"


def _image(image: Document) -> str:
    """With as much of its digest as tells two apart: whole, it makes a table too wide to be read."""
    name, at, digest = image["reference"].partition("@sha256:")
    return f"{name}{at}{digest[:12]}"


def _token(plan: Document) -> str:
    return _in_vault(plan, "token") or "not in a vault"


def _certificate(plan: Document) -> str:
    secret = plan["edge"]["tls_secret"]
    return _in_vault(plan, "certificate") or (f"Secret {secret}" if secret else "none")


def _in_vault(plan: Document, what: str) -> str:
    vault = plan.get("key_vault") or {}
    held = vault.get(what)
    return f"{held['secret']} of vault {vault['id'].rpartition('/')[2]}" if held else ""


def _images(plan: Document) -> str:
    registry = plan.get("registry")
    return f"from {registry['login_server']}" if registry else "from the public registries"


def _unless_owners(words: Say) -> Say:
    """What the stack decides of its own cluster, and somebody else of theirs."""
    return lambda plan: "its owner's" if _whose(plan) else words(plan)


def _api_server(plan: Document) -> str:
    if _whose(plan):
        return "its owner's"
    access = plan["cluster"]["api_server"]
    ranges = f": {', '.join(access['authorized_ip_ranges'])}" if access["authorized_ip_ranges"] else ""
    return f"{access['access'].replace('-', ' ')}{ranges}"


def _edge(plan: Document) -> str:
    edge = plan["edge"]
    where = "on the internet" if edge["public"] else "inside the network"
    name = f" as {edge['host']}" if edge["host"] else ""
    how = "TLS" if edge.get("tls", edge["tls_secret"]) else "clear text"
    return f"{where}{name}, {how}, {'keys' if edge['keys'] else 'no keys'}"


def _budget(plan: Document) -> str:
    budget = plan["cluster"]["budget"]
    return f"${budget['usd_per_month']:,}" if budget else "none"


STACK_LINES: tuple[tuple[str, Say], ...] = (
    ("Environment", lambda p: p["environment"]),
    ("Region", lambda p: p["cluster"]["location"]),
    ("GPU nodes", lambda p: "; ".join(_pool(pool) for pool in p["gpu_pools"])),
    ("GPU nodes, an hour", _hourly),
    ("GPU nodes, a month", _monthly),
    ("Quota", _quota),
    ("Endpoint", _edge),
    ("API server", _api_server),
    ("Cluster", _cluster_words),
    ("Budget, a month", _unless_owners(_budget)),
    ("Kubernetes", _unless_owners(lambda p: p["cluster"]["kubernetes_version"])),
    ("Control plane", _unless_owners(lambda p: f"tier {p['cluster']['sku_tier']}")),
    ("Deletion", lambda p: "protected" if p["cluster"]["protect"] else "not protected"),
    ("Device plugin", _device_plugin),
    ("Hugging Face token", _token),
    ("Certificate", _certificate),
    (
        "Images",
        lambda p: f"from {p['registry']['login_server']}" if p.get("registry") else "from the public registries",
    ),
)

#: What the lines above, the command line, the findings and the settings show already, or what only follows from it.
SHOWN = (
    *("stack", "environment", "needs_hf_token", "has_hf_token", "gpu_pools", "cost", "quota", "findings"),
    *("deployable", "verdict", "headline", "quota_vcpus", "next_steps", "device_plugin.image", "uploads", "benchmarks"),
    *("cluster.location", "cluster.kubernetes_version", "cluster.sku_tier", "cluster.protect", "cluster.api_server"),
    *("cluster.id", "cluster.has_resource_group", "namespace", "registry", "key_vault", "cluster.secrets_store"),
    *(
        "cluster.budget.usd_per_month",
        "edge.public",
        "edge.host",
        "edge.tls_secret",
        "edge.tls",
        "edge.keys",
        "placements",
    ),
)
SHOWN_OF_MODEL = (
    *(
        "name",
        "served_model_name",
        "preset",
        "revision",
        "layout",
        "memory",
        "asked",
        "image",
        "weights.before.image",
        "command",
        "args",
        "env",
    ),
    *("download", "resources", "node_selector", "startup", "rollout", "config_hash", "alternatives", "derived"),
    *("serving", "weights.source", "weights.needs_internet_egress"),
)


def _lines(say: Sequence[tuple[str, Say]], old: Document, new: Document) -> Iterator[Line]:
    for what, words in say:
        before, after = _said(words, old), _said(words, new)
        if before != after:
            yield Line(what=what, before=before, after=after)


def _said(words: Say, plan: Document) -> str:
    """An older planner may not have written what is asked for."""
    try:
        return words(plan)
    except (KeyError, TypeError):
        return "not known"


def _models(old: Document, new: Document) -> Iterator[ModelDiff]:
    olds, news = _by_name(old["models"]), _by_name(new["models"])
    for name in {**news, **olds}:
        was, now = olds.get(name), news.get(name)
        if was is None or now is None:
            only = now or was or {}
            said = [(what, _said(words, only)) for what, words in MODEL_LINES]
            yield ModelDiff(
                name=name,
                is_new=was is None,
                is_gone=now is None,
                lines=tuple(
                    Line(what=what, before=text if now is None else "", after=text if was is None else "")
                    for what, text in said
                ),
                removed=(),
                added=(),
            )
            continue
        before, after = _options(was), _options(now)
        lines = tuple(_lines(MODEL_LINES, was, now))
        removed, added = (tuple(o for o in one if o not in other) for one, other in ((before, after), (after, before)))
        if lines or removed or added:
            yield ModelDiff(name=name, is_new=False, is_gone=False, lines=lines, removed=removed, added=added)


def _options(model: Document) -> list[str]:
    """Options with their values, and variables of the environment, in their order."""
    groups: list[str] = []
    for word in (*model["command"], *model["args"]):
        if word.startswith("--") or not any(group.startswith("--") for group in groups):
            groups.append(word)
        else:
            groups[-1] += f" {word}"
    return [*groups, *(f"{key}={value}" for key, value in sorted(model["env"].items()))]


_FIGURE = re.compile(r"\d[\d.,]*")


def _findings(old: Document, new: Document) -> Iterator[FindingChange]:
    was = {_finding_text(finding): finding["severity"] for finding in old["findings"]}
    now = {_finding_text(finding): finding["severity"] for finding in new["findings"]}
    lost = [text for text in was if text not in now]
    alike = {_FIGURE.sub("#", text): text for text in lost}
    for text, severity in now.items():
        if text in was:
            continue
        former = alike.get(_FIGURE.sub("#", text))
        if former:
            lost.remove(former)
            del alike[_FIGURE.sub("#", text)]
        yield FindingChange(change="changed" if former else "gained", severity=severity, text=text)
    yield from (FindingChange(change="lost", severity=was[text], text=text) for text in lost)


def _finding_text(finding: Document) -> str:
    return " ".join(filter(None, (f"{finding['subject']}: {finding['message']}", finding["remedy"])))


def _settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Line]:
    """Keys of the stack file, `--set` included."""
    was, now = dict(_leaves(old)), dict(_leaves(new))
    for key in sorted({**was, **now}):
        if was.get(key) != now.get(key):
            secret = _is_secret(was.get(key)) or _is_secret(now.get(key))
            note = "encrypted anew: another value, or another key" if secret and key in was and key in now else ""
            yield Line(what=key, before=_value(key, was), after=_value(key, now), note=note)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value and not _is_secret(value):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _is_secret(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"secure"}


def _value(key: str, values: Mapping[str, Any]) -> str:
    if key not in values:
        return ""
    if _is_secret(values[key]):
        return "(secret)"
    return Problem(key=key, value=values[key], limit="", source="", remedy="").shown


def _other(old: Document, new: Document) -> Iterator[Line]:
    """Whatever else differs, field by field."""
    apart = ("models", "network_policies")
    before, after = ({key: value for key, value in side.items() if key not in apart} for side in (old, new))
    yield from _rest(before, after, SHOWN)
    was, now = (_by_name(side.get("network_policies", ())) for side in (old, new))
    for name in sorted({*was, *now}):
        what = f"network policy {name}"
        if name in was and name in now:
            yield from _rest(was[name], now[name], (), f"{what}: ")
        else:  # what it is for says more than its fields
            yield Line(what=what, before=was.get(name, {}).get("why", ""), after=now.get(name, {}).get("why", ""))
    olds, news = _by_name(old["models"]), _by_name(new["models"])
    for name in news:
        if name in olds:
            yield from _rest(olds[name], news[name], SHOWN_OF_MODEL, f"{name}.")


def _rest(old: Document, new: Document, shown: Sequence[str], prefix: str = "") -> Iterator[Line]:
    was, now = dict(_fields(old)), dict(_fields(new))
    for path in sorted({**was, **now}):
        known = any(path == one or path.startswith((f"{one}.", f"{one}[")) for one in shown)
        if not known and was.get(path) != now.get(path):
            before, after = ("" if path not in side else without_tokens(_short(side[path])) for side in (was, now))
            yield Line(what=f"{prefix}{path}", before=before, after=after)


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _fields(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for at, item in enumerate(value):
            yield from _fields(item, f"{path}[{at}]")
    else:
        yield path, value


# Words and figures.


def _by_name(items: Iterable[Document]) -> dict[str, Document]:
    return {item["name"]: item for item in items}


def _at(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _in_all(model: Document) -> float:
    return model["memory"]["max_concurrency"] * model["layout"]["replicas"]


def _unused(model: Document) -> float:
    return model["derived"]["unused_gib"]


def _pool(pool: Document) -> str:
    return f"pool {pool['name']} ({_nodes(pool)} of {pool['vm_size']})"


def _nodes(pool: Document) -> str:
    grows = f", {pool['min_count']} to {pool['max_count']} by the autoscaler" if pool["autoscale"] else ""
    return f"{_count(pool['count'], 'node')}{grows}"


def _minutes(seconds: float) -> int:
    return math.ceil(seconds / 60)


def _percent(old: float, new: float) -> str:
    return f"{(new - old) / old:+.0%}" if old else "from nothing"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _and(items: Iterable[str]) -> str:
    words = list(items)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _sentence(text: str) -> str:
    return text[:1].lower() + text[1:]


def _short(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else "nothing" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
