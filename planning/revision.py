"""A stack as it was: at a git revision, or in another file. The command line's: it runs git and a process.

A revision is planned by its own planner and presets, from a temporary folder; nothing is checked out. Only so does a
change of a preset, a price or the planner itself show what it means for a stack whose file stayed the same.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from planning import report, stack_file
from planning.diff import Side
from planning.findings import InvalidStack, without_tokens
from planning.plan import read_and_decide

ROOT = Path(__file__).parents[1]
ROOMS = ("planning", "presets", "stacks")
TIMEOUT_SECONDS = 120


class RevisionError(Exception):
    """What to compare with cannot be read; the text says what, why, and what to do."""


def working_tree(stack: str, overrides: Sequence[str] = ()) -> Side:
    """The stack as its file and `--set` have it now."""
    return _side(stack, stack_file.STACKS, "the working tree", overrides)


def of_base(base: str, stack: str) -> Side:
    """The stack at a git revision, or with another stack file and all else as it is now. Raises RevisionError."""
    return _of_file(Path(base), stack) if Path(base).is_file() else _of_revision(base, stack)


def _of_file(file: Path, stack: str) -> Side:
    with tempfile.TemporaryDirectory(prefix="aks-vllm-") as folder:
        shutil.copyfile(file, Path(folder, f"Pulumi.{stack}.yaml"))
        side = _side(stack, Path(folder), file.name, ())
        copy = f"{Path(folder).name}/Pulumi.{stack}.yaml"
        return replace(side, problems=tuple(problem.replace(copy, file.name) for problem in side.problems))


def _side(stack: str, folder: Path, label: str, overrides: Sequence[str]) -> Side:
    if stack not in stack_file.stacks(folder):
        return Side(label=label, config={})
    config = stack_file.config_of(folder / f"Pulumi.{stack}.yaml", overrides)
    try:
        plan = read_and_decide(stack_file.from_file(stack, overrides=overrides, folder=folder))
    except InvalidStack as invalid:
        return Side(label=label, config=config, problems=tuple(str(problem) for problem in invalid.problems))
    return Side(label=label, config=config, plan=report.as_json(plan))


def _of_revision(revision: str, stack: str) -> Side:
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if commit.returncode != 0:
        why = (
            "there is no such file, and git knows no such revision"
            if _git("rev-parse").returncode == 0
            else "not a git repository, and there is no such file"
        )
        raise RevisionError(f"--base {revision}: {why}; name a branch, a tag, a commit or a stack file")
    name = commit.stdout.decode().strip()
    label = f"{revision} ({name[:7]})" if not name.startswith(revision) else name[:7]
    rooms = [room for room in ROOMS if _git("cat-file", "-e", f"{name}:./{room}").returncode == 0]
    with tempfile.TemporaryDirectory(prefix="aks-vllm-") as folder:
        if rooms:
            archive = _git("archive", "--format=tar", name, "--", *rooms)
            if archive.returncode != 0:
                raise RevisionError(f"--base {revision}: git cannot read it: {archive.stderr.decode().strip()}")
            with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
                tar.extractall(folder, filter="data")
        file = Path(folder, "stacks", f"Pulumi.{stack}.yaml")
        if not file.is_file():
            return Side(label=label, config={})
        answer = _planned(Path(folder), stack, revision)
        config = stack_file.config_of(file)
    if "error" in answer:
        problems = [_problem(problem) for problem in answer.get("problems", [])]
        return Side(label=label, config=config, problems=tuple(problems or [answer["error"]]))
    return Side(label=label, config=config, plan=answer)


def _planned(folder: Path, stack: str, revision: str) -> dict[str, Any]:
    """The report of the planner in a folder, as JSON."""
    command = [sys.executable, "-m", "planning", "report", "--stack", stack, "--format", "json"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
        answer = json.loads(done.stdout)
    except (ValueError, subprocess.TimeoutExpired):
        answer = None
    if not isinstance(answer, dict):
        raise RevisionError(f"--base {revision}: its planner gives no report; compare with a newer revision")
    return answer


def _problem(problem: dict[str, str]) -> str:
    return without_tokens(
        f"{problem['key']} = {problem['value']}: {problem['limit']} ({problem['source']}); {problem['remedy']}"
    )


def _git(*words: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RevisionError(f"--base: git does not answer ({type(error).__name__}); name a stack file") from None
