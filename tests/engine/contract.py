"""Make `presets/engines/vllm-<version>/`, a version's contract, from that version's own code.

    python tests/engine/contract.py 0.33.0

`arguments.json` and `environment.yaml` are written anew; of `rules.yaml` and `memory.yaml`, which people write, a new
folder gets a copy of the version's before. One row an option: `kind` of its value, `choices` (`unless` another option
is set), `off` (turns a switch off), `many` (how a list is written), `also` (aliases). Run inside vLLM's environment
without a word, it prints what it would write.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENGINES = HERE.parents[1] / "presets" / "engines"

#: Names of vLLM's parsing functions -> kind. A function that wraps another is looked through.
KINDS = {
    "int": "int",
    "float": "float",
    "loads": "json",
    "parse_dataclass": "json",
    "human_readable_int": "size",
    "human_readable_int_or_auto": "size-or-auto",
    "union_dict_and_str": "json-or-text",
}
#: A plug-in adds choices that the parser cannot know.
PLUGINS = {"reasoning-parser": "reasoning-parser-plugin", "tool-call-parser": "tool-parser-plugin"}


def row(action: Any) -> dict[str, Any]:
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
        found = {"kind": "json-or-text" if kind == "LoRAParserAction" else _kind(action.type)}
        if kind == "_AppendAction":
            found["many"] = "repeat"
        elif action.nargs in ("+", "*"):
            found["many"] = True
        if action.choices:
            found["choices"] = [str(each) for each in action.choices if each is not None]
        if first in PLUGINS:
            found |= {"choices": sorted(_parsers(first)), "unless": PLUGINS[first]}
        if first == "quantization":
            found["choices"] = _quantizations()
    if others:
        found["also"] = others
    return {key: found[key] for key in ("kind", "many", "off", "also", "choices", "unless") if key in found}


def _kind(function: Any) -> str:
    name = getattr(function, "__qualname__", "").rpartition(".")[2]
    if name in KINDS:
        return KINDS[name]
    wrapped = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return next((kind for each in wrapped if callable(each) and (kind := _kind(each)) != "text"), "text")


def _parsers(option: str) -> list[str]:
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    return (ReasoningParserManager if option == "reasoning-parser" else ToolParserManager).list_registered()


def _quantizations() -> list[str]:
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    return list(QUANTIZATION_METHODS)


def describe() -> dict[str, Any]:
    """Every option and every environment variable of the vLLM that this process imports."""
    sys.path.insert(0, str(HERE))
    import pretend_h100
    import serve_parser

    pretend_h100.install()
    from vllm.envs import environment_variables

    actions = serve_parser.make_parser()._actions
    return {
        "arguments": {
            action.option_strings[0].lstrip("-"): row(action)
            for action in actions
            if action.option_strings and "--help" not in action.option_strings
        },
        "environment": sorted(environment_variables),
    }


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
