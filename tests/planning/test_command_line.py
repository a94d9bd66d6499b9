"""`python -m planning`: exit codes, one JSON document, words on standard error, and no tracebacks."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planning.__main__ import FIT_KEYS, main
from tests import hf_configs

ROOT = Path(__file__).parents[2]
FIT = ["fit", "--preset", "llama-3.3-70b-instruct", "--tensor-parallel-size", "4"]
Captured = pytest.CaptureFixture[str]


def answer(capsys: Captured, *words: str) -> tuple[int, Any]:
    """Exit code and the JSON document of a command."""
    code = main([*words, "--format", "json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert bool(err) == bool(code), "words go to standard error, and only where something failed"
    return code, json.loads(out)


@pytest.mark.parametrize("stack", ["prod", "dev", "sandbox"])
def test_the_report_of_every_stack_is_deployable(capsys: Captured, stack: str) -> None:
    code, document = answer(capsys, "report", "--stack", stack)
    assert code == 0, "steps still to do are no failure"
    assert document["deployable"] is True


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_the_report_is_also_written_for_people(capsys: Captured, form: str) -> None:
    assert main(["report", "--stack", "prod", "--format", form]) == 0
    assert "tensor parallel size 4" in capsys.readouterr().out


def test_problems_are_exit_code_two_and_listed_one_by_one(capsys: Captured) -> None:
    code, document = answer(capsys, "report", "--stack", "prod", "--set", "max-model-len=200000", "--set", "presset=x")
    assert code == 2
    told = {problem["key"]: problem for problem in document["problems"]}
    assert set(told) == {"aks-vllm:max-model-len", "aks-vllm:presset"}
    assert set(told["aks-vllm:max-model-len"]) == {"key", "value", "limit", "source", "remedy"}


def test_an_unknown_stack_lists_those_that_exist(capsys: Captured) -> None:
    code, document = answer(capsys, "report", "--stack", "prdo")
    assert code == 2
    assert "dev, prod, sandbox" in document["error"]


def test_a_token_on_the_command_line_is_refused_and_not_repeated(capsys: Captured) -> None:
    token = "hf_" + "notARealToken" * 3
    for form in ("text", "json", "markdown"):
        assert main(["report", "--stack", "prod", "--set", f"hf-token={token}", "--format", form]) == 2
        assert token not in "".join(capsys.readouterr())


def test_fit_answers_with_the_agreed_keys(capsys: Captured) -> None:
    code, document = answer(capsys, *FIT, "--max-model-len", "16384")
    assert code == 0
    assert list(document) == [*FIT_KEYS, "findings"]
    assert document["verdict"] == "fits"


def test_a_model_that_does_not_fit_is_an_answer_and_not_an_error(capsys: Captured) -> None:
    code, document = answer(capsys, *FIT[:3], "--tensor-parallel-size", "1")
    assert (code, document["verdict"]) == (0, "refused")
    assert document["findings"], "a refusal says why"


def test_fit_takes_a_config_file_and_any_gpu_memory(capsys: Captured, tmp_path: Path) -> None:
    from planning import catalogue

    config = tmp_path / "config.json"
    config.write_text(json.dumps(catalogue._read("models/qwen3-8b.yaml")["config"]))
    of_file = answer(capsys, "fit", "--config", str(config), "--tensor-parallel-size", "1", "--gpu-memory-gib", "40")
    of_preset = answer(capsys, "fit", "--preset", "qwen3-8b", "--tensor-parallel-size", "1", "--gpu-memory-gib", "40")
    assert of_file == of_preset


def test_fit_takes_measured_numbers_in_place_of_its_own(capsys: Captured) -> None:
    _, document = answer(capsys, *FIT, "--available-kv-gib", "10", "--weights-gib", "20", "--max-model-len", "1024")
    assert (document["available_kv_gib"], document["weights_gib"]) == (10.0, 20.0)


EXPERTS = ["fit", "--preset", "qwen3-30b-a3b", "--tensor-parallel-size", "8"]
GIB = 1 << 30


def test_fit_deals_out_experts_as_vllm_does(capsys: Captured) -> None:
    _, document = answer(capsys, *EXPERTS, "--enable-expert-parallel")
    theirs = 7_680_585_728 + 10_511_104  # bytes of parameters and buffers of vLLM 0.33.0's own model
    assert document["weights_gib"] * GIB == pytest.approx(theirs, rel=1e-4)


def test_fit_divides_copies_of_the_cache_as_vllm_does(capsys: Captured) -> None:
    given = ["--available-kv-gib", str(32_224_600_398 / GIB), "--max-model-len", "40960"]
    _, document = answer(capsys, *EXPERTS, *given, "--decode-context-parallel-size", "2")
    theirs = (2_622_432, 64.02421875, 40_960)  # of vLLM 0.33.0's own planner
    assert (document["kv_cache_tokens"], document["max_concurrency"], document["longest_max_model_len"]) == theirs


def test_a_cache_without_copies_and_a_model_without_experts_are_told(capsys: Captured) -> None:
    for words, flag in ((["--enable-expert-parallel"], "--enable-expert-parallel"), (DCP, DCP[0])):
        code, document = answer(capsys, *FIT, *words)
        assert code == 2
        assert flag in document["error"]


DCP = ["--decode-context-parallel-size", "2"]


@pytest.mark.parametrize(
    "words",
    [
        ["fit"],
        ["fit", "--preset", "nobody", "--tensor-parallel-size", "1"],
        ["fit", "--config", "/nowhere/config.json", "--tensor-parallel-size", "1"],
        [*FIT, "--gpu", "abacus"],
        [*FIT, "--tensor-parallel-size", "3"],
        [*FIT, "--tensor-parallel-size", "many"],
        [*FIT, "--gpu-memory-gib", "nan"],
        [*FIT, "--available-kv-gib", "1e300"],
        [*FIT, "--gpu-memory-utilization", "7"],
        [*FIT, "--max-model-len", "0"],
        [*FIT, "--kv-cache-dtype", "int3"],
        [*FIT, "--vllm-version", "99.0.0"],
        [*FIT, "--tensor-parallel", "4"],
        ["report"],
        ["nothing"],
    ],
    ids=" ".join,
)
def test_wrong_input_is_exit_code_two_with_words(capsys: Captured, words: list[str]) -> None:
    code, document = answer(capsys, *words)
    assert code == 2
    assert document["error"]


@pytest.mark.parametrize("content", ["[", "[1]", "{}", '{"architectures": ["Mystery"], "num_experts": 8}', "\ud800"])
def test_a_config_that_cannot_be_planned_is_told_and_never_guessed(
    capsys: Captured, tmp_path: Path, content: str
) -> None:
    config = tmp_path / "config.json"
    config.write_bytes(content.encode(errors="surrogatepass"))
    code, document = answer(capsys, "fit", "--config", str(config), "--tensor-parallel-size", "1")
    assert code == 2
    assert document["error"]


ODD = (None, 0, -1, 3, 1.5, "x", "", True, [], {}, [None], ["a"], {"a": 1}, 10**9, 10**400, float("inf"), "\ud800")


def _damaged(config: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """A config with some field gone, of another kind, or cut in half, at any depth."""
    config = json.loads(json.dumps(config))
    for _ in range(chance.randint(1, 3)):
        place = config
        while True:
            key = chance.choice(sorted(place))
            if not isinstance(place[key], dict) or not place[key] or chance.random() < 0.3:
                break
            place = place[key]
        if chance.random() < 0.3:
            del place[key]
        elif isinstance(place[key], (list, str)) and chance.random() < 0.3:
            place[key] = place[key][: len(place[key]) // 2]
        else:
            place[key] = chance.choice(ODD)
        if not config:
            break
    return config


def test_a_damaged_config_of_any_model_is_planned_or_told(capsys: Captured, tmp_path: Path) -> None:
    chance = random.Random(4)  # noqa: S311  repeatable on purpose
    codes = {0: 0, 2: 0}
    for name in hf_configs.names():
        for _ in range(3):
            config = tmp_path / "config.json"
            config.write_text(json.dumps(_damaged(hf_configs.load(name)[0], chance)))
            tensor = chance.choice(["1", "2", "8", "64", "0", str(10**30)])
            length = chance.choice(["1", "4096", "0", str(10**21)])
            flags = ["--tensor-parallel-size", tensor, "--max-model-len", length]
            flags += chance.choice([[], ["--enable-expert-parallel"], ["--pipeline-parallel-size", "3"], DCP])
            code, document = answer(capsys, "fit", "--config", str(config), *flags)
            codes[code] += 1
            assert code == 0 or document["error"]
    assert min(codes.values()) > 10, "some of either, or the damage says nothing"


def test_presets_are_listed_with_what_a_choice_needs(capsys: Captured) -> None:
    code, document = answer(capsys, "presets")
    assert code == 0
    llama = next(row for row in document if row["name"] == "llama-3.3-70b-instruct")
    assert (llama["gated"], llama["native_context"], llama["default_tensor_parallel_size"]) == (True, 131072, 4)


def test_a_defect_of_the_program_is_exit_code_one_without_a_traceback(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from planning import catalogue

    monkeypatch.setattr(catalogue, "preset_names", lambda: 1 / 0)
    code, document = answer(capsys, "presets")
    assert code == 1
    assert "ZeroDivisionError" in document["error"]


def test_fit_loads_neither_pydantic_nor_rich() -> None:
    """They cost more than the whole answer."""
    program = "import sys; from planning.__main__ import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *FIT], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "planning.memory" in loaded, "the check looks at the wrong names"
    assert not {"pydantic", "rich", "pulumi"} & loaded
