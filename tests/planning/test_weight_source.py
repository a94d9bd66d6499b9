"""Where weights come from: what each way runs, needs and costs, and what does not go together."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest

from planning import catalogue, names, weight_source
from planning.findings import InvalidStack, Severity
from planning.plan import ModelPlan, StackPlan, decide, read_and_decide
from planning.settings import Settings
from planning.stack_file import from_file
from planning.startup import MARGIN, STREAM_BYTES_PER_SECOND

LLAMA, SMALL = {"preset": "llama-3.3-70b-instruct"}, {"preset": "qwen3-8b"}
COMMIT = "ab" * 20


def plan(models: dict[str, Any], environment: str = "development", **stack: Any) -> StackPlan:
    given = {"location": "eastus", "environment": environment, "models": models, "hf-token": True, **stack}
    return decide(Settings.model_validate(given), stack="test", source="stacks/Pulumi.test.yaml")


def only(settings: dict[str, Any], environment: str = "development") -> ModelPlan:
    (model,) = plan({"model": settings}, environment).models
    return model


def told(found: StackPlan, severity: Severity) -> list[str]:
    return [str(finding) for finding in found.findings if finding.severity is severity]


def problems(*overrides: str, stack: str = "prod") -> list[str]:
    with pytest.raises(InvalidStack) as invalid:
        read_and_decide(from_file(stack, overrides=overrides))
    return str(invalid.value).splitlines()


def option(task: weight_source.TaskPlan, name: str) -> str:
    return task.command[task.command.index(name) + 1]


# Which way.


def test_production_streams_and_development_downloads_unless_told_otherwise() -> None:
    assert only(LLAMA, "production").weights.source == "azure-blob", "its pods have no way to the internet"
    assert only(LLAMA).weights.source == "hugging-face", "no storage account for a try"
    assert only({**LLAMA, "weights": {"source": "hugging-face"}}, "production").weights.source == "hugging-face"
    assert only({**LLAMA, "weights": {"source": "azure-blob"}}).weights.source == "azure-blob"


@pytest.mark.parametrize("stack", ["dev", "prod", "sandbox"])
def test_the_projects_own_stacks_take_their_environments_way(stack: str) -> None:
    found = read_and_decide(from_file(stack))
    sources = {model.weights.source for model in found.models}
    assert sources == {weight_source.DEFAULT_SOURCE[found.environment]}


# Download.


@pytest.mark.parametrize("name", catalogue.preset_names())
def test_the_download_is_pinned_and_goes_where_vllm_reads(name: str) -> None:
    preset = catalogue.preset(name)
    model = only({"preset": name, "revision": COMMIT})
    task = model.weights.before
    assert task.command[1:4] == (weight_source.PROGRAM, "download", preset.model_id)
    assert option(task, "--revision") == COMMIT
    assert option(task, "--to") == model.weights.model_path == model.args[0]
    assert model.weights.model_path.endswith(f"/{COMMIT}"), "two revisions never share a folder"
    excluded = [after for word, after in pairwise(task.command) if word == "--exclude"]
    assert tuple(excluded) == preset.download_exclude
    assert task.env["NVIDIA_VISIBLE_DEVICES"] == "void", "it would see GPUs that it did not ask for"
    assert (task.sees_token, "HF_TOKEN_PATH" in task.env) == (preset.gated, preset.gated), (
        "who needs no token gets none"
    )
    assert "HF_HUB_OFFLINE" not in task.env


def test_without_a_commit_the_main_branch_is_fetched() -> None:
    weights = only(SMALL).weights
    assert option(weights.before, "--revision") == "main"
    assert weights.model_path.endswith("/main")


def test_a_download_gives_up_within_the_time_that_the_deployment_has_for_it() -> None:
    for preset in ("qwen3-0.6b", "llama-3.3-70b-instruct"):
        model = only({"preset": preset})
        limit = int(option(model.weights.before, "--give-up-after"))
        startup = model.startup
        rest = startup.progress_deadline_seconds - MARGIN * (startup.node_seconds + startup.image_seconds)
        assert MARGIN * startup.weights_seconds <= limit < rest, f"{preset}: its words would never be seen"
        assert limit >= 600, "Hugging Face counts requests in windows of five minutes"


def test_downloading_needs_the_internet_and_says_so_louder_in_production() -> None:
    asked = {**LLAMA, "weights": {"source": "hugging-face"}}
    production, development = plan({"a": asked}, "production"), plan({"a": asked})
    assert production.models[0].weights.needs_internet_egress
    (warning,) = [text for text in told(production, Severity.WARNING) if "huggingface.co" in text]
    assert "141 GB" in warning
    assert "azure-blob" in warning, "the way out is named"
    assert [text for text in told(development, Severity.NOTE) if "huggingface.co" in text]


def test_a_storage_class_takes_the_weights_off_the_os_disk() -> None:
    model = only({**LLAMA, "weights": {"storage-class": "local"}})
    assert (model.weights.storage_class, model.weights.volume_gib) == ("local", 146)
    full = {
        "preset": "qwen3-30b-a3b",
        "vm-size": "Standard_ND96isr_H100_v5",
        "replicas": 8,
        "vllm": {"tensor-parallel-size": 1},
    }
    on_disk, on_nvme = (
        [text for text in told(plan({"a": {**full, "weights": weights}}), Severity.WARNING) if "kubelet evicts" in text]
        for weights in ({}, {"storage-class": "local"})
    )
    assert (len(on_disk), len(on_nvme)) == (1, 0), "eight copies fill the OS disk"


# Streaming.


def test_what_is_streamed_is_read_by_the_streamer_without_the_internet_or_a_token() -> None:
    model = only(LLAMA, "production")
    weights = model.weights
    assert model.args[0] == f"az://models/meta-llama/Llama-3.3-70B-Instruct/{model.revision}"
    assert model.args[model.args.index("--load-format") + 1] == "runai_streamer"
    assert not weights.needs_internet_egress
    assert not weights.before.sees_token, "nothing that serves may see the token"
    assert not [name for name in weights.before.env if "TOKEN" in name]
    assert (weights.volume_gib, weights.storage_class) == (0, None), "nothing is kept on a disk"
    assert weights.before.command[2:4] == ("ready", model.args[0]), "vLLM starts only behind a complete upload"


def test_gpus_of_a_replica_share_the_reading() -> None:
    several = only({**LLAMA, "weights": {"source": "azure-blob"}}).args
    alone = only({**SMALL, "weights": {"source": "azure-blob"}, "revision": COMMIT}).args
    assert several[several.index("--model-loader-extra-config") + 1] == '{"distributed": true}'
    assert "--model-loader-extra-config" not in alone


def test_an_option_of_the_stack_wins_over_the_streamers_default() -> None:
    tuned = {"model-loader-extra-config": {"distributed": True, "concurrency": 32}}
    args = only({**LLAMA, "weights": {"source": "azure-blob"}, "vllm": tuned}).args
    assert args[args.index("--model-loader-extra-config") + 1] == '{"concurrency": 32, "distributed": true}'


def test_streaming_replaces_the_download_in_the_start_up() -> None:
    model = only(LLAMA, "production")
    expected = model.preset.architecture.checkpoint_bytes / STREAM_BYTES_PER_SECOND
    assert model.startup.weights_seconds == 0
    assert 0 <= model.startup.load_seconds - expected < 1
    assert model.startup.restart_seconds < only(LLAMA).startup.restart_seconds / 3, "48 s instead of 15 minutes"


def test_one_upload_for_a_commit_however_many_models_share_it() -> None:
    blob = {"weights": {"source": "azure-blob"}, "revision": COMMIT}
    shared = plan({"a": {**SMALL, **blob}, "b": {**SMALL, **blob}, "c": {**SMALL, **blob, "revision": "cd" * 20}})
    assert [(upload.model, upload.model_path[-4:]) for upload in shared.uploads] == [("a", "abab"), ("c", "cdcd")]
    assert {model.weights.model_path for model in shared.models} == {upload.model_path for upload in shared.uploads}
    assert shared.weight_store is not None
    assert shared.weight_store.readers == ("a", "b", "c")


def test_another_commit_is_another_job_and_nothing_else_is() -> None:
    def job(**changes: Any) -> str:
        (upload,) = plan(
            {"chat": {**SMALL, "revision": COMMIT, "weights": {"source": "azure-blob"}, **changes}}
        ).uploads
        return upload.job

    assert job() == job(replicas=1) == job(**{"max-model-len": 4096}), "a finished upload would be made again"
    assert job(revision="cd" * 20) != job()
    assert COMMIT[:8] in job()


def test_the_longest_model_name_still_names_a_job() -> None:
    name = "x" * 63
    (upload,) = plan({name: {**SMALL, "revision": COMMIT, "weights": {"source": "azure-blob"}}}).uploads
    assert len(upload.job) <= weight_source.JOB_NAME_MAX
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", upload.job)


def test_the_upload_sees_the_token_of_a_gated_model_only_and_gives_up_before_its_job() -> None:
    found = plan({"a": LLAMA, "b": {**SMALL, "revision": COMMIT}}, "production")
    gated, free = found.uploads
    assert (gated.task.sees_token, free.task.sees_token) == (True, False)
    for upload in found.uploads:
        limit = int(option(upload.task, "--give-up-after"))
        assert limit < upload.deadline_seconds < upload.pulumi_timeout_minutes * 60, "each says why before it is ended"


def test_what_is_uploaded_once_must_be_one_commit() -> None:
    streamed = plan({"a": {**SMALL, "weights": {"source": "azure-blob"}}})
    (step,) = told(streamed, Severity.STEP)
    assert "make pin PRESET=qwen3-8b" in step
    assert not told(plan({"a": {**SMALL, "weights": {"source": "azure-blob"}, "revision": COMMIT}}), Severity.STEP)


def test_what_is_stored_is_said_with_its_size_and_its_one_wait() -> None:
    (note,) = [
        text
        for text in told(plan({"a": LLAMA}, "production"), Severity.NOTE)
        if "are kept in a storage account" in text
    ]
    assert "142 GB" in note
    assert "13 minutes" in note
    assert plan({"a": LLAMA}).weight_store is None, "who downloads pays for no account"


def test_more_models_than_an_identity_takes_are_refused() -> None:
    many = {f"m{number}": {**SMALL, "revision": COMMIT} for number in range(21)}
    with pytest.raises(InvalidStack) as invalid:
        plan(many, "production")
    assert "more than 20 models" in str(invalid.value)


# What does not go together.


def test_a_volume_for_what_is_streamed_is_refused_with_both_ways_out() -> None:
    (problem,) = problems("weights.storage-class=local")
    assert problem.startswith("aks-vllm:weights.storage-class = local: ")
    assert "default of a production stack" in problem
    assert "(--set); delete the line, or set source: hugging-face" in problem


def test_another_load_format_than_the_streamers_is_refused() -> None:
    (problem,) = problems("vllm.load-format=safetensors")
    assert problem.startswith("aks-vllm:vllm.load-format = safetensors: ")
    assert only({**SMALL, "vllm": {"load-format": "safetensors"}}), "a download may be loaded as one likes"


def test_unknown_ways_and_keys_are_told_together() -> None:
    found = problems("weights.source=s3", "weights.storage-class=No Good", "weights.surce=x", stack="dev")
    assert {problem.partition(" = ")[0] for problem in found} == {
        "aks-vllm:weights.source",
        "aks-vllm:weights.storage-class",
        "aks-vllm:weights.surce",
    }
    assert any("did you mean source?" in problem for problem in found)
    assert any("must be one of hugging-face, azure-blob" in problem for problem in found)


# Names.


def test_a_storage_account_is_named_within_azures_rules_and_after_its_subscription() -> None:
    one, other = (names.storage_account("prod", subscription) for subscription in ("aaaa", "bbbb"))
    assert re.fullmatch(r"[a-z0-9]{3,24}", one)
    assert one != other, "the name is one for all of Azure, and everybody has a stack called prod"
    assert one != names.storage_account("dev", "aaaa")
    assert one == names.storage_account("prod", "AAAA"), "Azure writes ids in either case"
