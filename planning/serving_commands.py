"""`python -m planning rate`: one point of the serving rate; `size`: what a load takes over all models and VM sizes."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from planning.command_line import InputError, add_model, architecture_of, count, known, positive, refused

if TYPE_CHECKING:
    from planning.serving_rate import Workload
    from planning.sizing import Served

SHOWN = 10  # choices of `size`


def add(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    """Add both to the planner's commands."""
    rate = commands.add_parser("rate", help="how fast one replica serves a steady load")
    add_model(rate)
    rate.add_argument("--gpu", required=True, help="H100-80GB or H200: others were not measured")
    rate.add_argument("--tensor-parallel-size", type=int, required=True, metavar="N")
    _add_load(rate)
    rate.add_argument("--kv-cache-dtype", metavar="DTYPE", help="auto or fp8")
    rate.add_argument("--gpu-memory-utilization", type=positive, metavar="SHARE")
    rate.add_argument("--format", choices=("text", "json"), default="text")
    rate.set_defaults(run=_rate)

    size = commands.add_parser("size", help="the cheapest layouts that serve a load, over all models and VM sizes")
    size.add_argument("--preset", help="only this model, with all of its layouts")
    _add_load(size)
    size.add_argument("--max-tpot-ms", type=positive, metavar="MS", help="longest time per output token")
    size.add_argument("--limit", type=count, default=SHOWN, metavar="N", help="choices to show (default: %(default)s)")
    size.add_argument("--format", choices=("text", "json"), default="text")
    size.set_defaults(run=_size)


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input-tokens", type=count, required=True, metavar="N", help="of a prompt, mean")
    parser.add_argument("--output-tokens", type=count, required=True, metavar="N", help="of an answer, mean")
    parser.add_argument("--users", type=count, required=True, metavar="N", help="requests that are always under way")


def _rate(options: argparse.Namespace) -> str:
    from planning import catalogue, serving_rate
    from planning.memory import EngineOptions, LayoutError, memory_plan

    gpu = known(catalogue.gpu, options.gpu, "--gpu", catalogue.gpu_names)
    architecture = architecture_of(options)
    workload = _workload(options)
    length = workload.input_tokens + workload.output_tokens
    _check_length(length, architecture.native_context)
    model = options.preset or str(options.config.parent.name or "MODEL")
    if why := serving_rate.not_modelled(architecture, gpu):
        raise InputError(f"not modelled: {why}; measure it: {serving_rate.to_measure(workload, model)}")
    engine = EngineOptions(
        gpu_memory_utilization=options.gpu_memory_utilization,
        max_model_len=length,
        kv_cache_dtype=options.kv_cache_dtype,
    )
    try:
        memory = memory_plan(architecture, gpu, tensor_parallel_size=options.tensor_parallel_size, options=engine)
        held = serving_rate.users_held(
            architecture,
            gpu,
            tensor_parallel_size=options.tensor_parallel_size,
            input_tokens=workload.input_tokens,
            output_tokens=workload.output_tokens,
            options=engine,
        )
    except LayoutError as error:
        raise refused(error) from None
    if memory.verdict != "fits":
        finding = memory.findings[0]
        raise InputError(f"the model does not fit: {finding.message} {finding.remedy}")
    rate = serving_rate.rate(
        architecture,
        gpu,
        tensor_parallel_size=options.tensor_parallel_size,
        workload=workload,
        capacity=held,
        max_num_seqs=memory.max_num_seqs,
    )
    tokens = serving_rate.held_tokens(workload.input_tokens, workload.output_tokens)
    notes = serving_rate.notes(rate, options.tensor_parallel_size)
    if options.format == "json":
        answer = {
            **asdict(rate),
            "max_users_of_full_length": int(memory.max_concurrency),
            "tokens_held_per_user": tokens,
            "basis": serving_rate.BASIS,
            "notes": notes,
        }
        return json.dumps(_rounded(answer), indent=2)
    gpus = f"{options.tensor_parallel_size} × {gpu.name}"
    lines = [
        f"{gpus}, {workload.users} users, prompts of {workload.input_tokens:,} and answers of "
        f"{workload.output_tokens:,} tokens:"
    ]
    users, gpu_rate = rate.tokens_per_second_per_user, rate.tokens_per_second_per_gpu
    rows = (
        ("time per output token", f"{serving_rate.span(rate.time_per_output_token_ms)} ms"),
        ("time to first token", f"about {serving_rate.rough(rate.time_to_first_token_ms.expected)} ms, cold, median"),
        ("tokens per second", f"{serving_rate.span(users)} each user, {serving_rate.span(gpu_rate)} each GPU"),
        (
            "users at once",
            f"{rate.max_users} with {tokens:,} tokens each in the KV cache (prompt and half of the answer), "
            f"{int(memory.max_concurrency)} if all were at their end",
        ),
    )
    lines += [f"  {name:<22} {value}" for name, value in rows]
    lines += [f"note: {note}" for note in notes]
    lines.append(f"basis: {serving_rate.BASIS}")
    return "\n".join(lines)


def _size(options: argparse.Namespace) -> str:
    from planning import catalogue, serving_rate, sizing
    from planning.memory import EngineOptions

    workload = _workload(options)
    length = workload.input_tokens + workload.output_tokens
    names = catalogue.preset_names()
    if options.preset is not None:
        known(catalogue.preset, options.preset, "--preset", catalogue.preset_names)
        names = (options.preset,)
    found: list[tuple[str, Served]] = []
    left_out: dict[str, str] = {}
    for name in names:
        architecture = catalogue.preset(name).architecture
        if length > architecture.native_context:
            left_out[name] = f"{length:,} tokens are more than its context of {architecture.native_context:,}"
            continue
        why = ""
        for vm in map(catalogue.vm_size, catalogue.vm_size_names()):
            reason = serving_rate.not_modelled(architecture, vm.gpu, catalogue.preset(name).options)
            if reason:
                why = why or reason
                continue
            engine = EngineOptions(max_model_len=length)
            fitting = sizing.fitting(architecture, vm, engine)
            layouts = sizing.layouts(architecture, vm, fitting, workload, engine, price_per_hour=vm.cheapest_price)
            # Of a model among many, the best layout of each VM size; of one model, all of them.
            chosen = sizing.best(layouts) or sizing.closest(layouts)
            found += [(name, each) for each in layouts if options.preset is not None or each is chosen]
        if name not in {each for each, _ in found}:
            left_out[name] = f"not modelled: {why}" if "no term" in why else "no layout fits on a measured GPU"
    serving = sorted((each for each in found if not each[1].lacks), key=_order)
    if not serving:
        raise InputError(_none(found, left_out, workload))
    shown = serving[: options.limit]
    if options.format == "json":
        answer = {
            "workload": asdict(workload),
            "choices": [{"preset": name, **_choice(each)} for name, each in shown],
            "more_choices": len(serving) - len(shown),
            "left_out": left_out,
            "basis": serving_rate.BASIS,
        }
        return json.dumps(_rounded(answer), indent=2)
    return _as_text(shown, len(serving), left_out, workload)


def _order(item: tuple[str, Served]) -> tuple[bool, float, float, str]:
    """Cheapest load first, sizes without a price last; then the faster."""
    name, served = item
    per_hour = served.per_hour if served.per_hour is not None else served.nodes
    return served.per_hour is None, per_hour, served.rate.time_per_output_token_ms.expected, name


def _choice(served: Served) -> dict[str, Any]:
    from planning import catalogue

    return {
        "vm_size": served.vm_size,
        "gpu": served.gpu,
        "tensor_parallel_size": served.tensor_parallel_size,
        "replicas": served.replicas,
        "nodes": served.nodes,
        "users_per_replica": served.users_per_replica,
        "max_users_per_replica": served.rate.max_users,
        "cost_per_hour": served.per_hour,
        "price_region": catalogue.vm_size(served.vm_size).cheapest_region,
        "cost_per_million_output_tokens": served.per_million_output_tokens and asdict(served.per_million_output_tokens),
        "cost_per_million_tokens": served.per_million_tokens and asdict(served.per_million_tokens),
        "time_per_output_token_ms": asdict(served.rate.time_per_output_token_ms),
        "time_to_first_token_ms": asdict(served.rate.time_to_first_token_ms),
        "tokens_per_second": asdict(served.tokens_per_second),
    }


def _as_text(shown: list[tuple[str, Served]], found: int, left_out: dict[str, str], workload: Workload) -> str:
    from planning import serving_rate

    limit = f", at most {workload.max_tpot_ms:g} ms a token" if workload.max_tpot_ms else ""
    lines = [
        f"{workload.users} users, prompts of {workload.input_tokens:,} and answers of {workload.output_tokens:,} "
        f"tokens{limit}; {len(shown)} of {found} ways, whole nodes at the lowest list price, cheapest first:",
        "",
    ]
    header = ("model", "layout", "nodes", "$ an hour", "$ per million out", "ms a token")
    rows = [
        (
            name,
            f"{each.replicas} × TP {each.tensor_parallel_size}",
            f"{each.nodes} × {each.vm_size}",
            "not known" if each.per_hour is None else f"{each.per_hour:,.2f}",
            "not known"
            if each.per_million_output_tokens is None
            else serving_rate.span(each.per_million_output_tokens),
            serving_rate.span(each.rate.time_per_output_token_ms),
        )
        for name, each in shown
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    if left_out:
        lines += ["", f"Left out: {len(left_out)} models; --format json says why."]
    return "\n".join([*lines, "", f"basis: {serving_rate.BASIS}"])


def _none(found: list[tuple[str, Served]], left_out: dict[str, str], workload: Workload) -> str:
    """Why nothing serves the load, and what comes closest."""
    from planning import sizing

    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:3])
        return f"no model can be sized for this load: {reasons}"
    nearest = sizing.closest([each for _, each in found])
    assert nearest is not None
    name = next(name for name, each in found if each is nearest)
    return (
        f"--max-tpot-ms {workload.max_tpot_ms:g}: no layout is that fast; closest is {name} at tensor parallel size "
        f"{nearest.tensor_parallel_size} on {nearest.vm_size}: {nearest.lacks}; allow more, or choose a smaller model"
    )


def _workload(options: argparse.Namespace) -> Workload:
    from planning.serving_rate import Workload

    return Workload(
        input_tokens=options.input_tokens,
        output_tokens=options.output_tokens,
        users=options.users,
        max_tpot_ms=getattr(options, "max_tpot_ms", None),
    )


def _check_length(length: int, context: int) -> None:
    if length > context:
        raise InputError(
            f"--input-tokens and --output-tokens: {length:,} tokens together, the model was made for {context:,}; "
            "shorten one of them"
        )


def _rounded(value: Any) -> Any:
    """Four significant figures: more would be a promise."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
