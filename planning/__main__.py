"""The planner's command line: `report`, `diff`, `fit`, `rate`, `size`, `presets` and `schema`.

The only place in `planning` that prints. Standard output carries the answer: with `--format json` one JSON document,
also on errors. Words of failure go to standard error. Exit codes: 0 done, 1 failed, 2 the input is wrong.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from planning import serving_commands
from planning.command_line import (
    InputError,
    Parser,
    add_model,
    add_stack,
    architecture_of,
    asks_for_json,
    fail,
    known,
    number,
    planned,
    positive,
    refused,
)
from planning.findings import InvalidStack

FIT_KEYS = (
    "weights_gib",
    "activation_gib",
    "non_torch_gib",
    "cuda_graph_gib",
    "available_kv_gib",
    "kv_cache_tokens",
    "max_concurrency",
    "longest_max_model_len",
    "verdict",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = asks_for_json(words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without the bar's characters still gets the report
    try:
        options = _parser().parse_args(words)
        print(options.run(options))
        sys.stdout.flush()
    except InputError as error:
        return fail(error, 2, as_json, error.problems)
    except InvalidStack as error:  # a preset's file
        return fail(error, 2, as_json)
    except BrokenPipeError:  # whoever read the output has enough
        sys.stderr.close()
        return 1
    except Exception as error:  # a traceback helps nobody who only wants a plan
        return fail(f"this should not have happened: {type(error).__name__}: {error}", 1, as_json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m planning", description="What a stack needs, before anything is paid for.")
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=Parser)

    report = commands.add_parser("report", help="what a stack file comes to: memory, layout, price, outages, steps")
    add_stack(report)
    report.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    report.set_defaults(run=_report)

    diff = commands.add_parser("diff", help="what a change means for the people served")
    diff.add_argument("--stack", required=True, help="stacks/Pulumi.STACK.yaml")
    diff.add_argument("--base", required=True, help="the stack before: a git revision, or a stack file")
    diff.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for report, after the change")
    diff.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    diff.set_defaults(run=_diff)

    fit = commands.add_parser("fit", help="whether a model fits on a number of GPUs")
    add_model(fit)
    fit.add_argument("--gpu", default="H100-80GB", help="decides vLLM's defaults (default: %(default)s)")
    fit.add_argument("--gpu-memory-gib", type=positive, metavar="GIB", help="replaces the memory of --gpu")
    fit.add_argument("--tensor-parallel-size", type=int, required=True, metavar="N")
    fit.add_argument("--pipeline-parallel-size", type=int, default=1, metavar="N")
    fit.add_argument("--max-model-len", type=int, metavar="TOKENS", help="default: what the model was made for")
    fit.add_argument("--max-num-seqs", type=int, metavar="N")
    fit.add_argument("--max-num-batched-tokens", type=int, metavar="N")
    fit.add_argument("--gpu-memory-utilization", type=number, metavar="SHARE")
    fit.add_argument("--kv-cache-dtype", metavar="DTYPE", help="auto or fp8")
    fit.add_argument("--block-size", type=int, metavar="TOKENS")
    fit.add_argument("--enable-expert-parallel", action="store_true", help="deal experts out whole, instead of split")
    fit.add_argument(
        "--decode-context-parallel-size", type=int, metavar="N", help="GPUs that divide copies of the KV cache"
    )
    fit.add_argument("--weights-gib", type=positive, metavar="GIB", help="per GPU, replaces the computed value")
    fit.add_argument("--available-kv-gib", type=number, metavar="GIB", help="per GPU, replaces the computed value")
    fit.add_argument("--vllm-version", metavar="VERSION", help="default: the one that is deployed")
    fit.add_argument("--format", choices=("text", "json"), default="text")
    fit.set_defaults(run=_fit)

    serving_commands.add(commands)

    presets = commands.add_parser("presets", help="the models there are presets for")
    presets.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    presets.set_defaults(run=_presets)

    schema = commands.add_parser("schema", help="the JSON Schema of stack files: > stacks/schema.json")
    schema.set_defaults(run=_schema)
    return parser


def _report(options: argparse.Namespace) -> str:
    from planning import report

    plan = planned(options.stack, options.set)
    if options.format == "json":
        return json.dumps(report.as_json(plan), indent=2)
    if options.format == "markdown":
        return report.as_markdown(plan)
    width, color = report.terminal(sys.stdout)
    return report.as_text(plan, width, color)


def _diff(options: argparse.Namespace) -> str:
    from planning import diff, diff_page, revision

    after = revision.working_tree(options.stack, options.set)
    try:
        before = revision.of_base(options.base, options.stack)
    except revision.RevisionError as error:
        raise InputError(str(error)) from None
    if not after.exists and (Path(options.base).is_file() or not before.exists):
        raise InputError(f"--stack {options.stack}: there is no such stack file; `ls stacks` lists them")
    found = diff.compare(before, after, options.stack)
    if options.format == "json":
        return json.dumps(diff_page.as_json(found), indent=2)
    return diff_page.as_markdown(found) if options.format == "markdown" else diff_page.as_text(found)


def _fit(options: argparse.Namespace) -> str:
    from planning import catalogue
    from planning.memory import EngineOptions, LayoutError, memory_plan
    from planning.report import finding_as_json

    gpu = known(catalogue.gpu, options.gpu, "--gpu", catalogue.gpu_names)
    architecture = architecture_of(options)
    try:
        plan = memory_plan(
            architecture,
            gpu,
            tensor_parallel_size=options.tensor_parallel_size,
            pipeline_parallel_size=options.pipeline_parallel_size,
            options=EngineOptions(
                gpu_memory_utilization=options.gpu_memory_utilization,
                max_model_len=options.max_model_len,
                max_num_seqs=options.max_num_seqs,
                max_num_batched_tokens=options.max_num_batched_tokens,
                kv_cache_dtype=options.kv_cache_dtype,
                block_size=options.block_size,
                enable_expert_parallel=options.enable_expert_parallel,
                decode_context_parallel_size=options.decode_context_parallel_size,
            ),
            engine_version=(options.vllm_version or catalogue.deployed_engine()).removeprefix("v"),
            gpu_memory_gib=options.gpu_memory_gib,
            weights_gib=options.weights_gib,
            available_kv_gib=options.available_kv_gib,
        )
    except LayoutError as error:
        raise refused(error) from None
    if options.format == "json":
        answer = {key: getattr(plan, key) for key in FIT_KEYS}
        return json.dumps({**answer, "findings": [finding_as_json(finding) for finding in plan.findings]}, indent=2)
    gpus = plan.tensor_parallel_size * plan.pipeline_parallel_size
    rows = (
        ("weights", f"{plan.weights_gib:10.2f} GiB"),
        ("activations", f"{plan.activation_gib:10.2f} GiB"),
        ("non-torch", f"{plan.non_torch_gib:10.2f} GiB"),
        ("CUDA graphs", f"{plan.cuda_graph_gib:10.2f} GiB"),
        ("KV cache", f"{plan.available_kv_gib:10.2f} GiB = {plan.kv_cache_tokens:,} tokens"),
        ("at once", f"{plan.max_concurrency:10.2f} requests of {plan.max_model_len:,} tokens"),
        ("longest", f"{plan.longest_max_model_len:10,} tokens"),
    )
    lines = [f"{plan.verdict}: {gpus} × {plan.gpu} of {plan.gpu_memory_gib:.2f} GiB, per GPU:"]
    lines += [f"  {name:<12} {value}" for name, value in rows]
    lines += [f"{finding.severity}: {finding.message} {finding.remedy}".rstrip() for finding in plan.findings]
    return "\n".join(lines)


def _presets(options: argparse.Namespace) -> str:
    from planning import listing, report

    found = listing.rows()
    if options.format == "json":
        return json.dumps(found, indent=2)
    if options.format == "markdown":
        return listing.as_markdown(found)
    width, color = report.terminal(sys.stdout)
    return listing.as_text(found, width, color)


def _schema(_: argparse.Namespace) -> str:
    from planning import stack_file

    return json.dumps(stack_file.schema(), indent=2)


if __name__ == "__main__":
    sys.exit(main())
