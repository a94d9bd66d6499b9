"""Reading a stack's configuration: from the Pulumi CLI's bag of strings or from the stack file, the same object."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from planning.findings import Problem
from planning.settings import (
    LOCATION,
    NAMESPACE,
    BudgetSettings,
    EdgeSettings,
    ExistingClusterSettings,
    GpuNodes,
    KeyVaultSettings,
    MaintenanceSettings,
    ModelSettings,
    NetworkSettings,
    RegistrySettings,
    Settings,
    WeightSettings,
    WorkloadSettings,
)

STACKS = Path(__file__).parents[1] / "stacks"

#: What a stack may be called: https://www.pulumi.com/docs/iac/concepts/stacks/#create-a-stack
_STACK = re.compile(r"[A-Za-z0-9._-]{1,100}")
#: A Service is named after its model (RFC 1035 label); the ServiceAccount "default" exists in every namespace, and
#: `edge` is what stands before the models.
_MODEL_NAME = re.compile(r"(?!(?:default|edge)$)[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was read. With problems, `settings` holds the rest, for the plan to find its own; None: nothing is left."""

    stack: str
    source: str
    settings: Settings | None
    problems: tuple[Problem, ...]
    overrides: frozenset[str] = frozenset()  # keys that came with --set

    def source_of(self, key: str) -> str:
        """Where a key's value comes from: the stack file, or --set."""
        changed = any(_covers(override, key) or _covers(key, override) for override in self.overrides)
        return "--set" if changed else self.source


_FLAT = tuple(field.replace("_", "-") for field in ModelSettings.model_fields)
_OWN = tuple(field.replace("_", "-") for field in Settings.model_fields if field not in ("location", "flat"))
_KEYS = (*_OWN, *_FLAT)
#: Maps of the stack with keys of their own.
_GROUPS: dict[str, type[BaseModel]] = {
    "existing-cluster": ExistingClusterSettings,
    "gpu-nodes": GpuNodes,
    "network": NetworkSettings,
    "registry": RegistrySettings,
    "key-vault": KeyVaultSettings,
    "maintenance": MaintenanceSettings,
    "budget": BudgetSettings,
    "edge": EdgeSettings,
}
_WORKLOAD = tuple(field.replace("_", "-") for field in WorkloadSettings.model_fields)
_WEIGHTS = tuple(field.replace("_", "-") for field in WeightSettings.model_fields)
_MAPS = ("vllm", "tags", "workload", "weights", *_GROUPS)
#: Their text is taken as it is; every other value of a bag is JSON.
_TEXTS = (
    "preset",
    "vm-size",
    "revision",
    "environment",
    "kubernetes-version",
    "kubelogin",
    "api-server-access",
)
#: Always encrypted, and what to do where one is not. The program sees only whether there is one.
_SECRETS = {
    "hf-token": "revoke that token, as it was readable, and run `pulumi config set --secret {key} --stack {stack}`, "
    "which asks for a new one",
    "benchmark-key": "take that key out of edge.keys, as it was readable, and run `pulumi config set --secret {key} "
    "--stack {stack}` with another",
    "kubeconfig": "take back whatever signs in with it, as it was readable, and run `pulumi config set --secret {key} "
    "--stack {stack} < kubeconfig` with another",
}
_EXAMPLES = {
    alias.replace("_", "-"): field.examples[0]
    for model in (Settings, ModelSettings, WorkloadSettings, WeightSettings, *_GROUPS.values())
    for alias, field in model.model_fields.items()
    if field.examples
}
#: Names that mean something else in each group.
_AMBIGUOUS = ("id", "certificate", "hf_token")
_EXAMPLES |= {
    f"{group}.{name.replace('_', '-')}": kind.model_fields[name].examples[0]  # ty: ignore[not-subscriptable]
    for group, kind in _GROUPS.items()
    for name in _AMBIGUOUS
    if name in kind.model_fields
}


def from_pulumi(bag: Mapping[str, str], secret_keys: Collection[str], stack: str) -> Reading:
    """Settings from what the CLI hands to a program: full keys, strings, maps as JSON text. Never raises.

    The value of a secret is not looked at: callers may, and should, leave it out.
    """
    return _read(dict(bag), set(secret_keys), stack, f"stacks/Pulumi.{stack}.yaml", [], frozenset())


def from_file(stack: str, *, overrides: Sequence[str] = (), folder: Path = STACKS) -> Reading:
    """Settings from `Pulumi.<stack>.yaml` and `key=value` pairs that replace what stands there. Never raises."""
    source = f"{folder.name}/Pulumi.{stack}.yaml"
    if not _STACK.fullmatch(stack) or not (folder / f"Pulumi.{stack}.yaml").is_file():
        problem = Problem(
            key="stack",
            value=stack,
            limit="there is no such stack file",
            source=source,
            remedy=f"the stacks are {', '.join(stacks(folder)) or 'none yet'}",
        )
        return Reading(stack=stack, source=source, settings=None, problems=(problem,))
    config, problems = _load(folder / f"Pulumi.{stack}.yaml", source)
    if config is None:
        return Reading(stack=stack, source=source, settings=None, problems=tuple(problems))
    replaced = _override(config, overrides, problems)
    bag: dict[str, str] = {}
    secrets: set[str] = set()
    for key, value in config.items():
        if _holds_secret(value):
            secrets.add(key)
        bag[key] = _as_cli_text(value)
    return _read(bag, secrets, stack, source, problems, frozenset(replaced))


def config_of(file: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a stack file says, by full keys, with `key=value` pairs over it; empty where it is no YAML."""
    config = _load(file, file.name)[0] or {}
    _override(config, overrides, [])
    return config


def stacks(folder: Path = STACKS) -> tuple[str, ...]:
    """Names of the stacks that have a file."""
    return tuple(sorted(path.name[len("Pulumi.") : -len(".yaml")] for path in folder.glob("Pulumi.*.yaml")))


def schema() -> dict[str, Any]:
    """JSON Schema of a stack file, for editors."""
    whole = Settings.model_json_schema(by_alias=True)
    model = ModelSettings.model_json_schema(by_alias=True)
    properties = {key: value for key, value in whole["properties"].items() if key not in ("location", "flat")}
    for secret in _SECRETS:
        properties[secret] = {
            "description": properties[secret]["description"],
            "type": "object",
            "properties": {"secure": {"type": "string"}},
            "required": ["secure"],
            "additionalProperties": False,
        }
    config = {
        f"{NAMESPACE}:{key}": _also_quoted(value)
        for key, value in sorted({**properties, **model["properties"]}.items())
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A stack of aks-vllm",
        "type": "object",
        "properties": {
            "config": {
                "type": "object",
                "properties": {LOCATION: whole["properties"]["location"], **config},
                "patternProperties": {f"^(?!{NAMESPACE}:)[^:]+:": {}},
                "additionalProperties": False,
                "required": [LOCATION],
            }
        },
        "required": ["config"],
        "$defs": whole["$defs"],
    }


def _also_quoted(value: dict[str, Any]) -> dict[str, Any]:
    """`pulumi config set` writes numbers and booleans in quotes."""
    kinds = [part.get("type") for part in value.get("anyOf", [value])]
    quoted = [
        {"type": "string", "pattern": pattern}
        for kind, pattern in (("integer", "^[0-9]+$"), ("boolean", "^(true|false)$"))
        if kind in kinds
    ]
    if not quoted:
        return value
    own = {key: item for key, item in value.items() if key in ("title", "description", "default", "examples")}
    kept = value.get("anyOf") or [{key: item for key, item in value.items() if key not in own}]
    return {**own, "anyOf": [*kept, *quoted]}


# The stack file, and what --set makes of it.


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Reads scalars as the Pulumi CLI does (YAML 1.2: `yes` and dates are text), and notes keys given twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's own class attribute

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.twice: list[tuple[str, int]] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    self.twice.append((key.value, key.start_mark.line + 1))
                seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
# PyYAML's own reads 1e5, which YAML 1.2 knows as a number, only with a dot in it.
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(loader.construct_scalar(node)))


def _load(path: Path, source: str) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The `config:` of a stack file with full keys; None where it cannot be read at all."""

    def refused(value: object, limit: str, remedy: str) -> tuple[None, list[Problem]]:
        return None, [Problem(key="config", value=value, limit=limit, source=source, remedy=remedy)]

    try:
        loader = _Loader(path.read_text(encoding="utf-8-sig"))
        document = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        return refused("(the file)", f"is not YAML: {error.problem}{line}", "correct it there")
    except (OSError, UnicodeDecodeError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        return refused("(the file)", f"cannot be read: {type(error).__name__}", "make it a YAML file in UTF-8")
    config = (document if isinstance(document, dict) else {}).get("config") or {}
    if not isinstance(config, dict):
        return refused(type(config).__name__, "must be a map of keys to values", f"for example {LOCATION}: eastus")
    problems = [
        Problem(
            key=_full(key),
            value="(twice)",
            limit=f"is given a second time in line {line}",
            source=source,
            remedy="keep one of the two",
        )
        for key, line in loader.twice
    ]
    full: dict[str, Any] = {}
    for key, value in config.items():
        if _full(str(key)) in full:
            problems.append(_given_twice(_full(str(key)), "with and without its namespace", source))
        full[_full(str(key))] = value
    return full, problems


def _override(config: dict[str, Any], pairs: Iterable[str], problems: list[Problem]) -> set[str]:
    """Put each `key=value` into the config; the full dotted keys that were set."""
    done: set[str] = set()
    for pair in pairs:
        written, equals, text = pair.partition("=")
        path = _path(written.strip())
        key = ".".join(path)
        if not equals or not written.strip():
            problems.append(
                Problem(
                    key=written or "--set",
                    value=None,
                    limit="has no value",
                    source="--set",
                    remedy="write --set key=value, for example --set max-model-len=16384",
                )
            )
            continue
        if any(_covers(other, key) or _covers(key, other) for other in done):
            problems.append(_given_twice(key, "by --set", "--set"))
            continue
        done.add(key)
        value = _typed(text)
        into = config
        for part in path[:-1]:
            inner = _json_or_text(into[part]) if isinstance(into.get(part), str) else into.get(part)
            # A copy: an anchor may stand for several maps of the file.
            into[part] = dict(inner) if isinstance(inner, Mapping) and not _holds_secret(inner) else {}
            into = into[part]
        keep_text = len(path) == 1 and not isinstance(value, dict | list | str)
        into[path[-1]] = text.strip() if keep_text else value
    return done


def _path(written: str) -> list[str]:
    """`vllm.max-num-seqs` is two steps, `models.chat.vllm.x` four; whatever follows `vllm.` is one name."""
    full = _full(written)
    head, dot, rest = full.partition(".")
    if dot and head == f"{NAMESPACE}:models":
        name, dot, inner = rest.partition(".")
        return [head, name, *(_inner(inner) if dot else ())]
    if dot and head == f"{NAMESPACE}:edge":
        return [head, *(rest.split(".", 2) if rest.startswith("keys.") else [rest])]
    return [head, rest] if dot and head.removeprefix(f"{NAMESPACE}:") in _MAPS else [full]


def _inner(key: str) -> list[str]:
    head, dot, rest = key.partition(".")
    return [head, rest] if dot and head in _MAPS else [key]


def _full(key: str) -> str:
    """The CLI puts the project's name before a key that has no namespace."""
    return key if ":" in key else f"{NAMESPACE}:{key}"


def _typed(text: str) -> Any:
    """A value of --set, as YAML would read it; text that is no YAML stays text."""
    try:
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text


def _holds_secret(value: Any, depth: int = 0) -> bool:
    """Whether a value of the file is encrypted, wholly or somewhere inside: the CLI then treats all of it as secret."""
    if depth > 50:  # an alias that contains itself
        return False
    if isinstance(value, Mapping):
        if set(value) == {"secure"} and isinstance(value["secure"], str):
            return True
        return any(_holds_secret(item, depth + 1) for item in value.values())
    return isinstance(value, list) and any(_holds_secret(item, depth + 1) for item in value)


def _as_cli_text(value: Any) -> str:
    """A value of the file as the CLI hands it to the program."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return json.dumps(value, default=str)
    except (ValueError, TypeError, RecursionError):
        return "(cannot be written as JSON)"


# From the bag to Settings.


def _read(
    bag: dict[str, str],
    secrets: set[str],
    stack: str,
    source: str,
    problems: list[Problem],
    overrides: frozenset[str],
) -> Reading:
    origin = Reading(stack=stack, source=source, settings=None, problems=(), overrides=overrides)

    def refuse(key: str, value: object, limit: str, remedy: str) -> None:
        problems.append(Problem(key=key, value=value, limit=limit, source=origin.source_of(key), remedy=remedy))

    raw: dict[str, Any] = {}
    for written, text in bag.items():
        full = _full(written)
        key = full.removeprefix(f"{NAMESPACE}:")
        if full == LOCATION:
            raw["location"] = text
        elif key == full:
            continue  # another provider's
        elif key in _SECRETS:
            raw[key] = full in secrets
            if full not in secrets:
                refuse(full, "(hidden)", "must be encrypted", _SECRETS[key].format(key=full, stack=stack))
        elif key not in _KEYS:
            refuse(full, _unless_secret_like(key, text), "is not a key of this program", _nearest(key, _KEYS))
        elif full in secrets:
            remedy = f"only {' and '.join(_SECRETS)} are secrets; write it in clear"
            refuse(full, "(hidden)", "must not be encrypted", remedy)
        elif text == "":
            refuse(full, "", "is empty", "give it a value or remove the line")
        else:
            raw[key] = text if key in _TEXTS else _json_or_text(text)
    if "location" not in raw:
        raw["location"] = "unknown"
        refuse(LOCATION, None, "is required", f"`pulumi config set {LOCATION} eastus --stack {stack}`")

    flat = [key for key in _FLAT if key in raw]
    if "models" in raw and flat:
        limit = f"stands beside {', '.join(flat)}: the same thing in two places"
        refuse(f"{NAMESPACE}:models", "(a map)", limit, "move them into the map, or write one model without it")
        raw = {key: value for key, value in raw.items() if key not in flat}
    elif "models" not in raw:
        raw["models"] = {"model": {key: raw.pop(key) for key in flat}}
        raw["flat"] = True
    settings = _validated(raw, stack, refuse, _problem_keys(problems))
    unique = {(p.key, p.limit): p for p in problems}
    return replace(origin, settings=settings, problems=tuple(unique.values()))


def _problem_keys(problems: Iterable[Problem]) -> set[str]:
    return {problem.key for problem in problems}


def _validated(raw: dict[str, Any], stack: str, refuse: Any, told: set[str]) -> Settings | None:
    """Settings of whatever is valid; what is not is refused and left out."""
    _check_names(raw, refuse)
    for _ in range(3):  # leaving out one invalid value may uncover another, twice at most
        try:
            return Settings.model_validate(raw)
        except ValidationError as invalid:
            for error in invalid.errors(include_url=False, include_context=True):
                path = [part for part in error["loc"] if isinstance(part, str) and part != "[key]"]
                _refuse_error(error, _trim(path, raw), raw, stack, refuse, told)
                _drop(raw, path)
    return None


def _check_names(raw: dict[str, Any], refuse: Any) -> None:
    """Names of models, and keys that nobody knows at the levels below the top."""
    models = raw.get("models")
    if isinstance(models, dict):
        if not models:
            refuse(f"{NAMESPACE}:models", "{}", "holds no model", "for example {chat: {preset: qwen3-8b}}")
        for name in [name for name in models if not raw.get("flat") and not _MODEL_NAME.fullmatch(name)]:
            limit = "must be 1 to 63 lower-case letters, digits and hyphens, begin with a letter, and not be `default` "
            limit += "or `edge`"
            refuse(f"{NAMESPACE}:models.{name}", name, limit, "its Service and its ServiceAccount are named after it")
            del models[name]
        for name, model in models.items():
            if isinstance(model, dict):
                prefix = f"{NAMESPACE}:" if raw.get("flat") else f"{NAMESPACE}:models.{name}."
                _check_unknown(model, _FLAT, prefix.rstrip("."), refuse)
                if isinstance(model.get("workload"), dict):
                    _check_unknown(model["workload"], _WORKLOAD, f"{prefix}workload", refuse)
                if isinstance(model.get("weights"), dict):
                    _check_unknown(model["weights"], _WEIGHTS, f"{prefix}weights", refuse)
    for group, kind in _GROUPS.items():
        if isinstance(raw.get(group), dict):
            known = [field.replace("_", "-") for field in kind.model_fields]
            _check_unknown(raw[group], known, f"{NAMESPACE}:{group}", refuse)


def _check_unknown(values: dict[str, Any], known: Sequence[str], prefix: str, refuse: Any) -> None:
    for key in [key for key in values if key not in known]:
        value = _unless_secret_like(key, values.pop(key))
        remedy = "it belongs to the stack, beside `models`" if key in _OWN else _nearest(key, known)
        refuse(f"{prefix}.{key}", value, "is not a key of this program", remedy)


def _trim(path: list[str], raw: Mapping[str, Any]) -> list[str]:
    """The path as the stack file has it: without the entry that the flat keys are shorthand for."""
    return path[2:] if raw.get("flat") and path[:2] == ["models", "model"] else path


def _refuse_error(error: Any, path: list[str], raw: Mapping[str, Any], stack: str, refuse: Any, told: set[str]) -> None:
    name = path[-1] if path else "models"
    full = LOCATION if path == ["location"] else f"{NAMESPACE}:{'.'.join(path) or 'preset'}"
    if error["type"] == "missing":
        if name == "preset":
            from planning import catalogue

            command = f"`pulumi config set aks-vllm:preset {catalogue.preset_names()[0]} --stack {stack}`"
            known = f"one of {', '.join(catalogue.preset_names())}"
            if full not in told:
                refuse(full, None, "is required", f"{known}, for example {command}" if raw.get("flat") else known)
        else:
            refuse(full, None, "is required", _example(name))
        return
    if path[:2] == ["edge", "keys"] and name != "requests-per-minute" and len(path) > 2:
        _refuse_key(error, path, refuse)
        return
    qualified = ".".join(path[-2:])
    named = qualified if qualified in _EXAMPLES else name
    refuse(full, error["input"], _limit(error, named), _example(named))


def _refuse_key(error: Any, path: Sequence[str], refuse: Any) -> None:
    """Whatever stands where a hash or a name should may be an API key: it is not repeated."""
    remedy = """the key itself belongs to its owner alone: `printf %s "$KEY" | sha256sum` prints what to write"""
    key = f"{NAMESPACE}:{'.'.join(path)}"
    if "[key]" in error["loc"]:
        limit = "must be a name of 1 to 63 lower-case letters, digits and hyphens, and begin with a letter"
        refuse(f"{NAMESPACE}:edge.keys", "(hidden)", limit, "for example keys: {team-a: {sha256: ...}}")
    elif error["type"] == "extra_forbidden":
        refuse(f"{NAMESPACE}:edge.keys.{path[2]}", "(hidden)", "takes sha256 and requests-per-minute only", remedy)
    elif path[-1] == "sha256":
        limit = "must be the SHA-256 of an API key, 64 lower-case hexadecimal digits"
        refuse(key, "(hidden)", limit, f"replace what stood here if it was a key; {remedy}")
    else:
        refuse(key, "(hidden)", "must be a map with sha256", f"replace what stood here if it was a key; {remedy}")


def _limit(error: Any, name: str) -> str:
    """A validation error in the words of whoever writes stack files."""
    context = error.get("ctx", {})
    kind = error["type"]
    words = {
        "greater_than_equal": f"must be at least {context.get('ge')}",
        "greater_than": f"must be above {context.get('gt'):g}" if "gt" in context else "",
        "finite_number": "must be a finite number",
        "less_than_equal": f"must be at most {context.get('le')}",
        "literal_error": f"must be one of {context.get('expected', '').replace(' or ', ', ')}".replace("'", ""),
        "string_type": "must be text",
        "dict_type": "must be a map",
        "model_type": "must be a map",
        "model_attributes_type": "must be a map",
        "too_long": f"must have at most {context.get('max_length')} entries",
        "string_too_long": f"must have at most {context.get('max_length')} characters",
        "value_error": str(context.get("error", error["msg"])),
    }
    patterns = {
        "revision": "must be a commit, 40 hexadecimal digits",
        "location": "must be an Azure region's name, lower-case letters and digits",
        "storage-class": "must be the name of a StorageClass, lower-case letters, digits, hyphens and dots",
        "kubernetes-version": "must be a version from 1.34 on, as 1.36 or 1.36.2",
        "zones": "must be a list of 1, 2 and 3",
        "capacity-reservation-group": "must be the id of a capacity reservation group",
        "existing-cluster.id": "must be the id of an AKS cluster: `az aks show --query id` prints it",
        "registry.id": "must be the id of an Azure registry: `az acr show --query id` prints it",
        "key-vault.id": "must be the id of a vault: `az keyvault show --query id` prints it",
        "key-vault.hf-token": "must be a secret's name in the vault: 1 to 127 letters, digits and hyphens",
        "key-vault.certificate": "must be a certificate's name in the vault: 1 to 127 letters, digits and hyphens",
        "login-server": "must be a registry's host name, without https:// in front and without a path behind it",
        "namespace": "must be the name of a namespace: 1 to 63 lower-case letters, digits and hyphens",
        "start": "must be a time of day, as 02:00",
        "first-month": "must be a month, as 2026-12",
        "contacts": "must be a list of mail addresses",
    }
    if kind == "string_pattern_mismatch":
        return patterns.get(name, "must be 1 to 512 characters without < > % & \\ ? /")
    if kind.startswith("int"):
        return "must be a whole number"
    if kind.startswith("float"):
        return "must be a number"
    if kind.startswith("bool"):
        return "must be true or false"
    return words.get(kind, error["msg"])


def _drop(raw: dict[str, Any], path: Sequence[str]) -> None:
    """Leave an invalid value out, with what makes no sense without it."""
    if path[:1] == ["location"]:
        raw["location"] = "unknown"
    elif len(path) >= 3 and path[0] == "models" and path[2] != "preset":
        raw["models"].get(path[1], {}).pop(path[2], None)
    elif len(path) >= 2 and path[0] == "models":
        raw["models"].pop(path[1], None)
    elif len(path) >= 2 and path[0] == "edge" and isinstance(raw.get("edge"), dict):
        # The rest is looked at: a public edge without TLS is told whatever is wrong with a key.
        keys = raw["edge"].get("keys")
        if len(path) >= 3 and isinstance(keys, dict):
            keys.pop(path[2], None)
        else:
            raw["edge"].pop(path[1], None)
    elif path:
        raw.pop(path[0], None)


def _example(name: str) -> str:
    if name not in _EXAMPLES:
        return "correct it there"
    example = _EXAMPLES[name]
    written = LOCATION if name == "location" else name
    return f"for example {written}: {example if isinstance(example, str) else json.dumps(example)}"


def _nearest(key: str, known: Sequence[str]) -> str:
    if key == "location":
        return f"the region is {LOCATION}"
    near = difflib.get_close_matches(key.lower().replace("_", "-"), known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"the keys are {', '.join(sorted(known))}; options of vLLM go under vllm"


def _unless_secret_like(key: str, value: object) -> object:
    """The value of a misspelt hf-token is a token."""
    near = difflib.get_close_matches(key.lower().replace("_", "-"), _KEYS, n=1)
    secret = any(name in _SECRETS for name in near) or any(word in key.lower() for word in ("token", "kubeconfig"))
    return "(hidden)" if secret else value


def _given_twice(key: str, how: str, source: str) -> Problem:
    return Problem(key=key, value="(twice)", limit=f"is given twice {how}", source=source, remedy="keep one of the two")


def _json_or_text(text: str) -> Any:
    """JSON where it is JSON, else the text: validation says what is wrong with that."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _covers(setting: str, key: str) -> bool:
    """Whether a key is a setting or lies in it; vLLM takes underscores for dashes."""
    return f"{key}.".replace("_", "-").startswith(f"{setting}.".replace("_", "-"))
