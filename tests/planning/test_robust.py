"""Whatever a stack file says: a plan, or problems that a person can act on; never anything else."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from planning import catalogue, engine, report
from planning.findings import InvalidStack
from planning.plan import read_and_decide
from planning.stack_file import from_pulumi

TOKEN = "hf_" + "neverShown" * 3
OPTIONS = json.loads((engine.folder() / "arguments.json").read_text())

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
sizes = st.integers(-2, 12) | st.sampled_from([1024, 16384, 40960, 131072, 200000, 2**31, "16k", "auto", "x", 0.5])
shares = st.sampled_from([-1, 0, 0.1, 0.5, 0.9, 0.95, 0.999, 1, 1.5, "0.9", "nan", "inf", None])
options = st.dictionaries(
    st.sampled_from(sorted(OPTIONS)) | st.sampled_from(["swap-space", "max_num_seqs", "no-such", "--port"]),
    anything
    | sizes
    | shares
    | st.sampled_from([choice for row in OPTIONS.values() for choice in row.get("choices", ())]),
    max_size=4,
)
memory_options = st.fixed_dictionaries(
    {},
    optional={
        "gpu-memory-utilization": shares,
        "tensor-parallel-size": sizes,
        "pipeline-parallel-size": sizes,
        "max-num-seqs": sizes,
        "max-num-batched-tokens": sizes,
        "block-size": sizes,
        "kv-cache-dtype": st.sampled_from(["auto", "fp8", "fp8_e5m2", "int1"]),
        "enforce-eager": st.booleans(),
    },
)
models = st.fixed_dictionaries(
    {"preset": st.sampled_from([*catalogue.preset_names(), "llama", ""])},
    optional={
        "max-model-len": sizes,
        "replicas": sizes,
        "vm-size": st.sampled_from([*catalogue.vm_size_names(), "Standard_D4ds_v5"]),
        "revision": st.sampled_from(["0" * 40, "main", 7]),
        "vllm": options | memory_options | anything,
    },
)
stack = st.fixed_dictionaries(
    {},
    optional={
        "environment": st.sampled_from(["production", "development", "test"]),
        "models": st.dictionaries(st.sampled_from(["chat", "code", "Chat", "a" * 64]), models, max_size=3) | anything,
        "gpu-nodes": st.fixed_dictionaries({}, optional={"min": sizes, "max": sizes}) | anything,
        "max-answer-tokens": sizes,
        "kubernetes-version": st.sampled_from(["1.36", 1.36, "1.20", "latest"]),
        "protect": st.booleans() | st.just("yes"),
        "tags": anything,
        "hf-token": st.just(TOKEN),
        "max_model_len": sizes,
    },
)


def _bag(settings: dict[str, Any]) -> dict[str, str]:
    """Settings as the Pulumi CLI hands them over."""
    return {
        f"aks-vllm:{key}": value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()
    }


@given(stack, st.none() | models, st.sampled_from(["eastus", "", "East US"]))
def test_a_plan_or_problems_with_everything_a_person_needs(
    settings: dict[str, Any], flat: dict[str, Any] | None, location: str
) -> None:
    bag = {"azure-native:location": location, **_bag({**settings, **(flat or {})})}
    try:
        plan = read_and_decide(from_pulumi(bag, set(), "test"))
    except InvalidStack as invalid:
        assert invalid.problems
        for problem in invalid.problems:
            assert problem.key, problem
            assert problem.limit, problem
            assert problem.source, problem
            assert problem.remedy, problem
            assert len(str(problem).splitlines()) == 1, "a problem is a line"
        assert TOKEN not in str(invalid), "a token in clear must not be repeated"
        return
    assert TOKEN not in json.dumps(report.as_json(plan)), "the plan must not know the token"
    for model in plan.models:
        assert model.memory.verdict == "fits", "what is deployed must start"
        assert model.memory.max_model_len <= model.memory.longest_max_model_len
        pool = next(pool for pool in plan.gpu_pools if pool.name == model.layout.pool)
        assert model.layout.gpus_per_replica <= pool.gpus_per_node, "a replica never spans nodes"
        assert all(isinstance(word, str) for word in model.args)


@given(models)
def test_a_model_that_is_accepted_renders_in_every_format(model: dict[str, Any]) -> None:
    bag = {"azure-native:location": "eastus", **_bag({"environment": "development", **model})}
    try:
        plan = read_and_decide(from_pulumi(bag, set(), "test"))
    except InvalidStack:
        return
    assert report.as_text(plan, width=80)
    assert report.as_markdown(plan)
    json.dumps(report.as_json(plan), allow_nan=False)
