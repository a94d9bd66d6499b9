"""vLLM's options: what is accepted reaches vLLM as given, what is not is refused with words that help."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from planning import catalogue, engine, startup
from planning.architecture import Architecture
from planning.findings import Problem, Severity
from tests.serve_words import LAYOUT, MEMORY, PRESET, VM, words

ARGUMENTS: dict[str, dict[str, Any]] = json.loads((engine.folder() / "arguments.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((engine.folder() / "rules.yaml").read_text())
ENVIRONMENT: list[str] = yaml.safe_load((engine.folder() / "environment.yaml").read_text())["names"]
SPELLINGS = [s for name, row in ARGUMENTS.items() for s in (name, *row.get("also", ()), row.get("off")) if s]

BUDGET = startup.budget(PRESET.architecture, VM, LAYOUT)
SPECULATIVE = {"method": "ngram", "num_speculative_tokens": 3}
TOKEN = "hf_" + "thisIsNotARealToken" * 2


def _check(options: Mapping[str, object]) -> tuple[Problem, ...]:
    return engine.check(options, prefix="aks-vllm:vllm", source="stacks/Pulumi.x.yaml")


def _one(options: Mapping[str, object]) -> Problem:
    (problem,) = _check(options)
    return problem


# The data.


def test_the_contract_has_every_option_on_a_line_of_its_own_in_order() -> None:
    lines = (engine.folder() / "arguments.json").read_text().splitlines()
    assert len(lines) == len(ARGUMENTS) + 2, "one row an option, so that a new version reads as a diff"
    assert list(ARGUMENTS) == sorted(ARGUMENTS)
    assert len(ARGUMENTS) == 320, "vLLM 0.33.0 has 322 arguments: these, `--help` and the positional model"


def test_no_spelling_means_two_options() -> None:
    assert len(SPELLINGS) == len(set(SPELLINGS))


def test_no_removed_option_is_one_that_this_version_has() -> None:
    assert not set(RULES["removed"]) & set(SPELLINGS), "people would be told to delete what works"


@pytest.mark.parametrize("rules", ["reserved", "values", "not-modelled", "caution"])
def test_rules_speak_of_options_that_exist(rules: str) -> None:
    assert set(RULES[rules]) <= set(ARGUMENTS), "a rule with a misspelt name does nothing"


def test_pairs_speak_of_options_that_exist() -> None:
    rules, keys = (
        [*RULES["together"], *RULES["compared"], *RULES["models"]],
        ("option", "needs", "excludes", "at-most", "at-least"),
    )
    named = {rule[key] for rule in rules for key in keys if isinstance(rule.get(key), str)}
    assert named - set(engine._FEATURES) <= set(ARGUMENTS)
    assert all(rule["key"] in ARGUMENTS[rule["option"]]["keys"] for rule in RULES["inside"])
    assert {name for rule in RULES["compared"] for name in rule.get("where", ())} <= set(ARGUMENTS)


def test_what_to_write_instead_of_a_removed_option_exists() -> None:
    for name, row in RULES["removed"].items():
        for option in re.findall(r"use ([a-z-]+)", row["instead"]):
            assert option in SPELLINGS, f"{name}: {option} is no option either"
        for option, key in re.findall(r"use ([a-z-]+): \{(\w+)", row["instead"]):
            assert key in ARGUMENTS[option].get("keys", {key: {}}), f"{name}: {option} has no key {key}"


def test_of_every_removed_option_it_is_known_since_when() -> None:
    assert [name for name, row in RULES["removed"].items() if row["since"] is None] == []


def test_reserved_options_name_a_key_that_exists_or_say_why_there_is_none() -> None:
    keys = {"preset", "revision", "replicas", "vm-size", "hf-token", "max-answer-tokens"}
    for name, instead in RULES["reserved"].items():
        named = set(re.findall(r"aks-vllm:([a-z-]+)", instead))
        assert named <= keys, f"{name} sends people to a key that is not there"
    for name in ("model", "revision", "hf-token", "shutdown-timeout"):
        assert "aks-vllm:" in RULES["reserved"][name], f"{name} has a key of its own"


# What is refused.


def test_the_proposals_options_pass_except_the_removed_one() -> None:
    proposal = {"swap-space": 4, "cpu-offload-gb": 0, "gpu-memory-utilization": 0.95, "max-model-len": 16384}
    problem = _one(proposal)
    assert problem.key == "aks-vllm:vllm.swap-space"
    assert "0.18" in problem.limit, "it says since when"
    assert "kv-offloading-size" in problem.remedy, "and what does the job now"


@pytest.mark.parametrize("name", RULES["removed"])
def test_every_removed_option_is_refused_as_such(name: str) -> None:
    problem = _one({name.replace("-", "_"): 1})
    assert "gone" in problem.limit or "removed" in problem.limit
    assert problem.remedy


@pytest.mark.parametrize("name", RULES["reserved"])
def test_every_reserved_option_is_refused_whatever_its_value(name: str) -> None:
    assert _one({name: "anything"}).remedy == f"delete the line: {RULES['reserved'][name]}"


@pytest.mark.parametrize(
    ("options", "limit", "remedy"),
    [
        ({"max-num-seq": 4}, "not an option of vLLM 0.33.0", "did you mean max-num-seqs?"),
        ({"compilation-config.mode": 3}, "not an option", "compilation-config: {mode: ...}"),
        ({"no-enable-prefix-caching": True}, "not an option", "enable-prefix-caching: false"),
        ({"max-num-seqs": 0}, "must be at least 1", "correct"),
        ({"max-num-seqs": 1.5}, "must be a whole number", "correct"),
        ({"max-num-seqs": True}, "must be a whole number", "correct"),
        ({"max-num-seqs": "9" * 5000}, "must be a whole number", "correct"),
        ({"max-num-seqs": None}, "has no value", "delete"),
        ({"gpu-memory-utilization": 0}, "must be above 0 and at most 1", "correct"),
        ({"gpu-memory-utilization": 1.01}, "must be above 0 and at most 1", "correct"),
        ({"gpu-memory-utilization": float("nan")}, "finite", "correct"),
        ({"gpu-memory-utilization": "much"}, "must be a number", "correct"),
        ({"max-model-len": "auto"}, "leaves the context to the start-up", "name a number"),
        ({"max-model-len": "1.5K"}, "must be a whole number, or one such as 16k", "correct"),
        ({"enforce-eager": "yes"}, "must be true or false", "enforce-eager: true"),
        ({"chat-template": "--"}, "ends the options", "write a value"),
        ({"dtype": "bf16"}, "must be one of auto, bfloat16", "bfloat16"),
        ({"quantization-config": {}}, "says nothing", "moe"),
        ({"tool-call-parser": "llama"}, "none of the 58 values", "llama3_json"),
        ({"hf-overrides": [1, "x"]}, "must be a map", "key: value"),
        ({"compilation-config": 3}, "must be a map", "key: value"),
        ({"compilation-config": {"modee": 3}}, "has no key modee", "did you mean mode?"),
        ({"compilation-config": {"splitting_ops": None, "cudagraph_num_of_warmups": "x"}}, "whole number", "correct"),
        ({"watchdog-config": '{"timeout": 0}'}, "timeout in it must be above 0", "correct"),
        ({"speculative-config": {"method": "ngram"}}, "lacks num_speculative_tokens", "add it"),
        ({"speculative-config": SPECULATIVE | {"method": "eagle3"}}, "method in it must be ngram or mtp", "second"),
        ({"structured-outputs-config": '{"disable_any_whitespace": true}'}, "needs backend = xgrammar or", "name one"),
        ({"compilation-config": {"max_cudagraph_capture_size": 0}}, "in it must be at least 1", "enforce-eager"),
        ({"watermark-config": {"key": 7}}, "holds a key", "delete"),
        ({"watermark": 1}, "must be at least 0 and below 1", "correct"),
        ({"attention-backend": "flash"}, "must be one of AUTO, FLASH_ATTN", "choose one"),
        ({"numa-bind-cpus": ["0-3", "x"], "numa-bind": True}, "must look like 0-3", "correct"),
        ({"numa-bind-nodes": [0]}, "needs numa-bind", "numa-bind: true"),
        ({"offload-backend": "prefetch"}, "needs offload-group-size", "layers"),
        ({"mamba-ssu-algorithm": "simple", "mamba-backend": "TRITON"}, "needs mamba-backend = flashinfer", "add"),
        ({"use-replayssm": True}, "older model runner", "delete"),
        ({"compilation-config": "{"}, "must be a map", "key: value"),
        ({"cudagraph-capture-sizes": []}, "empty list", "delete"),
        ({"cudagraph-capture-sizes": [1, "two"]}, "must be a whole number", "correct"),
        ({"logits-processors": ["a", "--host"]}, "begins with a dash", "differently"),
        ({"lora-modules": ["a=b"]}, "needs enable-lora", "enable-lora: true"),
        ({"lora-modules": ["a=b"], "enable-lora": False}, "needs enable-lora", "enable-lora: true"),
        ({"enforce-eager": True, "cudagraph-capture-sizes": [1, 2]}, "excludes cudagraph-capture-sizes", "keep one"),
        ({"max_num_seqs": 1, "max-num-seqs": 2}, "same option as max_num_seqs", "keep one"),
        ({"tp": 4, "tensor-parallel-size": 4}, "same option as tp", "keep one"),
        ({"enable-log-requests": True, "disable-log-requests": True}, "same option", "keep one"),
    ],
    ids=str,
)
def test_what_vllm_would_refuse_is_refused_in_words(options: dict[str, Any], limit: str, remedy: str) -> None:
    problem = _one(options)
    assert limit in problem.limit
    assert remedy in problem.remedy


def _check_planned(options: Mapping[str, Any], model: Architecture = PRESET.architecture) -> tuple[Problem, ...]:
    return engine.check_planned(engine.normalise(options), architecture=model, memory=MEMORY, prefix="vllm", source="x")


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"max-num-active-seqs": 1025}, "max-num-active-seqs (1025) to be at most max-num-seqs, 1024"),
        ({"long-prefill-token-threshold": 16385}, "at most max-model-len, 16384"),
        ({"enable-chunked-prefill": False}, "max-num-batched-tokens (8192) to be at least max-model-len, 16384"),
        ({"mm-tensor-ipc": "torch_shm"}, "tensor-parallel-size (4) to be at most 1"),
        ({"offload-group-size": 2, "offload-num-in-group": 3}, "at most offload-group-size, 2"),
        ({"default-mm-loras": {"image": "/a"}}, "needs a model with an encoder"),
        ({"enable-return-routed-experts": True}, "needs a model with experts"),
        ({"kv-cache-dtype": "float16"}, "is neither bfloat16, as the model, nor 8 bits"),
        ({"speculative-config": SPECULATIVE | {"method": "mtp"}}, "needs a model with layers that draft"),
        ({"quantization": "awq"}, "needs a checkpoint in that format"),
    ],
    ids=str,
)
def test_what_the_model_or_the_plan_excludes_is_refused(options: dict[str, Any], limit: str) -> None:
    assert _check(options) == ()
    (problem,) = _check_planned(options)
    assert limit in problem.limit
    assert problem.key.removeprefix("vllm.") in options, "the line that can be changed"


def test_what_is_within_the_plan_passes() -> None:
    options = {"max-num-active-seqs": 1024, "long-prefill-token-threshold": 16384, "quantization": "fp8"}
    assert _check_planned(options) == ()
    states = catalogue.preset("qwen3.5-27b").architecture
    limits = {problem.limit for problem in _check_planned({"enable-chunked-prefill": False}, states)}
    assert "excludes a model with layers with a state" in limits


def test_what_vllm_takes_leave_of_is_noted() -> None:
    (finding,) = engine.findings({"disable-cascade-attn": True}, "chat")
    assert finding.severity is Severity.NOTE
    assert "deprecated" in finding.message


def test_every_problem_is_told_at_once_under_the_key_as_written() -> None:
    problems = _check({"swap_space": 4, "block-size": "x", "port": 1, "Max-Num-Sequences": 2})
    assert [problem.key.removeprefix("aks-vllm:vllm.") for problem in problems] == [
        "swap_space",
        "block-size",
        "port",
        "Max-Num-Sequences",
    ]
    assert {problem.source for problem in problems} == {"stacks/Pulumi.x.yaml"}


@pytest.mark.parametrize(
    "options",
    [
        {"api-key": "very-private"},
        {"hf_token": TOKEN},
        {"kv-transfer-config": {"kv_connector_extra_config": {"access_key": "very-private"}}},
        {"kv-transfer-config": '{"password": "very-private"}'},
        {"otlp-traces-endpoint": "https://someone:very-private@collector:4317"},
        {"chat-template": TOKEN},
        {"middleware": ["a.b", TOKEN]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_secret_is_neither_passed_on_nor_shown(options: dict[str, Any]) -> None:
    shown = str(_one(options))
    assert "very-private" not in shown
    assert TOKEN not in shown


@pytest.mark.parametrize("size", [None, "512", 512])
def test_a_key_of_a_map_may_be_empty_or_a_number_as_text(size: object) -> None:
    assert _check({"compilation-config": {"max_cudagraph_capture_size": size}}) == ()


def test_names_that_only_sound_like_secrets_pass() -> None:
    assert _check({"hf-overrides": {"bos_token": "<s>", "num_hidden_tokens": 5}, "max-num-batched-tokens": 8192}) == ()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*SPELLINGS, *RULES["removed"]]) | st.text(), ANYTHING, max_size=4))
def test_nothing_that_a_file_may_hold_makes_a_traceback(options: dict[str, Any]) -> None:
    problems = _check(options)
    refused = {problem.key.removeprefix("aks-vllm:vllm.") for problem in problems}
    assert refused <= set(options)
    assert all(problem.limit and problem.remedy for problem in problems)
    words({key: value for key, value in options.items() if key not in refused})


# What is passed on.


def _size(text: str) -> int:
    return int(text)  # written out: nothing is left to vLLM's reading of suffixes


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


PARSED: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "size": _size,
    "size-or-auto": _size,
    "json": json.loads,
    "map": json.loads,
    "json-or-text": _json_or_text,
    "text": str,
}


def _reparsed(words: Sequence[str]) -> dict[str, Any]:
    """The options as Python's argparse, which vLLM uses, reads them back; only those that were given."""
    parser = argparse.ArgumentParser(allow_abbrev=False, argument_default=argparse.SUPPRESS, exit_on_error=False)
    parser.add_argument("model_tag")
    for name, row in ARGUMENTS.items():
        if row["kind"] in ("switch", "flag"):
            parser.add_argument(f"--{name}", dest=name, action="store_true")
            if "off" in row:
                parser.add_argument(f"--{row['off']}", dest=name, action="store_false")
        elif row.get("many") == "repeat":
            parser.add_argument(f"--{name}", dest=name, action="append", type=PARSED[row["kind"]])
        else:
            nargs = "+" if row.get("many") else None
            parser.add_argument(f"--{name}", dest=name, type=PARSED[row["kind"]], nargs=nargs)
    return vars(parser.parse_args(list(words)))


_JSON = st.dictionaries(st.text("abc_ -é", min_size=1), st.integers() | st.text() | st.booleans(), max_size=3)
_TEXT = st.text(max_size=12) | st.text("-a=", min_size=1, max_size=4)


def _values(name: str) -> st.SearchStrategy[Any]:
    row = engine._row(name)
    values: st.SearchStrategy[Any]
    match row["kind"]:
        case "switch" | "flag":
            values = st.booleans()
        case "int" | "size" | "size-or-auto":
            values = st.integers(row.get("least", 0), 10**9)
        case "float":
            values = st.floats(row.get("least", row.get("above", 0)), row.get("most", 1e6)) | st.integers(1, 1)
        case "map" if "keys" in row:
            plain = {"switch": st.booleans(), "text": _TEXT}
            free = {key: sub["kind"] for key, sub in row["keys"].items() if "choices" not in sub}
            optional = {key: plain[kind] for key, kind in free.items() if kind in plain}
            values = st.fixed_dictionaries({}, optional=optional)
        case "json" | "map":
            values = _JSON
        case "json-or-text":
            values = _JSON | st.text("abc/=.-", min_size=1).filter(lambda text: not text.startswith("-"))
        case _:
            values = st.sampled_from(row["choices"]) if "choices" in row else _TEXT
    if row.get("many"):
        plain = values.filter(lambda value: not str(value).startswith("-"))
        return st.lists(plain, min_size=1, max_size=3)
    return values


_FREE = sorted(set(ARGUMENTS) - set(RULES["reserved"]) - set(engine.PLANNED))
_OPTIONS = st.lists(st.sampled_from(_FREE), unique=True, max_size=6).flatmap(
    lambda names: st.fixed_dictionaries({name: _values(name) for name in names})
)


@given(options=_OPTIONS, underscores=st.booleans())
def test_whatever_is_accepted_reaches_vllm_with_the_same_meaning(options: dict[str, Any], underscores: bool) -> None:
    written = {key.replace("-", "_") if underscores else key: value for key, value in options.items()}
    refused = {problem.key.removeprefix("aks-vllm:vllm.").replace("_", "-") for problem in _check(written)}
    accepted = {key: value for key, value in options.items() if key not in refused}
    back = _reparsed(words(accepted))
    for name, value in accepted.items():
        if ARGUMENTS[name]["kind"] == "flag" and value is False:
            assert name not in back, "a flag without an opposite is left out"
        elif ARGUMENTS[name]["kind"] == "text":
            assert back[name] == ([str(item) for item in value] if isinstance(value, list) else str(value))
        else:
            assert back[name] == value
    assert back["max-model-len"] == MEMORY.max_model_len


@given(options=_OPTIONS, shuffled=st.randoms(use_true_random=False))
def test_the_order_in_the_file_changes_nothing(options: dict[str, Any], shuffled: Any) -> None:
    refused = {problem.key.removeprefix("aks-vllm:vllm.") for problem in _check(options)}
    items = [(key, value) for key, value in options.items() if key not in refused]
    other = items.copy()
    shuffled.shuffle(other)
    assert words(dict(items)) == words(dict(other)), "replicas would be replaced for nothing"


def test_few_of_the_options_of_the_property_are_refused() -> None:
    """Else the properties above would say little."""
    plain = {"int": 2, "size": 2, "float": 0.5, "json": {}, "map": {}, "json-or-text": {}, "switch": True, "flag": True}
    refused = []
    for name in _FREE:
        row = engine._row(name)
        value = row["choices"][0] if "choices" in row else row.get("example", plain.get(row["kind"], "x"))
        refused += [problem.key for problem in _check({name: [value] if row.get("many") else value})]
    known = {rule["option"] for rule in RULES["together"]} | {n for n in ARGUMENTS if "required" in engine._row(n)}
    assert set(refused) <= {f"aks-vllm:vllm.{name}" for name in known}


def test_the_command_line_is_the_plans_then_the_options_by_name() -> None:
    line = words({"max_num_seqs": 64, "enable-prefix-caching": False, "disable-log-requests": True, "tp": 8})
    assert line == (
        "/models/m/abc",
        *("--served-model-name", "m"),
        *("--port", "8000"),
        *("--tensor-parallel-size", "4"),
        *("--max-model-len", "16384"),
        *("--shutdown-timeout", "274"),
        *("--disable-access-log-for-endpoints", "/health,/metrics"),
        "--disable-log-requests",
        "--disable-prefix-caching",
        *("--max-num-seqs", "64"),
    ), "the layout's tensor parallel size, not the one asked for: it may have been refused there"


def test_pipeline_stages_are_named_where_there_are_several() -> None:
    line = words({}, stages=2)
    assert line[line.index("--pipeline-parallel-size") + 1] == "2"
    assert "--pipeline-parallel-size" not in words({})


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        ("128k", 128_000),
        ("1.5k", 1500),
        ("2m", 2_000_000),
        ("1g", 10**9),
        ("8K", 8192),
        ("2M", 2 << 20),
        ("1G", 1 << 30),
    ],
)
def test_sizes_with_a_suffix_are_written_out(written: str, tokens: int) -> None:
    assert _check({"max-num-batched-tokens": written}) == ()
    assert engine.normalise({"max-num-batched-tokens": written}) == {"max-num-batched-tokens": tokens}, (
        "a small letter is a power of 1000, a capital one of 1024"
    )


def test_several_served_names_are_all_served() -> None:
    line = words({"served-model-name": ["a", "b"]})
    at = line.index("--served-model-name")
    assert line[at + 1 : at + 3] == ("a", "b")


def test_vllm_is_process_one() -> None:
    assert engine.COMMAND == ("vllm", "serve"), "a shell would keep SIGTERM to itself, and answers would be cut off"


def test_options_that_the_memory_plan_leaves_out_are_said_to_be() -> None:
    (finding,) = engine.findings(engine.normalise({"cpu-offload-gb": 10}), "chat")
    assert finding.severity is Severity.WARNING
    assert finding.subject == "chat"
    assert "cpu-offload-gb = 10" in finding.message
    assert not list(engine.findings(engine.normalise({"cpu-offload-gb": 0, "dtype": "auto"}), "chat"))


# The environment and the download.


def test_every_variable_is_one_that_this_version_reads() -> None:
    ours = {name for name in engine.environment(startup=BUDGET) if name.startswith("VLLM_")}
    assert ours
    assert ours <= set(ENVIRONMENT), "vLLM ignores a misspelt variable"


def test_the_server_is_offline_and_waits_as_long_as_the_budget() -> None:
    environment = engine.environment(startup=BUDGET)
    assert environment["HF_HUB_OFFLINE"] == "1", "a restart must not depend on the Hub, nor meet its rate limits"
    assert environment["VLLM_ENGINE_READY_TIMEOUT_S"] == str(BUDGET.engine_ready_timeout_seconds)
    assert not [name for name in environment if "TOKEN" in name or "KEY" in name]


def test_caches_lie_in_folders_of_their_own() -> None:
    environment = engine.environment(startup=BUDGET)
    paths = [environment["VLLM_CACHE_ROOT"], environment["HOME"], "/tmp", "/models"]  # noqa: S108  a mount point
    assert not [(a, b) for a in paths for b in paths if a != b and f"{a}/".startswith(f"{b}/")], "mounts would overlap"
