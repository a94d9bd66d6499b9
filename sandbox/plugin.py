"""The sandbox's providers as plug-ins of the Pulumi CLI, which starts `bin/pulumi-resource-azure-native`.

The same classes as in the embedded engine, behind the SDK's provider server. The environment says whose sandbox it is:
`AKS_VLLM_SANDBOX` is the stack's folder.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib.metadata
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from pulumi.provider.experimental import provider as sdk
from pulumi.provider.experimental.property_value import PropertyValue
from pulumi.provider.experimental.server import ProviderServicer
from pulumi.runtime._grpc_settings import _GRPC_CHANNEL_OPTIONS
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc, provider_pb2, provider_pb2_grpc

from sandbox import toolchain
from sandbox.azure import SimulatedAzure
from sandbox.control_plane import ControlPlane
from sandbox.kubernetes import KubernetesProvider
from sandbox.providers import call, must_replace
from sandbox.pulumi_cli import FOLDER, OPERATION_SECONDS, READY_SECONDS
from sandbox.values import Value, from_properties, reveal

#: By package, the SDK whose version a plug-in says that it has: the engine warns of any other.
PACKAGES = {"azure-native": "pulumi_azure_native", "kubernetes": "pulumi_kubernetes"}
#: The resource that a thread works on: news of it stand in its line of the CLI's display.
_URN: contextvars.ContextVar[str] = contextvars.ContextVar("urn", default="")


def main() -> None:
    """Serve one package until the engine ends this process; its own address is the last argument."""
    package, engine, *_ = sys.argv[1:]
    folder = os.environ.get(FOLDER)
    if not folder:
        sys.exit(f"{FOLDER} is not set: this plug-in is started by `python -m sandbox --engine cli`")
    asyncio.run(_serve(Servicer(package, Path(folder), engine)))


async def _serve(servicer: Servicer) -> None:
    server = grpc.aio.server(options=_GRPC_CHANNEL_OPTIONS)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):  # how the engine ends its plug-ins
        loop.add_signal_handler(number, lambda: loop.create_task(server.stop(grace=None)))
    print(port, flush=True)
    await server.wait_for_termination()


class Servicer(ProviderServicer):
    """The SDK's, but for what it leaves out: old inputs, details of a diff, threads, and errors without a traceback."""

    def __init__(self, package: str, folder: Path, engine: str) -> None:
        make = {"azure-native": self._azure, "kubernetes": self._kubernetes}[package]
        super().__init__([], importlib.metadata.version(PACKAGES[package]), _Threads(make), engine)
        self._package, self._folder = package, folder
        self._engine = engine_pb2_grpc.EngineStub(grpc.insecure_channel(engine))

    def _plane(self) -> ControlPlane:
        ready = float(os.environ.get(READY_SECONDS, "3"))
        return ControlPlane(self._folder / "control-plane", self._progress, pod_ready_delay_seconds=ready)

    def _azure(self, config: Mapping[str, Value]) -> sdk.Provider:
        return SimulatedAzure(
            location=config.get("location", ""),
            file=self._folder / "azure.json",
            plane=self._plane(),
            binaries=lambda: toolchain.binaries(self._progress),
            progress=self._progress,
            operation_seconds=OPERATION_SECONDS,
        )

    def _kubernetes(self, config: Mapping[str, Value]) -> sdk.Provider:
        return KubernetesProvider(reveal(config["kubeconfig"]), self._plane().bin, self._progress)

    def _progress(self, text: str) -> None:
        """A word in the line of the resource, gone with the next one."""
        if urn := _URN.get():
            line = engine_pb2.LogRequest(severity=engine_pb2.INFO, message=text, urn=urn, ephemeral=True)
            self._engine.Log(line)

    async def DiffConfig(self, request: Any, context: Any) -> Any:  # noqa: N802  gRPC's name
        type_ = f"pulumi:providers:{self._package}"
        old, new = (from_properties(PropertyValue.unmarshal_map(side)) for side in (request.old_inputs, request.news))
        return provider_pb2.DiffResponse(replaces=must_replace(type_, old, new))

    async def Diff(self, request: Any, context: Any) -> Any:  # noqa: N802
        asked = sdk.DiffRequest(
            request.urn,
            request.id,
            PropertyValue.unmarshal_map(request.olds),
            PropertyValue.unmarshal_map(request.news),
            list(request.ignoreChanges),
        )
        vars(asked)["old_inputs"] = PropertyValue.unmarshal_map(request.old_inputs)
        found = await self._in_words(self._provider.diff(asked), context)
        kinds = provider_pb2.PropertyDiff
        return provider_pb2.DiffResponse(
            changes=provider_pb2.DiffResponse.DIFF_SOME if found.changes else provider_pb2.DiffResponse.DIFF_NONE,
            replaces=found.replaces,
            deleteBeforeReplace=found.delete_before_replace,
            diffs=found.diffs,
            detailedDiff={
                path: kinds(kind=getattr(kinds, detail.kind.name), inputDiff=detail.input_diff)
                for path, detail in found.detailed_diff.items()
            },
            hasDetailedDiff=bool(found.detailed_diff),
        )

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._in_words(super().Check(request, context), context)

    async def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._in_words(super().Create(request, context), context)

    async def Read(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._in_words(super().Read(request, context), context)

    async def Update(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._in_words(super().Update(request, context), context)

    async def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._in_words(super().Delete(request, context), context)

    async def Invoke(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._in_words(super().Invoke(request, context), context)

    @staticmethod
    async def _in_words(answer: Awaitable[Any], context: Any) -> Any:
        """The answer, or the provider's own words: the SDK would put a traceback behind them."""
        try:
            return await answer
        except Exception as problem:
            words = problem.__context__ or problem
            await context.abort(grpc.StatusCode.UNKNOWN, str(words) or type(words).__name__)


class _Threads(sdk.Provider):
    """A provider whose methods block, each call in a thread of its own; made when its configuration arrives."""

    def __init__(self, make: Callable[[Mapping[str, Value]], sdk.Provider]) -> None:
        self._make = make
        self._made: sdk.Provider | None = None

    async def configure(self, request: sdk.ConfigureRequest) -> sdk.ConfigureResponse:
        self._made = self._make(from_properties(request.args))
        return sdk.ConfigureResponse(
            accept_secrets=True, supports_preview=True, accept_outputs=False, accept_resources=False
        )

    async def check(self, request: sdk.CheckRequest) -> sdk.CheckResponse:
        return await self._run("check", request)

    async def diff(self, request: sdk.DiffRequest) -> sdk.DiffResponse:
        return await self._run("diff", request)

    async def create(self, request: sdk.CreateRequest) -> sdk.CreateResponse:
        return await self._run("create", request)

    async def read(self, request: sdk.ReadRequest) -> sdk.ReadResponse:
        found = await self._run("read", request)
        # Gone: the server wants properties all the same.
        return found if found.resource_id else sdk.ReadResponse("", {}, {})

    async def update(self, request: sdk.UpdateRequest) -> sdk.UpdateResponse:
        return await self._run("update", request)

    async def delete(self, request: sdk.DeleteRequest) -> None:
        await self._run("delete", request)

    async def invoke(self, request: sdk.InvokeRequest) -> sdk.InvokeResponse:
        return await self._run("invoke", request)

    async def cancel(self) -> None:
        if self._made is not None:
            await self._made.cancel()

    async def _run(self, method: str, request: Any) -> Any:
        _URN.set(getattr(request, "urn", ""))
        return await asyncio.to_thread(lambda: call(getattr(self._made, method)(request)))


if __name__ == "__main__":
    main()
