"""Where the Hugging Face token and the kubeconfig may appear, and where not."""

from __future__ import annotations

from typing import Any

from sandbox.engine import Recording, Registration, Secret
from tests.components.harness import DEPLOYMENT, PROVIDER, SECRET, TOKEN, Record, plain_strings


def _everything_said(recording: Recording) -> list[Any]:
    return [
        *(vars(registration) for registration in recording.registrations),
        *recording.component_outputs.values(),
        recording.outputs,
        recording.messages,
    ]


def _token_volumes(pod: dict[str, Any]) -> set[str]:
    return {volume["name"] for volume in pod["volumes"] if "secret" in volume}


def _mounts(container: dict[str, Any]) -> set[str]:
    return {mount["name"] for mount in container["volumeMounts"]}


def test_the_token_is_in_no_registration_output_or_message_except_as_a_secret(recorded: Record) -> None:
    recording = recorded()
    leaks = [text for said in _everything_said(recording) for text in plain_strings(said) if TOKEN in text]
    assert not leaks, "a token outside of a secret ends up in state, in logs and in previews"


def test_the_secret_holds_the_token_as_given_and_marked(recorded: Record) -> None:
    data = recorded().one(SECRET).inputs["stringData"]
    assert isinstance(data, Secret), "the token must be marked when it is registered"
    assert data.value["token"] in (TOKEN, Secret(TOKEN)), "what the pod reads is the token itself"


def test_the_secret_has_no_fixed_name_so_that_a_new_token_rolls_out(recorded: Record) -> None:
    assert "name" not in recorded().one(SECRET).inputs["metadata"], "a fixed name is deleted before it is replaced"


def test_only_the_init_container_mounts_the_token(deployment: Registration) -> None:
    pod = deployment.inputs["spec"]["template"]["spec"]
    token = _token_volumes(pod)
    assert len(token) == 1, "a gated model's pod has one volume from a Secret"
    assert [_mounts(c) & token for c in pod["initContainers"]] == [token], "the download needs the token"
    assert [_mounts(c) & token for c in pod["containers"]] == [set()], "the process that faces the network must not"


def test_no_container_gets_the_token_through_its_environment(deployment: Registration) -> None:
    pod = deployment.inputs["spec"]["template"]["spec"]
    for container in [*pod["initContainers"], *pod["containers"]]:
        variables = {variable["name"]: variable for variable in container["env"]}
        assert not {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} & set(variables), f"{container['name']} sees the token"
        assert not [v for v in variables.values() if "valueFrom" in v], f"{container['name']} reads a Secret"


def test_the_download_looks_for_the_token_where_it_is_mounted(deployment: Registration) -> None:
    (download,) = deployment.inputs["spec"]["template"]["spec"]["initContainers"]
    directory = next(m["mountPath"] for m in download["volumeMounts"] if m["name"] == "token")
    paths = {v["name"]: v["value"] for v in download["env"]}
    assert paths["HF_TOKEN_PATH"] == f"{directory}/token", "huggingface_hub reads the file this variable names"


def test_an_open_model_gets_no_token_even_if_the_stack_has_one(recorded: Record) -> None:
    recording = recorded(preset="qwen3-8b")
    pod = recording.one(DEPLOYMENT, "model-deployment").inputs["spec"]["template"]["spec"]
    assert not recording.of_type(SECRET), "a token that nothing needs stays out of the cluster"
    assert not _token_volumes(pod)


def test_the_kubeconfig_is_secret_wherever_it_goes(recorded: Record) -> None:
    recording = recorded()
    assert isinstance(recording.outputs["kubeconfig"], Secret), "the stack output shows the kubeconfig"
    assert isinstance(recording.one(PROVIDER).inputs["kubeconfig"], Secret), "the provider keeps it in state in clear"
