"""The environment with vLLM's own code, made where it is missing; never skipped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import environment

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def vllm_environment() -> Path:
    return environment.make()


@pytest.fixture(scope="session")
def ask_vllm(vllm_environment: Path) -> Callable[[str, Any], Any]:
    """Run a program of this folder inside vLLM's environment: one JSON document in, one out."""

    def ask(program: str, question: Any) -> Any:
        answer = subprocess.run(
            environment.command(vllm_environment, str(HERE / program)),
            env=environment.variables(vllm_environment),
            input=json.dumps(question),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return json.loads(answer.stdout.splitlines()[-1])

    return ask


@pytest.fixture(scope="session")
def ground_truth(vllm_environment: Path) -> dict[str, Any]:
    """What vLLM makes of every model; computed once in about eight minutes of two cores, then read from the cache."""
    printed = subprocess.run(
        environment.command(vllm_environment, str(HERE / "ground_truth.py"), str(vllm_environment)),
        env=environment.variables(vllm_environment),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(Path(printed.stdout.splitlines()[-1]).read_text())
