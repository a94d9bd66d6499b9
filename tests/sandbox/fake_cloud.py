"""A small strict cloud for engine tests: resources are dictionaries, names are unique, secrets stay marked."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from pulumi.provider.experimental import provider as sdk

from sandbox.values import Value, from_properties, reveal, to_properties

#: Inputs that a change of replaces the resource.
IMMUTABLE = ("zone",)


@dataclass
class FakeCloud(sdk.Provider):
    """Resource types `fake:index:Thing`. Outputs: the inputs (the name is made up) and `serial`."""

    things: dict[str, dict[str, Value]] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)  # (verb, logical name), in order
    timeouts: dict[str, float] = field(default_factory=dict)
    fail: dict[str, str] = field(default_factory=dict)  # "create thing" -> message, once
    cut_off: bool = False  # nothing that changes the cloud reaches it
    serial: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def _called(self, verb: str, name: str) -> None:
        with self.lock:
            self.calls.append((verb, name))
            message = self.fail.pop(f"{verb} {name}", None)
        if message or self.cut_off:
            raise RuntimeError(message)

    async def check(self, request: sdk.CheckRequest) -> sdk.CheckResponse:
        inputs, olds = from_properties(request.new_inputs), from_properties(request.old_inputs)
        if "nmae" in inputs:
            return sdk.CheckResponse(inputs={}, failures=[sdk.CheckFailure("nmae", "unknown property")])
        inputs.setdefault("name", olds.get("name") or f"{request.name}-{len(request.urn):x}")
        return sdk.CheckResponse(inputs=to_properties(inputs))

    async def diff(self, request: sdk.DiffRequest) -> sdk.DiffResponse:
        olds, news = from_properties(request.old_state), from_properties(request.new_inputs)
        keys = {key for key in {*news, *olds} - {"serial"} if reveal(olds.get(key)) != reveal(news.get(key))}
        return sdk.DiffResponse(changes=bool(keys), replaces=[key for key in IMMUTABLE if key in keys])

    async def create(self, request: sdk.CreateRequest) -> sdk.CreateResponse:
        inputs = from_properties(request.properties)
        if request.preview:
            return sdk.CreateResponse(resource_id="", properties=to_properties(inputs))
        self.timeouts[request.name] = request.timeout
        self._called("create", request.name)
        with self.lock:
            self.serial += 1
            id_ = reveal(inputs["name"])
            self.things[id_] = {**inputs, "serial": self.serial}
        return sdk.CreateResponse(resource_id=id_, properties=to_properties(self.things[id_]))

    async def update(self, request: sdk.UpdateRequest) -> sdk.UpdateResponse:
        news = from_properties(request.news)
        if request.preview:
            return sdk.UpdateResponse(properties=to_properties(news))
        self._called("update", request.name)
        self.things[request.resource_id] = {**news, "serial": self.things[request.resource_id]["serial"]}
        return sdk.UpdateResponse(properties=to_properties(self.things[request.resource_id]))

    async def read(self, request: sdk.ReadRequest) -> sdk.ReadResponse:
        found = self.things.get(request.resource_id)
        if found is None:
            return sdk.ReadResponse(resource_id="")
        inputs = {key: value for key, value in found.items() if key != "serial"}
        return sdk.ReadResponse(request.resource_id, to_properties(found), to_properties(inputs))

    async def delete(self, request: sdk.DeleteRequest) -> None:
        self._called("delete", request.name)
        self.things.pop(request.resource_id, None)

    async def invoke(self, request: sdk.InvokeRequest) -> sdk.InvokeResponse:
        name = reveal(from_properties(request.args)["name"])
        return sdk.InvokeResponse(return_value=to_properties({"found": name in self.things}))
