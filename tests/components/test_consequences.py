"""What the comparison says an update does, against what the program declares before and after it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import yaml

from planning import diff, diff_update, report, stack_file
from planning.diff_update import Kind
from planning.diff_words import Side
from planning.plan import read_and_decide
from sandbox.engine import Recording, Registration
from tests.components.harness import AGENT_POOL, CLUSTER, DEPLOYMENT, ROOT, TOKEN_KEY, Record, stack_config

#: What azure-native replaces of itself, as the simulated Azure has it.
RULES: dict[str, Any] = yaml.safe_load((ROOT / "sandbox/azure-rules.yaml").read_text())["resources"]
TWO: dict[str, Any] = {
    "preset": None,
    "models": {"chat": {"preset": "llama-3.3-70b-instruct"}, "code": {"preset": "qwen3-8b"}},
}

SETTINGS: tuple[dict[str, Any], ...] = (
    {"max-model-len": 4096},
    {"replicas": 1},
    {"replicas": 4},
    {"preset": "qwen3-8b"},
    {"vm-size": "Standard_ND96isr_H200_v5"},
    {"environment": "production"},
    {"protect": True},
    {"location": "westus"},
    {"gpu-nodes": {"min": 1, "max": 3}},
    {"gpu-nodes": {"min": 2, "max": 2}},
    {"kubernetes-version": "1.37"},
    {"kubelogin": "workloadidentity"},
    {"max-answer-tokens": 16384},
    {"tags": {"team": "inference"}},
    {"revision": "a" * 40},
    {"vllm": {"max-num-seqs": 32}},
    {"vllm": {"tensor-parallel-size": 8}},
    {"vllm": {"gpu-memory-utilization": 0.95}},
    {"vllm": {"cpu-offload-gb": 4}},
    {"vllm": {"served-model-name": "chat"}},
    {"network": {"pod-cidr": "10.100.0.0/16"}},
    {"gpu-nodes": {"zones": ["1"]}},
    {"gpu-nodes": {"spot": True}},
)


@cache
def _planned(text: str) -> Side:
    bag = stack_config(yaml.safe_load(text))
    reading = stack_file.from_pulumi(bag, [TOKEN_KEY], "test")
    return Side(label=text, config={TOKEN_KEY: {"secure": "x"}}, plan=report.as_json(read_and_decide(reading)))


def _plan(chosen: dict[str, Any]) -> Side:
    return _planned(yaml.safe_dump(chosen))


def _recording(record: Record, chosen: dict[str, Any]) -> Recording:
    return record(**{key.replace("-", "_"): value for key, value in chosen.items()})


def _template(recording: Recording) -> Any:
    return recording.one(DEPLOYMENT, "model-deployment").inputs["spec"]["template"]


def _changed(old: Registration, new: Registration) -> set[str]:
    """Top-level properties, and those one level below, by the wire's names."""
    names: set[str] = set()
    for key in {*old.inputs, *new.inputs}:
        was, now = old.inputs.get(key), new.inputs.get(key)
        if was != now:
            names.add(key)
            if isinstance(was, dict) and isinstance(now, dict):
                names |= {f"{key}.{part}" for part in {*was, *now} if was.get(part) != now.get(part)}
    return names


@pytest.mark.parametrize("chosen", SETTINGS, ids=str)
def test_replicas_are_said_to_be_replaced_exactly_where_their_pods_differ(
    recorded: Record, chosen: dict[str, Any]
) -> None:
    old, new = _plan({}).plan, _plan(chosen).plan
    assert old is not None
    assert new is not None
    declared = _template(_recording(recorded, {})) != _template(_recording(recorded, chosen))
    assert diff_update.rolls(old["models"][0], new["models"][0]) == declared, (
        "IN_THE_POD of planning/diff_update.py is not complete"
    )


@pytest.mark.parametrize("chosen", SETTINGS, ids=str)
def test_nodes_and_clusters_are_said_to_be_replaced_exactly_where_azure_replaces_them(
    recorded: Record, chosen: dict[str, Any]
) -> None:
    old, new = _recording(recorded, {}), _recording(recorded, chosen)
    said = {each.kind for each in diff.compare(_plan({}), _plan(chosen), "test").consequences}
    (was,), (now,) = old.of_type(CLUSTER), new.of_type(CLUSTER)
    replaced = _changed(was, now) & set(RULES[CLUSTER]["replace"])
    assert (Kind.CLUSTER in said) == bool(replaced), f"Azure replaces the cluster for {replaced or 'nothing'}"
    pools_before = {pool.urn: pool for pool in old.of_type(AGENT_POOL)}
    pools_after = {pool.urn: pool for pool in new.of_type(AGENT_POOL)}
    nodes = set(pools_before) != set(pools_after)
    for urn in set(pools_before) & set(pools_after):
        immutable = set(RULES[AGENT_POOL].get("replace", ())) | set(pools_after[urn].replace_on_changes)
        changed = _changed(pools_before[urn], pools_after[urn])
        nodes |= bool(changed & immutable) or "orchestratorVersion" in changed
    assert (Kind.NODES in said) == nodes, "GPU nodes are replaced, drained or left alone"


def test_a_new_model_leaves_the_other_ones_pods_alone(recorded: Record) -> None:
    one = {"preset": None, "models": {"chat": TWO["models"]["chat"]}}
    said = diff.compare(_plan(one), _plan(TWO), "test").consequences
    assert [each.subject for each in said if each.kind is not Kind.IN_PLACE] == ["code"]
    before, after = (_recording(recorded, chosen).one(DEPLOYMENT, "chat-deployment") for chosen in (one, TWO))
    assert before.inputs == after.inputs
