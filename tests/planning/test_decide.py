"""decide(): one frozen plan, or every problem at once."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planning import catalogue, names
from planning.cluster import ClusterPlan
from planning.findings import InvalidStack, Severity
from planning.plan import StackPlan, decide, read_and_decide
from planning.settings import Settings
from planning.stack_file import from_file

H100 = "Standard_ND96isr_H100_v5"
MILLION_TOKENS = {"preset": "nemotron-3.5-lightning-30b-a3b-nvfp4", "vm-size": H100}
LLAMA = {"preset": "llama-3.3-70b-instruct", "vm-size": H100}


def plan(models: dict[str, Any] | None = None, **stack: Any) -> StackPlan:
    """The plan of these models (by default the large one) in a development stack."""
    given_settings = {"location": "eastus", "environment": "development", "models": models or {"model": LLAMA}, **stack}
    return decide(Settings.model_validate(given_settings), stack="test", source="stacks/Pulumi.test.yaml")


def problems(stack: str, *overrides: str) -> list[str]:
    """What is wrong with a stack of the project once these values are set."""
    with pytest.raises(InvalidStack) as invalid:
        read_and_decide(from_file(stack, overrides=overrides))
    return str(invalid.value).splitlines()


# What a person sees.


def test_the_proposal_is_deployable_as_it_stands() -> None:
    prod = read_and_decide(from_file("prod"))
    model = prod.models[0]
    assert (model.layout.replicas, model.layout.tensor_parallel_size, model.memory.max_model_len) == (2, 4, 16384)
    assert prod.gpu_pools[0].count == 1, "two replicas of four GPUs share one node of eight"
    assert model.rollout.update_outage_minutes == 0, "one replica keeps serving while the other is replaced"


def test_a_context_beyond_the_models_own_names_its_limit() -> None:
    (told,) = problems("prod", "max-model-len=200000")
    assert told.startswith("aks-vllm:max-model-len = 200000: ")
    assert "131072" in told
    assert "(--set)" in told


def test_a_removed_engine_option_says_so_and_what_to_do() -> None:
    (told,) = problems("prod", "vllm.swap-space=4")
    assert told.startswith("aks-vllm:vllm.swap-space = 4: ")
    assert "removed" in told


def test_the_proposals_own_options_fail_on_swap_space_alone_and_deploy_without_it() -> None:
    """KAITO's sample for this model, as it is: it would crash-loop once the GPU node is up and paid for."""
    pasted = {"cpu-offload-gb": 0, "gpu-memory-utilization": 0.95, "swap-space": 4, "max-model-len": 16384}
    with pytest.raises(InvalidStack) as invalid:
        plan({"model": {**LLAMA, "vllm": pasted}})
    (problem,) = invalid.value.problems
    assert problem.key.endswith("vllm.swap-space")
    del pasted["swap-space"]
    assert plan({"model": {**LLAMA, "vllm": pasted}}).models[0].memory.max_model_len == 16384


def test_an_unknown_preset_names_the_nearest() -> None:
    (told,) = problems("prod", "preset=llama-3.3-70b")
    assert "aks-vllm:preset = llama-3.3-70b: " in told
    assert "did you mean llama-3.3-70b-instruct?" in told


def test_an_unknown_vm_size_names_the_nearest() -> None:
    (told,) = problems("prod", "vm-size=Standard_ND96isr_H100")
    assert f"did you mean {H100}?" in told


def test_a_vm_size_that_cannot_hold_the_model_lists_those_that_can() -> None:
    (told,) = problems("prod", "vm-size=Standard_NC40ads_H100_v5")
    listed = set(re.findall(r"Standard_\w+", told.split(";")[-1]))
    assert H100 in listed
    assert "Standard_NC40ads_H100_v5" not in listed
    for size in listed:
        assert plan({"model": {**LLAMA, "vm-size": size, "max-model-len": 16384}}), f"{size} was promised to hold it"


def test_the_same_setting_under_two_names_is_an_error_and_not_a_precedence() -> None:
    (told,) = problems("prod", "vllm.max_model_len=8192")
    assert "aks-vllm:vllm.max-model-len = 8192: is given a second time: aks-vllm:max-model-len is 16384" in told


def test_an_impossible_tensor_parallel_size_is_refused_by_its_own_key() -> None:
    (told,) = problems("prod", "vllm.tensor-parallel-size=3")
    assert told.startswith("aks-vllm:vllm.tensor-parallel-size = 3: ")


def test_replicas_that_the_nodes_cannot_hold_are_refused() -> None:
    (told,) = problems("prod", "replicas=5", "gpu-nodes.min=1", "gpu-nodes.max=1")
    assert "aks-vllm:gpu-nodes" in told


def test_problems_of_settings_and_plan_and_of_every_model_are_told_in_one_run() -> None:
    with pytest.raises(InvalidStack) as invalid:
        plan({
            "a": {"preset": "nobody"},
            "b": {**LLAMA, "max-model-len": 10**6},
            "c": {**LLAMA, "vllm": {"swap-space": 1, "max-num-seq": 1}},
        })  # fmt: skip
    keys = {problem.key for problem in invalid.value.problems}
    assert keys == {
        "aks-vllm:models.a.preset",
        "aks-vllm:models.b.max-model-len",
        "aks-vllm:models.c.vllm.swap-space",
        "aks-vllm:models.c.vllm.max-num-seq",
    }
    told = problems("prod", "max-model-le=1", "vllm.swap-space=4", "preset=nobody")
    assert len(told) == 3, "a misspelt key must not hide what else is wrong"


# Steps still to do.


def steps(found: StackPlan) -> list[str]:
    return [str(finding) for finding in found.findings if finding.severity is Severity.STEP]


def test_a_gated_model_without_a_token_is_a_step_with_its_command() -> None:
    (step,) = steps(plan())
    assert "`pulumi config set --secret aks-vllm:hf-token --stack test`" in step
    assert not steps(plan(**{"hf-token": True}))
    assert not steps(plan({"model": {"preset": "qwen3-8b"}})), "an open model needs none"


def test_production_wants_pins_and_development_does_not() -> None:
    models = {"model": {"preset": "qwen3-8b"}}
    (step,) = steps(plan(models, environment="production"))
    assert "make pin PRESET=qwen3-8b" in step
    assert not steps(plan(models, environment="development"))


def test_production_has_an_uptime_agreement_and_protection() -> None:
    production, development = plan(environment="production").cluster, plan().cluster
    assert isinstance(production, ClusterPlan)
    assert isinstance(development, ClusterPlan)
    assert (production.sku_tier, production.protect) == ("Standard", True)
    assert (development.sku_tier, development.protect) == ("Free", False)
    assert plan(environment="production", protect=False).cluster.protect is False, "or nothing could be removed"


def test_gpus_that_serve_nobody_are_told_with_their_price() -> None:
    found = [str(finding) for finding in plan({"model": {"preset": "qwen3-8b", "vm-size": H100}}).findings]
    (told,) = [text for text in found if "serve no model" in text]
    assert "6 of the 8 GPUs of pool h100x8" in told
    assert "$73.74" in told, "six eighths of 98.32"
    assert not [finding for finding in plan().findings if "serve no model" in finding.message]


# What holds for every plan.

some_models = st.dictionaries(
    st.sampled_from(["chat", "code", "draft", "model"]),
    st.fixed_dictionaries(
        {"preset": st.sampled_from(catalogue.preset_names()), "vm-size": st.just(H100)},
        optional={
            "max-model-len": st.integers(1, 200_000),
            "replicas": st.integers(1, 6),
            "workload": st.fixed_dictionaries(
                {
                    "input-tokens": st.integers(1, 10_000),
                    "output-tokens": st.integers(1, 10_000),
                    "users": st.integers(1, 1000),
                },
                optional={"max-tpot-ms": st.floats(1, 200)},
            ),
            "vllm": st.fixed_dictionaries(
                {},
                optional={
                    "tensor-parallel-size": st.sampled_from([1, 2, 4, 8, 3]),
                    "gpu-memory-utilization": st.floats(0.3, 1.1),
                    "max-num-seqs": st.integers(1, 2048),
                },
            ),
        },
    ),
    min_size=1,
)


@settings(max_examples=80, deadline=None)
@given(some_models, st.sampled_from(["production", "development"]), st.integers(1, 100_000))
def test_every_plan_keeps_its_promises(models: dict[str, Any], environment: str, answer: int) -> None:
    try:
        found = plan(models, environment=environment, **{"max-answer-tokens": answer})
    except InvalidStack as invalid:
        assert all(problem.remedy and problem.limit for problem in invalid.problems)
        return
    assert [model.name for model in found.models] == list(models), "one plan for each model, in the file's order"
    gpus = sum(model.layout.gpus_per_replica * model.layout.replicas for model in found.models)
    assert gpus <= sum(pool.max_count * pool.gpus_per_node for pool in found.gpu_pools)
    by_name = {model.name: model for model in found.models}
    for pool, placed in zip(found.gpu_pools, found.placements, strict=True):
        vm = catalogue.vm_size(pool.vm_size)
        assert sum(nodes.count for nodes in placed.nodes) == pool.count
        for nodes in placed.nodes:
            held = [(by_name[name].resources, count) for name, count in nodes.replicas.items()]
            assert sum(each.gpus * count for each, count in held) + nodes.idle_gpus == vm.gpus
            # AKS keeps of a node of 250 pods about 5 GiB, and its DaemonSets ask for one core or two.
            assert sum(each.cpu * count for each, count in held) <= vm.vcpus - 2, "else one stays Pending"
            assert sum(each.memory_gib * count for each, count in held) <= vm.memory_gib - 16
    for model in found.models:
        (pool,) = [pool for pool in found.gpu_pools if pool.name == model.layout.pool]
        vm, asked = catalogue.vm_size(model.layout.vm_size), models[model.name]
        assert model.memory.verdict == "fits"
        assert model.memory.kv_cache_tokens >= model.memory.max_model_len
        assert asked.get("max-model-len", model.memory.max_model_len) == model.memory.max_model_len
        assert asked.get("replicas", model.layout.replicas) == model.layout.replicas
        assert model.layout.gpus_per_replica <= vm.gpus, "a replica stays on one node"
        assert model.resources.cpu * model.layout.replicas_per_node <= vm.vcpus, "else the second stays Pending"
        assert model.resources.memory_gib * model.layout.replicas_per_node <= vm.memory_gib
        rollout, startup = model.rollout, model.startup
        assert rollout.pre_stop_seconds + rollout.shutdown_timeout_seconds < rollout.termination_grace_seconds
        assert rollout.drain_limit_seconds <= pool.drain_timeout_minutes * 60, "the drain would give up"
        assert rollout.termination_grace_seconds <= rollout.drain_limit_seconds
        assert isinstance(found.cluster, ClusterPlan)
        assert rollout.termination_grace_seconds <= found.cluster.max_graceful_termination_seconds
        assert rollout.min_available_during_drain == model.layout.replicas - rollout.pdb_max_unavailable
        assert rollout.pdb_max_unavailable >= 1, "a budget of 0 blocks every node update"
        assert (rollout.max_surge, rollout.max_unavailable) in ((0, 1), (1, 0))
        probe = startup.startup_probe_period_seconds * startup.startup_probe_failure_threshold
        assert probe < startup.progress_deadline_seconds < startup.pulumi_timeout_minutes * 60
        assert model.node_selector == pool.labels
        assert {taint.partition("=")[0] for taint in pool.taints} == set(model.tolerated_taints)


def test_models_that_share_nodes_are_placed_and_told_about_together() -> None:
    large = {"preset": "qwen3-32b", "vm-size": H100, "replicas": 1, "vllm": {"tensor-parallel-size": 8}}
    small = {"preset": "qwen3-8b", "vm-size": H100, "replicas": 2, "vllm": {"tensor-parallel-size": 4}}
    found = plan({"large": large, "small": small})
    (placed,) = found.placements
    assert [dict(nodes.replicas) for nodes in placed.nodes] == [{"large": 1}, {"small": 2}]
    assert {model.name: model.priority.value for model in found.models} == {"large": 1_000_008, "small": 1_000_004}
    assert len(found.priorities) == 2
    (crowded,) = [finding for finding in found.findings if "different sizes" in finding.message]
    assert "takes the GPUs of smaller ones" in crowded.message
    assert "gpu-nodes.min to 3" in crowded.remedy
    roomy = plan({"large": large, "small": small}, **{"gpu-nodes": {"min": 3, "max": 3}})
    assert not [finding for finding in roomy.findings if "different sizes" in finding.message]
    assert [priority.name for priority in roomy.priorities] == ["vllm"]


def test_an_answer_so_long_that_aks_would_give_up_a_drain_is_refused() -> None:
    long = {"preset": "qwen3-8b", "vm-size": H100, "replicas": 8, "max-model-len": 40_960}
    nodes = {"gpu-nodes": {"min": 2, "max": 2}}
    found = plan({"model": long}, **nodes, **{"max-answer-tokens": 1_000_000})
    assert found.models[0].rollout.shutdown_timeout_seconds == 1366, "no answer is longer than the context"
    with pytest.raises(InvalidStack) as invalid:
        plan({"model": {**MILLION_TOKENS, "replicas": 3}}, **nodes, **{"max-answer-tokens": 1_000_000})
    (problem,) = invalid.value.problems
    assert problem.key == "aks-vllm:max-answer-tokens"
    assert "AKS gives up after 1440" in problem.limit


def test_the_plan_is_frozen_and_the_same_every_time() -> None:
    assert plan() == plan(), "two runs of one update must declare the same"
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan().stack = "other"  # ty: ignore[invalid-assignment]  that is the point


@pytest.mark.parametrize(
    "change",
    [
        {"max-model-len": 8192},
        {"vllm": {"max-num-seqs": 64}},
        {"vllm": {"enable-prefix-caching": False}},
        {"revision": "0" * 40},
    ],
    ids=str,
)
def test_the_hash_in_the_pod_follows_whatever_the_engine_reads(change: dict[str, Any]) -> None:
    before, after = plan().models[0], plan({"model": {**LLAMA, **change}}).models[0]
    assert before.config_hash != after.config_hash, "the old engine would keep running"


@pytest.mark.parametrize("stack", [{"tags": {"a": "b"}}, {"kubelogin": "msi"}, {"hf-token": True}], ids=str)
def test_what_the_engine_does_not_read_rolls_no_pod(stack: dict[str, Any]) -> None:
    assert plan(**stack).models[0].config_hash == plan().models[0].config_hash


def test_models_of_one_vm_size_share_a_pool_and_other_sizes_get_their_own() -> None:
    found = plan({
        "a": {"preset": "qwen3-8b", "vm-size": H100},
        "b": {"preset": "qwen3-8b", "vm-size": H100},
        "c": {"preset": "qwen3-8b"},
    })  # fmt: skip
    assert [pool.vm_size for pool in found.gpu_pools] == [H100, "Standard_NC40ads_H100_v5"]
    assert len({pool.name for pool in found.gpu_pools}) == 2


def test_a_name_for_clients_that_the_options_give_is_the_one_that_is_told() -> None:
    model = plan({"model": {**LLAMA, "vllm": {"served-model-name": "gpt-4o"}}}).models[0]
    assert model.served_model_name == "gpt-4o"
    assert model.args.count("--served-model-name") == 1


# Names.

stack_names = st.from_regex(r"\A[A-Za-z0-9._-]{1,100}\Z")


@given(stack_names, stack_names)
def test_physical_names_stay_within_azures_rules_and_never_collide(one: str, other: str) -> None:
    found = names.names(one)
    assert re.fullmatch(r"[a-z0-9-]{1,62}[a-z0-9]", found.cluster)
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,52}[a-z0-9]", found.dns_prefix)
    assert len(found.resource_group) <= 90
    assert len(found.node_resource_group) <= 80
    if one != other:
        assert names.names(other).cluster != found.cluster, "two stacks would fight over one cluster"


def test_an_ordinary_stack_name_is_used_as_it_is() -> None:
    assert names.names("prod").cluster == "aks-vllm-prod"


def test_what_a_preset_asks_of_vllm_is_looked_at_like_what_a_stack_asks() -> None:
    found = plan({"model": {"preset": "kimi-k2.5", "vm-size": "Standard_ND96isr_H200_v5"}})
    assert any("trust-remote-code" in finding.message for finding in found.findings), "it runs the repository's code"
