"""What the installed azure-native SDK says about a resource type: property names, types, required values, outputs.

Read from the SDK's classes (`AgentPoolArgs`, `AgentPool`, ...), so that the simulated Azure is exactly as strict as the
SDK version in use, and only modules that are used are imported (`azure_native.network` alone takes 0.8 s).
"""

from __future__ import annotations

import collections.abc
import difflib
import importlib
import inspect
import threading
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

from pulumi import Output, _types

from sandbox.values import UNKNOWN, Secret, Value, show_path

Hint = Any
"""A type annotation of the SDK, with Input, Output and Optional around it."""

Problem = tuple[str, str]
"""Property path and what is wrong with it."""

_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class ResourceSchema:
    """One resource type of the SDK."""

    inputs: type  # its Args class
    outputs: Mapping[str, Hint]  # top-level output properties

    def problems(self, inputs: Mapping[str, Value], more_choices: Mapping[str, list[str]]) -> list[Problem]:
        """Unknown names, missing required values and wrong types, at any depth.

        `more_choices` adds values that Azure takes and the SDK's enumeration of that name does not list.
        """
        return list(_object_problems(dict(inputs), self.inputs, (), more_choices))

    def takes(self, name: str) -> bool:
        """Whether the program may send a top-level property of this name."""
        return name in _fields(self.inputs)

    def only_inputs(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """The part of what Azure returned that the program may also send."""
        return _only_inputs(dict(values), self.inputs)

    def preview_outputs(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Inputs echoed, and every other output unknown, as the azure-native provider answers in a preview."""
        return {name: _preview(inputs.get(name), hint) for name, hint in self.outputs.items()}


#: The SDK loads its modules when they are first looked at, and two threads that look would find one half loaded.
_LOADING = threading.Lock()


def schema(token: str) -> ResourceSchema | None:
    """The schema of a token such as `azure-native:containerservice:AgentPool`; None if the SDK has no such type."""
    with _LOADING:
        return _schema(token)


@cache
def _schema(token: str) -> ResourceSchema | None:
    _, module_name, name = token.split(":")
    try:
        module = importlib.import_module(f"pulumi_azure_native.{module_name}")
        resource = getattr(module, name)
        # Where a nested type has the resource's name, the resource's own arguments are called InitArgs.
        inputs = getattr(module, f"{name}InitArgs", None) or getattr(module, f"{name}Args")
    except (ImportError, AttributeError):
        return None
    return ResourceSchema(inputs=inputs, outputs=_types.resource_types(resource))


@cache
def _fields(cls: type) -> Mapping[str, Hint]:
    return _types.input_type_types(cls) if _types.is_input_type(cls) else _types.output_type_types(cls)


@cache
def _required(cls: type) -> frozenset[str]:
    to_wire = _types.input_type_py_to_pulumi_names(cls)
    parameters = inspect.signature(cls.__init__).parameters.values()
    return frozenset(to_wire[p.name] for p in parameters if p.default is p.empty and p.name in to_wire)


def _bare(hint: Hint) -> list[Hint]:
    """The alternatives of a hint, without None, Awaitable and Output."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [bare for part in typing.get_args(hint) for bare in _bare(part)]
    if hint is type(None) or typing.get_origin(hint) in (collections.abc.Awaitable, Output):
        return []
    return [hint]


def _object_problems(value: Value, cls: type, path: tuple, choices: Mapping[str, list[str]]) -> Iterator[Problem]:
    if isinstance(value, Secret):
        value = value.value
    if value is UNKNOWN:
        return
    if not isinstance(value, dict):
        yield show_path(path), f"must be an object, not {value!r}"
        return
    fields = _fields(cls)
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            yield show_path((*path, name)), "is not a property" + (f"; did you mean {near[0]}?" if near else "")
    for name in sorted(_required(cls)):
        if value.get(name) is None:
            yield show_path((*path, name)), "is required"
    for name, item in value.items():
        if name in fields and item is not None:
            yield from _problems(item, fields[name], (*path, name), choices)


def _problems(value: Value, hint: Hint, path: tuple, choices: Mapping[str, list[str]]) -> Iterator[Problem]:
    if isinstance(value, Secret):
        value = value.value
    if value is UNKNOWN:
        return
    alternatives = _bare(hint)
    enums = [a for a in alternatives if isinstance(a, type) and issubclass(a, Enum)]
    if enums:
        allowed = [str(member.value) for enum in enums for member in enum]
        allowed += [choice for enum in enums for choice in choices.get(enum.__name__, [])]
        if value not in allowed:
            yield show_path(path), f"is {value!r}; Azure knows {', '.join(allowed)}"
        return
    if not alternatives:
        return
    kind = alternatives[0]
    origin = typing.get_origin(kind)
    if isinstance(kind, type) and _types.is_input_type(kind):
        yield from _object_problems(value, kind, path, choices)
    elif origin is collections.abc.Sequence:
        if not isinstance(value, list):
            yield show_path(path), f"must be a list, not {value!r}"
            return
        for index, item in enumerate(value):
            yield from _problems(item, typing.get_args(kind)[0], (*path, index), choices)
    elif origin is collections.abc.Mapping:
        if not isinstance(value, dict):
            yield show_path(path), f"must be a map, not {value!r}"
            return
        for key, item in value.items():
            yield from _problems(item, typing.get_args(kind)[1], (*path, key), choices)
    elif kind in _NAMES and not _is_a(value, kind):
        yield show_path(path), f"must be {_NAMES[kind]}, not {value!r}"


def _is_a(value: Value, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _only_inputs(value: Value, hint: Hint) -> Value:
    alternatives = _bare(hint)
    kind = alternatives[0] if alternatives else None
    if isinstance(kind, type) and _types.is_input_type(kind) and isinstance(value, dict):
        fields = _fields(kind)
        return {name: _only_inputs(item, fields[name]) for name, item in value.items() if name in fields}
    if typing.get_origin(kind) is collections.abc.Sequence and isinstance(value, list):
        return [_only_inputs(item, typing.get_args(kind)[0]) for item in value]
    if typing.get_origin(kind) is collections.abc.Sequence and isinstance(value, dict):
        return list(value)  # userAssignedIdentities: a list goes in, a mapping by id comes out
    if typing.get_origin(kind) is collections.abc.Mapping and isinstance(value, dict):
        return {key: _only_inputs(item, typing.get_args(kind)[1]) for key, item in value.items()}
    return value


def _preview(value: Value, hint: Hint) -> Value:
    if value is None:
        return UNKNOWN
    if isinstance(value, Secret):
        return Secret(_preview(value.value, hint))
    alternatives = _bare(hint)
    kind = alternatives[0] if alternatives else None
    origin = typing.get_origin(kind)
    if isinstance(kind, type) and _types.is_output_type(kind) and isinstance(value, dict):
        return {name: _preview(value.get(name), sub) for name, sub in _fields(kind).items()}
    if origin is collections.abc.Sequence and isinstance(value, list):
        return [_preview(item, typing.get_args(kind)[0]) for item in value]
    if origin is collections.abc.Mapping and isinstance(value, list):
        return UNKNOWN
    return value
