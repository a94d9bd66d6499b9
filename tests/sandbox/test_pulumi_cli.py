"""The real Pulumi CLI in the embedded engine's place; what needs it is skipped where there is none."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandbox import __main__ as command_line
from sandbox import pulumi_cli
from sandbox.deployment import Op, Silent
from sandbox.pulumi_cli import NoCliError, find
from sandbox.values import Scrubber
from tests.sandbox import agreement
from tests.sandbox.project import Project, drift

ROOT = Path(__file__).parents[2]
needs_cli = pytest.mark.skipif(shutil.which("pulumi") is None, reason="there is no `pulumi` on PATH")


# Where it is.


def test_without_the_cli_it_is_one_json_document_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(command_line, "ROOT", tmp_path)
    assert command_line.main(["up", "--engine", "cli", "--format", "json"]) == 2
    said = json.loads(capsys.readouterr().out)["error"]
    assert "there is no `pulumi` on PATH" in said
    assert "leave --engine out" in said, "the remedy"
    assert not (tmp_path / ".sandbox").exists()


def _executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_real_kubernetes_provider_is_taken_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "home"))
    with pytest.raises(NoCliError):
        find("4.34.2")
    _executable(tmp_path / "bin/pulumi")
    assert find("4.34.2").kubernetes == pulumi_cli.PLUGINS / "kubernetes/pulumi-resource-kubernetes", "our own"
    installed = _executable(tmp_path / "home/plugins/resource-kubernetes-v4.34.2/pulumi-resource-kubernetes")
    assert find("4.34.2").kubernetes == installed
    assert find("9.9.9").kubernetes != installed, "another version is another provider"
    on_path = _executable(tmp_path / "bin/pulumi-resource-kubernetes")
    assert find("4.34.2").kubernetes == on_path


@pytest.mark.parametrize(("made_with", "asked"), [("state.json", "cli"), ("cli/used", "embedded")])
def test_a_stack_keeps_the_engine_that_it_was_made_with(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    made_with: str,
    asked: str,
) -> None:
    """Two states of one cluster would each delete what only the other knows."""
    monkeypatch.setattr(command_line, "ROOT", tmp_path)
    marker = tmp_path / ".sandbox/sandbox" / made_with
    marker.parent.mkdir(parents=True)
    marker.write_text("")
    assert command_line.main(["up", "--engine", asked, "--format", "json"]) == 2
    assert "has the other one" in json.loads(capsys.readouterr().out)["error"]


# What its events come to.


def _run(*events: dict[str, Any], refreshing: bool = False) -> pulumi_cli._Run:
    cli = SimpleNamespace(listener=Silent(), progress=lambda _: None, scrubber=Scrubber())
    run = pulumi_cli._Run(cli, refreshing=refreshing)  # ty: ignore[invalid-argument-type]
    for event in events:
        run.take(event)
    return run


def _step(op: str, name: str = "pool", **more: Any) -> dict[str, Any]:
    state = {"custom": True, "inputs": {"count": 2}}
    row = {"op": op, "urn": f"urn:pulumi:s::p::t::{name}", "type": "t", "old": {"inputs": {"count": 1}}, "new": state}
    return {"resourcePreEvent": {"metadata": {**row, **more}, "planning": True}}


def test_a_change_is_told_with_its_path_and_both_values() -> None:
    detailed = {"count": {"diffKind": "update", "inputDiff": True}}
    (step,) = _run(_step("update", detailedDiff=detailed)).steps.values()
    assert step.op is Op.UPDATE
    assert [(change.path, change.old, change.new) for change in step.changes] == [(("count",), 1, 2)]


def test_a_replacement_is_one_step_of_three_events() -> None:
    """The embedded engine tells of it once, and programs read both."""
    parts = [_step(op, keys=["vmSize"]) for op in ("delete-replaced", "replace", "create-replacement")]
    (step,) = _run(*parts).steps.values()
    assert (step.op, step.because) == (Op.REPLACE, "vmSize cannot change in place")


def test_providers_that_the_cli_makes_for_itself_are_not_told() -> None:
    event = _step("create")
    event["resourcePreEvent"]["metadata"]["urn"] = "urn:pulumi:s::p::pulumi:providers:azure-native::default_3_29_0"
    assert _run(event).steps == {}


@pytest.mark.parametrize(
    ("urn", "message", "refused"),
    [
        ("", "the stack cannot be deployed:\nreplicas = 0: must be at least 1", True),
        ("urn:pulumi:s::p::pulumi:pulumi:Stack::p-s", "still to do before an update:", True),
        ("", "Program failed with an unhandled exception:\nTraceback", False),
        ("urn:pulumi:s::p::t::pool", "403 InsufficientVCPUQuota", False),
    ],
    ids=["input", "steps", "crash", "resource"],
)
def test_wrong_input_is_told_apart_from_a_failure(urn: str, message: str, refused: bool) -> None:
    run = _run({"diagnosticEvent": {"severity": "error", "urn": urn, "message": message}})
    assert run.refused is refused
    assert message in run.problems[0]


def test_a_failure_stays_one_whatever_is_said_after_it() -> None:
    pool = {"severity": "error", "urn": "urn:pulumi:s::p::t::pool", "message": "409 AllocationFailed"}
    last = {"severity": "error", "urn": "urn:pulumi:s::p::pulumi:pulumi:Stack::p-s", "message": "update failed"}
    run = _run({"diagnosticEvent": pool}, {"diagnosticEvent": last})
    assert not run.refused
    assert run.problems == ["pool: 409 AllocationFailed"]


def test_words_about_plug_ins_on_path_are_left_out() -> None:
    told: list[str] = []
    cli = SimpleNamespace(progress=told.append, scrubber=Scrubber())
    cli.listener = SimpleNamespace(logged=lambda _, text: told.append(text))
    run = pulumi_cli._Run(cli, refreshing=False)  # ty: ignore[invalid-argument-type]
    for message in ("using pulumi-resource-x from $PATH at /x", "stack: no key is asked for"):
        run.take({"diagnosticEvent": {"severity": "warning", "message": message}})
    assert told == ["stack: no key is asked for"]


# With the CLI.


@needs_cli
@pytest.mark.parametrize(("stack", "settings"), agreement.CASES, ids=str)
def test_both_engines_make_the_same_of_every_resource(stack: str, settings: Sequence[str], tmp_path: Path) -> None:
    """URNs, inputs, secrets, options and dependencies, as they would be in the state."""
    count, words = agreement.differences(stack, tmp_path, settings)
    assert words == []
    assert count > 20


@needs_cli
@pytest.mark.control_plane
def test_a_stack_is_made_changed_and_removed_by_the_cli(project: Project) -> None:
    cli = ("--engine", "cli", "--stack", "dev")
    tracked = {path: path.read_bytes() for path in (project.folder / "stacks").iterdir()}
    planned = project.run("preview", *cli)
    made = project.run("up", *cli)
    assert made["changes"] == planned["changes"] == {"create": len(made["resources"])}
    assert [(row["ready"], row["replicas"]) for row in made["workloads"] if row["name"] == "model"] == [(1, 1)]
    assert made["outputs"]["kubeconfig"] == "[secret]"
    again = project.run("up", *cli)
    assert set(again["changes"]) == {"same"}, again
    changed = project.run("up", *cli, "--set", "max-model-len=8192")
    assert changed["changes"]["update"] >= 1
    assert any(row["diff"] for row in changed["resources"])
    assert project.run("status", "--stack", "dev")["resources"] > 20, "without --engine it is the one it was made with"
    assert drift(project.run("refresh", "--stack", "dev")) == {}
    again = project.run("up", *cli, "--set", "max-model-len=8192")
    assert set(again["changes"]) == {"same"}, "what Azure reports of its own accord is no change of the stack's"
    assert project.run("destroy", "--stack", "dev")["changes"]["delete"] > 20
    assert not (project.folder / ".sandbox").exists()
    assert tracked == {path: path.read_bytes() for path in (project.folder / "stacks").iterdir()}
