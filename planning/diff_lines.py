"""What differs between two plans, line by line: each thing as a plan says it, where the two say it differently."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planning.diff_words import Document, at_once_in_all, by_name, in_vault, pool_text, unused_gib, whose_cluster
from planning.findings import Problem, without_tokens
from planning.words import counted, whole_minutes


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


def _revision(model: Document) -> str:
    return model["revision"][:12] if model["revision"] else "not pinned"


def _layout(model: Document) -> str:
    layout = model["layout"]
    stages = layout["pipeline_parallel_size"]
    split = f"TP {layout['tensor_parallel_size']}" + (f" PP {stages}" if stages > 1 else "")
    replicas = counted(layout["replicas"], "replica")
    return f"{replicas} × {split}, {layout['replicas_per_node']} to a node, {layout['vm_size']}"


def _fit(model: Document) -> str:
    memory = model["memory"]
    return (
        f"{memory['verdict']}: {memory['weights_gib']:.1f} GiB weights, {memory['available_kv_gib']:.1f} GiB KV cache "
        f"on each {memory['gpu']}"
    )


def _at_once(model: Document) -> str:
    each, all_ = model["memory"]["max_concurrency"], at_once_in_all(model)
    return f"{each:.1f} requests of full length in each replica, {all_:.1f} in all"


def _start(model: Document) -> str:
    new, there = (whole_minutes(model["startup"][key]) for key in ("total_seconds", "restart_seconds"))
    return f"about {new} min on a new node, {there} on one that is there"


def _pod(model: Document) -> str:
    pod = model["resources"]
    return (
        f"{counted(pod['gpus'], 'GPU')}, {pod['cpu']} CPUs, {pod['memory_gib']} GiB memory, {pod['shm_gib']} of it "
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
    ("GPU memory unused", lambda m: f"{unused_gib(m):.1f} GiB of each"),
    ("Weights", _weights),
    ("Image", lambda m: _image(m["image"])),
    ("Start-up", _start),
    ("Start-up probe", _probe),
    ("Pod", _pod),
    ("Last answers get", lambda m: f"{m['rollout']['shutdown_timeout_seconds']} s"),
    ("Updates from now on", lambda m: m["rollout"]["update_consequence"]),
    ("Node drains from now on", lambda m: m["rollout"]["drain_consequence"]),
)


def hourly_text(plan: Document) -> str:
    cost = plan["cost"]["gpu_pools_per_hour"]
    return f"not known for {plan['cost']['price_region']}" if cost is None else f"${cost:,.2f}"


def _monthly(plan: Document) -> str:
    cost = plan["cost"]["gpu_pools_per_month"]
    return f"not known for {plan['cost']['price_region']}" if cost is None else f"${cost:,.0f}"


def _quota(plan: Document) -> str:
    return ", ".join(f"{need['vcpus']} vCPUs of {need['family']}" for need in plan["quota"])


def _cluster_words(plan: Document) -> str:
    whose = whose_cluster(plan) or "the stack's own"
    return f"{whose}, namespace {plan['namespace']}"


def _device_plugin(plan: Document) -> str:
    return _image(plan["device_plugin"]["image"]) if plan["device_plugin"] else "the cluster's own"


def _image(image: Document) -> str:
    """With as much of its digest as tells two apart: whole, it makes a table too wide to be read."""
    name, at, digest = image["reference"].partition("@sha256:")
    return f"{name}{at}{digest[:12]}"


def _token(plan: Document) -> str:
    return in_vault(plan, "token") or "not in a vault"


def _certificate(plan: Document) -> str:
    secret = plan["edge"]["tls_secret"]
    return in_vault(plan, "certificate") or (f"Secret {secret}" if secret else "none")


def _images(plan: Document) -> str:
    registry = plan.get("registry")
    return f"from {registry['login_server']}" if registry else "from the public registries"


def _unless_owners(words: Say) -> Say:
    """What the stack decides of its own cluster, and somebody else of theirs."""
    return lambda plan: "its owner's" if whose_cluster(plan) else words(plan)


def api_server_text(plan: Document) -> str:
    if whose_cluster(plan):
        return "its owner's"
    access = plan["cluster"]["api_server"]
    ranges = f": {', '.join(access['authorized_ip_ranges'])}" if access["authorized_ip_ranges"] else ""
    return f"{access['access'].replace('-', ' ')}{ranges}"


def edge_text(plan: Document) -> str:
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
    ("GPU nodes", lambda p: "; ".join(pool_text(pool) for pool in p["gpu_pools"])),
    ("GPU nodes, an hour", hourly_text),
    ("GPU nodes, a month", _monthly),
    ("Quota", _quota),
    ("Endpoint", edge_text),
    ("API server", api_server_text),
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


def differing(say: Sequence[tuple[str, Say]], old: Document, new: Document) -> Iterator[Line]:
    for what, words in say:
        before, after = as_said(words, old), as_said(words, new)
        if before != after:
            yield Line(what=what, before=before, after=after)


def as_said(words: Say, plan: Document) -> str:
    """An older planner may not have written what is asked for."""
    try:
        return words(plan)
    except (KeyError, TypeError):
        return "not known"


def model_diffs(old: Document, new: Document) -> Iterator[ModelDiff]:
    olds, news = by_name(old["models"]), by_name(new["models"])
    for name in {**news, **olds}:
        was, now = olds.get(name), news.get(name)
        if was is None or now is None:
            only = now or was or {}
            said = [(what, as_said(words, only)) for what, words in MODEL_LINES]
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
        lines = tuple(differing(MODEL_LINES, was, now))
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


def finding_changes(old: Document, new: Document) -> Iterator[FindingChange]:
    was = {finding_text(finding): finding["severity"] for finding in old["findings"]}
    now = {finding_text(finding): finding["severity"] for finding in new["findings"]}
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


def finding_text(finding: Document) -> str:
    return " ".join(filter(None, (f"{finding['subject']}: {finding['message']}", finding["remedy"])))


def setting_lines(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Line]:
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


def other_lines(old: Document, new: Document) -> Iterator[Line]:
    """Whatever else differs, field by field."""
    apart = ("models", "network_policies")
    before, after = ({key: value for key, value in side.items() if key not in apart} for side in (old, new))
    yield from _rest(before, after, SHOWN)
    was, now = (by_name(side.get("network_policies", ())) for side in (old, new))
    for name in sorted({*was, *now}):
        what = f"network policy {name}"
        if name in was and name in now:
            yield from _rest(was[name], now[name], (), f"{what}: ")
        else:  # what it is for says more than its fields
            yield Line(what=what, before=was.get(name, {}).get("why", ""), after=now.get(name, {}).get("why", ""))
    olds, news = by_name(old["models"]), by_name(new["models"])
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


def _short(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else "nothing" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
