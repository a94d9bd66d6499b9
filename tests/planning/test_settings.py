"""Settings: the bag of the CLI and the stack file give the same object, and every problem is told, without secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planning import stack_file as module
from planning.findings import InvalidStack
from planning.plan import read_and_decide
from planning.stack_file import Reading, from_file, from_pulumi

TOKEN = "hf_" + "notARealToken" * 3
LOCATION = "azure-native:location"
FLAT = {"aks-vllm:preset": "qwen3-8b"}
IN_TMP = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(folder: Path, config: dict[str, Any] | str, *overrides: str) -> Reading:
    """A stack file with this config (or these very lines), read."""
    text = config if isinstance(config, str) else json.dumps({"config": config})  # JSON is YAML
    folder = folder / "stacks"
    folder.mkdir(exist_ok=True)
    (folder / "Pulumi.test.yaml").write_text(text)
    return from_file("test", overrides=overrides, folder=folder)


def messages(reading: Reading) -> str:
    return "\n".join(str(problem) for problem in reading.problems)


def as_the_cli(config: dict[str, Any]) -> tuple[dict[str, str], set[str]]:
    """What the Pulumi CLI makes of a stack file: full keys, strings, JSON, and which keys are secret."""
    bag, secrets = {}, set()
    for key, value in config.items():
        full = key if ":" in key else f"aks-vllm:{key}"
        if isinstance(value, dict) and set(value) == {"secure"}:
            secrets.add(full)
        bag[full] = value if isinstance(value, str) else json.dumps(value)
    return bag, secrets


scalars = st.one_of(
    st.booleans(),
    st.integers(-5, 300_000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=12),
    st.sampled_from(["qwen3-8b", "Standard_NC40ads_H100_v5", "production", "16384", "true", "yes", "0x10", "1e3"]),
)
models = st.dictionaries(
    st.sampled_from(["chat", "Draft", "default", "x" * 64]),
    st.dictionaries(
        st.sampled_from(["preset", "max-model-len", "replicas", "vm-size", "vllm", "max_model_len", "workload"]),
        st.one_of(scalars, st.dictionaries(st.sampled_from(["max-num-seqs", "swap-space", "users"]), scalars)),
    ),
)
configs = st.dictionaries(
    st.one_of(
        st.sampled_from(
            [
                LOCATION,
                *(f"aks-vllm:{key}" for key in (*module._KEYS, "max-model-le", "hf-tokn")),
                "preset",
                "pulumi:tags",
            ]
        ),
        st.from_regex(r"\A[a-z-]{1,12}\Z"),
    ),
    st.one_of(scalars, models, st.fixed_dictionaries({"secure": st.just("v1:abc")}), st.lists(scalars, max_size=2)),
    max_size=8,
)


@pytest.mark.parametrize("stack", module.stacks())
def test_the_stacks_of_the_project_are_valid(stack: str) -> None:
    assert messages(from_file(stack)) == ""


def test_a_preset_and_a_location_are_enough(tmp_path: Path) -> None:
    found = read(tmp_path, {LOCATION: "eastus", **FLAT}).settings
    assert found is not None
    assert (found.environment, list(found.models)) == ("production", ["model"]), "the safe defaults"


@IN_TMP
@given(configs)
def test_a_file_and_the_bag_that_the_cli_makes_of_it_read_the_same(tmp_path: Path, config: dict[str, Any]) -> None:
    if len({key if ":" in key else f"aks-vllm:{key}" for key in config}) < len(config):
        return  # the CLI never sees both
    bag, secrets = as_the_cli(config)
    from_bag, from_disk = from_pulumi(bag, secrets, "test"), read(tmp_path, config)
    assert from_disk.settings == from_bag.settings
    assert messages(from_disk) == messages(from_bag)


@IN_TMP
@given(st.dictionaries(st.sampled_from(module._KEYS), st.sampled_from(["16384", "x", "true", "2"]), max_size=4))
def test_overrides_read_as_if_they_stood_in_the_file(tmp_path: Path, changed: dict[str, str]) -> None:
    base = {LOCATION: "eastus", **FLAT}
    in_file = read(tmp_path, base | {f"aks-vllm:{key}": value for key, value in changed.items()})
    given_on_the_line = read(tmp_path, base, *(f"{key}={value}" for key, value in changed.items()))
    assert given_on_the_line.settings == in_file.settings
    assert {problem.key for problem in given_on_the_line.problems} == {problem.key for problem in in_file.problems}


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.one_of(st.sampled_from([LOCATION, *(f"aks-vllm:{key}" for key in module._KEYS)]), st.text(max_size=20)),
        st.one_of(
            st.text(max_size=30),
            configs.map(json.dumps),
            st.sampled_from(["eastus", "qwen3-8b", "16384", "[" * 3000, "NaN", "1" * 5000, "null", TOKEN]),
        ),
    ),
    st.lists(st.sampled_from(["aks-vllm:hf-token", "aks-vllm:vllm", "aks-vllm:preset"])),
)
def test_any_bag_becomes_a_reading_and_then_a_plan_or_a_list_of_problems(
    bag: dict[str, str], secret: list[str]
) -> None:
    reading = from_pulumi(bag, secret, "test")
    assert TOKEN not in messages(reading)
    try:
        read_and_decide(reading)
    except InvalidStack as invalid:
        assert invalid.problems
        assert TOKEN not in str(invalid), "an error message is where tokens leak into build logs"


@pytest.mark.parametrize(
    "key", ["hf-token", "hf-tokens", "hf_token", "hugging-face-token", "vllm", "models", "tags", "hf-tok"]
)
@pytest.mark.parametrize("value", [TOKEN, "sk-not-a-real-one-either"])
def test_a_token_in_clear_is_refused_and_never_shown(tmp_path: Path, key: str, value: str) -> None:
    in_file = read(tmp_path, {LOCATION: "eastus", **FLAT, f"aks-vllm:{key}": value})
    on_the_line = read(tmp_path, {LOCATION: "eastus", **FLAT}, f"{key}={value}")
    for reading in (in_file, on_the_line):
        assert f"aks-vllm:{key} = " in messages(reading)
        if "tok" in key or value == TOKEN:
            assert value not in messages(reading)


def test_an_encrypted_token_is_only_known_to_be_there(tmp_path: Path) -> None:
    found = read(tmp_path, {LOCATION: "eastus", **FLAT, "aks-vllm:hf-token": {"secure": "v1:abc"}})
    assert messages(found) == ""
    assert found.settings is not None
    assert found.settings.hf_token is True
    assert "v1:abc" not in repr(found), "not even the encrypted value belongs into a plan"


def test_only_the_token_may_be_encrypted(tmp_path: Path) -> None:
    found = read(tmp_path, {LOCATION: "eastus", **FLAT, "aks-vllm:vllm": {"seed": {"secure": "v1:abc"}}})
    assert "aks-vllm:vllm = (hidden): must not be encrypted" in messages(found)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"aks-vllm:max-model-le": 1}, "aks-vllm:max-model-le = 1: is not a key of this program "
         "(stacks/Pulumi.test.yaml); did you mean max-model-len?"),
        ({"aks-vllm:max_model_len": 1}, "did you mean max-model-len?"),
        ({"aks-vllm:location": "eastus"}, "the region is azure-native:location"),
        ({"aks-vllm:replicas": 0}, "aks-vllm:replicas = 0: must be at least 1"),
        ({"aks-vllm:replicas": 1.5}, "aks-vllm:replicas = 1.5: must be a whole number"),
        ({"aks-vllm:replicas": True}, "aks-vllm:replicas = true: must be a whole number"),
        ({"aks-vllm:environment": "prod"}, "aks-vllm:environment = prod: must be one of production, development"),
        ({"aks-vllm:revision": "main"}, "aks-vllm:revision = main: must be a commit"),
        ({"aks-vllm:kubernetes-version": "1.29"}, "must be a version from 1.34 on"),
        ({"aks-vllm:gpu-nodes": {"min": 3, "max": 1}}, "min must not exceed max (1)"),
        ({"aks-vllm:gpu-nodes": {"min": 1, "max": 1, "mx": 2}}, "aks-vllm:gpu-nodes.mx = 2: is not a key"),
        ({"aks-vllm:vllm": [1]}, "aks-vllm:vllm = [1]: must be a map"),
        ({"aks-vllm:preset": ""}, "aks-vllm:preset = : is empty"),
        ({"aks-vllm:models": {"chat": {"preset": "qwen3-8b"}}}, "aks-vllm:models = (a map): stands beside preset"),
        ({"preset": "x"}, "aks-vllm:preset = (twice): is given twice with and without its namespace"),
        ({LOCATION: "East US"}, "azure-native:location = East US: must be an Azure region's name"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)  # fmt: skip
def test_each_problem_names_key_value_limit_file_and_remedy(
    tmp_path: Path, config: dict[str, Any], expected: str
) -> None:
    found = messages(read(tmp_path, {LOCATION: "eastus", **FLAT, **config}))
    assert expected in found
    assert len(found.splitlines()) == 1, "one mistake is one problem"


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ({"Chat": {"preset": "qwen3-8b"}}, "aks-vllm:models.Chat = Chat: must be 1 to 63 lower-case letters"),
        ({"default": {"preset": "qwen3-8b"}}, "and not be `default`"),
        ({"chat": {}}, "aks-vllm:models.chat.preset = nothing: is required"),
        ({"chat": {"preset": "qwen3-8b", "protect": True}}, "it belongs to the stack, beside `models`"),
        ({"chat": {"preset": "qwen3-8b", "replica": 1}}, "did you mean replicas?"),
        ({"chat": "qwen3-8b"}, "aks-vllm:models.chat = qwen3-8b: must be a map"),
        ({}, "aks-vllm:models = {}: holds no model"),
    ],
    ids=str,
)
def test_problems_inside_the_map_of_models_name_the_model(tmp_path: Path, models: Any, expected: str) -> None:
    found = messages(read(tmp_path, {LOCATION: "eastus", "aks-vllm:models": models}))
    assert expected in found
    assert len(found.splitlines()) == 1


def test_all_problems_of_a_file_are_told_at_once_and_the_rest_is_kept(tmp_path: Path) -> None:
    bad = {"aks-vllm:presset": "x", "aks-vllm:replicas": 0, "aks-vllm:max-model-len": "many"}
    found = read(tmp_path, {LOCATION: "eastus", **FLAT, **bad})
    assert sorted(problem.key for problem in found.problems) == sorted(bad)
    assert found.settings is not None
    assert found.settings.models["model"].preset == "qwen3-8b", "its own problems are found in the same run"


def test_a_key_that_the_file_gives_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    lines = f"config:\n  {LOCATION}: eastus\n  aks-vllm:preset: qwen3-8b\n  aks-vllm:vllm:\n    seed: 1\n    seed: 2\n"
    assert "aks-vllm:seed = (twice): is given a second time in line 6" in messages(read(tmp_path, lines))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["replicas=1", "replicas=2"], "aks-vllm:replicas = (twice): is given twice by --set"),
        (["replicas=1", "aks-vllm:replicas=1"], "given twice by --set"),
        (["vllm={seed: 1}", "vllm.seed=2"], "aks-vllm:vllm.seed = (twice): is given twice by --set"),
        (["replicas"], "replicas = nothing: has no value (--set); write --set key=value"),
        (["replicas="], "aks-vllm:replicas = : is empty (--set)"),
        (["replicas=many"], "aks-vllm:replicas = many: must be a whole number (--set)"),
    ],
    ids=str,
)
def test_problems_of_overrides_say_that_they_come_from_set(tmp_path: Path, overrides: list[str], expected: str) -> None:
    assert expected in messages(read(tmp_path, {LOCATION: "eastus", **FLAT}, *overrides))


def test_overrides_reach_into_maps_and_keep_what_else_is_there(tmp_path: Path) -> None:
    config = {LOCATION: "eastus", "aks-vllm:models": {"a": {"preset": "qwen3-8b", "vllm": {"seed": 1}}}}
    found = read(tmp_path, config, "models.a.vllm.max-num-seqs=8", "models.a.replicas=2", "tags.team=x").settings
    assert found is not None
    assert found.models["a"].vllm == {"seed": 1, "max-num-seqs": 8}
    assert (found.models["a"].replicas, found.tags) == (2, {"team": "x"})


def test_words_that_only_yaml_1_1_takes_for_booleans_are_text_as_in_the_cli(tmp_path: Path) -> None:
    found = read(
        tmp_path, f"config: {{{LOCATION}: eastus, preset: qwen3-8b, tags: {{country: no, since: 2026-01-01}}}}"
    )
    assert found.settings is not None
    assert found.settings.tags == {"country": "no", "since": "2026-01-01"}


@pytest.mark.parametrize("text", ["config: [", "[1, 2]", "config: 3", "", "\x00", "config: {? [a]: b}", "a: &a [*a]"])
def test_a_file_that_is_no_stack_file_is_a_problem_and_not_a_crash(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text).problems


def test_an_unknown_stack_lists_those_that_exist() -> None:
    for name in ("prdo", "../prod", ""):
        assert "the stacks are dev, prod, sandbox" in messages(from_file(name))


def test_the_published_schema_is_the_settings_own() -> None:
    published = json.loads((module.STACKS / "schema.json").read_text())
    assert published == module.schema(), "run: python -m planning schema > stacks/schema.json"


@pytest.mark.parametrize("stack", module.stacks())
def test_editors_find_the_schema(stack: str) -> None:
    first = (module.STACKS / f"Pulumi.{stack}.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=schema.json"
