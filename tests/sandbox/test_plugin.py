"""The simulated Azure as a plug-in: over gRPC, as the Pulumi CLI's engine talks to it. No CLI is needed for this."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct  # ty: ignore[missing-module-member]  (made at run time)
from pulumi.runtime import rpc
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

from sandbox.azure import rules

PLUGIN = Path(__file__).parents[2] / "sandbox/bin/pulumi-resource-azure-native"
GROUP = "urn:pulumi:s::aks-vllm::azure-native:resources:ResourceGroup::group"
POOL = "urn:pulumi:s::aks-vllm::azure-native:containerservice:AgentPool::pool"
NOBODY = "127.0.0.1:1"  # the engine's address: only progress is sent there


def struct(values: dict[str, Any]) -> Struct:
    made = Struct()
    made.update(values)
    return made


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str]]:
    folder = tmp_path_factory.mktemp("sandbox")
    environment = {**os.environ, "AKS_VLLM_PYTHON": sys.executable, "AKS_VLLM_SANDBOX": str(folder)}
    # Somewhere else: the engine starts plug-ins in the project's folder.
    process = subprocess.Popen(
        [PLUGIN, NOBODY], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process, process.stdout.readline()
    process.terminate()
    rest, errors = process.communicate(timeout=20)
    assert rest == "", "standard output carries the port and nothing else"
    assert "Traceback" not in errors, errors


@pytest.fixture(scope="module")
def plugin(process: tuple[subprocess.Popen[str], str]) -> Iterator[provider_pb2_grpc.ResourceProviderStub]:
    assert process[1].strip().isdigit(), f"the engine reads a port, not {process[1]!r}"
    with grpc.insecure_channel(f"127.0.0.1:{process[1].strip()}") as channel:
        stub = provider_pb2_grpc.ResourceProviderStub(channel)
        answer = stub.Configure(provider_pb2.ConfigureRequest(args=struct({"location": "eastus"}), acceptSecrets=True))
        assert answer.acceptSecrets, "or the engine would send secrets in clear, and take their marks off"
        assert answer.supportsPreview
        yield stub


def inputs(answer: Any) -> dict[str, Any]:
    return MessageToDict(answer.inputs if hasattr(answer, "inputs") else answer.properties)


def test_it_says_the_version_that_the_program_was_written_for(plugin: Any) -> None:
    import importlib.metadata

    from google.protobuf.empty_pb2 import Empty  # ty: ignore[missing-module-member]

    assert plugin.GetPluginInfo(Empty()).version == importlib.metadata.version("pulumi_azure_native")


def test_check_completes_what_the_program_leaves_out(plugin: Any) -> None:
    news = struct({"resourceGroupName": "rg"})
    assert inputs(plugin.Check(provider_pb2.CheckRequest(urn=GROUP, news=news))) == {
        "resourceGroupName": "rg",
        "location": "eastus",
    }, "the configured location"


def test_check_refuses_what_azure_would(plugin: Any) -> None:
    news = struct({"resourceGroupName": "rg", "locatoin": "eastus"})
    (failure,) = plugin.Check(provider_pb2.CheckRequest(urn=GROUP, news=news)).failures
    assert (failure.property, failure.reason) == ("locatoin", "is not a property; did you mean location?")


def test_a_preview_leaves_unknown_what_only_azure_knows(plugin: Any) -> None:
    properties = struct({"resourceGroupName": "rg", "location": "eastus"})
    answer = plugin.Create(provider_pb2.CreateRequest(urn=GROUP, properties=properties, preview=True))
    assert answer.id == ""
    assert inputs(answer)["name"] == rpc.UNKNOWN


def test_a_group_is_made_read_changed_and_deleted(plugin: Any) -> None:
    properties = struct({"resourceGroupName": "rg", "location": "eastus"})
    made = plugin.Create(provider_pb2.CreateRequest(urn=GROUP, properties=properties))
    assert made.id == f"/subscriptions/{rules()['client']['subscriptionId']}/resourceGroups/rg"
    read = plugin.Read(provider_pb2.ReadRequest(id=made.id, urn=GROUP, properties=made.properties, inputs=properties))
    assert MessageToDict(read.inputs) == MessageToDict(properties), "reading back what was written is no drift"
    tagged = struct({"resourceGroupName": "rg", "location": "eastus", "tags": {"team": "a"}})
    request = provider_pb2.UpdateRequest(id=made.id, urn=GROUP, olds=made.properties, news=tagged)
    assert inputs(plugin.Update(request))["tags"] == {"team": "a"}
    plugin.Delete(provider_pb2.DeleteRequest(id=made.id, urn=GROUP, properties=made.properties))
    gone = plugin.Read(provider_pb2.ReadRequest(id=made.id, urn=GROUP, properties=made.properties, inputs=properties))
    assert gone.id == "", "an empty id is how the engine hears that it is gone"


@pytest.mark.parametrize(
    ("changed", "replaces", "kind"),
    [
        ({}, [], None),
        ({"count": 2}, [], "UPDATE"),
        ({"nodeLabels": {"a": "b"}}, [], "ADD"),
        ({"vmSize": "Standard_D8ds_v5"}, ["vmSize"], "UPDATE_REPLACE"),
    ],
)
def test_a_diff_names_each_property_and_whether_it_replaces(
    plugin: Any, changed: dict[str, Any], replaces: list[str], kind: str | None
) -> None:
    """The engine matches `ignoreChanges` and `replaceOnChanges` against these paths, and people read them."""
    old = {
        "agentPoolName": "p",
        "resourceGroupName": "rg",
        "resourceName": "c",
        "vmSize": "Standard_D4ds_v5",
        "count": 1,
    }
    answer = plugin.Diff(
        provider_pb2.DiffRequest(
            id="x", urn=POOL, olds=struct(old), old_inputs=struct(old), news=struct({**old, **changed})
        )
    )
    assert answer.changes == (answer.DIFF_SOME if changed else answer.DIFF_NONE)
    assert list(answer.replaces) == replaces
    assert answer.deleteBeforeReplace == bool(replaces), "two pools cannot have one name"
    kinds = {path: provider_pb2.PropertyDiff.Kind.Name(detail.kind) for path, detail in answer.detailedDiff.items()}
    assert kinds == dict.fromkeys(changed, kind)
    assert answer.hasDetailedDiff == bool(changed), "without details the engine finds them itself"


def test_a_secret_stays_one(plugin: Any) -> None:
    secret = {rpc._special_sig_key: rpc._special_secret_sig, "value": "hidden"}
    news = struct({"resourceGroupName": "rg", "tags": {"key": secret}})
    assert inputs(plugin.Check(provider_pb2.CheckRequest(urn=GROUP, news=news)))["tags"]["key"] == secret


def test_functions_answer(plugin: Any) -> None:
    answer = plugin.Invoke(provider_pb2.InvokeRequest(tok="azure-native:authorization:getClientConfig"))
    assert getattr(answer, "return")["objectId"] == rules()["client"]["objectId"]


def test_a_refusal_is_azures_word_and_no_traceback(plugin: Any) -> None:
    properties = struct({"resourceGroupName": "missing", "resourceName": "c", "agentPoolName": "p", "vmSize": "x"})
    with pytest.raises(grpc.RpcError) as raised:
        plugin.Create(provider_pb2.CreateRequest(urn=POOL, properties=properties))
    assert "404" in str(raised.value)
    assert "Traceback" not in str(raised.value)
    assert ".py" not in str(raised.value)


def test_without_a_sandbox_it_says_who_starts_it(tmp_path: Path) -> None:
    environment = {**os.environ, "AKS_VLLM_PYTHON": sys.executable}
    environment.pop("AKS_VLLM_SANDBOX", None)
    done = subprocess.run([PLUGIN, NOBODY], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "--engine cli" in done.stderr
    assert done.stdout == ""
