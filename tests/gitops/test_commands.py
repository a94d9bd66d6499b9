"""`python -m gitops`: which stacks a change touches, the offline comment, GitHub, and the backend's commands."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from gitops import backend, github
from gitops.__main__ import main, touched
from gitops.comment import marker
from gitops.tools import PulumiCli, Sandbox

RECORDED = Path(__file__).parent / "recorded"
STACKS = ("dev", "prod", "sandbox")


@pytest.mark.parametrize(
    ("files", "stacks"),
    [
        (["stacks/Pulumi.prod.yaml"], ["prod"]),
        (["presets/images.yaml"], ["dev", "prod"]),
        (["components/cluster.py", "docs/deploy.md"], ["dev", "prod"]),
        (["docs/deploy.md", "tests/x.py", "stacks/Pulumi.sandbox.yaml"], []),
    ],
    ids=str,
)
def test_a_change_touches_the_stacks_that_are_made_of_it(files: list[str], stacks: list[str]) -> None:
    assert touched(files, STACKS) == stacks


def test_the_offline_comment_has_the_answer_and_the_policies(tmp_path: Path) -> None:
    out = tmp_path / "comment.md"
    words = ["preview", "--with", "nothing", "--stack", "dev", "--base", "stacks/Pulumi.dev.yaml", "--out", str(out)]
    assert main(words) == 0
    text = out.read_text()
    assert text.startswith(marker("dev"))
    assert "Nothing changes for users." in text
    assert "| engine-behind-network-policy | 1 | holds |" in text
    assert "no access to Azure" in text


def test_input_that_is_wrong_is_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "--stack", "prdo"]) == 2
    assert main(["preview", "--with", "nothing", "--stack", "prod", "--base", "no-such-branch"]) == 2
    assert main(["stacks", "--base", "no-such-branch"]) == 2
    assert "prod" in capsys.readouterr().err


def test_the_last_good_revision_is_the_newest_update_that_succeeded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(tmp_path, monkeypatch, "pulumi", f"cat {RECORDED / 'cli-history.json'}")
    history = json.loads((RECORDED / "cli-history.json").read_text())
    assert [each["result"] for each in history] == ["succeeded", "failed"]
    assert PulumiCli("prod", tmp_path).last_good() == history[0]["environment"]["git.head"]


def test_a_cli_that_is_missing_or_talks_no_json_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(tmp_path, monkeypatch, "pulumi", "echo 'error: no stack named prod' >&2; exit 255")
    answer = PulumiCli("prod", tmp_path).preview()
    assert "no stack named prod" in answer["error"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert "pulumi is not installed" in PulumiCli("prod", tmp_path).preview()["error"]
    assert PulumiCli("prod", tmp_path).last_good() is None


def test_the_sandbox_remembers_what_was_deployed(tmp_path: Path) -> None:
    (tmp_path / ".sandbox" / "prod").mkdir(parents=True)
    tool = Sandbox("prod", tmp_path, tmp_path)
    assert tool.last_good() is None
    tool.at(tmp_path / "elsewhere").deployed("abc")
    assert tool.last_good() == "abc", "another checkout of the stack has the same state"


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> Path:
    """A program of this name first on PATH; its arguments go to a file, one call a line."""
    log = folder / f"{name}.log"
    program = folder / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return log


@pytest.mark.parametrize("there", [True, False], ids=["edited in place", "the first"])
def test_there_is_one_comment_for_each_stack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool) -> None:
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/repo")
    comments = [{"id": 1, "body": f"{marker('dev')}\nold"}, {"id": 7, "body": f"{marker('prod')}\nold"}]
    (tmp_path / "pages").write_text(json.dumps([comments if there else comments[:1]]))
    (tmp_path / "written").write_text(json.dumps({"html_url": "https://example.com/7"}))
    script = f'case "$*" in *--paginate*) cat {tmp_path}/pages;; *) cat {tmp_path}/written;; esac'
    log = fake(tmp_path, monkeypatch, "gh", script)
    assert github.post("prod", 3, tmp_path / "comment.md") == "https://example.com/7"
    expected = "PATCH repos/owner/repo/issues/comments/7" if there else "POST repos/owner/repo/issues/3/comments"
    assert expected in log.read_text()


def test_github_that_refuses_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/repo")
    fake(tmp_path, monkeypatch, "gh", "echo 'HTTP 403: Resource not accessible' >&2; exit 1")
    with pytest.raises(github.GitHubError, match="HTTP 403"):
        github.issue("prod", "drift", tmp_path / "drift.md")


def test_the_backends_commands_are_a_script_that_a_shell_can_read() -> None:
    text = backend.text("prod")
    assert subprocess.run(["sh", "-n"], input=text, text=True, check=False).returncode == 0
    commands = sum(len(lines) for _, lines in backend.STEPS)
    assert text.count("# ") >= len(backend.STEPS)
    assert commands > 20
    assert "repo:OWNER/REPO:environment:prod-preview" in text
    assert "{stack}" not in text
