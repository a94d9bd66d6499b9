"""Prices, models and images: what is asked of others than Azure Resource Manager."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from planning import stack_file
from planning.catalogue import Image
from planning.command_line import planned
from planning.plan import StackPlan, decide
from planning.settings import RegistrySettings
from preflight import checks, offers, registry, web
from preflight.checks import Result, Status
from preflight.endpoints import Endpoints
from tests.preflight.front import DIGEST, HF_TOKEN, MALFORMED, OTHER_SHAPE, PATIENCE, SILENT, Broken, Front

GATED, OPEN = "meta-llama/Llama-3.3-70B-Instruct", "Qwen/Qwen3-8B"


def here(plan: StackPlan, front: Front, digest: str | None = DIGEST) -> StackPlan:
    """The plan with its images in the registry of this machine."""

    def moved(value: Any) -> Any:
        if isinstance(value, Image):
            name = value.repository.rsplit("/", 1)[1]
            return dataclasses.replace(value, repository=f"{front.registry}/{name}", digest=digest)
        if isinstance(value, tuple):
            return tuple(map(moved, value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            changed = {name: new for name, old in found.items() if (new := moved(old)) is not old}
            return dataclasses.replace(value, **changed) if changed else value
        return value

    return moved(plan)


def look(front: Front, plan: StackPlan, where: Endpoints | None = None) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in checks.run(offers.checks(plan, where or front.endpoints), deadline_seconds=300):
        found.setdefault(result.check, []).append(result)
    return found


def only(results: list[Result], status: Status) -> Result:
    bad = [result for result in results if result.status is not Status.OK]
    assert [result.status for result in bad] == [status], results
    return bad[0]


@pytest.fixture
def plan(front: Front) -> StackPlan:
    return here(planned("prod", []), front)


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", HF_TOKEN)


@pytest.mark.usefixtures("token")
def test_where_all_is_well_every_check_says_so(front: Front, plan: StackPlan) -> None:
    found = look(front, plan)
    assert {result.status for results in found.values() for result in results} == {Status.OK}, found
    assert "98.32 US dollars an hour today, as the report says" in found["price"][0].message
    assert "for the account someone" in found["hugging-face"][0].message
    assert {method for method, _ in front.asked} <= {"GET", "HEAD"}, "looking must not write, nor download"


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize(
    "questions",
    [
        {"price": "prices", "hugging-face": "whoami", "images": "manifest"},
        {"hugging-face": "model", "images": "registry-token"},
    ],
    ids=["first-question", "second-question"],
)
@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (SILENT, "did not answer within"),
        (Broken(429), "too many requests"),
        (Broken(429, {"Retry-After": "3600"}), "too many requests"),
        (Broken(500), "HTTP 500"),
        (MALFORMED, ""),
        (OTHER_SHAPE, ""),
    ],
    ids=["silent", "429", "429-for-an-hour", "500", "malformed", "other-shape"],
)
def test_what_cannot_be_found_out_is_not_done_with_the_reason(
    front: Front,
    plan: StackPlan,
    monkeypatch: pytest.MonkeyPatch,
    questions: dict[str, str],
    broken: Broken,
    words: str,
) -> None:
    if broken is SILENT:
        monkeypatch.setattr(web, "TIMEOUT_SECONDS", PATIENCE)
    front.broken = dict.fromkeys(questions.values(), broken)
    found = look(front, plan)
    for check, question in questions.items():
        if question == "model" and not words:
            continue  # only the status of a model's answer is looked at: any 200 says that it may be read
        said = next(result for result in found[check] if result.status is Status.NOT_DONE)
        assert words in said.message
        assert said.remedy, "somebody must know what to do about it"
        assert "should not have happened" not in said.message


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize(
    ("question", "check"),
    [("prices", "price"), ("whoami", "hugging-face"), ("model", "hugging-face"), ("manifest", "images")],
)
def test_what_is_not_done_hides_nothing_else(front: Front, plan: StackPlan, question: str, check: str) -> None:
    front.broken[question] = Broken(500)
    found = look(front, plan)
    assert list(found) == ["price", "hugging-face", "images"]
    for name, results in found.items():
        statuses = {result.status for result in results}
        assert Status.NOT_DONE in statuses if name == check else statuses == {Status.OK}, (name, results)


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("status", [429, 503])
def test_a_moment_of_weakness_is_tried_again(front: Front, plan: StackPlan, status: int) -> None:
    questions = ("prices", "whoami", "model", "manifest", "registry-token")
    front.weak = {question: [Broken(status, {"Retry-After": "0"}), Broken(status)] for question in questions}
    found = look(front, plan)
    assert {result.status for results in found.values() for result in results} == {Status.OK}, found
    assert not any(front.weak.values())


@pytest.mark.usefixtures("token")
def test_what_cannot_be_reached_is_said_of_each_check(front: Front, plan: StackPlan) -> None:
    nowhere = Endpoints(arm="", prices="http://127.0.0.1:1", hub="http://127.0.0.1:1")
    assert plan.device_plugin is not None
    image = dataclasses.replace(plan.device_plugin.image, repository="127.0.0.1:1/plugin")
    plan = dataclasses.replace(plan, device_plugin=dataclasses.replace(plan.device_plugin, image=image))
    found = look(front, plan, nowhere)
    for name in ("price", "hugging-face", "images"):
        bad = [result for result in found[name] if result.status is Status.NOT_DONE]
        assert bad, found[name]
        assert "cannot reach 127.0.0.1:1" in bad[0].message


# Prices.


@pytest.mark.parametrize(("price", "words"), [(105.0, "+6.8%"), (90.0, "-8.5%")])
def test_a_price_that_has_changed_is_a_warning_with_both(
    front: Front, plan: StackPlan, price: float, words: str
) -> None:
    front.price = price
    warning = only(look(front, plan)["price"], Status.WARNING)
    assert words in warning.message
    assert "from the report's 98.32 of 2026-11-09" in warning.message
    assert f"eastus: {price:g}" in warning.remedy


def test_a_price_that_the_catalogue_lacks_is_given(front: Front) -> None:
    plan = here(planned("prod", ["azure-native:location=swedencentral"]), front)
    warning = only(look(front, plan)["price"], Status.WARNING)
    assert "the report has no price" in warning.message
    assert "swedencentral: 98.32" in warning.remedy


def test_a_size_without_a_price_is_not_done(front: Front, plan: StackPlan) -> None:
    front.price = None
    assert "has none" in only(look(front, plan)["price"], Status.NOT_DONE).message


def test_spot_has_a_price_of_its_own(front: Front) -> None:
    plan = here(planned("dev", ["gpu-nodes.spot=true"]), front)
    (result,) = look(front, plan)["price"]
    assert result.status is Status.OK
    assert "spot Standard_NC40ads_H100_v5 in eastus: 11.00 US dollars an hour today" in result.message
    assert "the report counts 6.98" in result.message


# Models.


def test_without_a_token_a_gated_model_is_not_done_and_the_remedy_is_there(front: Front, plan: StackPlan) -> None:
    undone = only(look(front, plan)["hugging-face"], Status.NOT_DONE)
    assert GATED in undone.message
    assert "pulumi config set --secret aks-vllm:hf-token --stack prod" in undone.remedy
    assert "whoami" not in {name for _, name in front.asked}


@pytest.mark.usefixtures("token")
def test_an_open_model_needs_no_token_and_gets_none(front: Front) -> None:
    found = look(front, here(planned("dev", []), front))
    assert len(found["hugging-face"]) == 1
    assert OPEN in found["hugging-face"][0].message
    assert not [sent for sent in front.headers if HF_TOKEN in str(sent)], "a token goes where it is needed only"


@pytest.mark.usefixtures("token")
def test_a_token_that_is_not_valid_is_a_problem(front: Front, plan: StackPlan) -> None:
    front.token_valid = False
    problem = next(r for r in look(front, plan)["hugging-face"] if r.status is Status.PROBLEM)
    assert "HF_TOKEN is not valid" in problem.message
    assert "settings/tokens" in problem.remedy


@pytest.mark.usefixtures("token")
def test_a_licence_that_is_not_accepted_is_a_problem(front: Front, plan: StackPlan) -> None:
    front.licence_accepted = False
    problem = only(look(front, plan)["hugging-face"], Status.PROBLEM)
    assert GATED in problem.message
    assert f"https://huggingface.co/{GATED}" in problem.remedy


@pytest.mark.usefixtures("token")
def test_a_commit_that_the_hub_does_not_have_is_a_problem(front: Front, plan: StackPlan) -> None:
    gone = dataclasses.replace(plan, models=(dataclasses.replace(plan.models[0], revision="0" * 40),))
    assert "RevisionNotFound" in only(look(front, gone)["hugging-face"], Status.PROBLEM).message


@pytest.mark.usefixtures("token")
def test_a_model_without_a_commit_is_a_warning(front: Front, plan: StackPlan) -> None:
    loose = dataclasses.replace(plan, models=(dataclasses.replace(plan.models[0], revision=None),))
    assert "make pin" in only(look(front, loose)["hugging-face"], Status.WARNING).remedy


@pytest.mark.usefixtures("token")
def test_models_that_are_alike_are_asked_for_once(front: Front, plan: StackPlan) -> None:
    twice = dataclasses.replace(plan, models=(plan.models[0], dataclasses.replace(plan.models[0], name="other")))
    look(front, twice)
    assert [name for _, name in front.asked].count("model") == 1


def test_the_stacks_own_token_wins_and_comes_over_a_pipe(
    front: Front, plan: StackPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "pulumi"
    command.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho {HF_TOKEN}\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("HF_TOKEN", "another-one")
    found = look(front, dataclasses.replace(plan, has_hf_token=True))
    assert "the token of stack prod is valid" in found["hugging-face"][0].message
    assert (tmp_path / "asked").read_text().split() == [
        *("config", "get", "aks-vllm:hf-token", "--stack", "prod", "--non-interactive")
    ]


def test_a_pulumi_that_cannot_decrypt_leaves_it_to_the_environment(
    front: Front, plan: StackPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "pulumi"
    command.write_text("#!/bin/sh\necho 'error: passphrase must be set' >&2\nexit 255\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("HF_TOKEN", HF_TOKEN)
    found = look(front, dataclasses.replace(plan, has_hf_token=True))
    assert "the token of HF_TOKEN is valid" in found["hugging-face"][0].message


# Images.


def test_an_image_whose_digest_is_gone_is_a_problem(front: Front, plan: StackPlan) -> None:
    front.digests.clear()
    results = look(front, plan)["images"]
    assert {result.status for result in results} == {Status.PROBLEM}
    assert any(f"vllm-openai@{DIGEST}" in result.message for result in results)
    assert len(results) > 2, "the engine's, the device plugin's, and whatever else the plan runs"


def test_an_image_without_a_digest_is_a_warning_with_the_one_of_today(front: Front) -> None:
    results = look(front, here(planned("prod", []), front, digest=None))["images"]
    assert {result.status for result in results} == {Status.WARNING}
    assert DIGEST in results[0].message
    assert "make pin" in results[0].remedy


def mirrored(front: Front) -> StackPlan:
    """A plan whose images are in a registry of one's own: this machine's, which passes for one of Azure's."""
    settings = stack_file.from_file("dev").settings
    assert settings is not None
    own = RegistrySettings.model_construct(login_server=front.registry, id=None, abac=False)
    return decide(settings.model_copy(update={"registry": own}), stack="dev", source="dev")


def images(front: Front, plan: StackPlan, entra: str) -> list[Result]:
    found = checks.run(offers.checks(plan, front.endpoints, lambda: entra), deadline_seconds=300)
    return [result for result in found if result.check == "images"]


@pytest.fixture
def azures(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "AZURE", re.compile(re.escape(front.registry)))


@pytest.mark.usefixtures("azures")
def test_a_registry_of_ones_own_is_asked_with_the_sign_in_and_under_the_path_of_home(front: Front) -> None:
    front.entra = "of-entra"
    results = images(front, mirrored(front), "of-entra")
    assert {result.status for result in results} == {Status.WARNING}, "they are there, and not pinned"
    named = {result.message.split(" ")[0].removeprefix(f"{front.registry}/") for result in results}
    assert {name.partition(":")[0] for name in named} == {
        *("vllm/vllm-openai", "library/haproxy", "nvidia/k8s-device-plugin"),
    }
    assert not [each for each in front.headers if "of-entra" in str(each)], "a token belongs into a body"


@pytest.mark.usefixtures("azures")
def test_a_sign_in_that_a_registry_refuses_is_told(front: Front) -> None:
    front.entra = "of-entra"
    results = images(front, mirrored(front), "of-somebody-else")
    assert {result.status for result in results} == {Status.NOT_DONE}
    assert "refuses this sign-in" in results[0].message
    assert "of-somebody-else" not in str(results)


def test_a_token_of_entra_goes_to_no_registry_but_azures(front: Front) -> None:
    front.entra = "of-entra"
    images(front, mirrored(front), "of-entra")
    assert "registry-exchange" not in {name for _, name in front.asked}


def test_an_image_that_ones_own_registry_lacks_is_told_with_the_command_that_copies_it(front: Front) -> None:
    front.broken["manifest"] = Broken(404)
    results = images(front, mirrored(front), "")
    assert {result.status for result in results} == {Status.PROBLEM}
    copies = f"Copy it: skopeo copy --all docker://docker.io/library/haproxy:3.4.2 docker://{front.registry}/library"
    assert [result for result in results if result.remedy.startswith(copies)], [result.remedy for result in results]


def test_a_registry_that_wants_a_sign_in_is_not_done(front: Front, plan: StackPlan) -> None:
    front.broken["manifest"] = Broken(401, {"WWW-Authenticate": 'Basic realm="private"'})
    results = look(front, plan)["images"]
    assert {result.status for result in results} == {Status.NOT_DONE}
    assert "wants a sign-in" in results[0].message
