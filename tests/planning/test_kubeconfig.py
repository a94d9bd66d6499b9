"""AKS's user kubeconfig, turned to a sign-in that needs no person."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from planning.kubeconfig import KEPT, for_kubelogin

SERVER = "6dae42f8-4368-4678-94ff-3960e28e3630"
ARGS = ["get-token", "--environment", "AzurePublicCloud", "--server-id", SERVER, "--client-id", "public"]
ARGS += ["--tenant-id", "tenant", "--login", "devicecode"]


def _kubeconfig(*users: dict[str, Any]) -> str:
    named = [{"name": f"user-{number}", "user": user} for number, user in enumerate(users)]
    return yaml.safe_dump({"apiVersion": "v1", "clusters": [{"name": "c"}], "users": named, "current-context": "c"})


def _aks(args: list[str] = ARGS) -> dict[str, Any]:
    return {"exec": {"command": "kubelogin", "args": args, "env": None, "provideClusterInfo": False}}


def _args(kubeconfig: str, user: int = 0) -> list[str]:
    return yaml.safe_load(kubeconfig)["users"][user]["user"]["exec"]["args"]


@pytest.mark.parametrize("mode", ["azurecli", "workloadidentity", "msi"])
def test_modes_with_an_identity_of_their_own_keep_only_the_server(mode: str) -> None:
    assert _args(for_kubelogin(_kubeconfig(_aks()), mode)) == ["get-token", "--login", mode, "--server-id", SERVER]


def test_a_service_principal_brings_its_id_and_takes_the_clusters_tenant() -> None:
    args = _args(for_kubelogin(_kubeconfig(_aks()), "spn"))
    assert args == [
        *("get-token", "--login", "spn", "--server-id", SERVER),
        *("--tenant-id", "tenant", "--environment", "AzurePublicCloud"),
    ], "AKS's --client-id is kubelogin's public client, which no service principal may use"


@pytest.mark.parametrize("mode", KEPT)
def test_everything_else_stays_and_a_second_time_changes_nothing(mode: str) -> None:
    before = _kubeconfig(_aks(), {"token": "other"})
    after = for_kubelogin(before, mode)
    assert for_kubelogin(after, mode) == after
    documents = [yaml.safe_load(text) for text in (before, after)]
    for document in documents:
        document["users"][0]["user"]["exec"].pop("args")
    assert documents[0] == documents[1], "clusters, contexts and other users are not this function's business"


def test_arguments_may_be_joined_with_an_equals_sign() -> None:
    joined = ["get-token", "--login=devicecode", f"--server-id={SERVER}", "--client-id=public"]
    assert _args(for_kubelogin(_kubeconfig(_aks(joined)), "msi")) == [
        *("get-token", "--login", "msi", "--server-id", SERVER)
    ]


@pytest.mark.parametrize(
    "kubeconfig",
    [
        "",
        "just text",
        "a: [",
        "users: 5",
        _kubeconfig(),
        _kubeconfig({"client-key-data": "c2VjcmV0"}),
        _kubeconfig({"exec": {"command": "gke-gcloud-auth-plugin", "args": []}}),
        _kubeconfig({"exec": {"command": "kubelogin", "args": None}}),
        _kubeconfig({"exec": {"command": 5, "args": ["c2VjcmV0"]}}),
        _kubeconfig(_aks(["get-token", "--login", "devicecode", "c2VjcmV0"])),
    ],
    ids=str,
)
def test_anything_else_is_refused_in_words_that_show_none_of_it(kubeconfig: str) -> None:
    with pytest.raises(ValueError, match="kubeconfig") as refused:
        for_kubelogin(kubeconfig, "azurecli")
    assert "c2VjcmV0" not in str(refused.value), "a kubeconfig may hold keys"


@pytest.mark.parametrize("mode", ["devicecode", "interactive", "", "AZURECLI"])
def test_a_mode_that_waits_for_a_person_is_refused_with_the_others(mode: str) -> None:
    with pytest.raises(ValueError, match="azurecli, workloadidentity"):
        for_kubelogin(_kubeconfig(_aks()), mode)
