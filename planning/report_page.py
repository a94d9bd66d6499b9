"""What the report says, in order, before it is drawn for a terminal or written as Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planning import catalogue
from planning.cluster import ClusterPlan
from planning.existing_cluster import ExistingClusterPlan
from planning.findings import Finding, Severity
from planning.parallelism import Alternative, alternatives
from planning.serving_rate import held_tokens, rough, span
from planning.sizing import Served
from planning.words import counted, whole_minutes

if TYPE_CHECKING:
    from planning.placement import PoolPlacement
    from planning.plan import ModelPlan, StackPlan


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What is said by key; a value's lines are kept, long ones are wrapped."""

    rows: tuple[tuple[str, str], ...]
    code: bool = False  # to be copied as it is


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a header, one of them marked; words on the left, figures from the third column on; `notes` below."""

    title: str
    about: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Lines of (glyphs, style) for a monospaced font, with the key of a row."""

    title: str
    lines: tuple[tuple[tuple[str, str], ...], ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, a line under it, and what follows."""

    title: str
    blocks: tuple[Rows | Table | Drawing, ...]
    about: str = ""


HEADER = (
    "a full node",
    "KV cache",
    "tokens, replica",
    "tokens, node",
    "at once, node",
    "longest",
    "during update",
    "replica, hour",
)


SERVING_HEADER = (
    "whole nodes",
    "serves it",
    "users, replica",
    "ms a token",
    "tokens/s, node",
    "$ per million out",
)


def other_layouts(plan: StackPlan, model: ModelPlan) -> tuple[Alternative, ...]:
    """The model's alternatives, at the price of the stack's region."""
    vm = catalogue.vm_size(model.layout.vm_size)
    return alternatives(
        model.preset.architecture,
        vm,
        layout=model.layout,
        memory=model.memory,
        options=model.asked,
        price_per_hour=vm.price_per_hour.get(plan.cluster.location),
    )


def sections(plan: StackPlan, width: int = 72, code_width: int = 100) -> list[Section]:
    """The page without its head, findings and next steps; drawings fit `width` columns, commands `code_width`."""
    runs = [_runs(model, code_width, several=len(plan.models) > 1) for model in plan.models]
    return [*(_model(plan, model, width) for model in plan.models), _nodes(plan), *runs]


def status(plan: StackPlan) -> str:
    """Whether it can be deployed."""
    steps = sum(finding.severity is Severity.STEP for finding in plan.findings)
    return f"Deployable after {counted(steps, 'step')}." if steps else "Deployable."


def verdict(plan: StackPlan) -> list[str]:
    """The answer before its reasons: a sentence for each model and one for the price."""
    lines = []
    for model in plan.models:
        layout, memory = model.layout, model.memory
        serving = "an outage" if model.rollout.update_outage_minutes else "no outage"
        lines.append(
            f"{model.name}: {counted(layout.replicas, 'replica')} × {counted(layout.gpus_per_replica, 'GPU')} hold "
            f"{memory.max_concurrency:.1f} requests of {memory.max_model_len:,} tokens each; an update is {serving}; "
            f"first answer about {duration(model.startup.total_seconds)} after the node is asked for."
        )
    nodes = counted(sum(pool.count for pool in plan.gpu_pools), "GPU node")
    hourly = plan.cost.gpu_pools_per_hour
    return [*lines, f"{nodes}: " + ("price not known." if hourly is None else f"${hourly:,.2f} an hour.")]


def findings_by_kind(plan: StackPlan) -> list[tuple[str, list[Finding]]]:
    """What is to do, to beware of and to know, with a title each."""
    titles = {
        Severity.STEP: "Still to do before `pulumi up`",
        Severity.WARNING: "Warnings",
        Severity.NOTE: "Good to know",
    }
    grouped = [(title, [f for f in plan.findings if f.severity is kind]) for kind, title in titles.items()]
    return [(title, findings) for title, findings in grouped if findings]


def first_steps(plan: StackPlan) -> list[str]:
    """What to type to get the stack up."""
    steps = any(finding.severity is Severity.STEP for finding in plan.findings)
    # In production an update, simulated or not, is refused until everything is pinned.
    tryout = [f"make up STACK={plan.stack}   # on this machine, with a simulated Azure and no GPU"]
    return [
        *(tryout if plan.environment == "development" or not steps else []),
        f"pulumi stack init {plan.stack}   # once; see docs/deploy.md",
        *(["# the steps above"] if steps else []),
        *(line for image in (plan.registry.images if plan.registry else ()) for line in image.command.splitlines()),
        f"pulumi preview --stack {plan.stack}",
        f"pulumi up --stack {plan.stack}",
    ]


def next_steps(plan: StackPlan) -> str:
    """What to type once the stack is up: a first answer, a change, the removal. Holds no secret."""
    model, stack = plan.models[0], plan.stack
    path = "aks-vllm:max-model-len" if model.name == "model" else f"--path aks-vllm:models.{model.name}.max-model-len"
    key = path.rpartition(":")[2]
    shorter = max(1, model.memory.max_model_len // 2)
    other = model.memory.longest_max_model_len if model.memory.longest_max_model_len > model.memory.max_model_len else 0
    length = min(other, 2 * model.memory.max_model_len) or shorter
    edge = plan.edge
    base = f"{edge.scheme}://localhost:8000{edge.base_paths[model.name]}"
    insecure = " -k" if edge.tls else ""  # the certificate is for another name than localhost
    bearer = ["""  -H "Authorization: Bearer $KEY" \\"""] if edge.keys else []
    what = "cluster and resource group are" if isinstance(plan.cluster, ClusterPlan) else "the weights' account is"
    unprotect = [
        f"# {what} protected: first",
        f"pulumi config set aks-vllm:protect false --stack {stack}",
        f"pulumi up --stack {stack}",
    ]
    by_kubeconfig = isinstance(plan.cluster, ExistingClusterPlan) and plan.cluster.id is None
    signs_in = "" if by_kubeconfig else "   # kubelogin signs you in"
    # No line is longer than a small terminal: commands that wrap cannot be copied.
    parts = {
        "A first answer": [
            f"pulumi stack output kubeconfig --show-secrets --stack {stack} > kubeconfig",
            f"export KUBECONFIG=$PWD/kubeconfig{signs_in}",
            f"kubectl -n {plan.namespace} port-forward service/edge 8000:{edge.service_port}",
            "# in a second terminal:",
            f"curl -s{insecure} {base}/chat/completions \\",
            *bearer,
            "  -H 'Content-Type: application/json' \\",
            f'  -d \'{{"model": "{model.served_model_name}",',
            """       "messages": [{"role": "user", "content": "Say hello."}]}'""",
        ],
        "Change the model": [
            "# what it would mean, without doing it:",
            f'make plan STACK={stack} SET="{key}={length}"',
            f"pulumi config set {path} {length} --stack {stack}",
            f"pulumi up --stack {stack}",
            "make presets   # other models: set preset the same way",
        ],
        "Remove everything": [
            *(unprotect if plan.cluster.protect else []),
            f"pulumi destroy --stack {stack}",
            f"pulumi stack rm {stack}",
        ],
    }
    text = [f"# aks-vllm, stack {stack}"]
    for title, commands in parts.items():
        text += ["", f"## {title}", "", *(f"    {command}" for command in commands)]
    return "\n".join(text) + "\n"


def unused_gib(model: ModelPlan) -> float:
    """What of one GPU's memory vLLM leaves alone."""
    memory = model.memory
    return memory.gpu_memory_gib - sum(gib for _, _, _, gib in _shares(model))


def startup_stages(model: ModelPlan) -> dict[str, int]:
    """Seconds of each stage, in order; weights that are streamed arrive while they are loaded."""
    startup = model.startup
    stages = {
        "node": startup.node_seconds,
        "image": startup.image_seconds,
        "weights": startup.weights_seconds,
        "load": startup.load_seconds,
        "compile": startup.compile_seconds,
        "graphs": startup.graphs_seconds,
    }
    return {name: seconds for name, seconds in stages.items() if seconds}


def probe_seconds(model: ModelPlan) -> int:
    """How long a start may take before the replica is killed."""
    return model.startup.startup_probe_period_seconds * model.startup.startup_probe_failure_threshold


def _model(plan: StackPlan, model: ModelPlan, width: int) -> Section:
    layout, memory, preset = model.layout, model.memory, model.preset
    revision = f"at {model.revision[:12]}" if model.revision else "at its newest commit, not pinned"
    stages = f" and pipeline parallel size {layout.pipeline_parallel_size}" if layout.pipeline_parallel_size > 1 else ""
    room = memory.longest_max_model_len
    longer = "the longest that fits" if room <= memory.max_model_len else f"up to {room:,} fit"
    if memory.max_model_len == preset.architecture.native_context:
        longer = "as many as the model was made for"
    return Section(
        title=f"{model.name} · {preset.name}",
        about=f"{preset.model_id} {revision}, {preset.architecture.dtype}, licence {preset.license}"
        f"{', gated' if preset.gated else ''}; clients call it {model.served_model_name}",
        blocks=(
            _memory(model, width),
            Rows(
                rows=(
                    (
                        "KV cache",
                        f"{memory.kv_cache_tokens:,} tokens in each replica: {memory.max_concurrency:.1f} requests of "
                        f"full length at once, {memory.max_concurrency * layout.replicas:.1f} in all",
                    ),
                    ("Context", f"{memory.max_model_len:,} tokens, prompt and answer; {longer}"),
                    (
                        "Layout",
                        f"{counted(layout.replicas, 'replica')} × {counted(layout.gpus_per_replica, 'GPU')} (tensor "
                        f"parallel size {layout.tensor_parallel_size}{stages}) on {layout.vm_size}, "
                        f"{layout.replicas_per_node} to a node\n{layout.reason}",
                    ),
                )
            ),
            _alternatives(other_layouts(plan, model)),
            *serving(model),
            _startup(model, width),
            Rows(rows=_interruptions(model)),
        ),
    )


def _interruptions(model: ModelPlan) -> tuple[tuple[str, str], ...]:
    """What is promised while replicas are replaced, and what a restart costs."""
    rollout, replicas = model.rollout, counted(model.layout.replicas, "replica")
    kept = "weights and compiled kernels" if model.weights.volume_gib else "compiled kernels"
    return (
        ("Update", rollout.update_consequence),
        ("Node drain", rollout.drain_consequence),
        (
            "Serving",
            f"at least {rollout.min_available_during_update} of {replicas} during an update, "
            f"{rollout.min_available_during_drain} during a node drain",
        ),
        (
            "Restart",
            f"a container that crashes is back in about {duration(model.startup.container_restart_seconds)}: {kept} "
            f"outlive it; a new pod fetches and compiles again, about "
            f"{duration(model.startup.restart_seconds)}",
        ),
    )


def _shares(model: ModelPlan) -> tuple[tuple[str, str, str, float], ...]:
    """(glyph, style, words, GiB) of what vLLM takes of one GPU."""
    memory = model.memory
    return (
        ("█", "blue", "weights", memory.weights_gib),
        ("▓", "yellow", "activations", memory.activation_gib),
        ("▚", "red", "communication", memory.non_torch_gib),
        ("▒", "magenta", "CUDA graphs", memory.cuda_graph_gib),
        ("░", "green", "KV cache", memory.available_kv_gib),
    )


def _memory(model: ModelPlan, width: int) -> Drawing:
    """One GPU's memory as a bar, with its legend in as many lines as it needs."""
    total = model.memory.gpu_memory_gib
    shares = (*_shares(model), ("·", "dim", "unused", unused_gib(model)))
    columns = min(width, 72)
    bar, drawn, sofar = [], 0, 0.0
    for glyph, style, _, gib in shares:
        sofar += max(0.0, gib)
        upto = min(columns, max(drawn + 1, round(columns * sofar / total)))
        bar.append((glyph * (upto - drawn), style))
        drawn = upto
    lines: list[list[tuple[str, str]]] = [[]]
    column = 0
    for glyph, style, words, gib in shares:
        words = f"{words} {gib:.1f}" if glyph != "·" else f"{words} {gib:.1f}, of {total:.1f} GiB"
        if column and column + len(words) + 4 > columns:
            lines.append([])
            column = 0
        lines[-1] += [("  " if column else "", ""), (f"{glyph} ", style), (words, "")]
        column += len(words) + (4 if column else 2)
    return Drawing(title="Each GPU", lines=(tuple(bar), *map(tuple, lines)))


def _startup(model: ModelPlan, width: int) -> Drawing:
    """The stages of a start on a new node, each beginning where the one before ends."""
    startup, stages = model.startup, startup_stages(model)
    columns = min(width, 72) - 16
    per_column = startup.total_seconds / columns
    lines = [((f"about {duration(startup.total_seconds)} on a new node", ""),)]
    begun = 0
    for name, seconds in stages.items():
        left = min(columns - 1, round(begun / per_column))
        length = max(1, min(columns, round((begun + seconds) / per_column)) - left)
        style = "cyan" if name in ("node", "image") else "blue"
        lines.append(((f"{name:<8}{duration(seconds):>6}  ", ""), (" " * left, ""), ("■" * length, style)))
        begun += seconds
    lines.append(((f"about {duration(startup.restart_seconds)} on a node that is there", ""),))
    return Drawing(title="Start-up", lines=tuple(lines))


def layout_name(found: Alternative) -> str:
    """Replicas of a full node and their split, as in 2 × TP 4."""
    stages = f" PP {found.pipeline_parallel_size}" if found.pipeline_parallel_size > 1 else ""
    return f"{found.replicas_per_node} × TP {found.tensor_parallel_size}{stages}"


def _alternatives(found: Sequence[Alternative]) -> Table:
    rows = [
        (
            layout_name(each),
            each.kv_cache_dtype,
            f"{each.kv_cache_tokens:,}",
            f"{each.kv_cache_tokens_per_node:,}",
            f"{each.max_concurrency_per_node:.1f}" if each.fits else "too long",
            f"{each.longest_max_model_len:,}",
            "serving" if each.keeps_serving else "outage",
            "not known" if each.replica_per_hour is None else f"${each.replica_per_hour:,.2f}",
        )
        for each in found
    ]
    marked = next(index for index, each in enumerate(found) if each.chosen)
    chosen = found[marked]
    # The next smaller, the next larger and the other KV cache dtype: one change at a time.
    alike = [each for each in found if each.kv_cache_dtype == chosen.kv_cache_dtype]
    place = alike.index(chosen)
    near = [*alike[max(0, place - 1) : place], *alike[place + 1 : place + 2]]
    near += [each for each in found if layout_name(each) == layout_name(chosen) and each not in alike]
    notes = (f"{layout_name(each)}{'' if each in alike else f', KV cache {each.kv_cache_dtype}'}" for each in near)
    return Table(
        title="Layouts",
        about=f"what a full node could hold, {found[0].max_model_len:,} tokens a request; "
        f"chosen: {layout_name(chosen)}, KV cache {chosen.kv_cache_dtype}",
        header=HEADER,
        rows=tuple(rows),
        marked=marked,
        notes=tuple(f"{name}: {each.trade}" for name, each in zip(notes, near, strict=True)),
    )


def serving(model: ModelPlan) -> tuple[Rows | Table, ...]:
    """What the model serves under its load: figures as ranges, with what they rest on."""
    found, load = model.serving, model.serving.workload
    limit = f", at most {load.max_tpot_ms:g} ms a token" if load.max_tpot_ms else ""
    users = (
        f"{counted(load.users, 'user')} at any time, prompts of {load.input_tokens:,} and answers of "
        f"{load.output_tokens:,} tokens{limit}"
    )
    users += "" if found.asked else " (a chat, as no workload is set)"
    decided = found.decided
    if decided is None:
        measure = f"measure it, once it is deployed: make benchmark\nor: {found.to_measure}"
        why = f"not modelled: {found.not_modelled}\n{measure}"
        return (Rows(rows=(("Load", users), ("Serves", why))),)
    rate = decided.rate
    each = held_tokens(load.input_tokens, load.output_tokens)
    cost = "not known: the VM has no price in this region"
    if decided.per_million_output_tokens and decided.per_million_tokens:
        cost = (
            f"${span(decided.per_million_output_tokens)} per million output tokens, "
            f"${span(decided.per_million_tokens)} of all tokens, with the nodes as busy as this load makes them"
        )
    rows = (
        ("Load", users),
        (
            "Users",
            f"{rate.max_users * decided.replicas:,} before requests wait for KV cache, {rate.max_users:,} on each "
            f"replica with {each:,} tokens each",
        ),
        (
            "Each user",
            f"{span(rate.time_per_output_token_ms)} ms per output token, {span(rate.tokens_per_second_per_user)} "
            f"tokens per second; first token after about {rough(rate.time_to_first_token_ms.expected)} ms "
            "(median, cold prompt)",
        ),
        (
            "All users",
            f"{span(rate.tokens_per_second_per_gpu)} output tokens per second and GPU, "
            f"{span(decided.tokens_per_second_per_node)} a node",
        ),
        ("Token price", cost),
        ("Basis", "; ".join((found.basis, *found.notes))),
    )
    marked = found.layouts.index(decided)
    best = found.recommended
    about = f"chosen: {decided.replicas} × TP {decided.tensor_parallel_size}; "
    if best is None:
        about += "none serves it"
    else:
        still = ", of those that serve through an update" if best.keeps_serving else ""
        about += f"lowest cost per token{still}: {best.replicas} × TP {best.tensor_parallel_size} (10 % apart is a tie)"
    lacks = [
        f"{layout.replicas} × TP {layout.tensor_parallel_size}: {layout.lacks}"
        for layout in found.layouts
        if layout.lacks
    ]
    table = Table(
        title="Under load",
        about=about,
        header=SERVING_HEADER,
        rows=tuple(_served(layout) for layout in found.layouts),
        marked=marked,
        notes=tuple(lacks),
    )
    return Rows(rows=rows), table


def _served(layout: Served) -> tuple[str, ...]:
    price = layout.per_million_output_tokens
    return (
        f"{counted(layout.nodes, 'node')}, {layout.replicas} × TP {layout.tensor_parallel_size}",
        "no" if layout.lacks else "yes",
        str(layout.users_per_replica),
        span(layout.rate.time_per_output_token_ms),
        span(layout.tokens_per_second_per_node),
        "not known" if price is None else span(price),
    )


def _runs(model: ModelPlan, width: int, *, several: bool) -> Section:
    """The container, complete."""
    startup, rollout, resources = model.startup, model.rollout, model.resources
    return Section(
        title=f"What runs: {model.name}" if several else "What runs",
        blocks=(
            Rows(
                rows=(
                    ("Command", command([*model.command, *model.args], width)),
                    ("Environment", wrapped([f"{key}={value}" for key, value in sorted(model.env.items())], width)),
                ),
                code=True,
            ),
            Rows(
                rows=(
                    ("Image", model.image.reference),
                    (
                        "Pod",
                        f"{counted(resources.gpus, 'GPU')}, {resources.cpu} CPUs, {resources.memory_gib} GiB memory "
                        f"({resources.shm_gib} of it /dev/shm), {resources.cache_gib} GiB of the OS disk for caches",
                    ),
                    ("Weights", _weights(model)),
                    (
                        "Limits",
                        f"start-up probe {duration(probe_seconds(model))}, progress deadline "
                        f"{duration(startup.progress_deadline_seconds)}, Pulumi waits "
                        f"{startup.pulumi_timeout_minutes} min; a stopping replica may finish answers for "
                        f"{duration(rollout.shutdown_timeout_seconds)}",
                    ),
                )
            ),
        ),
    )


def _weights(model: ModelPlan) -> str:
    """Where they come from, and where they lie."""
    weights = model.weights
    if not weights.volume_gib:
        return "streamed while they are loaded, from the stack's storage account, where a Job puts them once"
    place = f"a volume of StorageClass {weights.storage_class}" if weights.storage_class else "the node's OS disk"
    return f"downloaded from huggingface.co by each replica to {weights.volume_gib} GiB of {place}"


def _nodes(plan: StackPlan) -> Section:
    cost = plan.cost
    pools = [
        f"{pool.name}: {counted(pool.count, 'node')}"
        + (f", the autoscaler may make it {pool.min_count} to {pool.max_count}" if pool.autoscale else "")
        + f" of {pool.vm_size}, {counted(pool.gpus_per_node, 'GPU')} each"
        for pool in plan.gpu_pools
    ]
    replicas = [_placed(placement, several=len(plan.gpu_pools) > 1) for placement in plan.placements]
    if cost.gpu_pools_per_hour is None or cost.gpu_pools_per_month is None:
        price = f"not known for {plan.cluster.location}"
    else:
        price = (
            f"${cost.gpu_pools_per_hour:,.2f} an hour, ${cost.gpu_pools_per_month:,.0f} a month of 730 hours "
            f"for the GPU nodes\nlist price of {cost.price_region}, {cost.price_date}; system nodes, control plane, "
            "disks and traffic come on top"
        )
    quota = [f"{need.vcpus} vCPUs of {need.family} ({need.nodes} × {need.vm_size})" for need in plan.quota]
    quota.append(f"{quota_vcpus(plan)} vCPUs in all in {plan.cluster.location}" if quota else "none: nothing is made")
    rows = (
        ("GPU pools", "\n".join(pools)),
        ("Replicas", "\n".join(replicas)),
        ("Price", price),
        ("Quota", "\n".join(quota)),
        ("Cluster", _cluster(plan)),
        (
            "Connections",
            "\n".join(dict.fromkeys(policy.why for policy in (*plan.network_policies, *plan.name_policies))),
        ),
    )
    return Section(title="Nodes and price", blocks=(Rows(rows=rows),))


def _cluster(plan: StackPlan) -> str:
    """The stack's own, or whose it is."""
    cluster = plan.cluster
    if isinstance(cluster, ExistingClusterPlan):
        return f"not the stack's own: {cluster.words}, namespace {plan.namespace}"
    system = cluster.system_pool
    return (
        f"{plan.names.cluster} in {plan.names.resource_group}, Kubernetes {cluster.kubernetes_version}, "
        f"tier {cluster.sku_tier}, {system.count} × {system.vm_size} for the system, "
        f"{'protected' if cluster.protect else 'not protected'} against deletion"
    )


def _placed(placement: PoolPlacement, *, several: bool) -> str:
    """What stands on the nodes of a pool."""
    kinds = []
    for nodes in placement.nodes:
        held = [f"{replicas} × {name}" for name, replicas in nodes.replicas.items()]
        held += [f"{counted(nodes.idle_gpus, 'idle GPU')}"] if nodes.idle_gpus else []
        kinds.append(f"{counted(nodes.count, 'node')} with {' and '.join(held)}")
    return f"{placement.pool}: {'; '.join(kinds)}" if several else "; ".join(kinds)


def quota_vcpus(plan: StackPlan) -> int:
    """What the region's own quota must have left."""
    return sum(need.vcpus for need in plan.quota)


def command(words: Sequence[str], width: int) -> str:
    """The command line, an option and its value together, broken so that it can be pasted into a shell."""
    groups: list[str] = []
    for word in words:
        if word.startswith("--") or not any(group.startswith("--") for group in groups):
            groups.append(shlex.quote(word))
        else:
            groups[-1] += f" {shlex.quote(word)}"
    return wrapped(groups, width - 2, " \\")


def wrapped(groups: Iterable[str], width: int, mark: str = "") -> str:
    """Groups that stay whole, on lines of so many columns; the second line on are set in by two."""
    lines: list[str] = []
    for group in groups:
        if lines and len(lines[-1]) + 1 + len(group) <= width - len(mark):
            lines[-1] += f" {group}"
        else:
            lines.append(group if not lines or not mark else f"  {group}")
    return f"{mark}\n".join(lines)


def duration(seconds: int) -> str:
    """Seconds, or from 90 on minutes."""
    return f"{seconds} s" if seconds < 90 else f"{whole_minutes(seconds)} min"
