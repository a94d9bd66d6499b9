"""The plan for people (text, Markdown), for programs (JSON) and for the stack's outputs. Decides nothing."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from planning.findings import Finding, Severity

if TYPE_CHECKING:
    from planning.plan import ModelPlan, StackPlan

MIN_WIDTH, MAX_WIDTH = 60, 120
LABEL = 13  # columns of the words on the left


@dataclass(frozen=True, kw_only=True)
class _Section:
    """A heading, a line under it, and what it says by key; a value's lines are kept, long ones are wrapped."""

    title: str
    about: str = ""
    rows: tuple[tuple[str, str], ...] = ()
    model: ModelPlan | None = None


def terminal(stream: IO[str]) -> tuple[int, bool]:
    """Columns to write, and whether in colour (https://no-color.org is honoured)."""
    width = shutil.get_terminal_size((100, 24)).columns
    color = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return max(MIN_WIDTH, min(MAX_WIDTH, width)), color


def headline(plan: StackPlan) -> dict[str, str | int | float]:
    """The plan's few numbers that stack outputs show; a price that is not known is left out."""
    figures = {
        "location": plan.cluster.location,
        "gpuNodes": sum(pool.count for pool in plan.gpu_pools),
        "gpus": sum(model.layout.gpus_per_replica * model.layout.replicas for model in plan.models),
        "kvCacheTokens": sum(model.memory.kv_cache_tokens * model.layout.replicas for model in plan.models),
        "startUpMinutes": max(_minutes(model.startup.total_seconds) for model in plan.models),
        "gpuPricePerHourUsd": plan.cost.gpu_pools_per_hour,
    }
    return {key: value for key, value in figures.items() if value is not None}


def as_json(plan: StackPlan) -> dict[str, Any]:
    """Everything in the plan, as plain values."""
    return {**_plain(plan), "headline": headline(plan), "deployable": True, "next_steps": next_steps(plan)}


def next_steps(plan: StackPlan) -> str:
    """What to type once the stack is up: a first answer, a change, the removal. Holds no secret."""
    model, stack = plan.models[0], plan.stack
    path = "aks-vllm:max-model-len" if model.name == "model" else f"--path aks-vllm:models.{model.name}.max-model-len"
    key = path.rpartition(":")[2]
    shorter = max(1, model.memory.max_model_len // 2)
    other = model.memory.longest_max_model_len if model.memory.longest_max_model_len > model.memory.max_model_len else 0
    length = min(other, 2 * model.memory.max_model_len) or shorter
    forwards = [f"kubectl -n {plan.namespace} port-forward service/{each.name} {each.port}" for each in plan.models]
    unprotect = [
        "# cluster and resource group are protected: first",
        f"pulumi config set aks-vllm:protect false --stack {stack}",
        f"pulumi up --stack {stack}",
    ]
    # No line is longer than a small terminal: commands that wrap cannot be copied.
    parts = {
        "A first answer": [
            f"pulumi stack output kubeconfig --show-secrets --stack {stack} > kubeconfig",
            "export KUBECONFIG=$PWD/kubeconfig   # kubelogin signs you in",
            *forwards[:1],
            *(f"# or {forward}" for forward in forwards[1:5]),
            "# in a second terminal:",
            f"curl -s http://localhost:{model.port}/v1/chat/completions \\",
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


def as_markdown(plan: StackPlan) -> str:
    """The report for a pull request's comment."""
    lines = [f"# aks-vllm: stack {plan.stack}", "", f"{_status(plan)} {plan.environment}, {plan.cluster.location}."]
    for section in _sections(plan):
        lines += ["", f"## {section.title}", ""]
        lines += [section.about, ""] if section.about else []
        lines += ["| | |", "|---|---|"]
        for label, text in section.rows:
            code = label in ("Command", "Environment")
            cells = [f"`{line.removesuffix(chr(92)).strip()}`" if code else line for line in text.splitlines()]
            lines.append(f"| {label} | {'<br>'.join(cells).replace('|', chr(92) + '|')} |")
    for title, findings in _findings(plan):
        lines += ["", f"## {title}", ""]
        lines += [f"{number}. {_line(finding)}" for number, finding in enumerate(findings, 1)]
    lines += ["", "## Next", "", *(f"    {command}" for command in _now(plan)), ""]
    lines += next_steps(plan).splitlines()[2:]
    return "\n".join(lines)


def as_text(plan: StackPlan, width: int = 100, color: bool = False) -> str:
    """The report for a terminal of so many columns."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console(
        width=width, force_terminal=color, color_system="standard" if color else None, highlight=False, emoji=False
    )

    def heading(text: str, style: str = "bold cyan") -> None:
        console.print()
        console.print(Text.assemble((text, style), " ", ("─" * max(0, width - len(text) - 1), "dim")), no_wrap=True)

    def rows(pairs: Iterable[tuple[str, Text]]) -> None:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=LABEL, style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for label, value in pairs:
            grid.add_row(label, value)
        console.print(Padding(grid, (0, 0, 0, 1)))

    def shell(text: str) -> Text:
        drawn = Text(overflow="fold")
        for line in text.splitlines():
            command, mark, comment = line.partition("   #")
            comes_alone = line.startswith("#")
            drawn.append(command, style="dim" if comes_alone else "green").append(mark + comment, style="dim")
            drawn.append("\n")
        drawn.rstrip()
        return drawn

    def remedy(finding: Finding) -> str:
        """A step's command on a line of its own, to be copied."""
        if finding.severity is not Severity.STEP:
            return finding.remedy
        parts = (part.strip(" .") for part in finding.remedy.split("`"))
        return "\n".join(part for part in parts if part)

    steps = [finding for finding in plan.findings if finding.severity is Severity.STEP]
    with console.capture() as captured:
        console.print(
            Text.assemble(
                ("aks-vllm", "bold"),
                f" · stack {plan.stack} · {plan.environment} · {plan.cluster.location} · ",
                (_status(plan), "bold yellow" if steps else "bold green"),
            )
        )
        room = width - LABEL - 3
        for section in _sections(plan, room):
            heading(section.title)
            if section.about:
                console.print(Padding(Text(section.about), (0, 0, 0, 1)))
            pairs = []
            for label, value in section.rows:
                command = label in ("Command", "Environment")
                pairs.append((label, Text(value, style="green" if command else "")))
                if label == "Context" and section.model is not None:
                    bar, legend = _bar(section.model, room)
                    drawn = Text()
                    for glyphs, style in bar:
                        drawn.append(glyphs, style=style)
                    column = room  # the legend begins a line of its own
                    for glyph, style, words in legend:
                        fits = column + len(words) + 4 <= room
                        column = (column + 2 if fits else 0) + len(words) + 2
                        drawn.append("  " if fits else "\n").append(f"{glyph} ", style=style).append(words)
                    pairs.append(("Each GPU", drawn))
            rows(pairs)
        styles = {Severity.STEP: "bold yellow", Severity.WARNING: "bold red", Severity.NOTE: "bold"}
        for title, findings in _findings(plan):
            heading(title, styles[findings[0].severity])
            grid = Table.grid(padding=(0, 1, 0, 0))
            grid.add_column(width=3, justify="right", style="dim")
            grid.add_column()
            for number, finding in enumerate(findings, 1):
                text = Text(f"{finding.subject}: ", style="dim")
                text.append(f"{finding.message} ", style="not dim").append(remedy(finding), style="not dim cyan")
                grid.add_row(f"{number}.", text)
            console.print(grid)
        heading("Next")
        console.print(Padding(shell("\n".join(_now(plan))), (0, 0, 0, 1)))
        for part in next_steps(plan).split("\n## ")[1:]:
            title, _, commands = part.partition("\n")
            console.print(Padding(Text(f"\n{title}", style="bold"), (0, 0, 0, 1)))
            body = "\n".join(line.removeprefix("    ") for line in commands.strip("\n").splitlines())
            console.print(Padding(shell(body), (0, 0, 0, 1)))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _status(plan: StackPlan) -> str:
    steps = sum(finding.severity is Severity.STEP for finding in plan.findings)
    return f"Deployable after {_count(steps, 'step')}." if steps else "Deployable."


def _now(plan: StackPlan) -> list[str]:
    steps = any(finding.severity is Severity.STEP for finding in plan.findings)
    # In production an update, simulated or not, is refused until everything is pinned.
    tryout = [f"make up STACK={plan.stack}   # on this machine, with a simulated Azure and no GPU"]
    return [
        *(tryout if plan.environment == "development" or not steps else []),
        f"pulumi stack init {plan.stack}   # once; see docs/deploy.md",
        *(["# the steps above"] if steps else []),
        f"pulumi preview --stack {plan.stack}",
        f"pulumi up --stack {plan.stack}",
    ]


def _sections(plan: StackPlan, width: int = 88) -> list[_Section]:
    return [*(_model(model, width) for model in plan.models), _nodes(plan)]


def _model(model: ModelPlan, width: int) -> _Section:
    layout, memory, startup, rollout = model.layout, model.memory, model.startup, model.rollout
    preset = model.preset
    revision = f"at {model.revision[:12]}" if model.revision else "at its newest commit, not pinned"
    gpus = _count(layout.gpus_per_replica, "GPU")
    stages = f" and pipeline parallel size {layout.pipeline_parallel_size}" if layout.pipeline_parallel_size > 1 else ""
    room = memory.longest_max_model_len
    longer = "the longest that fits" if room <= memory.max_model_len else f"up to {room:,} fit"
    if memory.max_model_len == preset.architecture.native_context:
        longer = "as many as the model was made for"
    stage = {
        "node": startup.node_seconds,
        "image": startup.image_seconds,
        "weights": startup.weights_seconds,
        "load": startup.load_seconds,
        "compile": startup.compile_seconds,
        "graphs": startup.graphs_seconds,
    }
    probe = startup.startup_probe_period_seconds * startup.startup_probe_failure_threshold
    return _Section(
        title=f"{model.name} · {preset.name}",
        about=f"{preset.model_id} {revision}, {preset.architecture.dtype}, licence {preset.license}"
        f"{', gated' if preset.gated else ''}; clients call it {model.served_model_name}",
        model=model,
        rows=(
            (
                "Fits",
                f"yes: {_count(layout.replicas, 'replica')} × {gpus} (tensor parallel size "
                f"{layout.tensor_parallel_size}{stages}) on {layout.vm_size}, {layout.replicas_per_node} to a node\n"
                f"{layout.reason}",
            ),
            (
                "KV cache",
                f"{memory.kv_cache_tokens:,} tokens in each replica: {memory.max_concurrency:.1f} requests of full "
                f"length at once, {memory.max_concurrency * layout.replicas:.1f} in all",
            ),
            ("Context", f"{memory.max_model_len:,} tokens, prompt and answer; {longer}"),
            ("Command", _command([*model.command, *model.args], width)),
            ("Environment", _wrapped([f"{key}={value}" for key, value in sorted(model.env.items())], width)),
            ("Image", model.image.reference),
            (
                "Pod",
                f"{gpus}, {model.resources.cpu} CPUs, {model.resources.memory_gib} GiB memory "
                f"({model.resources.shm_gib} of it /dev/shm), disk {model.resources.weights_gib} GiB weights and "
                f"{model.resources.cache_gib} GiB caches",
            ),
            (
                "Start-up",
                f"about {_duration(startup.total_seconds)} on a new node: "
                + " → ".join(f"{name} {_duration(seconds)}" for name, seconds in stage.items())
                + f"\nabout {_duration(startup.restart_seconds)} on a node that is there",
            ),
            (
                "Limits",
                f"start-up probe {_duration(probe)}, progress deadline "
                f"{_duration(startup.progress_deadline_seconds)}, Pulumi waits {startup.pulumi_timeout_minutes} min; "
                f"a stopping replica may finish answers for {_duration(rollout.shutdown_timeout_seconds)}",
            ),
            ("Update", rollout.update_consequence),
            ("Node drain", rollout.drain_consequence),
        ),
    )


def _nodes(plan: StackPlan) -> _Section:
    cost = plan.cost
    pools = [
        f"{pool.name}: {_count(pool.count, 'node')}"
        + (f", the autoscaler may make it {pool.min_count} to {pool.max_count}" if pool.autoscale else "")
        + f" of {pool.vm_size}, {_count(pool.gpus_per_node, 'GPU')} each"
        for pool in plan.gpu_pools
    ]
    system = plan.cluster.system_pool
    if cost.gpu_pools_per_hour is None or cost.gpu_pools_per_month is None:
        price = f"not known for {plan.cluster.location}"
    else:
        price = (
            f"${cost.gpu_pools_per_hour:,.2f} an hour, ${cost.gpu_pools_per_month:,.0f} a month of 730 hours "
            f"for the GPU nodes\nlist price of {cost.price_region}, {cost.price_date}; system nodes, control plane, "
            "disks and traffic come on top"
        )
    quota = [f"{need.vcpus} vCPUs of {need.family} ({need.nodes} × {need.vm_size})" for need in plan.quota]
    return _Section(
        title="Nodes and price",
        rows=(
            ("GPU pools", "\n".join(pools)),
            ("Price", price),
            (
                "Quota",
                "\n".join(quota)
                + f"\n{sum(need.vcpus for need in plan.quota)} vCPUs in all in {plan.cluster.location}",
            ),
            (
                "Cluster",
                f"{plan.names.cluster} in {plan.names.resource_group}, Kubernetes {plan.cluster.kubernetes_version}, "
                f"tier {plan.cluster.sku_tier}, {system.count} × {system.vm_size} for the system, "
                f"{'protected' if plan.cluster.protect else 'not protected'} against deletion",
            ),
        ),
    )


def _findings(plan: StackPlan) -> list[tuple[str, list[Finding]]]:
    titles = {
        Severity.STEP: "Still to do before `pulumi up`",
        Severity.WARNING: "Warnings",
        Severity.NOTE: "Good to know",
    }
    grouped = [(title, [f for f in plan.findings if f.severity is kind]) for kind, title in titles.items()]
    return [(title, findings) for title, findings in grouped if findings]


def _bar(model: ModelPlan, width: int) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
    """One GPU's memory as a bar of at most `width` columns, (glyphs, style), and its legend."""
    memory = model.memory
    overhead = memory.non_torch_gib + memory.cuda_graph_gib
    taken = memory.weights_gib + memory.activation_gib + overhead + memory.available_kv_gib
    parts = [
        ("█", "blue", "weights", memory.weights_gib),
        ("▓", "yellow", "activations", memory.activation_gib),
        ("▒", "magenta", "overheads", overhead),
        ("░", "green", "KV cache", memory.available_kv_gib),
        ("·", "dim", f"unused, of {memory.gpu_memory_gib:.1f} GiB", memory.gpu_memory_gib - taken),
    ]
    columns = min(width, 72)
    bar, drawn, total = [], 0, 0.0
    for glyph, style, _, gib in parts:
        total += max(0.0, gib)
        upto = min(columns, max(drawn + 1, round(columns * total / memory.gpu_memory_gib)))
        bar.append((glyph * (upto - drawn), style))
        drawn = upto
    return bar, [(glyph, style, f"{words} {gib:.1f}") for glyph, style, words, gib in parts[:-1]] + [
        (glyph, style, f"{gib:.1f} {words}") for glyph, style, words, gib in parts[-1:]
    ]


def _command(words: Sequence[str], width: int) -> str:
    """The command line, an option and its value together, broken so that it can be pasted into a shell."""
    groups: list[str] = []
    for word in words:
        starts = word.startswith("--") or not any(group.startswith("--") for group in groups)
        quoted = shlex.quote(word)
        if starts and groups and not (word.startswith("--") or groups[-1].startswith("--")):
            groups[-1] += f" {quoted}"
        elif starts:
            groups.append(quoted)
        else:
            groups[-1] += f" {quoted}"
    return _wrapped(groups, width - 2, " \\")


def _wrapped(groups: Iterable[str], width: int, mark: str = "") -> str:
    """Groups that stay whole, on lines of so many columns; the second line on are set in by two."""
    lines: list[str] = []
    for group in groups:
        if lines and len(lines[-1]) + 1 + len(group) <= width - len(mark):
            lines[-1] += f" {group}"
        else:
            lines.append(group if not lines or not mark else f"  {group}")
    return f"{mark}\n".join(lines)


def _line(finding: Finding) -> str:
    return f"**{finding.subject}**: {finding.message} {finding.remedy}".rstrip()


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {**plain, "reference": value.reference} if hasattr(value, "reference") else plain
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Severity) else value


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _minutes(seconds: int) -> int:
    return -(-seconds // 60)


def _duration(seconds: int) -> str:
    return f"{seconds} s" if seconds < 90 else f"{_minutes(seconds)} min"


def finding_as_json(finding: Finding) -> dict[str, str]:
    """A finding for programs."""
    return _plain(finding)
