"""The layout chooser: smallest split that is comfortable, and refusals with the setting to change."""

from __future__ import annotations

from typing import Any

import pytest

from planning import catalogue
from planning.architecture import NotModelledError, from_hf_config
from planning.memory import EngineOptions, MemoryPlan
from planning.parallelism import Alternative, Layout, LayoutError, alternatives, choose_layout, sizes_that_hold
from tests import hf_configs

LLAMA, QWEN = "llama-3.3-70b-instruct", "qwen3-8b"
H100X8 = "Standard_ND96isr_H100_v5"
#: Kinds of models that differ in what a layout can be.
PRESETS = (LLAMA, QWEN, "qwen3-235b-a22b-fp8", "gpt-oss-120b", "deepseek-v3")


def choose(preset: str = LLAMA, vm: str = H100X8, **settings: Any) -> tuple[Layout, MemoryPlan]:
    options = EngineOptions(**settings.pop("options", {}))
    chosen = {"replicas": None, "tensor_parallel_size": None, "pipeline_parallel_size": None} | settings
    return choose_layout(catalogue.preset(preset).architecture, catalogue.vm_size(vm), **chosen, options=options)


@pytest.mark.parametrize("length", [16384, None])
def test_llama_70b_gets_two_replicas_of_four_gpus_on_the_proposals_node(length: int | None) -> None:
    layout, memory = choose(options={"max_model_len": length})
    assert (layout.tensor_parallel_size, layout.replicas, layout.replicas_per_node) == (4, 2, 2)
    assert (layout.gpus_per_replica, layout.pool, layout.pipeline_parallel_size) == (4, "h100x8", 1)
    assert memory.max_model_len == (length or 131072)
    assert memory.verdict == "fits"
    assert memory.max_concurrency >= 2


def test_the_proposals_higher_utilization_gives_no_narrower_replicas() -> None:
    """At 0.95 two GPUs hold 2.2 requests: enough to start, and half of the node would idle."""
    layout, memory = choose(options={"max_model_len": 16384, "gpu_memory_utilization": 0.95})
    assert (layout.tensor_parallel_size, layout.replicas) == (4, 2)
    assert memory.max_concurrency > 8


def test_one_gpu_gets_one_replica() -> None:
    layout, _ = choose(QWEN, "Standard_NC40ads_H100_v5")
    assert (layout.tensor_parallel_size, layout.replicas) == (1, 1)


def test_the_reason_carries_the_numbers_that_decided() -> None:
    layout, memory = choose()
    assert f"{memory.max_concurrency:.1f} requests of 131,072 tokens" in layout.reason
    assert "with 8 a node has one replica" in layout.reason, "why not the next larger split"


def test_a_split_that_was_asked_for_is_taken() -> None:
    layout, _ = choose(tensor_parallel_size=8)
    assert (layout.tensor_parallel_size, layout.replicas) == (8, 1)


def test_pipeline_stages_count_as_gpus_of_the_replica() -> None:
    layout, memory = choose(tensor_parallel_size=4, pipeline_parallel_size=2)
    assert (layout.gpus_per_replica, layout.replicas_per_node) == (8, 1)
    assert memory.pipeline_parallel_size == 2


def test_more_replicas_than_a_node_holds_are_taken_as_asked() -> None:
    layout, _ = choose(replicas=5)
    assert (layout.replicas, layout.replicas_per_node) == (5, 2)


def test_a_context_nobody_asked_for_is_lowered_until_it_safely_fits() -> None:
    layout, memory = choose(vm="Standard_NC80adis_H100_v5")
    assert layout.tensor_parallel_size == 2
    assert 1024 <= memory.max_model_len < 131072
    assert memory.max_model_len % 1024 == 0
    assert memory.verdict == "fits"
    assert "not the model's 131,072" in memory.findings[0].message
    left = (memory.longest_max_model_len - memory.max_model_len) * memory.kv_bytes_per_token / 2**30
    assert left >= memory.error_gib, "a default that the estimates' error can break would not start"


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"tensor_parallel_size": 3}, "vllm.tensor-parallel-size", "64 attention heads do not divide.*1, 2, 4, 8,"),
        ({"tensor_parallel_size": 0}, "vllm.tensor-parallel-size", "at least 1"),
        ({"tensor_parallel_size": 16}, "vllm.tensor-parallel-size", f"16 GPUs.*{H100X8} has 8"),
        ({"tensor_parallel_size": 8, "pipeline_parallel_size": 2}, "vllm.tensor-parallel-size", "each of 2 pipeline"),
        ({"pipeline_parallel_size": 9}, "vllm.pipeline-parallel-size", "has 8 GPUs"),
        ({"pipeline_parallel_size": 0}, "vllm.pipeline-parallel-size", "one node"),
        ({"tensor_parallel_size": 1}, "vllm.tensor-parallel-size", "131.45 GiB per GPU.*leave it out"),
        ({"replicas": 0}, "replicas", "at least 1"),
        ({"options": {"max_model_len": 200000}}, "max-model-len", "made for 131072 tokens; set it to 131072"),
        ({"options": {"gpu_memory_utilization": 1.0}}, "vllm.gpu-memory-utilization", "at most 0.99"),
        ({"options": {"kv_cache_dtype": "turboquant"}}, "vllm.kv-cache-dtype", "not modelled yet; use one of auto"),
        ({"vm": "Standard_NC40ads_H100_v5"}, "vm-size", f"VM sizes that hold it: .*{H100X8}"),
        (
            {"vm": "Standard_NC80adis_H100_v5", "options": {"max_model_len": 131072}},
            "max-model-len",
            r"at most \d+ tokens fit on Standard_NC80adis_H100_v5.*set it to \d+ or lower, or use one of the VM sizes",
        ),
    ],
)
def test_a_layout_that_cannot_work_names_the_setting_to_change(settings: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(LayoutError, match=words) as caught:
        choose(**settings)
    assert caught.value.key == key
    assert caught.value.remedy


def test_the_length_that_a_refusal_offers_is_accepted() -> None:
    vm = "Standard_NC80adis_H100_v5"
    with pytest.raises(LayoutError) as caught:
        choose(vm=vm, options={"max_model_len": 131072})
    offered = int(caught.value.remedy.split()[3])
    assert choose(vm=vm, options={"max_model_len": offered})[1].verdict == "fits"


def test_sizes_that_hold_come_cheapest_first_and_without_those_that_do_not() -> None:
    sizes = sizes_that_hold(catalogue.preset(LLAMA).architecture, EngineOptions(max_model_len=131072))
    assert sizes == (
        "Standard_NC96ads_A100_v4",
        "Standard_ND96amsr_A100_v4",
        H100X8,
        "Standard_ND96isr_H200_v5",
    ), "one GPU or two do not hold it; the size without a price comes last"


# What else a node could hold.


def others(preset: str = LLAMA, vm: str = H100X8, **settings: Any) -> tuple[Alternative, ...]:
    layout, memory = choose(preset, vm, **{**settings, "options": dict(settings.get("options", {}))})
    size = catalogue.vm_size(vm)
    return alternatives(
        catalogue.preset(preset).architecture,
        size,
        layout=layout,
        memory=memory,
        options=EngineOptions(**settings.get("options", {})),
        price_per_hour=size.cheapest_price,
    )


def _on_every_size_that_holds_it() -> list[tuple[str, str]]:
    held = {name: sizes_that_hold(catalogue.preset(name).architecture, EngineOptions()) for name in PRESETS}
    return [(name, vm) for name, sizes in held.items() for vm in sizes]


@pytest.mark.parametrize(("preset", "vm"), _on_every_size_that_holds_it())
def test_the_chosen_layout_is_one_of_the_alternatives(preset: str, vm: str) -> None:
    layout, memory = choose(preset, vm)
    found = others(preset, vm)
    (chosen,) = [each for each in found if each.chosen]
    assert (chosen.tensor_parallel_size, chosen.pipeline_parallel_size) == (layout.tensor_parallel_size, 1)
    assert chosen.kv_cache_tokens == memory.kv_cache_tokens
    assert chosen.trade == layout.reason
    assert {each.max_model_len for each in found} == {memory.max_model_len}, "or they could not be compared"
    names = [(each.tensor_parallel_size, each.pipeline_parallel_size, each.kv_cache_dtype) for each in found]
    assert len(set(names)) == len(names)


def test_eight_gpus_for_one_replica_hold_more_and_make_an_update_an_outage() -> None:
    found = {
        (each.tensor_parallel_size, each.kv_cache_dtype): each for each in others(options={"max_model_len": 16384})
    }
    pair, whole = found[4, "auto"], found[8, "auto"]
    assert pair.chosen
    assert pair.keeps_serving
    assert not whole.keeps_serving
    assert whole.kv_cache_tokens_per_node > pair.kv_cache_tokens_per_node, "the weights are there once, not twice"
    assert whole.replica_per_hour == 2 * (pair.replica_per_hour or 0)
    assert "an update is an outage" in whole.trade


def test_an_fp8_cache_is_offered_where_the_gpu_calculates_in_it() -> None:
    assert {each.kv_cache_dtype for each in others(QWEN)} == {"auto", "fp8"}
    assert {each.kv_cache_dtype for each in others(QWEN, "Standard_NC24ads_A100_v4")} == {"auto"}
    back = others(QWEN, options={"kv_cache_dtype": "fp8"})
    assert [each.kv_cache_dtype for each in back if each.chosen] == ["fp8"]
    assert {each.kv_cache_dtype for each in back} == {"auto", "fp8"}


def test_stages_that_were_asked_for_are_shown_and_others_only_where_they_gain() -> None:
    asked = others(tensor_parallel_size=4, pipeline_parallel_size=2)
    assert [each.pipeline_parallel_size for each in asked if each.chosen] == [2]
    assert {each.pipeline_parallel_size for each in others()} == {1}, "four GPUs split by tensors hold as much"


def test_a_layout_that_is_too_small_for_the_context_says_what_it_holds() -> None:
    (short,) = [each for each in others() if not each.fits and each.kv_cache_dtype == "auto"]
    assert short.longest_max_model_len < short.max_model_len
    assert f"only {short.longest_max_model_len:,}" in short.trade


def test_a_price_that_is_not_known_is_no_number() -> None:
    found = others(vm="Standard_ND96isr_H200_v5")
    assert {each.replica_per_hour for each in found} == {None}
    assert not any("$" in each.trade for each in found)


def test_every_known_model_has_a_handful_of_alternatives_that_differ() -> None:
    """86 real models, among them latent, sliding-window and state caches, and checkpoints with an fp8 cache."""
    compared = staged = 0
    size = catalogue.vm_size("Standard_ND96isr_H200_v5")
    for name in hf_configs.names():
        try:
            shape = from_hf_config(*hf_configs.load(name))
            layout, memory = choose_layout(
                shape,
                size,
                replicas=None,
                tensor_parallel_size=None,
                pipeline_parallel_size=None,
                options=EngineOptions(),
            )
        except (NotModelledError, LayoutError):
            continue
        found = alternatives(shape, size, layout=layout, memory=memory, options=EngineOptions(), price_per_hour=None)
        assert [each.kv_cache_tokens for each in found if each.chosen] == [memory.kv_cache_tokens], name
        assert len(found) <= 16, f"{name}: more than a page shows"
        figures = [(e.tensor_parallel_size, e.pipeline_parallel_size, e.kv_cache_tokens) for e in found]
        assert len(set(figures)) == len(figures), f"{name}: two rows that say the same"
        compared += 1
        staged += any(each.pipeline_parallel_size > 1 for each in found)
    assert compared >= 40
    assert staged, "some model is held better in stages"


def test_gpus_without_a_kernel_for_the_model_are_refused_and_not_offered() -> None:
    """Lowering the context does not help: no start of vLLM would."""
    with pytest.raises(
        LayoutError, match=r"no kernel of this model's attention for compute capability 8\.0"
    ) as refused:
        choose("glm-5-nvfp4", "Standard_ND96amsr_A100_v4")
    assert refused.value.key == "vm-size"
    offered = sizes_that_hold(catalogue.preset("glm-5-nvfp4").architecture, EngineOptions())
    assert offered
    assert not [name for name in offered if "A100" in name]
