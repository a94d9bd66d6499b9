"""The workflows under actionlint (syntax, expressions, types) and zizmor (security, its offline audits).

actionlint is built by Go from the module beside this file, which pins it; Go keeps the result. Without Go these tests
fail, as those of the control plane do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
MODULE = Path(__file__).parent / "actionlint"
ENVIRONMENT = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
LIMIT_SECONDS = 600  # a first run fetches and builds

FAULTY = """
name: faulty
on: [pull_request]
permissions: {}
jobs:
  one:
    runs-on: ubuntu-24.04
    needs: nobody
    steps:
      - run: echo "${{ github.event.pull_request.title }}"
"""


def actionlint(*files: Path) -> subprocess.CompletedProcess[str]:
    # Without shellcheck and pyflakes, which would be asked only where they happen to be.
    words = ["go", "tool", "actionlint", "-shellcheck=", "-pyflakes=", "-no-color", *map(str, files)]
    return subprocess.run(words, cwd=MODULE, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT_SECONDS)


def zizmor(*paths: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "zizmor"
    words = [str(program), "--offline", "--no-progress", "--color", "never", *map(str, paths)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS)


def test_actionlint_finds_nothing() -> None:
    done = actionlint(*sorted(WORKFLOWS.glob("*.yaml")))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_zizmor_finds_nothing() -> None:
    done = zizmor(ROOT / ".github")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "No findings" in done.stdout
    for file in (*WORKFLOWS.glob("*.yaml"), ROOT / ".github" / "actions" / "setup" / "action.yaml"):
        assert file.name in done.stderr, f"{file.name} was not audited"


def test_both_find_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / ".github" / "workflows" / "faulty.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(FAULTY)
    syntax, security = actionlint(file), zizmor(file)
    assert syntax.returncode == 1, syntax.stderr
    assert 'needs job "nobody" which does not exist' in syntax.stdout
    assert security.returncode not in (0, 1), security.stderr
    assert "error[template-injection]" in security.stdout
