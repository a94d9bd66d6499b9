"""What a program sees of the fake cloud: one resource type and one provider type."""

from __future__ import annotations

from typing import Any

import pulumi


class Thing(pulumi.CustomResource):
    """A resource of the fake cloud; every output is declared here."""

    serial: pulumi.Output[int]
    name: pulumi.Output[str]
    token: pulumi.Output[str]

    def __init__(self, logical_name: str, opts: pulumi.ResourceOptions | None = None, **inputs: Any) -> None:
        outputs = {"serial": None, "name": None, "token": None}
        super().__init__("fake:index:Thing", logical_name, {**outputs, **inputs}, opts)


class Group(pulumi.ComponentResource):
    """A component without inputs."""

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("test:index:Group", name, None, opts)


class FakeProvider(pulumi.ProviderResource):
    """An explicit provider of the fake cloud."""

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None, **inputs: Any) -> None:
        super().__init__("fake", name, inputs, opts)
