"""vLLM's command line and environment, checked against the contract of the version that is deployed.

The contract is data in `presets/engines/vllm-<version>/`: `arguments.json` (every option of `vllm serve`),
`environment.yaml` (every variable it reads) and `rules.yaml` (what of it is removed, reserved or limited here).
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from planning.catalogue import PRESETS, Image, Preset, deployed_engine
from planning.findings import Finding, Problem, Severity
from planning.memory import MemoryPlan
from planning.parallelism import Layout
from planning.startup import StartupBudget

#: Exec form: vLLM is process 1 of the container and gets SIGTERM itself.
COMMAND = ("vllm", "serve")
WEIGHTS = "/models"  # the weights volume
HOME = "/home/vllm"  # of the image's user
CACHE_ROOT = "/var/cache/vllm"
TOKEN_FILE = "/var/run/secrets/huggingface/token"  # noqa: S105  a path, not a token

#: Options that the layout and the memory plan decide; the rest is passed on as given.
PLANNED = ("tensor-parallel-size", "pipeline-parallel-size", "max-model-len")


@dataclass(frozen=True, kw_only=True)
class DownloadPlan:
    """The init container that fetches the weights at the pinned revision; the only one that may see the token."""

    image: Image
    command: tuple[str, ...]  # exec form
    env: Mapping[str, str]
    target: str  # directory inside the pod, on the weights volume


def folder() -> Path:
    """The contract of the version that is deployed."""
    return PRESETS / "engines" / f"vllm-{deployed_engine()}"


@cache
def _arguments() -> dict[str, dict[str, Any]]:
    """Option -> kind, choices (`unless` another option is set), `off` (turns a switch off), `many` (how a list is
    written), `also` (aliases)."""
    return json.loads((folder() / "arguments.json").read_text())


@cache
def _names() -> dict[str, str]:
    """Every spelling of an option, without its dashes -> its first name; a switch has one that turns it off."""
    others = {name: (*row.get("also", ()), row.get("off", name)) for name, row in _arguments().items()}
    return {spelling: name for name, spellings in others.items() for spelling in (name, *spellings)}


@cache
def _rules() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((folder() / "rules.yaml").read_text(), Loader=loader)  # noqa: S506  both loaders are safe ones


def _plain(key: str) -> str:
    """vLLM takes dashes and underscores alike."""
    return key.removeprefix("--").replace("_", "-").lower()


def check(options: Mapping[str, object], *, prefix: str, source: str) -> tuple[Problem, ...]:
    """What of these options this version of vLLM, or the plan, would refuse.

    `prefix` is the setting they stand under (`aks-vllm:vllm`), `source` the file, both for the messages.
    """
    problems: list[Problem] = []
    written: dict[str, str] = {}

    def refuse(key: str, limit: str, remedy: str, shown: object) -> None:
        problems.append(Problem(key=f"{prefix}.{key}", value=shown, limit=limit, source=source, remedy=remedy))

    for key, value in options.items():
        name = _names().get(_plain(key), _plain(key))
        if name in _SECRETS or _holds_secret(value):
            value = "(hidden)"
        if name in written:
            limit, remedy = f"is the same option as {written[name]}", "keep one of the two"
        else:
            written[name] = key
            limit, remedy = _objection(name, value)
        if limit:
            refuse(key, limit, remedy, value)
    refused = {problem.key.removeprefix(f"{prefix}.") for problem in problems}
    chosen = normalise({key: value for key, value in options.items() if key not in refused})
    for rule in _rules()["together"] if options else ():
        if rule["option"] in chosen and (broken := _broken(rule, chosen, set(written))):
            refuse(written[rule["option"]], broken, rule["remedy"], chosen[rule["option"]])
    for name, value in chosen.items():
        row = _arguments().get(name, {})
        if "unless" in row and row["unless"] not in chosen and str(value) not in row["choices"]:
            refuse(written[name], *_choose(str(value), row["choices"]), value)
    return tuple(problems)


def _broken(rule: Mapping[str, str], chosen: Mapping[str, Any], written: Collection[str]) -> str:
    """How a rule about two options is broken; empty if it is not. An option that is off counts as absent."""
    if not chosen[rule["option"]]:
        return ""
    if "needs" in rule and not chosen.get(rule["needs"]) and (rule["needs"] not in written or rule["needs"] in chosen):
        return f"needs {rule['needs']}"
    return f"excludes {rule['excludes']}" if "excludes" in rule and chosen.get(rule["excludes"]) else ""


#: Options whose value is a secret; none of them is passed on.
_SECRETS = ("api-key", "hf-token")
#: A Hugging Face token, or a password inside an address.
_SECRET_TEXT = re.compile(r"\bhf_[A-Za-z0-9]{20,}|://[^/\s:@]+:[^/\s@]+@")
_SECRET_KEY = re.compile(r"(^|[-_])(api[-_]?key|access[-_]?key|auth[-_]?token|password|secret|credentials?)$", re.I)


def _holds_secret(value: object) -> bool:
    """Whether a value would put a secret on the command line, where everyone who may list pods reads it."""
    if isinstance(value, Mapping):
        return any((_SECRET_KEY.search(str(key)) and item) or _holds_secret(item) for key, item in value.items())
    if isinstance(value, list):
        return any(_holds_secret(item) for item in value)
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            return _holds_secret(json.loads(value))
        except (ValueError, RecursionError):
            pass
    return isinstance(value, str) and _SECRET_TEXT.search(value) is not None


def _objection(name: str, value: object) -> tuple[str, str]:
    """What is wrong with an option, and what to do; empty if nothing is."""
    rules = _rules()
    if name in rules["removed"]:
        gone = rules["removed"][name]
        since = f"was removed in vLLM {gone['since']}" if gone["since"] else f"is gone in vLLM {deployed_engine()}"
        return f"{since} ({gone['why']}): the server would not start", gone["instead"]
    if name in rules["reserved"]:
        return "belongs to the plan", f"delete the line: {rules['reserved'][name]}"
    if name not in _arguments():
        return f"is not an option of vLLM {deployed_engine()}", _nearest(name)
    if value is None:
        return "has no value", "give it one or delete the line"
    if value == "(hidden)":
        return "holds a secret, and a command line hides nothing", "delete the line, and revoke what was readable here"
    return _wrong_value(name, value)


def _nearest(name: str) -> str:
    head, dot, rest = name.partition(".")
    if dot and head in _arguments():
        return f"write it as a map, {head}: {{{rest}: ...}}"
    if name.removeprefix("no-") in _names():
        return f"write {name.removeprefix('no-')}: false"
    near = difflib.get_close_matches(name, _names(), n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else "delete the line; `vllm serve --help=all` lists the options"


_SIZE = re.compile(r"[0-9]{1,18}(\.[0-9]{1,9})?[kKmMgG]?")
_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def _wrong_value(name: str, value: object) -> tuple[str, str]:
    row = _arguments()[name]
    if row.get("many") and isinstance(value, list):
        if not value:
            return "is an empty list", "give it a value or delete the line"
        if any(_text(item).startswith("-") for item in value if len(value) > 1):
            return "has an entry that begins with a dash, which vLLM would take for an option", "write it differently"
        reasons = (_wrong_scalar(name, row, item) for item in value)
        return next((reason for reason in reasons if reason[0]), ("", ""))
    return _wrong_scalar(name, row, value)


def _wrong_scalar(name: str, row: Mapping[str, Any], value: object) -> tuple[str, str]:
    kind = row["kind"]
    if kind in ("switch", "flag"):
        return ("", "") if isinstance(value, bool) else ("must be true or false", f"write {name}: true")
    if kind in ("json", "json-or-text"):
        return _wrong_json(name, kind, value)
    if isinstance(value, bool | Mapping | list):
        return f"must be {_KINDS[kind]}", "correct it there"
    if kind in _NUMBERS:
        number = _number(kind, value)
        if name == "max-model-len" and value in ("auto", -1, "-1"):
            return "leaves the context to the start-up", "name a number, or leave it out: the plan takes the longest"
        return (f"must be {_KINDS[kind]}", "correct it there") if number is None else _outside(name, number)
    if value == "--":
        return "is what ends the options of a command line", "write a value"
    choices = row.get("choices")
    if choices and "unless" not in row and str(value) not in choices:
        return _choose(str(value), choices)
    return "", ""


def _choose(value: str, choices: Sequence[str]) -> tuple[str, str]:
    """A short list of choices is shown whole, of a long one what looks like the value."""
    near = [choice for choice in choices if choice.startswith(value)] if len(value) > 2 else []
    near = near or difflib.get_close_matches(value, choices)
    meant = f"did you mean {' or '.join(near)}?" if near else ""
    if len(choices) > _CHOICES_SHOWN:
        return f"is none of the {len(choices)} values it takes", meant or f"the choices are {', '.join(choices)}"
    return f"must be one of {', '.join(choices)}", meant or "choose one of them"


_CHOICES_SHOWN = 12


_NUMBERS = ("int", "float", "size", "size-or-auto")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "size": "a whole number, or one such as 16k",
    "text": "text",
    "size-or-auto": "a whole number, or one such as 16k",
    "scalar": "text or a number",
}


def _number(kind: str, value: object) -> int | float | None:
    """The value as vLLM reads it; None if it cannot."""
    if kind == "float":
        try:
            return float(str(value))
        except ValueError:
            return None
    text = str(value)
    if kind == "int":
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
    if not _SIZE.fullmatch(text):
        return None
    unit = _UNITS.get(text[-1])
    if unit is None:
        return int(text) if text.isdigit() else None
    # vLLM: a fraction only with a decimal unit ("1.5k"), never with a binary one ("1.5K").
    whole = float(text[:-1]) * unit
    return round(whole) if unit % 10 == 0 or "." not in text else None


def _outside(name: str, number: float) -> tuple[str, str]:
    """What is wrong with a number's size."""
    limits = _rules()["ranges"].get(name, {})
    bounds = [f"{words} {limits[key]:g}" for key, words in _BOUNDS.items() if key in limits]
    if not math.isfinite(number):
        return "must be a finite number", "correct it there"
    above = number > limits.get("above", -math.inf)
    if above and limits.get("least", number) <= number <= limits.get("most", number):
        return "", ""
    return f"must be {' and '.join(bounds)}", "correct it there, or leave it out for vLLM's own default"


_BOUNDS = {"above": "above", "least": "at least", "most": "at most"}


def _wrong_json(name: str, kind: str, value: object) -> tuple[str, str]:
    """vLLM takes JSON; a map or a list of the stack file is written as such."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            if kind == "json-or-text":
                return "", ""
    if isinstance(value, Mapping | list):
        return "", ""
    return "must be a map, a list or JSON text", f"for example {name}: {{key: value}}"


def normalise(options: Mapping[str, object]) -> dict[str, Any]:
    """Options under their first names: numbers as numbers, a switch that was turned off by its other name as false."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        name = _names().get(_plain(key), _plain(key))
        row = _arguments().get(name, {"kind": "text"})
        if isinstance(value, bool) and row.get("off") == _plain(key):
            value = not value
        number = _number(row["kind"], value) if row["kind"] in _NUMBERS and not isinstance(value, list) else None
        found[name] = value if number is None else number
    return found


def findings(options: Mapping[str, Any], subject: str) -> Iterator[Finding]:
    """What normalised options mean that the report does not compute, or that deserves a second look."""
    rules = _rules()
    for name, value in sorted(options.items()):
        if not value or value == "auto":
            continue
        if name in rules["not-modelled"]:
            yield Finding(
                severity=Severity.WARNING,
                subject=subject,
                message=f"The memory figures leave out what {name} = {value} changes: {rules['not-modelled'][name]}.",
                remedy="Not modelled yet: read `Available KV cache memory` in vLLM's log after the first start.",
            )
        if name in rules["caution"]:
            told = rules["caution"][name]
            yield Finding(
                severity=Severity.WARNING, subject=subject, message=f"{name} {told['message']}", remedy=told["remedy"]
            )


def arguments(
    *,
    options: Mapping[str, Any],
    model_path: str,
    served_model_name: str,
    port: int,
    layout: Layout,
    memory: MemoryPlan,
    shutdown_timeout_seconds: int,
    preset: Preset,
) -> tuple[str, ...]:
    """The words after `vllm serve`: the plan's own first, then normalised options by name."""
    planned: dict[str, Any] = {
        "served-model-name": options.get("served-model-name", served_model_name),
        "port": port,
        "tensor-parallel-size": layout.tensor_parallel_size,
        "pipeline-parallel-size": layout.pipeline_parallel_size if layout.pipeline_parallel_size > 1 else None,
        "max-model-len": memory.max_model_len,  # always, so that nothing is chosen at the start
        "shutdown-timeout": shutdown_timeout_seconds,
    }
    # Probes and scrapes every few seconds would bury the requests in the log.
    quiet = {"disable-access-log-for-endpoints": "/health,/metrics"}
    defaults = quiet | _parsers(preset, options) | dict(preset.options)
    given = {name: value for name, value in (defaults | dict(options)).items() if name not in (*planned, *PLANNED)}
    words = [model_path]
    for name, value in [*planned.items(), *sorted(given.items())]:
        words += _written(name, value)
    return tuple(words)


def _parsers(preset: Preset, options: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own parsers of tool calls and of reasoning; options that say otherwise win."""
    parsers: dict[str, Any] = {"reasoning-parser": preset.reasoning_parser}
    if preset.tool_call_parser and options.get("enable-auto-tool-choice", True):
        parsers |= {"enable-auto-tool-choice": True, "tool-call-parser": preset.tool_call_parser}
    return parsers


def _written(name: str, value: Any) -> list[str]:
    """One option as words of the command line."""
    row = _arguments()[name]
    if value is None:
        return []
    if row["kind"] in ("switch", "flag"):
        return [f"--{name}"] if value else [f"--{row['off']}"] if "off" in row else []
    if row.get("many") == "repeat":
        items = value if isinstance(value, list | tuple) else [value]
        return [word for item in items for word in _option(name, _text(item))]
    if row.get("many") and isinstance(value, list | tuple):
        return _option(name, _text(value[0])) if len(value) == 1 else [f"--{name}", *map(_text, value)]
    return _option(name, _text(value))


def _option(name: str, text: str) -> list[str]:
    """A value that begins with a dash would be taken for an option of its own."""
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping | list | tuple | bool) else str(value)


def environment(*, startup: StartupBudget) -> dict[str, str]:
    """What the server reads from its environment. Offline: everything it needs is on the weights volume."""
    return {
        "HF_HUB_OFFLINE": "1",
        "HOME": HOME,
        # One engine is one node: without it NCCL looks for InfiniBand devices that the pod does not have.
        "NCCL_IB_DISABLE": "1",
        "VLLM_CACHE_ROOT": CACHE_ROOT,
        # Its own 600 seconds would end a start that the probe still waits for.
        "VLLM_ENGINE_READY_TIMEOUT_S": str(startup.engine_ready_timeout_seconds),
        "VLLM_NO_USAGE_STATS": "1",
    }


def download(preset: Preset, revision: str | None, image: Image) -> DownloadPlan:
    """Fetch the weights with the tool that the vLLM image carries; run again, it goes on where it stopped."""
    target = str(Path(WEIGHTS) / preset.model_id.rpartition("/")[2] / (revision or "main"))
    command = ["hf", "download", preset.model_id, "--local-dir", target]
    command += ["--revision", revision] if revision else []
    for pattern in preset.download_exclude:
        command += ["--exclude", pattern]
    env = {
        "HOME": HOME,
        "HF_HOME": f"{HOME}/.cache/huggingface",  # on scratch; the image may name another place
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_XET_HIGH_PERFORMANCE": "1",  # huggingface_hub: as many connections as the node's network takes
        # Its image asks for all GPUs, and gets them where the NVIDIA runtime is the default one.
        "NVIDIA_VISIBLE_DEVICES": "void",
    }
    if preset.gated:
        env["HF_TOKEN_PATH"] = TOKEN_FILE
    return DownloadPlan(image=image, command=tuple(command), env=env, target=target)
