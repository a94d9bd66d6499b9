"""The benchmark's Job, and what a measurement says beside a prediction."""

from __future__ import annotations

import json
from typing import Any

import pytest

from planning import stack_file
from planning.benchmark import METRICS, outcome
from planning.findings import InvalidStack
from planning.plan import StackPlan, read_and_decide
from planning.settings import NAMESPACE

KEY = {"team-a": {"sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}}
PREDICTED = dict.fromkeys(METRICS, (50.0, 100.0, 200.0))


def plan(**settings: Any) -> StackPlan:
    base = {"environment": "development", "preset": "llama-3.3-70b-instruct", **settings}
    bag = {
        f"{NAMESPACE}:{key.replace('_', '-')}": v if isinstance(v, str) else json.dumps(v) for key, v in base.items()
    }
    secrets = [key for key in bag if key.endswith("benchmark-key")]
    return read_and_decide(stack_file.from_pulumi({"azure-native:location": "eastus", **bag}, secrets, "test"))


def refusals(**settings: Any) -> str:
    with pytest.raises(InvalidStack) as refused:
        plan(**settings)
    return str(refused.value)


def test_nothing_is_measured_unless_somebody_asks() -> None:
    assert plan().benchmarks == ()


def test_the_load_is_the_plans_and_the_endpoint_the_edges() -> None:
    load = {"input-tokens": 2000, "output-tokens": 100, "users": 24}
    (found,) = plan(benchmark=True, workload=load).benchmarks
    options = dict(zip(found.command, found.command[1:], strict=False))
    assert options["--base-url"] == "http://edge.vllm.svc:80"
    assert (options["--random-input-len"], options["--random-output-len"]) == ("2000", "100")
    assert (options["--max-concurrency"], options["--num-prompts"]) == ("24", str(found.requests))
    assert "--insecure" not in found.command


def test_behind_keys_and_a_certificate_it_goes_the_same_way_as_clients() -> None:
    edge = {"keys": KEY, "tls-secret": "edge-tls"}
    (found,) = plan(benchmark=True, benchmark_key="[secret]", edge=edge).benchmarks
    assert "https://edge.vllm.svc:443" in found.command
    assert "--insecure" in found.command, "inside the cluster the edge has another name than on its certificate"


def test_only_what_fetches_the_tokenizer_sees_the_token_and_no_weights_are_fetched() -> None:
    (found,) = plan(benchmark=True).benchmarks
    assert found.before.sees_token
    assert "*.safetensors" in found.before.command
    assert not any("TOKEN" in name for name in found.env)


def test_a_key_is_asked_for_where_the_endpoint_asks_for_one() -> None:
    assert "needs a key of its own" in refusals(benchmark=True, edge={"keys": KEY})


def test_a_stack_keeps_its_benchmark_key_between_two_measurements() -> None:
    """`make benchmark` sets the benchmark for one update; the key stands in the stack file before and after it."""
    assert plan(benchmark_key="[secret]", edge={"keys": KEY}).benchmarks == ()


def test_who_is_served_meanwhile_is_told() -> None:
    assert any("shares it with them" in finding.message for finding in plan(benchmark=True).findings)


def test_what_is_not_modelled_is_measured_all_the_same() -> None:
    (found,) = plan(benchmark=True, vm_size="Standard_ND96amsr_A100_v4").benchmarks
    assert found.predicted == {}
    shown = outcome({}, 8, json.dumps({"completed": 8, **dict.fromkeys(METRICS, 10.0)}))
    assert (shown["ratio"], shown["wrong"]) == ({}, [])


def test_a_measurement_stands_beside_its_prediction_with_the_ratio() -> None:
    said = outcome(PREDICTED, 8, json.dumps({"completed": 8, **dict.fromkeys(METRICS, 110.0)}))
    assert said["ratio"] == dict.fromkeys(METRICS, 1.1)
    assert said["predicted"]["mean_tpot_ms"] == {"low": 50.0, "expected": 100.0, "high": 200.0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"completed": 7, "mean_tpot_ms": 1, "median_ttft_ms": 1, "output_throughput": 1}', "1 of 8 requests failed"),
        ('{"completed": 8, "mean_tpot_ms": NaN, "median_ttft_ms": 1, "output_throughput": 1}', "mean_tpot_ms is nan"),
        ('{"completed": 8, "mean_tpot_ms": 1, "median_ttft_ms": 0, "output_throughput": 1}', "median_ttft_ms is 0"),
        ('{"completed": 8, "mean_tpot_ms": "1", "median_ttft_ms": 1}', "output_throughput is None"),
        ('{"mean_tpot_ms": 1, "median_ttft_ms": 1, "output_throughput": 1}', "does not say how many"),
        ("[1]", "no JSON object"),
        ("Traceback: ...", "no JSON"),
    ],
)
def test_what_is_no_measurement_gets_no_ratio(text: str, says: str) -> None:
    said = outcome(PREDICTED, 8, text)
    assert said["ratio"] == {}
    assert any(says in line for line in said["wrong"]), said["wrong"]


def test_before_it_is_read_there_is_the_prediction_alone() -> None:
    said = outcome(PREDICTED, 8, "")
    assert (said["measured"], said["ratio"], said["wrong"]) == (None, {}, [])
