"""The whole graph of every preset in every kind of stack, as snapshots that are reviewed like code.

A snapshot holds each registration as the program sent it: inputs with secrets masked, and options. Update them with
`pytest tests/components/test_graphs.py --snapshot-update`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import yaml
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from sandbox.engine import Recording, Registration
from sandbox.values import masked
from tests.components.harness import PRESETS, ROOT, TOKEN, Record

PROGRAM = (ROOT / "pod" / "weights.py").read_text()


class YamlFile(SingleFileSnapshotExtension):
    """One readable file for each graph."""

    _write_mode = WriteMode.TEXT
    file_extension = "yaml"


def _plain(value: Any) -> Any:
    """Tuples as lists, and the URN prefix that is the same everywhere left out."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value == PROGRAM:
        return "(pod/weights.py)"  # reviewed there
    return value.replace("urn:pulumi:test::aks-vllm::", "") if isinstance(value, str) else value


def _declared(registration: Registration) -> dict[str, Any]:
    # The URN says all of that; the aliases are the SDK's own, older API versions of the same types.
    told = {"urn", "type", "name", "custom", "parent", "aliases"}
    options = {
        field.name: getattr(registration, field.name) for field in fields(registration) if field.name not in told
    }
    options["property_dependencies"] = {key: urns for key, urns in options["property_dependencies"].items() if urns}
    return _plain(masked({name: value for name, value in options.items() if value not in (None, "", (), {})}))


def _graph(recording: Recording) -> str:
    resources = {_plain(r.urn): _declared(r) for r in recording.registrations}
    document = {"resources": resources, "outputs": _plain(masked(dict(recording.outputs)))}
    return yaml.safe_dump(document, width=120, sort_keys=True, allow_unicode=True)


@pytest.mark.parametrize("environment", ["development", "production"])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_graph_is_the_reviewed_one(
    recorded: Record, preset: str, environment: str, snapshot: SnapshotAssertion
) -> None:
    graph = _graph(recorded(preset=preset, environment=environment))
    assert TOKEN not in graph, "a snapshot must never hold a secret"
    assert graph == snapshot(extension_class=YamlFile)


def test_no_alias_is_ours(recorded: Record) -> None:
    for registration in recorded().registrations:
        kind = registration.type.rpartition(":")[2]
        ours = [alias for alias in registration.aliases if not alias.type.endswith(f":{kind}") or alias.name]
        assert not ours, f"{registration.urn}: add aliases to the snapshots again, they leave them out"
