"""The plan's memory numbers are those of vLLM's own code, for every model, layout and option that planning models."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from planning import catalogue, engine
from planning.architecture import Architecture, NotModelledError, from_hf_config
from planning.memory import GIB, EngineOptions, LayoutError, MemoryPlan, constants, memory_plan
from tests import hf_configs

pytestmark = pytest.mark.engine

H100 = catalogue.gpu("H100-80GB")
#: Distinct (layer specs, tensor parallel size) that must stay equal; the aim of the figure in docs/benchmarks.md.
AT_LEAST = 150
#: vLLM's image has FlashInfer as well, whose backends this environment cannot offer.
NOT_HERE = "No valid attention backend"
WITHIN = 0.005  # of vLLM's own parameters and buffers


def _architecture(model: str) -> Architecture | None:
    try:
        return from_hf_config(*hf_configs.load(model))
    except NotModelledError:
        return None


def _planned(architecture: Architecture, case: dict[str, Any]) -> MemoryPlan:
    return memory_plan(
        architecture,
        H100,
        tensor_parallel_size=case["tensor_parallel_size"],
        pipeline_parallel_size=case["pipeline_parallel_size"],
        options=EngineOptions(
            max_model_len=case.get("max_model_len"),
            max_num_seqs=case.get("max_num_seqs"),
            max_num_batched_tokens=case.get("max_num_batched_tokens"),
            kv_cache_dtype=case.get("kv_cache_dtype"),
            block_size=case.get("block_size"),
            decode_context_parallel_size=case.get("decode_context_parallel_size"),
            enable_expert_parallel=case.get("enable_expert_parallel"),
        ),
        available_kv_gib=case["available_bytes"] / GIB if "available_bytes" in case else None,
    )


def _differences(plan: MemoryPlan, case: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Field -> (ours, vLLM's)."""
    ours = {
        "bytes_per_block": plan.bytes_per_block,
        "longest_max_model_len": plan.longest_max_model_len,
        "fits": case["max_model_len"] <= plan.longest_max_model_len,
        "num_blocks": plan.num_blocks,
        "tokens": plan.kv_cache_tokens,
        "max_concurrency": plan.max_concurrency,
        "request_blocks": plan.request_blocks,
    }
    theirs = dict(case)
    if "groups" in case:
        theirs["request_blocks"] = sum(group["blocks_per_request"] for group in case["groups"])
    return {
        key: (value, theirs[key])
        for key, value in ours.items()
        if key in theirs
        and value != (pytest.approx(theirs[key], rel=1e-12) if key == "max_concurrency" else theirs[key])
    }


def _name(case: dict[str, Any]) -> str:
    short = {
        "tensor_parallel_size": "TP",
        "pipeline_parallel_size": "PP",
        "decode_context_parallel_size": "DCP",
        "enable_expert_parallel": "EP",
    }
    named = ("model", *short, "kv_cache_dtype", "block_size", "max_model_len", "available_bytes")
    return " ".join(f"{short.get(key, key)}={case[key]}" for key in named if key in case)


def _cases(ground_truth: dict[str, Any], kind: str) -> Iterator[tuple[Architecture | None, dict[str, Any]]]:
    known = {model: _architecture(model) for model in dict.fromkeys(ground_truth["same_as"].values())}
    for case in ground_truth[kind]:
        yield known[case["model"]], case


def _in_another_format(case: dict[str, Any]) -> bool:
    """Whether vLLM refused the weights as they are published, and was asked again without their quantisation."""
    config, beside = hf_configs.load(case["model"])
    return not case["quantised"] and bool(beside or "quantization_config" in json.dumps(config))


def _deals_out_nothing(architecture: Architecture, case: dict[str, Any]) -> bool:
    """vLLM takes the option for a Nemotron-H without experts, whose config class counts some; the plan refuses it."""
    return bool(case.get("enable_expert_parallel")) and not architecture.experts


def _layout(case: dict[str, Any]) -> tuple[Any, ...]:
    keys = ("tensor_parallel_size", "pipeline_parallel_size", "decode_context_parallel_size", "enable_expert_parallel")
    return (*(case.get(key) for key in ("model", *keys, "kv_cache_dtype", "block_size")),)


def test_kv_cache_numbers_are_vllms_own_wherever_planning_models_the_model(ground_truth: dict[str, Any]) -> None:
    counts: Counter[str] = Counter()
    distinct: set[str] = set()
    wrong = []
    for architecture, case in _cases(ground_truth, "cases"):
        if architecture is None:
            counts["not modelled"] += 1
            continue
        if _in_another_format(case):
            counts["not in its own format"] += 1
            continue
        if _deals_out_nothing(architecture, case):
            counts["without experts"] += 1
            continue
        try:
            differences = _differences(_planned(architecture, case), case)
        except LayoutError as error:
            differences = {"refused": (str(error), "planned")}
        if differences:
            wrong.append(f"{_name(case)}: {differences}")
        else:
            counts["equal"] += 1
            counts["by hand"] += bool(case.get("by_hand"))
            distinct.add(f"{case['layer_kinds']} TP {case['tensor_parallel_size']}")
    print(
        f"\nKV cache: {counts['equal']} of {len(ground_truth['cases'])} cases equal ({counts['by hand']} with a "
        f"configuration class by hand), {counts['not modelled']} not modelled, {counts['not in its own format']} that "
        f"vLLM refuses in the format of the weights, {counts['without experts']} that deal out no experts; "
        f"{len(distinct)} distinct (layer specs, TP)"
    )
    assert not wrong, f"{len(wrong)} differ (ours, vLLM's):\n" + "\n".join(wrong[:40])
    assert len(distinct) >= AT_LEAST, "equality must not shrink to few models"


def test_a_layout_that_vllm_refuses_is_not_planned(ground_truth: dict[str, Any]) -> None:
    works = {_layout(case) for case in ground_truth["cases"] if not _in_another_format(case)}
    lacking = {_layout(case) for case in ground_truth["refused"] if NOT_HERE in case["reason"]}
    counts: Counter[str] = Counter()
    planned = []
    for architecture, case in _cases(ground_truth, "refused"):
        if architecture is None or _layout(case) in works or "for ModelConfig" in case["reason"]:
            continue  # a model that this version does not know at all has no layouts
        if NOT_HERE in case["reason"] or _layout(case) in lacking:
            counts["not here"] += 1
            continue
        if "decode_context_parallel_size" in case:
            option = {"decode-context-parallel-size": case["decode_context_parallel_size"]}
            assert engine.check(option, prefix="vllm", source="x"), "nobody can ask for it"
            counts["refused"] += 1
            continue
        try:
            _planned(architecture, case)
        except LayoutError:
            counts["refused"] += 1
        else:
            planned.append(f"{_name(case)}: {case['reason'][:200]}")
    print(
        f"\nLayouts that vLLM refuses: {counts['refused']} refused by the plan, {len(planned)} planned, "
        f"{counts['not here']} that need FlashInfer"
    )
    assert not planned, "\n".join(planned[:40])


def test_weights_are_vllms_own_parameters(ground_truth: dict[str, Any]) -> None:
    allocated = constants("0.33.0").allocator.allocated
    counts: Counter[str] = Counter()
    wrong = []
    for architecture, case in _cases(ground_truth, "weights"):
        if case["pipeline_parallel_size"] > 1:
            continue  # the plan shows the stage that decides, not each
        if architecture is None or _in_another_format(case):
            counts["not modelled" if architecture is None else "not in its own format"] += 1
            continue
        if _deals_out_nothing(architecture, case):
            continue
        theirs = case["buffer_bytes"] + sum(allocated(size) * count for size, count in case["parameters"])
        try:
            ours = _planned(architecture, case).weights_gib * GIB
        except LayoutError as error:
            wrong.append(f"{_name(case)}: {error}")
            continue
        off = ours / theirs - 1
        if abs(off) > WITHIN:
            wrong.append(f"{_name(case)}: {ours / GIB:.3f} GiB, vLLM {theirs / GIB:.3f} GiB ({off:+.2%})")
        else:
            counts["equal"] += 1
            counts["within 0.05 %"] += abs(off) <= WITHIN / 10
    print(
        f"\nWeights: {counts['equal']} within {WITHIN:.1%} ({counts['within 0.05 %']} within a tenth of that), "
        f"{len(wrong)} off, {counts['not modelled']} not modelled"
    )
    assert not wrong, f"{len(wrong)} are off by more than {WITHIN:.1%}:\n" + "\n".join(wrong[:60])
