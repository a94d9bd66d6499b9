"""What an update does to the people served while it runs: nothing, a rolling update, an outage, or never an end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from planning.diff_words import (
    KUBECONFIG,
    Document,
    Side,
    at_path,
    by_name,
    in_vault,
    lower_first,
    nodes_text,
    pool_text,
    whose_cluster,
)
from planning.rolling_update import Course, Pool, Replicas, simulate
from planning.words import counted, listed, whole_minutes


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


def update_consequences(before: Side, after: Side) -> Iterator[Consequence]:
    if not before.plan or not after.plan:
        return
    old, new = before.plan, after.plan
    if whose_cluster(old) != whose_cluster(new) or old["namespace"] != new["namespace"]:
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
    token |= bool(in_vault(old, "token")) != bool(in_vault(new, "token"))
    yield from _model_consequences(old, new, token=token, rebuilt=rebuilt)


def _moved(old: Document, new: Document) -> Consequence:
    """Everything goes to another cluster, or to another namespace."""
    was, now = whose_cluster(old), whose_cluster(new)
    seconds = max(model["startup"]["total_seconds"] for model in new["models"])
    minutes = whole_minutes(seconds if now else seconds + CLUSTER_SECONDS)
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
    if whose_cluster(new):
        return  # Kubernetes and network are its owner's
    moved = [path for path in KEEPS_CLUSTER if at_path(old, path) != at_path(new, path)]
    if moved:
        words = listed([path.rpartition(".")[2].replace("_", " ") for path in moved])
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
        if at_path(old, path) is not None and at_path(old, path) != at_path(new, path)
    ]
    if changed:
        minutes = whole_minutes(CLUSTER_SECONDS + max(model["startup"]["total_seconds"] for model in new["models"]))
        refused = " Pulumi refuses it while the cluster is protected (`aks-vllm:protect`)." if was["protect"] else ""
        yield Consequence(
            kind=Kind.CLUSTER,
            subject="cluster",
            outage_minutes=minutes,
            sentence=f"The cluster is replaced ({listed(changed)}): an outage of all "
            f"models of about {minutes} minutes, and the time Azure takes to delete the old one.{refused}",
        )
        return
    if was["kubernetes_version"] != now["kubernetes_version"]:
        minutes = max(model["rollout"]["drain_outage_minutes"] for model in new["models"])
        drains = " ".join(
            f"{model['name']}: {lower_first(model['rollout']['drain_consequence'])}" for model in new["models"]
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
    olds, news = by_name(old["gpu_pools"]), by_name(new["gpu_pools"])
    added, removed = [name for name in news if name not in olds], [name for name in olds if name not in news]
    if added and removed:
        yield (
            Consequence(
                kind=Kind.NODES,
                subject=added[0],
                sentence=f"GPU nodes are replaced: {pool_text(news[added[0]])} made first, "
                f"{pool_text(olds[removed[0]])} deleted last. Quota must allow both at once, and "
                "both are paid for until then.",
            ),
            None,
        )
    elif added or removed:
        for name in added or removed:
            words = f"{pool_text(news[name])} added" if added else f"{pool_text(olds[name])} deleted at the end"
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
                    sentence=f"{counted(fewer, 'node')} of pool {name} {'is' if fewer == 1 else 'are'} drained and "
                    "removed; replicas on it start again on those that stay, if there is room.",
                ),
                None,
            )
        elif any(was.get(key) != now.get(key) for key in ("count", "min_count", "max_count", "autoscale")):
            text = f"Pool {name} in place: {nodes_text(was)} → {nodes_text(now)}."
            yield Consequence(kind=Kind.IN_PLACE, subject=name, sentence=text), None


def _replaced_pool(pool: Document, new: Document, changed: Sequence[str]) -> Consequence:
    """A pool that Azure cannot change. Made first, its nodes are there when the old ones are drained."""
    models = [model for model in new["models"] if model["layout"]["pool"] == pool["name"]]
    names, why = listed(model["name"] for model in models), f" ({listed(changed)})" if changed else ""
    if not pool.get("create_first"):
        minutes = whole_minutes(max(model["startup"]["total_seconds"] for model in models))
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
            minutes = whole_minutes(max(m["startup"]["restart_seconds"] + m["startup"]["image_seconds"] for m in dark))
            moved = listed(model["name"] for model in dark)
            sentence += f" All replicas of {moved} move at once: an outage of about {minutes} minutes."
    return Consequence(kind=Kind.NODES, subject=pool["name"], outage_minutes=minutes, sentence=sentence)


def _model_consequences(old: Document, new: Document, *, token: bool, rebuilt: set[str]) -> Iterator[Consequence]:
    olds, news = by_name(old["models"]), by_name(new["models"])
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
            minutes = whole_minutes(model["startup"]["total_seconds"])
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
    return any(at_path(old, path) != at_path(new, path) for path in IN_THE_POD)


def _rolled(name: str, old: Document, new: Document, course: Course, *, rotated: bool) -> Consequence:
    startup, moved = new["startup"], old["layout"]["pool"] != new["layout"]["pool"]
    fresh = old["image"]["reference"] != new["image"]["reference"] or moved
    minutes = whole_minutes(startup["restart_seconds"] + (startup["image_seconds"] if fresh else 0))
    why = " for the new Hugging Face token" if rotated else ""
    pull = ", with the image to pull first" if fresh else ""
    if course.fewest_ready == 0:
        answers = whole_minutes(new["rollout"]["shutdown_timeout_seconds"])
        return Consequence(
            kind=Kind.OUTAGE,
            subject=name,
            outage_minutes=minutes,
            sentence=f"{name}: the update{why} stops serving for about {minutes} minutes{pull}, and up to {answers} "
            "more while the last answers finish: nothing serves until the first new replica is ready.",
        )
    replicas = new["layout"]["replicas"]
    kept = "one replica keeps" if course.fewest_ready == 1 else f"{course.fewest_ready} replicas keep"
    each = whole_minutes(
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
    olds, news = by_name(old["models"]), by_name(new["models"])
    gone = [other for other in olds if other not in news]
    model = news[name]
    if name not in olds and gone:
        remedy = f"Remove {listed(gone)} in an update of its own first; that is an outage until {name} has started."
        holder = f"{listed(gone)} hold{'s' if len(gone) == 1 else ''} until the end of the update"
    else:
        befores = {key: _replicas(value) for key, value in olds.items()}
        afters = {key: _replicas(value) for key, value in news.items()} | {name: replace(_replicas(model), count=1)}
        course = simulate(befores, afters, rolled | {name}, _nodes_during(old, new))[name]
        holder = "the old ones hold until enough new ones are ready"
        remedy = "Take a node more for the update (gpu-nodes)."
        if not course.stuck:
            minutes = whole_minutes(model["startup"]["restart_seconds"])
            outage = f" (an outage of about {minutes} minutes)" if course.fewest_ready == 0 else ""
            remedy = f"Make it two updates: the same change with replicas: 1{outage}, then the replicas."
    return Consequence(
        kind=Kind.STUCK,
        subject=name,
        sentence=f"{name}: the update gets stuck: new replicas of "
        f"{counted(model['layout']['gpus_per_replica'], 'GPU')} wait for GPUs that {holder}. {remedy}",
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
    pools = {**by_name(old["gpu_pools"]), **by_name(new["gpu_pools"])}
    return {
        name: Pool(nodes=pool["max_count"] if pool["autoscale"] else pool["count"], gpus_per_node=pool["gpus_per_node"])
        for name, pool in pools.items()
    }
