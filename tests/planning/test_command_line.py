"""`python -m planning`: exit codes, one JSON document, words on standard error, and no tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planning.__main__ import FIT_KEYS, main

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
