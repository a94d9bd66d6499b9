"""Make `presets/engines/vllm-<version>/`, a version's contract, from that version's own code.

    python tests/engine/contract.py 0.33.0

`arguments.json` and `environment.yaml` are written anew; of `rules.yaml` and `memory.yaml`, which people write, a new
folder gets a copy of the version's before. Run inside vLLM's environment without a word, it prints what it would write.

One row an option: `kind` of its value; `choices` (`unless` another option is set, `caseless` where capitals do not
matter); `least`, `above`, `most` and `below` of a number; `keys` of a map, each with a row of its own, and which of
them are `required`; `off` (turns a switch off), `many` (how a list is written), `also` (aliases), `deprecated` (vLLM's
own words).
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import subprocess
import sys
import typing
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

HERE = Path(__file__).parent
ENGINES = HERE.parents[1] / "presets" / "engines"

#: Names of vLLM's parsing functions -> kind. A function that wraps another is looked through.
KINDS = {
    "int": "int",
    "float": "float",
    "loads": "json",
    "parse_dataclass": "map",
    "human_readable_int": "size",
    "human_readable_int_or_auto": "size-or-auto",
    "union_dict_and_str": "json-or-text",
}
#: A plug-in adds choices that the parser cannot know.
PLUGINS = {"reasoning-parser": "reasoning-parser-plugin", "tool-call-parser": "tool-parser-plugin"}
#: Names of pydantic's limits -> ours.
LIMITS = {"ge": "least", "gt": "above", "le": "most", "lt": "below"}
#: Python's types -> kind, inside a map.
PLAIN = {bool: "switch", int: "int", float: "float", str: "text", dict: "map"}


def row(action: Any, annotation: Any, limits: dict[str, Any]) -> dict[str, Any]:
    """One option as data."""
    kind = type(action).__name__
    found: dict[str, Any]
    first, *others = [each.lstrip("-") for each in action.option_strings]
    if kind == "EnableDisableAction":
        off = {each.lstrip("-") for each in action.negative_option_strings}
        shown = [each.lstrip("-") for each in action.visible_option_strings]
        found = {"kind": "switch", "off": next(each for each in shown if each in off)}
        others = [each for each in others if each not in off]
    elif kind == "_StoreTrueAction":
        found = {"kind": "flag"}
    else:
        found = {"kind": "json-or-text" if kind == "LoRAParserAction" else _kind(action.type), **limits}
        if found["kind"].startswith("json"):
            found["kind"] = _json_kind(found["kind"], annotation)
        if kind == "_AppendAction":
            found["many"] = "repeat"
        elif action.nargs in ("+", "*"):
            found["many"] = True
        if action.choices:
            found["choices"] = [str(each) for each in action.choices if each is not None]
        elif first in PLUGINS:
            found |= {"choices": sorted(_parsers(first)), "unless": PLUGINS[first]}
        elif "many" not in found:
            found |= _choices(first, annotation)
        if config := _dataclass(first, action.type):
            found |= _keys(config)
    if others:
        found["also"] = others
    if first in (messages := _deprecated()):
        found["deprecated"] = messages[first]
    order = (
        "kind",
        "many",
        "off",
        "also",
        "choices",
        "unless",
        "caseless",
        *LIMITS.values(),
        "required",
        "keys",
        "deprecated",
    )
    return {key: found[key] for key in order if key in found}


def _members(annotation: Any) -> set[Any]:
    """The types of a union, without None."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, UnionType):
        return {each for member in typing.get_args(annotation) for each in _members(member)}
    return set() if annotation is NoneType else {annotation}


def _json_kind(kind: str, annotation: Any) -> str:
    """Text and lists where the field takes them, else a map alone."""
    origins = {typing.get_origin(each) or each for each in _members(annotation)}
    if annotation is None or list in origins or (kind == "json-or-text" and str in origins):
        return kind
    return "map"


def _choices(name: str, annotation: Any) -> dict[str, Any]:
    """Values that the engine's configuration knows where its parser takes any text."""
    members = _members(annotation)
    if name in ("attention-backend", "mm-encoder-attn-backend"):
        from vllm.v1.attention.backends.registry import AttentionBackendEnum

        return {"choices": ["AUTO", *AttentionBackendEnum.__members__], "caseless": True}
    if name == "config-format":
        from vllm.transformers_utils import config

        return {"choices": ["auto", *config._CONFIG_FORMAT_TO_CONFIG_PARSER]}
    if name == "quantization":
        from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

        return {"choices": list(QUANTIZATION_METHODS)}
    if name == "load-format":
        from vllm.model_executor import model_loader

        return {"choices": list(model_loader._LOAD_FORMAT_TO_MODEL_LOADER)}
    if name == "model-impl":
        from vllm.config.model import ModelImpl

        return {"choices": list(typing.get_args(ModelImpl))}
    if name == "optimization-level":
        from vllm.config.vllm import OptimizationLevel

        return {"choices": [str(level.value) for level in OptimizationLevel]}
    if enums := [each for each in members if isinstance(each, type) and issubclass(each, enum.Enum)]:
        return {"choices": list(enums[0].__members__), "caseless": True}
    literals = [each for each in members if typing.get_origin(each) is typing.Literal]
    return {"choices": [str(each) for each in typing.get_args(literals[0])]} if literals else {}


def _dataclass(name: str, function: Any) -> Any:
    """The class that an option's JSON is read into."""
    if name == "speculative-config":  # by the engine, once it knows the model
        from vllm.config import SpeculativeConfig

        return SpeculativeConfig
    for each in _wrapped(function):
        if getattr(each, "__name__", "") == "parse_dataclass":
            return each.__defaults__[0]
    return None


def _keys(config: Any) -> dict[str, Any]:
    """The fields of a configuration class, as rows."""
    keys, required = {}, []
    for name, info in config.__pydantic_fields__.items():
        if info.init is False:
            continue
        members = _members(info.annotation)
        origins = {typing.get_origin(each) or each for each in members}
        literal = [each for each in members if typing.get_origin(each) is typing.Literal]
        found: dict[str, Any] = {"kind": "any"}
        if len(literal) == len(members) == 1 and all(isinstance(each, str) for each in typing.get_args(literal[0])):
            found = {"kind": "text", "choices": list(typing.get_args(literal[0]))}
        elif len(origins) == 1 and (kind := PLAIN.get(next(iter(origins)))):
            found = {"kind": kind, **(_limits(info) if kind in ("int", "float") else {})}
        keys[name] = found
        if info.is_required():
            required.append(name)
    return {"keys": dict(sorted(keys.items())), **({"required": required} if required else {})}


def _limits(info: Any) -> dict[str, Any]:
    return {
        ours: getattr(each, theirs)
        for each in info.metadata
        for theirs, ours in LIMITS.items()
        if getattr(each, theirs, None) is not None
    }


def _numbers() -> dict[str, dict[str, dict[str, Any]]]:
    """Field -> configuration class -> its limits."""
    import vllm.config
    from vllm.config import offload

    found: dict[str, dict[str, dict[str, Any]]] = {}
    for module in (vllm.config, offload):
        for config in vars(module).values():
            for name, info in getattr(config, "__pydantic_fields__", {}).items():
                if limits := _limits(info):
                    found.setdefault(name, {})[config.__name__] = limits
    return found


def _deprecated() -> dict[str, str]:
    """Option -> what vLLM says of it when it is used."""
    from vllm.engine import arg_utils

    messages = [text for name, text in vars(arg_utils).items() if name.endswith("_DEPRECATION_MESSAGE")]
    return {found[1]: text for text in messages if (found := re.search(r"--([a-z0-9-]+)", text))}


def _wrapped(function: Any) -> Iterable[Any]:
    """A function and those that it wraps."""
    yield function
    for cell in getattr(function, "__closure__", None) or ():
        if callable(cell.cell_contents):
            yield from _wrapped(cell.cell_contents)


def _kind(function: Any) -> str:
    names = (getattr(each, "__qualname__", "").rpartition(".")[2] for each in _wrapped(function))
    return next((KINDS[name] for name in names if name in KINDS), "text")


def _parsers(option: str) -> list[str]:
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    return (ReasoningParserManager if option == "reasoning-parser" else ToolParserManager).list_registered()


def describe() -> dict[str, Any]:
    """Every option and every environment variable of the vLLM that this process imports."""
    sys.path.insert(0, str(HERE))
    import pretend_h100
    import serve_parser

    pretend_h100.install()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.common.cli_args import FrontendArgs
    from vllm.envs import environment_variables

    fields = (*dataclasses.fields(FrontendArgs), *dataclasses.fields(AsyncEngineArgs))
    annotations = {each.name: each.type for each in fields}
    numbers, rows = _numbers(), {}
    parser = serve_parser.make_parser()
    for group in parser._action_groups:
        for action in group._group_actions:
            if not action.option_strings or "--help" in action.option_strings:
                continue
            owners = numbers.get(action.dest, {})
            limits = owners.get(str(group.title)) or (next(iter(owners.values())) if len(owners) == 1 else {})
            name = action.option_strings[0].lstrip("-")
            rows[name] = row(action, annotations.get(action.dest), limits)
    return {"arguments": rows, "environment": sorted(environment_variables)}


def arguments_json(rows: dict[str, dict[str, Any]]) -> str:
    """One line an option, so that a new version reads as a diff."""
    return "{\n" + ",\n".join(f'  "{name}": {json.dumps(rows[name])}' for name in sorted(rows)) + "\n}\n"


def environment_yaml(version: str, names: list[str]) -> str:
    lines = [
        f"# Environment variables that vLLM {version} reads (vllm.envs). Others that begin with VLLM_ do nothing.",
        "names:",
        *(f"  - {name}" for name in names),
    ]
    return "\n".join(lines) + "\n"


def before(version: str) -> str | None:
    """The newest version with a folder that is older than this one."""

    def key(name: str) -> list[int]:
        return [int(part) for part in name.split(".")]

    names = [path.name.removeprefix("vllm-") for path in ENGINES.glob("vllm-*")]
    return max((name for name in names if key(name) < key(version)), key=key, default=None)


def by_hand(folder: Path, version: str, older: str) -> None:
    """What a person has to judge starts as the older version's, and says so."""
    for name in ("rules.yaml", "memory.yaml"):
        if not (folder / name).exists():
            text = (ENGINES / f"vllm-{older}" / name).read_text()
            (folder / name).write_text(f"# Copied from vLLM {older}'s: not yet compared with {version}.\n{text}")


def differences(rows: dict[str, Any], older: str) -> str:
    """What `rules.yaml` has to be told: options that are gone, and new ones that may belong to the plan."""
    had = json.loads((ENGINES / f"vllm-{older}" / "arguments.json").read_text())
    gone, new = sorted(set(had) - set(rows)), sorted(set(rows) - set(had))
    return f"since {older}: gone: {', '.join(gone) or 'none'}; new: {', '.join(new) or 'none'}"


def main(version: str) -> None:
    import environment

    place = environment.make(version)
    printed = subprocess.run(
        environment.command(place, __file__),
        env=environment.variables(place, version), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found = json.loads(printed.stdout.splitlines()[-1])
    folder = ENGINES / f"vllm-{version}"
    folder.mkdir(exist_ok=True)
    (folder / "arguments.json").write_text(arguments_json(found["arguments"]))
    (folder / "environment.yaml").write_text(environment_yaml(version, found["environment"]))
    print(f"{folder.relative_to(ENGINES.parents[1])}: {len(found['arguments'])} options")
    if older := before(version):
        by_hand(folder, version, older)
        print(differences(found["arguments"], older))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        print(json.dumps(describe()))
