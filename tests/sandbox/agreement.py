"""What the embedded engine and the Pulumi CLI make of the same stack: every resource, as it would be in the state.

    python -m tests.sandbox.agreement     # a line for each stack: n of n

Three things are not compared. Before there is a cluster, the CLI knows no output of an object in it, so neither the
namespace nor the made-up name that comes from one: there the embedded engine echoes what is declared. The real
Kubernetes provider makes up names that the program leaves out. And the CLI notes a provider's version and internals
among its inputs.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sandbox import pulumi_cli
from sandbox.__main__ import PROJECT, read_config
from sandbox.azure import SimulatedAzure
from sandbox.deployment import Deployment, Silent
from sandbox.engine import execute
from sandbox.providers import PROVIDER_TYPE, Providers
from sandbox.state import SECRET_SIGNATURE, SIGNATURE, ResourceState
from sandbox.values import UNKNOWN, Scrubber, Secret
from tests.sandbox.project import OPTIONS

ROOT = Path(__file__).parents[2]
TOKEN = "hf_" + "x" * 34  # made up
#: The SDK's sentinel, and the CLI's word for it in JSON.
UNKNOWN_TEXT = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
#: Among a provider's inputs in the CLI's state.
ONLY_CLI = ("version", "__internal")
#: On what the real Kubernetes provider has made up a name for.
AUTONAMED = "pulumi.com/autonamed"

#: Every stack file, and the parts that most are made without.
STACKS = sorted(path.stem.removeprefix("Pulumi.") for path in (ROOT / "stacks").glob("Pulumi.*.yaml"))
CASES: tuple[tuple[str, Sequence[str]], ...] = (*((stack, ()) for stack in STACKS), ("sandbox", OPTIONS))

Resource = Mapping[str, Any]


def embedded(stack: str, config: Any) -> dict[str, Resource]:
    """Every resource by URN, as a preview of an empty stack leaves it."""
    azure = SimulatedAzure(location=config.values["azure-native:location"])
    packages = {"azure-native": lambda _: azure, "kubernetes": lambda _: None}
    deployment = Deployment(
        project=PROJECT,
        stack=stack,
        olds=[],
        providers=Providers(packages, config.values),
        save=lambda _: None,
        listener=Silent(),
        scrubber=Scrubber(),
        dry_run=True,
    )
    program = ROOT / "__main__.py"
    execute(deployment, program, root=ROOT, config=config.values, secret_keys=config.secret_keys)
    options = {registration.urn: registration for registration in deployment.registrations}
    return {state.urn: _of_state(state, options[state.urn]) for state in deployment.state()}


def _of_state(state: ResourceState, options: Any) -> Resource:
    timeouts = {operation: seconds for operation, seconds in state.timeouts.items() if seconds}
    return {
        "type": state.type,
        "custom": state.custom,
        "inputs": _plain(state.inputs),
        "parent": state.parent,
        "provider": state.provider.rpartition("::")[0],
        "protect": state.protect,
        "retainOnDelete": state.retain_on_delete,
        "deletedWith": state.deleted_with,
        "replaceWith": sorted(state.replace_with),
        "dependencies": sorted(state.dependencies),
        "propertyDependencies": {key: sorted(urns) for key, urns in state.property_dependencies.items() if urns},
        "customTimeouts": timeouts,
        "ignoreChanges": sorted(options.ignore_changes),
        "replaceOnChanges": sorted(options.replace_on_changes),
        "additionalSecretOutputs": sorted(options.additional_secret_outputs),
    }


def _plain(value: Any) -> Any:
    """Secrets and unknowns as words, whatever is in or around them; whole numbers as such."""
    match value:
        case Secret():
            return "[secret]"
        case dict():
            if value.get(SIGNATURE) == SECRET_SIGNATURE:
                return "[secret]"
            return {key: _plain(item) for key, item in value.items() if item is not None}
        case list():
            return [_plain(item) for item in value]
        case float() if value.is_integer():
            return int(value)
    return "[unknown]" if value is UNKNOWN or value == UNKNOWN_TEXT else value


def cli(stack: str, config: Any, folder: Path) -> dict[str, Resource]:
    """The same from `pulumi preview --json`."""
    made = pulumi_cli.PulumiCli(
        installation=pulumi_cli.find(importlib.metadata.version("pulumi_kubernetes")),
        project=PROJECT,
        stack=stack,
        sandbox=folder,
        passphrase=lambda: "passphrase",
    )
    said = made.preview_states(ROOT / "__main__.py", config=config.values, secret_keys=config.secret_keys)
    return {row["urn"]: _of_json(row) for row in said if not pulumi_cli.is_default_provider(row["urn"])}


def _of_json(row: Resource) -> Resource:
    found = {
        "type": row["type"],
        "custom": row.get("custom", False),
        "inputs": _as_declared(row["type"], _plain(row.get("inputs", {}))),
        "parent": row.get("parent", ""),
        "provider": row.get("provider", "").rpartition("::")[0],
        "customTimeouts": {key: value for key, value in (row.get("customTimeouts") or {}).items() if value},
        "propertyDependencies": {
            key: sorted(urns) for key, urns in row.get("propertyDependencies", {}).items() if urns
        },
    }
    if pulumi_cli.is_default_provider(found["provider"]):
        found["provider"] = ""
    for key, empty in (("protect", False), ("retainOnDelete", False), ("deletedWith", "")):
        found[key] = row.get(key, empty)
    lists = ("replaceWith", "dependencies", "ignoreChanges", "replaceOnChanges", "additionalSecretOutputs")
    return {**found, **{key: sorted(row.get(key, [])) for key in lists}}


def _as_declared(type_: str, inputs: Any) -> Any:
    if type_.startswith(PROVIDER_TYPE):
        return {key: value for key, value in inputs.items() if key not in ONLY_CLI}
    metadata = inputs.get("metadata") if isinstance(inputs, dict) else None
    if not isinstance(metadata, dict) or AUTONAMED not in metadata.get("annotations", {}):
        return inputs
    annotations = {key: value for key, value in metadata["annotations"].items() if key != AUTONAMED}
    kept = {key: value for key, value in metadata.items() if key not in ("name", "annotations")}
    return {**inputs, "metadata": kept | ({"annotations": annotations} if annotations else {})}


def _disagreements(ours: Any, theirs: Any, path: str) -> Iterator[str]:
    if theirs == "[unknown]" or ours == theirs:
        return
    if isinstance(ours, dict) and isinstance(theirs, dict):
        # The name that an object is still to get: unknown there, nothing here.
        alone = {key for key in ours.keys() ^ theirs.keys() if theirs.get(key) != "[unknown]"}
        yield from (f"{path}.{key}: only one of them has it" for key in sorted(alone))
        for key in ours.keys() & theirs.keys():
            yield from _disagreements(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from _disagreements(*pair, f"{path}[{index}]")
    else:
        yield f"{path}: embedded {ours!r}, CLI {theirs!r}"


def differences(stack: str, folder: Path, settings: Sequence[str] = ()) -> tuple[int, list[str]]:
    """How many resources there are in either, and what differs, in words."""
    config = read_config(ROOT / f"stacks/Pulumi.{stack}.yaml", settings, TOKEN)
    ours, theirs = embedded(stack, config), cli(stack, config, folder)
    words = [f"{urn}: only the embedded engine has it" for urn in sorted({*ours} - {*theirs})]
    words += [f"{urn}: only the CLI has it" for urn in sorted({*theirs} - {*ours})]
    for urn in sorted({*ours} & {*theirs}):
        words += [
            f"{urn}: {line}" for key in ours[urn] for line in _disagreements(ours[urn][key], theirs[urn][key], key)
        ]
    return len({*ours} | {*theirs}), words


def main() -> int:
    """A line for each stack."""
    failed = False
    for stack, settings in CASES:
        with tempfile.TemporaryDirectory() as folder:
            count, words = differences(stack, Path(folder), settings)
        bad = {line.split(": ", 1)[0] for line in words}
        print(
            f"{stack}{' with every option' if settings else ''}: {count - len(bad)} of {count} resources are the same",
            *words,
            sep="\n  ",
        )
        failed = failed or bool(words)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
