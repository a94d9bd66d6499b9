"""Whether a value is one that an option of `vllm serve` takes, by the option's row of `arguments.json`.

A reason is a pair: what is wrong, and what to do; both are empty where nothing is.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

NUMBERS = ("int", "float", "size", "size-or-auto")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "size": "a whole number, or one such as 16k",
    "text": "text",
    "size-or-auto": "a whole number, or one such as 16k",
}
_SIZE = re.compile(r"[0-9]{1,18}(\.[0-9]{1,9})?[kKmMgG]?")
_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
_BOUNDS = {"above": "above", "least": "at least", "most": "at most", "below": "below"}
_CHOICES_SHOWN = 12


def wrong(name: str, row: Mapping[str, Any], value: object) -> tuple[str, str]:
    """What is wrong with an option's value."""
    if row.get("many") and isinstance(value, list):
        if not value:
            return "is an empty list", "give it a value or delete the line"
        if any(text(item).startswith("-") for item in value if len(value) > 1):
            return "has an entry that begins with a dash, which vLLM would take for an option", "write it differently"
        reasons = (_wrong_scalar(name, row, item) for item in value)
        return next((reason for reason in reasons if reason[0]), ("", ""))
    return _wrong_scalar(name, row, value)


def _wrong_scalar(name: str, row: Mapping[str, Any], value: object) -> tuple[str, str]:
    kind = row["kind"]
    if kind in ("switch", "flag"):
        return ("", "") if isinstance(value, bool) else ("must be true or false", f"write {name}: true")
    if kind in ("json", "map", "json-or-text"):
        return _wrong_json(name, row, value)
    if isinstance(value, bool | Mapping | list):
        return f"must be {_KINDS[kind]}", "correct it there"
    if kind in NUMBERS:
        found = number(kind, value)
        if name == "max-model-len" and value in ("auto", -1, "-1"):
            return "leaves the context to the start-up", "name a number, or leave it out: the plan takes the longest"
        return (f"must be {_KINDS[kind]}", "correct it there") if found is None else _outside(row, found)
    if value == "--":
        return "is what ends the options of a command line", "write a value"
    if "pattern" in row and not re.fullmatch(row["pattern"], str(value)):
        return f"must look like {row['example']}", "correct it there"
    choices = row.get("choices")
    if choices and "unless" not in row and _cased(row, str(value)) not in choices:
        return choose(str(value), choices)
    return "", ""


def _cased(row: Mapping[str, Any], value: str) -> str:
    """As the choices are written, where vLLM does not mind."""
    return value.upper() if row.get("caseless") else value


def choose(value: str, choices: Sequence[str]) -> tuple[str, str]:
    """A short list of choices is shown whole, of a long one what looks like the value."""
    near = [choice for choice in choices if choice.startswith(value)] if len(value) > 2 else []
    near = near or difflib.get_close_matches(value, choices)
    meant = f"did you mean {' or '.join(near)}?" if near else ""
    if len(choices) > _CHOICES_SHOWN:
        return f"is none of the {len(choices)} values it takes", meant or f"the choices are {', '.join(choices)}"
    return f"must be one of {', '.join(choices)}", meant or "choose one of them"


def number(kind: str, value: object) -> int | float | None:
    """The value as vLLM reads it; None if it cannot."""
    if kind == "float":
        try:
            return float(str(value))
        except ValueError:
            return None
    written = str(value)
    if kind == "int":
        return int(written) if re.fullmatch(r"-?[0-9]{1,18}", written) else None
    if not _SIZE.fullmatch(written):
        return None
    unit = _UNITS.get(written[-1])
    if unit is None:
        return int(written) if written.isdigit() else None
    # vLLM: a fraction only with a decimal unit ("1.5k"), never with a binary one ("1.5K").
    whole = float(written[:-1]) * unit
    return round(whole) if unit % 10 == 0 or "." not in written else None


def _outside(row: Mapping[str, Any], found: float) -> tuple[str, str]:
    """What is wrong with a number's size."""
    if not math.isfinite(found):
        return "must be a finite number", "correct it there"
    inside = row.get("least", found) <= found <= row.get("most", found)
    if inside and row.get("above", -math.inf) < found < row.get("below", math.inf):
        return "", ""
    bounds = [f"{words} {row[key]:g}" for key, words in _BOUNDS.items() if key in row]
    return f"must be {' and '.join(bounds)}", "correct it there, or leave it out for vLLM's own default"


def _wrong_json(name: str, row: Mapping[str, Any], value: object) -> tuple[str, str]:
    """vLLM takes JSON; a map or a list of the stack file is written as such."""
    kind = row["kind"]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            if kind == "json-or-text":
                return "", ""
    if not isinstance(value, Mapping) and (kind == "map" or not isinstance(value, list)):
        limit = "must be a map or its JSON text" if kind == "map" else "must be a map, a list or JSON text"
        return limit, f"for example {name}: {{key: value}}"
    return _wrong_keys(name, row, value) if isinstance(value, Mapping) and "keys" in row else ("", "")


def _wrong_keys(name: str, row: Mapping[str, Any], value: Mapping[Any, Any]) -> tuple[str, str]:
    """What is wrong inside a map whose keys vLLM knows."""
    for key, item in value.items():
        known = row["keys"].get(key)
        if known is None:
            near = difflib.get_close_matches(str(key), row["keys"], n=1)
            return f"has no key {key}", f"did you mean {near[0]}?" if near else f"its keys are {', '.join(row['keys'])}"
        limit, remedy = ("", "") if known["kind"] == "any" or item is None else _wrong_scalar(key, known, item)
        if limit:
            return f"{key} in it {limit}", remedy
    missing = [key for key in row.get("required", ()) if key not in value]
    return (f"lacks {', '.join(missing)}", "add it") if missing else ("", "")


def text(value: Any) -> str:
    """A value as a word of the command line."""
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping | list | tuple | bool) else str(value)
