"""The serving rate: what it says of a load, where it has no answer, and the commands that print it."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planning import catalogue, serving_rate
from planning.__main__ import main
from planning.memory import EngineOptions
from planning.serving_rate import Rate, Workload

Captured = pytest.CaptureFixture[str]
MEASURED = ("H100-80GB", "H200")
PRESETS = ("qwen3-8b", "llama-3.3-70b-instruct", "gpt-oss-120b", "minimax-m2.5", "deepseek-r1")
POINT = [
    "rate", "--preset", "qwen3-32b", "--gpu", "H100-80GB", "--tensor-parallel-size", "2",
    "--input-tokens", "4096", "--output-tokens", "1024",
]  # fmt: skip


def rate(preset: str, gpu: str, tensor: int, *, held: float = 100, seqs: int = 1024, **load: int) -> Rate:
    workload = Workload(**{"input_tokens": 1024, "output_tokens": 512, "users": 16, **load})
    return serving_rate.rate(
        catalogue.preset(preset).architecture,
        catalogue.gpu(gpu),
        tensor_parallel_size=tensor,
        workload=workload,
        capacity=held,
        max_num_seqs=seqs,
    )


@given(
    preset=st.sampled_from(PRESETS),
    gpu=st.sampled_from(MEASURED),
    tensor=st.sampled_from((1, 2, 4, 8)),
    held=st.floats(0.01, 5000),
    load=st.fixed_dictionaries(
        {
            "input_tokens": st.integers(1, 200_000),
            "output_tokens": st.integers(1, 100_000),
            "users": st.integers(1, 5000),
        }
    ),
)
def test_every_load_has_a_finite_answer_in_order(
    preset: str, gpu: str, tensor: int, held: float, load: dict[str, int]
) -> None:
    found = rate(preset, gpu, tensor, held=held, **load)
    for name in (
        "time_per_output_token_ms",
        "time_to_first_token_ms",
        "tokens_per_second_per_user",
        "tokens_per_second_per_gpu",
    ):
        values = getattr(found, name)
        assert 0 < values.low <= values.expected <= values.high < float("inf"), name
    assert found.oversubscribed is (load["users"] > found.max_users)


@pytest.mark.parametrize("preset", PRESETS)
def test_more_users_wait_longer_for_each_token_and_get_more_of_them_together(preset: str) -> None:
    few, many = rate(preset, "H200", 8, users=4), rate(preset, "H200", 8, users=64)
    assert many.time_per_output_token_ms.expected > few.time_per_output_token_ms.expected
    assert many.time_to_first_token_ms.expected > few.time_to_first_token_ms.expected
    assert many.tokens_per_second_per_gpu.expected > few.tokens_per_second_per_gpu.expected


def test_users_beyond_the_cache_wait_for_the_first_token_and_add_no_tokens() -> None:
    full, over = (
        rate("qwen3-32b", "H100-80GB", 2, users=40, held=40),
        rate("qwen3-32b", "H100-80GB", 2, users=80, held=40),
    )
    assert over.tokens_per_second_per_gpu == full.tokens_per_second_per_gpu
    assert over.time_to_first_token_ms.expected > 10 * full.time_to_first_token_ms.expected


def test_max_num_seqs_bounds_the_batch() -> None:
    assert rate("qwen3-32b", "H100-80GB", 2, users=64, seqs=8).running == 8


def test_only_a_window_of_a_sliding_layer_is_read() -> None:
    sizes = serving_rate.sizes(catalogue.preset("gpt-oss-20b").architecture, 1)
    kv = {window: size for size, window in sizes.kv_bytes}
    assert set(kv) == {0, 128}
    assert kv[0] == kv[128] == 12 * 8 * 64 * 2 * 2  # layers x heads x head dim x key and value x 16 bits


def test_a_latent_cache_is_read_whole_on_every_gpu() -> None:
    sizes = [serving_rate.sizes(catalogue.preset("deepseek-r1").architecture, tensor).kv_bytes for tensor in (1, 8)]
    assert sizes[0] == sizes[1] == ((61 * 576 * 2, 0),)


def test_users_are_held_with_half_of_their_answers() -> None:
    architecture, gpu = catalogue.preset("qwen3-32b").architecture, catalogue.gpu("H100-80GB")

    def held(inputs: int, outputs: int, dtype: str | None = None) -> float:
        return serving_rate.users_held(
            architecture, gpu, tensor_parallel_size=2, input_tokens=inputs, output_tokens=outputs,
            options=EngineOptions(kv_cache_dtype=dtype),
        )  # fmt: skip

    assert held(4096, 1024) == held(4608 - 64, 128)
    assert held(4096, 1024, "fp8") == pytest.approx(2 * held(4096, 1024), rel=0.01)


@pytest.mark.parametrize(
    ("preset", "gpu", "options", "stages", "words"),
    [
        ("qwen3-32b", "A100-80GB", {}, 1, "A100-80GB: not measured"),
        ("qwen3-32b", "H100-NVL", {}, 1, "H100-NVL: not measured"),
        ("deepseek-v3.2", "H200", {}, 1, "sparse attention"),
        ("qwen3.5-27b", "H200", {}, 1, "linear attention"),
        ("nemotron-3-nano-30b-a3b-bf16", "H100-80GB", {}, 1, "state-space attention"),
        ("llama-4-scout-17b-16e-instruct", "H200", {}, 1, "chunked attention"),
        ("qwen3-32b", "H200", {"speculative-config": {"method": "eagle3"}}, 1, "speculative decoding"),
        ("qwen3-32b", "H200", {"enforce-eager": True}, 1, "CUDA graphs"),
        ("qwen3-32b", "H200", {"data-parallel-size": 2}, 1, "data-parallel"),
        ("qwen3-32b", "H200", {"data-parallel-size": 1, "enforce-eager": False}, 1, ""),
        ("qwen3-32b", "H200", {}, 2, "pipeline parallelism"),
        ("gpt-oss-120b", "H100-80GB", {}, 1, ""),
        ("deepseek-r1", "H200", {}, 1, ""),
    ],
)  # fmt: skip
def test_what_has_no_term_has_no_answer(
    preset: str, gpu: str, options: dict[str, object], stages: int, words: str
) -> None:
    found = serving_rate.not_modelled(
        catalogue.preset(preset).architecture, catalogue.gpu(gpu), options, pipeline_parallel_size=stages
    )
    assert words in found if words else found == ""


def test_there_are_eight_constants() -> None:
    assert len(asdict(serving_rate.constants())) == 8


@pytest.mark.parametrize(
    ("value", "words"), [(0.4567, "0.46"), (9.96, "10"), (12.3, "12"), (1234.5, "1,200"), (0, "0")]
)
def test_figures_promise_no_more_than_two_digits(value: float, words: str) -> None:
    assert serving_rate.span(serving_rate.Range(low=value, expected=value, high=value)) == words


def run(capsys: Captured, *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_rate_prints_the_keys_that_programs_read(capsys: Captured) -> None:
    code, out, err = run(capsys, *POINT, "--users", "16", "--format", "json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    for key in ("time_per_output_token_ms", "time_to_first_token_ms", "tokens_per_second_per_gpu"):
        assert list(found[key]) == ["low", "expected", "high"]
    assert found["max_users"] > 16
    assert found["oversubscribed"] is False
    assert "AKS nodes were not measured" in found["basis"]


def test_rate_says_when_the_cache_is_too_small_for_the_users(capsys: Captured) -> None:
    code, out, _ = run(capsys, *POINT, "--users", "128")
    assert code == 0
    assert "128 users are more than the KV cache holds" in out


def test_rate_names_the_cluster_that_was_slower(capsys: Captured) -> None:
    words = [*POINT, "--users", "16"]
    words[words.index("2")] = "4"
    assert "up to 3 times slower" in run(capsys, *words)[1]
    assert "slower" not in run(capsys, *POINT, "--users", "16")[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--users": "0"}, "--users"),
        ({"--users": "many"}, "--users"),
        ({"--input-tokens": "400000"}, "shorten one of them"),
        ({"--gpu": "A100-80GB"}, "vllm bench serve"),
        ({"--gpu": "H900"}, "--gpu H900: is not known"),
        ({"--preset": "qwen3.5-27b"}, "not modelled: linear attention"),
        ({"--preset": "llama-3.3-70b-instruct", "--tensor-parallel-size": "1"}, "does not fit"),
        ({"--tensor-parallel-size": "3"}, "--tensor-parallel-size 3"),
        ({"--kv-cache-dtype": "int3"}, "--kv-cache-dtype int3"),
    ],
)  # fmt: skip
def test_rate_refuses_in_words(capsys: Captured, change: dict[str, str], words: str) -> None:
    asked = dict(zip(POINT[1::2], POINT[2::2], strict=True)) | {"--users": "16"} | change
    code, out, err = run(capsys, "rate", *(word for pair in asked.items() for word in pair), "--format", "json")
    assert code == 2
    assert words in err
    assert words in json.loads(out)["error"]
    assert "Traceback" not in err


SIZE = ["size", "--users", "200", "--input-tokens", "1024", "--output-tokens", "512"]


def test_size_lists_the_cheapest_first_and_every_choice_keeps_the_limit(capsys: Captured) -> None:
    code, out, _ = run(capsys, *SIZE, "--max-tpot-ms", "40", "--limit", "1000", "--format", "json")
    found = json.loads(out)
    assert code == 0
    costs = [each["cost_per_hour"] for each in found["choices"] if each["cost_per_hour"] is not None]
    assert costs == sorted(costs)
    for each in found["choices"]:
        assert each["time_per_output_token_ms"]["expected"] <= 40
        assert each["users_per_replica"] <= each["max_users_per_replica"]
        assert each["users_per_replica"] * each["replicas"] >= 200
        assert each["replicas"] % each["nodes"] == 0
    assert {each["preset"] for each in found["choices"]} | set(found["left_out"]) == set(catalogue.preset_names())


def test_size_of_one_model_lists_its_layouts(capsys: Captured) -> None:
    _, out, _ = run(capsys, *SIZE, "--preset", "llama-3.3-70b-instruct", "--format", "json")
    assert {each["tensor_parallel_size"] for each in json.loads(out)["choices"]} == {2, 4, 8}


def test_size_says_what_comes_closest_to_a_limit_that_nothing_meets(capsys: Captured) -> None:
    code, _, err = run(capsys, *SIZE, "--max-tpot-ms", "0.5")
    assert code == 2
    assert "closest is qwen3-0.6b" in err
    assert "0.5 ms are allowed" in err


def test_size_says_why_nothing_can_be_sized(capsys: Captured) -> None:
    code, _, err = run(capsys, *SIZE, "--preset", "deepseek-v3.2")
    assert code == 2
    assert "sparse attention" in err
