"""The workflows: pinned actions, no stored secret, least permissions, and nothing for a fork's pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
FILES = [*WORKFLOWS, ROOT / ".github" / "actions" / "setup" / "action.yaml"]
#: Workflow, job: what it may do beside reading the repository.
WRITES = {
    ("ci", "test"): set(),
    ("ci", "engine"): set(),
    ("preview", "stacks"): set(),
    ("preview", "plan"): set(),
    ("preview", "preview"): {"id-token", "pull-requests"},
    ("deploy", "dev"): {"id-token"},
    ("deploy", "prod"): {"id-token"},
    ("update", "preview"): {"id-token"},
    ("update", "update"): {"id-token"},
    ("drift", "drift"): {"id-token", "issues"},
}


def load(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text())


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in load(path)["jobs"].items():
            yield path.stem, name, job


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_action_of_somebody_else_is_pinned_by_commit(path: Path) -> None:
    used = re.findall(r"uses: (\S+)(.*)", path.read_text())
    for action, comment in used:
        if not action.startswith("./"):
            assert re.search(r"@[0-9a-f]{40}$", action), f"{action} can change under its name"
            assert re.search(r"# v\d", comment), f"nobody can tell which version {action} is"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_there_is_no_stored_secret(path: Path) -> None:
    read = re.findall(r"\$\{\{[^}]*\bsecrets\b[^}]*\}\}|^\s*secrets:.*", path.read_text(), re.MULTILINE)
    assert read == [], "OIDC needs none, and one that is there can leak"


def test_nothing_starts_with_this_repositorys_rights_on_a_forks_word() -> None:
    """Such as pull_request_target, workflow_run or issue_comment."""
    for path in WORKFLOWS:
        # YAML 1.1 reads the key `on` as true.
        started = set(load(path)[True])
        assert started <= {"pull_request", "push", "schedule", "workflow_call", "workflow_dispatch"}, path.name


def test_a_job_may_do_what_it_needs_and_no_more() -> None:
    found = {}
    for path in WORKFLOWS:
        assert load(path)["permissions"] == {}, "what a job does not ask for it does not get"
    for workflow, name, job in jobs():
        permissions = dict(job["permissions"])
        assert permissions.pop("contents") == "read"
        assert set(permissions.values()) <= {"write"}
        found[workflow, name] = set(permissions)
    assert found == WRITES


def test_a_job_that_signs_in_runs_in_an_environment_and_never_for_a_fork() -> None:
    for workflow, name, job in jobs():
        if "id-token" not in job["permissions"] or "uses" in job:
            continue
        assert job["environment"], f"{workflow}/{name}: an environment has reviewers, a job has none"
        if workflow == "preview":
            assert "head.repo.full_name == github.repository" in job["if"]


def test_what_a_fork_can_start_reads_this_repository_and_nothing_else() -> None:
    started = []
    for workflow, name, job in jobs():
        triggers = load(ROOT / ".github/workflows" / f"{workflow}.yaml")[True]
        if "pull_request" not in triggers or "head.repo.full_name == github.repository" in job.get("if", ""):
            continue
        started.append(f"{workflow} / {name}")
        assert job["permissions"] == {"contents": "read"}, f"{workflow}/{name}"
        assert "environment" not in job, f"{workflow}/{name}: an environment may hold secrets"
        assert job["runs-on"] == "ubuntu-24.04", f"{workflow}/{name}: a fork's code on a runner inside the network"
        assert "github.token" not in str(job), f"{workflow}/{name}"
        assert "vars." not in str(job), f"{workflow}/{name}: names of subscriptions and accounts"
    assert started == ["ci / test", "ci / engine", "preview / stacks", "preview / plan"]


def test_every_job_ends_and_no_stack_is_updated_twice_at_once() -> None:
    for workflow, name, job in jobs():
        if "uses" not in job:
            assert job["timeout-minutes"] <= 240, f"{workflow}/{name}"
    update = load(ROOT / ".github/workflows/update.yaml")["jobs"]["update"]
    assert update["concurrency"] == {"group": "update-${{ inputs.stack }}", "cancel-in-progress": False}


def test_no_expression_is_put_into_a_script() -> None:
    """Whatever a pull request is called would be run."""
    for path in FILES:
        document = load(path)
        steps = document.get("runs", {}).get("steps", [])
        steps = [*steps, *(step for job in document.get("jobs", {}).values() for step in job.get("steps", []))]
        assert [step["run"] for step in steps if "${{" in step.get("run", "")] == [], path.name


def test_the_steps_are_the_commands_of_this_package(capsys: pytest.CaptureFixture[str]) -> None:
    """A workflow that calls what is not there fails only where nobody sees it in time."""
    from gitops.__main__ import _parser

    calls = [call for path in WORKFLOWS for call in re.findall(r"-m gitops (\w+)", path.read_text())]
    assert {"stacks", "preview", "post", "deploy", "drift", "issue"} == set(calls)
    for call in calls:
        with pytest.raises(SystemExit) as ended:
            _parser().parse_args([call, "--help"])
        assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_the_table_in_the_docs_has_every_job() -> None:
    text = (ROOT / "docs" / "pipeline.md").read_text()
    for workflow, name, _ in jobs():
        if workflow != "deploy":
            assert re.search(rf"\| [^|]*{workflow}[^|]*{name}", text), f"{workflow}/{name}"


def test_the_table_of_permissions_in_the_docs_is_that_of_the_workflows() -> None:
    text = (ROOT / "docs" / "pipeline.md").read_text()
    rights = ("contents", "id-token", "pull-requests", "issues")
    documented = {}
    for row in re.findall(r"^\| (?:deploy → )?(\w+) / ([\w, ]+) \| (read .*) \|$", text, re.MULTILINE):
        workflow, names, cells = row[0], row[1].split(", "), row[2].split(" | ")
        for name in names:
            given = {right: cell for right, cell in zip(rights, cells, strict=False) if cell != "–"}
            documented[workflow, name] = (given, cells[4].strip("`"), cells[5].startswith("runs, with no secret"))
    found = {}
    for workflow, name, job in jobs():
        if "uses" in job:  # has the rights of the workflow that it calls
            continue
        environment = re.sub(r"\$\{\{ \w+\.stack \}\}", "STACK", job.get("environment", "–"))
        found[workflow, name] = (job["permissions"], environment, "id-token" not in job["permissions"])
    assert documented == found
