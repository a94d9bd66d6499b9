"""vLLM's command line and environment, checked against the contract of the version that is deployed.

The contract is data in `presets/engines/vllm-<version>/`: `arguments.json` (every option of `vllm serve`),
`environment.yaml` (every variable it reads) and `rules.yaml` (what of it is removed, reserved or limited here).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from planning.architecture import Architecture
from planning.catalogue import PRESETS, Preset, deployed_engine
from planning.findings import Finding, Problem, Severity
from planning.memory import MemoryPlan
from planning.option_values import NUMBERS, choose, number, text, wrong
from planning.parallelism import Layout
from planning.startup import StartupBudget
from planning.weight_source import HOME

#: Exec form: vLLM is process 1 of the container and gets SIGTERM itself.
COMMAND = ("vllm", "serve")
CACHE_ROOT = "/var/cache/vllm"

#: Options that the layout and the memory plan decide; the rest is passed on as given.
PLANNED = ("tensor-parallel-size", "pipeline-parallel-size", "max-model-len")


def folder() -> Path:
    """The contract of the version that is deployed."""
    return PRESETS / "engines" / f"vllm-{deployed_engine()}"


@cache
def _arguments() -> dict[str, dict[str, Any]]:
    """Option -> kind, choices (`unless` another option is set), `off` (turns a switch off), `many` (how a list is
    written), `also` (aliases)."""
    return json.loads((folder() / "arguments.json").read_text())


@cache
def _row(name: str) -> dict[str, Any]:
    """An option's row, with what the rules know beside vLLM's own limits."""
    return {**_arguments()[name], **_rules()["values"].get(name, {})}


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
    for rule in _rules()["inside"]:
        inside, key = _map(chosen.get(rule["option"])), rule["key"]
        if key in inside and (broken := _broken({**rule, "option": key}, inside, set(inside))):
            refuse(written[rule["option"]], f"{key} in it {broken}", rule["remedy"], chosen[rule["option"]])
    for name, value in chosen.items():
        row = _arguments().get(name, {})
        if "unless" in row and row["unless"] not in chosen and str(value) not in row["choices"]:
            refuse(written[name], *choose(str(value), row["choices"]), value)
    return tuple(problems)


def _map(value: object) -> Mapping[str, Any]:
    """A map, or the one that JSON text holds; empty where it is neither."""
    found = json.loads(value) if isinstance(value, str) and value.lstrip().startswith("{") else value
    return found if isinstance(found, Mapping) else {}


def _broken(rule: Mapping[str, Any], chosen: Mapping[str, Any], written: Collection[str]) -> str:
    """How a rule about two options is broken; empty if it is not. An option that is off counts as absent."""
    value = chosen[rule["option"]]
    if "only" in rule:
        return "" if _is(value, rule["only"]) else f"must be {_either(rule['only'])}"
    if "least" in rule:
        read = number("float", value)
        return "" if read is None or read >= rule["least"] else f"must be at least {rule['least']}"
    if "never" in rule:
        fits = _is(value, rule["value"]) if "value" in rule else value is not False
        return rule["never"] if fits else ""
    if not (_is(value, rule["value"]) if "value" in rule else value):
        return ""
    if other := rule.get("needs"):
        there, known = chosen.get(other), other not in written or other in chosen
        if known and not (_is(there, rule["being"]) if "being" in rule else there):
            return f"needs {other}" + (f" = {_either(rule['being'])}" if "being" in rule else "")
    return f"excludes {rule['excludes']}" if "excludes" in rule and chosen.get(rule["excludes"]) else ""


def _either(wanted: object) -> str:
    return " or ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)


def _is(value: object, wanted: object) -> bool:
    """Whether a value is the wanted one, or one of several; vLLM's names in capitals may be written small."""
    several = wanted if isinstance(wanted, list) else [wanted]
    return str(value).lower() in [str(one).lower() for one in several]


#: What a model must have for an option, in words -> whether it does.
_FEATURES: Mapping[str, Callable[[Architecture], bool]] = {
    "experts": lambda model: model.experts > 0,
    "an encoder": lambda model: bool(model.encoder),
    "layers that draft": lambda model: model.drafts,
    "quantised weights": lambda model: bool(model.quantization),
    "layers with a state": lambda model: any(cache.kind == "state" for cache in model.caches),
}


def check_planned(
    options: Mapping[str, Any], *, architecture: Architecture, memory: MemoryPlan, prefix: str, source: str
) -> tuple[Problem, ...]:
    """What of normalised options vLLM would refuse for this model, or beside what the plan and its defaults chose."""
    rules = _rules()
    problems: list[Problem] = []

    def refuse(key: str, limit: str, remedy: str) -> None:
        value = options.get(key)
        problems.append(Problem(key=f"{prefix}.{key}", value=value, limit=limit, source=source, remedy=remedy))

    for rule in rules["models"]:
        value = options.get(rule["option"])
        value = _map(value).get(rule["key"]) if "key" in rule else value
        if value is None or not (_is(value, rule["value"]) if "value" in rule else value):
            continue
        word, feature = next((word, rule[word]) for word in ("needs", "excludes") if word in rule)
        if _FEATURES[feature](architecture) == (word == "excludes"):
            refuse(rule["option"], f"{word} a model with {feature}", "delete the line")
    known = {**options, **{name: getattr(memory, field) for name, field in _DECIDED.items()}}
    for rule in rules["compared"]:
        where = rule.get("where", {})
        value = known.get(rule["option"])
        if value is None or not all(_is(known.get(key), wanted) for key, wanted in where.items()):
            continue
        word, other = next((word, rule[word]) for word in ("at-most", "at-least") if word in rule)
        limit = known.get(other, 0) if isinstance(other, str) else other
        if value > limit if word == "at-most" else value < limit:
            key = rule["option"] if rule["option"] in options else next(iter(where))
            shown = f"{other}, {limit}" if isinstance(other, str) else other
            refuse(key, f"needs {rule['option']} ({value}) to be {word.replace('-', ' ')} {shown}", rule["remedy"])
    kept, dtype = options.get("kv-cache-dtype"), options.get("dtype", "auto")
    own = architecture.dtype if dtype == "auto" else _DTYPES.get(dtype, dtype)
    if kept in _DTYPES.values() and kept != own:
        refuse("kv-cache-dtype", f"is neither {own}, as the model, nor 8 bits", "delete the line")
    asked = options.get("quantization")
    if asked and architecture.quantization:
        refuse("quantization", f"is a second one: the checkpoint is in {architecture.quantization}", "delete the line")
    elif asked and asked not in rules["at-load"]:
        refuse("quantization", "needs a checkpoint in that format", f"use one of {', '.join(rules['at-load'])}")
    return tuple(problems)


#: Short names of dtypes -> their own.
_DTYPES = {"half": "float16", "bfloat16": "bfloat16"}

#: Options that are decided by now, as given or by default -> field of the memory plan.
_DECIDED = {
    name.replace("_", "-"): name
    for name in (
        *("tensor_parallel_size", "pipeline_parallel_size"),
        *("max_model_len", "max_num_seqs", "max_num_batched_tokens"),
    )
}

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
    return wrong(name, _row(name), value)


def _nearest(name: str) -> str:
    head, dot, rest = name.partition(".")
    if dot and head in _arguments():
        return f"write it as a map, {head}: {{{rest}: ...}}"
    if name.removeprefix("no-") in _names():
        return f"write {name.removeprefix('no-')}: false"
    near = difflib.get_close_matches(name, _names(), n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else "delete the line; `vllm serve --help=all` lists the options"


def normalise(options: Mapping[str, object]) -> dict[str, Any]:
    """Options under their first names: numbers as numbers, a switch that was turned off by its other name as false."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        name = _names().get(_plain(key), _plain(key))
        row = _arguments().get(name, {"kind": "text"})
        if isinstance(value, bool) and row.get("off") == _plain(key):
            value = not value
        read = number(row["kind"], value) if row["kind"] in NUMBERS and not isinstance(value, list) else None
        found[name] = value if read is None else read
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
        if told := _arguments().get(name, {}).get("deprecated"):
            message = f"{name} is on its way out: vLLM says `{told}`"
            yield Finding(severity=Severity.NOTE, subject=subject, message=message, remedy="Take it out in good time.")
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
        return [word for item in items for word in _option(name, text(item))]
    if row.get("many") and isinstance(value, list | tuple):
        return _option(name, text(value[0])) if len(value) == 1 else [f"--{name}", *map(text, value)]
    return _option(name, text(value))


def _option(name: str, text: str) -> list[str]:
    """A value that begins with a dash would be taken for an option of its own."""
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def environment(*, startup: StartupBudget) -> dict[str, str]:
    """What the server reads from its environment. Offline: it asks Hugging Face for nothing, whatever the source."""
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
