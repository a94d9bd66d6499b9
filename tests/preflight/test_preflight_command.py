"""The command: what it prints where, its exit codes, and that a secret is in none of it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from planning.command_line import planned
from preflight import __main__ as command
from preflight import account, checks
from preflight.checks import Check, NotDone, Once, Result, Status
from tests.preflight.front import HF_TOKEN, SUBSCRIPTION, Front, SignedIn
from tests.preflight.test_offers import here

ROOT = Path(__file__).parents[2]


@pytest.fixture
def signed_in(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """As somebody who may do everything, with a token for the Hub and images in the registry of this machine."""
    monkeypatch.setattr(account, "_credential", lambda _: SignedIn())
    monkeypatch.setenv("ARM_SUBSCRIPTION_ID", SUBSCRIPTION)
    monkeypatch.setenv("HF_TOKEN", HF_TOKEN)
    monkeypatch.setattr(command, "planned", lambda stack, overrides: here(planned(stack, overrides), front))


@pytest.mark.usefixtures("signed_in")
def test_nothing_in_the_way_is_exit_code_0_and_one_json_document(
    front: Front, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--stack", "prod", "--format", "json"], front.endpoints) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert answer["deployable"] is True
    assert answer["verdict"].startswith("Nothing is in the way")
    assert {row["status"] for row in answer["checks"]} == {"ok"}
    assert set(answer["checks"][0]) == {"check", "status", "message", "remedy"}
    assert "quota: ok" in said.err, "who waits wants to see what for"


@pytest.mark.usefixtures("signed_in")
@pytest.mark.parametrize("form", ["text", "markdown", "json"])
def test_a_problem_is_exit_code_1_and_its_remedy_is_shown(
    front: Front, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    front.used["standardndsh100v5family"] = 150
    assert command.main(["--stack", "prod", "--format", form], front.endpoints) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "Do not deploy yet" in out
    assert "54 too few" in out
    assert "at least 246" in out


@pytest.mark.usefixtures("signed_in")
@pytest.mark.parametrize("form", ["text", "markdown", "json"])
def test_no_token_is_in_anything_that_is_printed(front: Front, capsys: pytest.CaptureFixture[str], form: str) -> None:
    for accepted, valid in ((True, True), (False, True), (True, False)):
        front.licence_accepted, front.token_valid = accepted, valid
        command.main(["--stack", "prod", "--format", form], front.endpoints)
    said = capsys.readouterr()
    for secret in (HF_TOKEN, SignedIn().get_token().token):
        assert secret not in said.out + said.err


@pytest.mark.usefixtures("signed_in")
def test_a_warning_does_not_stop_a_deployment(front: Front, capsys: pytest.CaptureFixture[str]) -> None:
    front.price = 120.0
    assert command.main(["--stack", "prod"], front.endpoints) == 0
    assert "warning" in capsys.readouterr().out


@pytest.mark.usefixtures("signed_in")
def test_settings_can_be_tried(front: Front, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--stack", "prod", "--set", "replicas=6", "--format", "json"], front.endpoints) == 1
    quota = [row["message"] for row in json.loads(capsys.readouterr().out)["checks"] if row["check"] == "quota"]
    assert "3 × Standard_ND96isr_H100_v5" in quota[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stack", "nothing"], "there is no such stack file"),
        (["--stack", "prod", "--set", "max-model-len=0"], "must be at least 1"),
        (["--stack", "prod", "--sett", "x=1"], "unrecognized arguments"),
        ([], "--stack"),
    ],
)
def test_wrong_input_is_exit_code_2_and_nobody_is_asked(
    front: Front, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert command.main([*arguments, "--format", "json"], front.endpoints) == 2
    said = capsys.readouterr()
    assert words in json.loads(said.out)["error"]
    assert words in said.err
    assert front.asked == []


def test_a_wrong_stack_file_is_told_of_without_loading_a_client() -> None:
    """They take most of a second."""
    program = "import sys; from preflight.__main__ import main; main(['--stack', 'x']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not {name for name in loaded if name.partition(".")[0] in ("azure", "httpx", "pulumi", "rich")}


# Running checks.


def _results(name: str, *statuses: Status) -> Check:
    return Check(name=name, find=lambda: [Result(check=name, status=status, message="x") for status in statuses])


def test_results_come_in_the_order_of_the_checks_whoever_is_first() -> None:
    wait = threading.Event()

    def slow() -> list[Result]:
        assert wait.wait(300)
        return [Result(check="slow", status=Status.OK, message="x")]

    def quick() -> list[Result]:
        wait.set()
        return [Result(check="quick", status=Status.OK, message="x")]

    found = checks.run([Check(name="slow", find=slow), Check(name="quick", find=quick)], deadline_seconds=300)
    assert [result.check for result in found] == ["slow", "quick"], "both run at once, or the first would wait for ever"


def test_what_hangs_is_not_done_and_the_rest_is_there() -> None:
    never = threading.Event()

    def hang() -> list[Result]:
        never.wait(30)
        return []

    hanging = Check(name="hanging", find=hang)
    found = checks.run([hanging, _results("good", Status.OK)], deadline_seconds=0.2)
    assert [(result.check, result.status) for result in found] == [("hanging", "not done"), ("good", "ok")]
    assert "no answer within 0.2 seconds" in found[0].message
    never.set()


def test_a_defect_of_a_check_is_one_line() -> None:
    def broken() -> list[Result]:
        raise ZeroDivisionError("by zero")

    found = checks.run([Check(name="broken", find=broken), _results("good", Status.OK)])
    assert [result.status for result in found] == [Status.NOT_DONE, Status.OK]
    assert "ZeroDivisionError" in found[0].message


def test_what_several_checks_need_is_found_once_and_its_failure_told_to_all() -> None:
    asked = []

    def find() -> str:
        asked.append(1)
        raise NotDone("no", "remedy")

    shared = Once(find)
    for _ in range(3):
        with pytest.raises(NotDone, match="no"):
            shared()
    assert asked == [1]


# Who deploys.


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({"ARM_TENANT_ID": "t", "ARM_CLIENT_ID": "c", "ARM_CLIENT_SECRET": "s"}, "ClientSecretCredential"),
        ({"ARM_TENANT_ID": "t", "ARM_CLIENT_ID": "c", "ARM_USE_OIDC": "true"}, "ClientAssertionCredential"),
        ({"ARM_USE_MSI": "true"}, "ManagedIdentityCredential"),
        ({}, "AzureCliCredential"),
        ({"ARM_CLIENT_SECRET": "s"}, "AzureCliCredential"),
    ],
)
def test_the_sign_in_is_the_one_that_pulumi_takes(environment: dict[str, str], kind: str) -> None:
    assert type(account._credential(environment)).__name__ == kind


def test_a_pipelines_token_is_read_from_where_it_is(tmp_path: Path, front: Front) -> None:
    file = tmp_path / "token"
    file.write_text("of-the-file\n")
    assert account._assertion({"ARM_OIDC_TOKEN": "given"}) == "given"
    assert account._assertion({"AZURE_FEDERATED_TOKEN_FILE": str(file)}) == "of-the-file"
    with pytest.raises(NotDone, match="there is no token"):
        account._assertion({})


def test_the_azure_cli_is_asked_for_the_subscription(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "az").write_text("#!/bin/sh\necho 11111111-2222-3333-4444-555555555555\n")
    (tmp_path / "az").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert account.Account({}).subscription() == "11111111-2222-3333-4444-555555555555"
    (tmp_path / "az").write_text("#!/bin/sh\necho 'Please run az login' >&2\nexit 1\n")
    with pytest.raises(NotDone, match="has none") as raised:
        account.Account({}).subscription()
    assert "az login" in raised.value.remedy
