"""The start-up budget: stages as expected, and limits that never cut a healthy start off."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planning import catalogue, startup
from planning.parallelism import Layout
from planning.startup import StartupBudget

LLAMA = catalogue.preset("llama-3.3-70b-instruct").architecture
ND96 = "Standard_ND96isr_H100_v5"


def _budget(preset: str, vm_size: str, replicas: int = 1, tensor: int = 1, drain: int = 0) -> StartupBudget:
    vm = catalogue.vm_size(vm_size)
    layout = Layout(
        vm_size=vm.name,
        pool=vm.pool,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=1,
        replicas=replicas,
        gpus_per_replica=tensor,
        replicas_per_node=vm.gpus // tensor,
        reason="",
    )
    return startup.budget(catalogue.preset(preset).architecture, vm, layout, drain_seconds=drain)


def _probe(budget: StartupBudget) -> int:
    return budget.startup_probe_period_seconds * budget.startup_probe_failure_threshold


def test_llama_70b_on_a_new_node_is_what_was_published_for_its_parts() -> None:
    budget = _budget("llama-3.3-70b-instruct", ND96, replicas=2, tensor=4)
    weights = LLAMA.parameters * LLAMA.dtype_bytes
    assert budget.weights_seconds == math.ceil(weights / 0.26e9) == 543, "141 GB at 0.26 GB/s, about nine minutes"
    assert 18 * 60 <= budget.total_seconds <= 35 * 60, "18 to 30 minutes are published, untuned"
    assert 30 * 60 <= _probe(budget) <= 40 * 60, "twice 12 minutes of reading at 200 MB/s and 3.6 of initialisation"


@given(
    preset=st.sampled_from(catalogue.preset_names()),
    vm_size=st.sampled_from(catalogue.vm_size_names()),
    replicas=st.integers(1, 64),
    drain=st.integers(0, 40_000),
)
def test_every_limit_leaves_room_for_the_one_inside_it(preset: str, vm_size: str, replicas: int, drain: int) -> None:
    budget = _budget(preset, vm_size, replicas, drain=drain)
    engine = budget.load_seconds + budget.compile_seconds + budget.graphs_seconds
    before = budget.node_seconds + budget.image_seconds + budget.weights_seconds
    assert 0 < engine < budget.engine_ready_timeout_seconds, "vLLM would end a start that goes as expected"
    assert budget.engine_ready_timeout_seconds < _probe(budget), "the probe would kill vLLM before it says why"
    assert drain + before + _probe(budget) < budget.progress_deadline_seconds, (
        "the Deployment would give up on a replica that waits for its predecessor, its node and its weights"
    )
    one_by_one = (replicas - 1) * (drain + budget.restart_seconds)
    assert budget.progress_deadline_seconds + one_by_one < budget.pulumi_timeout_minutes * 60, (
        "Pulumi would stop waiting before Kubernetes says why, or before the last replica had its turn"
    )


@given(
    preset=st.sampled_from(catalogue.preset_names()),
    vm_size=st.sampled_from(catalogue.vm_size_names()),
    replicas=st.integers(1, 8),
)
def test_the_totals_are_sums_of_the_stages(preset: str, vm_size: str, replicas: int) -> None:
    budget = _budget(preset, vm_size, replicas)
    restart = budget.weights_seconds + budget.load_seconds + budget.compile_seconds + budget.graphs_seconds
    assert budget.restart_seconds == restart
    assert budget.total_seconds == restart + budget.node_seconds + budget.image_seconds


@pytest.mark.parametrize("stage", ["weights_seconds", "load_seconds", "total_seconds", "restart_seconds"])
def test_a_larger_model_takes_longer(stage: str) -> None:
    small, large = (_budget(preset, ND96, tensor=4) for preset in ("qwen3-8b", "llama-3.3-70b-instruct"))
    assert getattr(small, stage) < getattr(large, stage)


def test_replicas_that_share_a_node_get_longer_limits() -> None:
    alone, together = (_budget("llama-3.3-70b-instruct", ND96, tensor=tensor) for tensor in (8, 4))
    assert _probe(together) >= _probe(alone)
    assert together.progress_deadline_seconds > alone.progress_deadline_seconds, "they share its network and disk"


@given(st.sampled_from(catalogue.preset_names()), st.sampled_from(catalogue.vm_size_names()), st.integers(2, 64))
def test_what_is_in_the_pod_does_not_change_with_the_number_of_replicas(preset: str, vm: str, replicas: int) -> None:
    one, more = (_budget(preset, vm, count) for count in (1, replicas))
    for part in ("engine_ready_timeout_seconds", "startup_probe_period_seconds", "startup_probe_failure_threshold"):
        assert getattr(one, part) == getattr(more, part), "adding a replica would restart those that serve"
