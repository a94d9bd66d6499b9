"""`python -m sandbox`: answers, exit codes and files, with a small program and no control plane."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox import __main__ as command_line
from sandbox.__main__ import TOKEN, read_config
from sandbox.state import Store

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, os, signal
import pulumi
from pulumi_azure_native import managedidentity, resources

config = pulumi.Config("aks-vllm")
if config.get("refuse"):
    raise pulumi.RunError("replicas = 0: must be at least 1\\nfoo = 1: unknown")
if config.get("crash"):
    raise ValueError("broken with " + config.require("hf-token"))
group = resources.ResourceGroup(
    "group",
    resource_group_name="rg",
    tags={"purpose": config.get("purpose") or "none"},
    opts=pulumi.ResourceOptions(protect=config.get_bool("protect")),
)
if config.get("interrupt") and not pulumi.runtime.is_dry_run():
    group.name.apply(lambda _: os.kill(os.getpid(), signal.SIGINT))
managedidentity.UserAssignedIdentity("identity", resource_name_="identity", resource_group_name=group.name)
pulumi.export("group", group.name)
pulumi.export("token", config.require_secret("hf-token"))
pulumi.export("settings", dict(json.loads(config.get("vllm") or "{}")))
pulumi.export("readme", "first line\\nsecond line")
"""

#: Stands for the report, which refuses what it is told to refuse.
REPORT = """
import json, sys
wrong = [value for value in sys.argv if value.startswith("wrong")]
print("they are wrong:", *wrong, file=sys.stderr)
if "json" in sys.argv:
    print(json.dumps({"error": "they are wrong", "problems": [{"key": value} for value in wrong]}))
elif not wrong:
    print("THE REPORT", *sys.argv[1:])
sys.exit(2 if wrong else "broken=yes" in sys.argv)
"""


@dataclass
class Project:
    """A small project, and its command line run in this process."""

    root: Path
    capture: pytest.CaptureFixture[str]

    def json(self, *arguments: str, exit_code: int = 0) -> Any:
        code = command_line.main([*arguments, "--format", "json"])
        said = self.capture.readouterr()
        assert code == exit_code, said
        assert "Traceback" not in said.err
        return json.loads(said.out)

    def text(self, *arguments: str, exit_code: int = 0) -> str:
        code = command_line.main(list(arguments))
        said = self.capture.readouterr()
        assert code == exit_code, said
        return said.out

    @property
    def folder(self) -> Path:
        return self.root / ".sandbox/sandbox"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Project:
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks/Pulumi.sandbox.yaml").write_text("config:\n  azure-native:location: eastus\n")
    (tmp_path / "__main__.py").write_text(PROGRAM)
    (tmp_path / "planning.py").write_text(REPORT)
    monkeypatch.setattr(command_line, "ROOT", tmp_path)
    monkeypatch.setattr(command_line, "OPERATION_SECONDS", 0)
    monkeypatch.setattr(command_line.toolchain, "binaries", lambda _: tmp_path)
    return Project(tmp_path, capfd)


def ops(answer: dict[str, Any]) -> dict[str, str]:
    return {r["urn"].rsplit("::", 1)[1]: r["op"] for r in answer["resources"] if r["op"] != "same"}


def test_a_preview_lists_every_resource_with_its_operation_and_paths(project: Project):
    answer = project.json("preview")
    assert answer["changes"] == {"create": 3}
    assert ops(answer) == dict.fromkeys(["aks-vllm-sandbox", "group", "identity"], "create")
    assert {r["type"] for r in answer["resources"]} >= {"azure-native:resources:ResourceGroup"}
    project.json("up")
    again = project.json("preview", "--set", "purpose=tests")
    assert again["changes"] == {"same": 2, "update": 1}
    assert [r["diff"] for r in again["resources"] if r["op"] == "update"] == [["tags.purpose"]]


def test_up_deploys_and_a_second_up_changes_nothing(project: Project):
    answer = project.json("up")
    assert answer["changes"] == {"create": 3}
    assert answer["outputs"]["group"] == "rg"
    assert answer["outputs"]["token"] == "[secret]"  # noqa: S105  its mask
    assert answer["workloads"] == []
    assert project.json("up")["changes"] == {"same": 3}


def test_status_tells_what_is_there(project: Project):
    assert project.json("status") == {"stack": "sandbox", "resources": 0, "workloads": [], "outputs": {}}
    assert not (project.root / ".sandbox").exists(), "a question leaves nothing behind"
    project.json("up")
    status = project.json("status")
    assert status["resources"] == 3
    assert status["outputs"]["group"] == "rg"
    assert status["outputs"]["token"] == "[secret]"  # noqa: S105  its mask


def test_destroy_leaves_nothing(project: Project):
    project.json("up")
    assert project.json("destroy")["changes"] == {"delete": 3}
    assert not (project.root / ".sandbox").exists()
    assert project.json("destroy")["changes"] == {}, "there is nothing to do, and that is no error"


def test_another_stack_survives(project: Project):
    (project.root / "stacks/Pulumi.dev.yaml").write_text("config:\n  azure-native:location: eastus\n")
    project.json("up")
    project.json("up", "--stack", "dev")
    project.json("destroy", "--stack", "dev")
    assert project.json("status")["resources"] == 3


def test_the_report_comes_first_and_the_next_steps_last(project: Project):
    text = project.text("up", "--set", "purpose=tests")
    order = [
        "THE REPORT report --stack sandbox --format text --set purpose=tests",
        "Preview",
        "created",
        "Outputs",
        "second line",
    ]
    assert [text.index(words) for words in order] == sorted(text.index(words) for words in order)
    assert text.rstrip().endswith("second line")


def test_settings_hold_for_one_run_and_no_tracked_file_changes(project: Project):
    before = (project.root / "stacks/Pulumi.sandbox.yaml").read_text()
    answer = project.json("up", "--set", "purpose=tests", "--set", "vllm.max-num-seqs=64")
    assert answer["outputs"]["settings"] == {"max-num-seqs": 64}
    assert ops(project.json("preview")) == {"group": "update"}
    assert (project.root / "stacks/Pulumi.sandbox.yaml").read_text() == before
    tracked = {path.name for path in project.root.iterdir()} - {"__pycache__"}
    assert tracked == {"stacks", "__main__.py", "planning.py", ".sandbox"}


@pytest.mark.parametrize("verb", ["preview", "up"])
def test_wrong_input_is_told_whole_and_changes_nothing(project: Project, verb: str):
    answer = project.json(verb, "--set", "wrong-one=1", "--set", "wrong-two=2", exit_code=2)
    assert answer == {"error": "they are wrong", "problems": [{"key": "wrong-one=1"}, {"key": "wrong-two=2"}]}
    assert not (project.folder / "state.json").exists()


def test_what_only_the_program_refuses_is_wrong_input_too(project: Project):
    answer = project.json("preview", "--set", "refuse=yes", exit_code=2)
    assert "replicas = 0: must be at least 1" in answer["error"]
    assert "foo = 1: unknown" in answer["error"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["up", "--stack", "none"], "there are sandbox"),
        (["up", "--stack", "../x"], "letters, digits"),
        (["up", "--engine", "other"], "invalid choice"),
        (["up", "--set", "x"], "KEY=VALUE"),
        (["deploy"], "invalid choice"),
        (["up", "--frobnicate"], "unrecognized arguments"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_command_is_one_json_document_and_exit_code_2(project: Project, arguments: list[str], words: str):
    assert words in project.json(*arguments, exit_code=2)["error"]
    assert not (project.root / ".sandbox/none").exists(), "a misspelt stack leaves no folder"


def test_a_defect_of_the_program_is_a_line_and_its_traceback_lies_in_the_log(project: Project):
    answer = project.json("preview", "--set", "crash=yes", exit_code=1)
    assert "the program failed: ValueError" in answer["error"]
    assert "hf_sandbox_" not in answer["error"], "the token is in the exception, and may not be told"
    log = (project.folder / "log").read_text()
    assert "Traceback" in log
    assert str(project.folder / "log") in answer["error"]
    assert "hf_sandbox_" not in log


def test_a_defect_of_the_sandbox_itself_is_no_traceback_either(project: Project, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command_line.Command, "preview", lambda _: 1 / 0)
    assert "ZeroDivisionError; details are in" in project.json("preview", exit_code=1)["error"]


def test_a_defect_of_the_report_is_a_line(project: Project):
    answer = project.json("preview", "--set", "broken=yes", exit_code=1)
    assert "the report failed with exit code 1; details are in" in answer["error"]


def test_protected_resources_stay_until_protection_is_lifted(project: Project):
    project.json("up", "--set", "protect=true")
    assert "protect=false" in project.json("destroy", exit_code=1)["error"]
    assert project.json("status")["resources"] == 3
    project.json("up", "--set", "protect=false")
    project.json("destroy")


def test_the_throwaway_token_is_secret_stable_and_nowhere_in_clear(project: Project, tmp_path: Path):
    project.json("up")
    outputs = next(r for r in Store(project.folder).load() if r.type == "pulumi:pulumi:Stack").outputs
    token = outputs["token"].value
    assert token.startswith("hf_sandbox_")
    assert project.json("up")["changes"] == {"same": 3}
    for path in project.folder.rglob("*"):
        assert path.is_dir() or token not in path.read_text(errors="replace"), path
    assert token not in project.text("status")


def test_a_second_command_on_the_same_stack_is_turned_away(project: Project):
    with Store(project.folder).locked():
        assert "another command" in project.json("up", exit_code=1)["error"]


def test_a_broken_state_is_named_and_can_be_removed(project: Project):
    project.json("up")
    (project.folder / "state.json").write_text("{")
    assert "destroy" in project.json("status", exit_code=1)["error"]
    project.json("destroy")
    assert not project.folder.exists()


def test_refresh_shows_drift(project: Project):
    project.json("up")
    azure = json.loads((project.folder / "azure.json").read_text())
    azure["resources"] = [r for r in azure["resources"] if r["type"].endswith("ResourceGroup")]
    azure["resources"][0]["inputs"]["tags"]["purpose"] = "something else"
    (project.folder / "azure.json").write_text(json.dumps(azure))
    assert ops(project.json("refresh")) == {"group": "update", "identity": "delete"}
    assert ops(project.json("up")) == {"group": "update", "identity": "create"}


def test_an_interrupted_up_says_how_to_go_on_and_does(project: Project):
    answer = project.json("up", "--set", "interrupt=yes", exit_code=1)
    assert "running `python -m sandbox up --set interrupt=yes` again goes on from there" in answer["error"]
    assert project.json("up")["outputs"]["group"] == "rg"
    assert project.json("up")["changes"] == {"same": 3}


def test_no_import_of_the_plan_or_the_components() -> None:
    """The sandbox runs the program as any engine would: knowing nothing of it."""
    listing = "import sandbox.__main__, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", listing], cwd=ROOT, capture_output=True, text=True, check=True)
    rooms = {name.split(".")[0] for name in done.stdout.split()}
    assert "sandbox" in rooms
    assert not rooms & {"planning", "components"}


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("config: {preset: x}", [], {"aks-vllm:preset": "x"}),
        (
            "config: {aks-vllm:a: 1.0, aks-vllm:b: true, aks-vllm:c: yes}",
            [],
            {"aks-vllm:a": "1.0", "aks-vllm:b": "true"},
        ),
        ("config: {vllm: {a: 0.5}}", ["vllm.b.c=true"], {"aks-vllm:vllm": '{"a": 0.5, "b.c": true}'}),
        ("config: {}", ["models.chat.vllm.x=1"], {"aks-vllm:models": '{"chat": {"vllm": {"x": 1}}}'}),
        ("config: {}", ["gpu-nodes={min: 1, max: 2}"], {"aks-vllm:gpu-nodes": '{"min": 1, "max": 2}'}),
        ("config: {}", ["azure-native:location=westus"], {"azure-native:location": "westus"}),
        ("config: {kubernetes-version: 1.30}", [], {"aks-vllm:kubernetes-version": "1.30"}),
        ("", [], {}),
    ],
)
def test_settings_arrive_as_the_pulumi_cli_hands_them_over(
    tmp_path: Path, text: str, overrides: list[str], expected: dict[str, str]
):
    (tmp_path / "Pulumi.x.yaml").write_text(text)
    config = read_config(tmp_path / "Pulumi.x.yaml", overrides, "the stand-in")
    assert expected.items() <= config.values.items()
    assert config.values[TOKEN] == "the stand-in"
    assert config.secret_keys == (TOKEN,)


def test_an_encrypted_token_is_stood_in_for_and_another_secret_is_refused(tmp_path: Path):
    file = tmp_path / "Pulumi.x.yaml"
    file.write_text("config: {aks-vllm:hf-token: {secure: abc}}")
    assert read_config(file, [], "stand-in").values[TOKEN] == "stand-in"
    file.write_text("config: {aks-vllm:key-vault: {id: there, hf-token: name}}")
    assert TOKEN not in read_config(file, [], "stand-in").values, "a vault beside a token is refused"
    file.write_text("config: {aks-vllm:other: {secure: abc}}")
    with pytest.raises(command_line.RefusedError, match="aks-vllm:other is encrypted"):
        read_config(file, [], "stand-in")
