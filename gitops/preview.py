"""A preview's JSON, the Pulumi CLI's or the sandbox's, as what a reviewer has to know. Values are never shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from planning.diff_page import escaped
from planning.findings import without_tokens


class Op(StrEnum):
    """What happens to a resource, worst first."""

    REPLACE = "replace"
    DELETE = "delete"
    CREATE = "create"
    UPDATE = "update"
    SAME = "same"


#: The CLI's words (pulumi/pulumi, sdk/go/common/apitype/history.go); of several for one resource the worst counts.
OPS = {
    "replace": Op.REPLACE,
    "create-replacement": Op.REPLACE,
    "delete-replaced": Op.REPLACE,
    "import-replacement": Op.REPLACE,
    "read-replacement": Op.REPLACE,
    "delete": Op.DELETE,
    "discard": Op.DELETE,
    "create": Op.CREATE,
    "import": Op.CREATE,
    "update": Op.UPDATE,
}
#: The CLI's second error, which only follows from the first.
FOLLOWS = "an unhandled error occurred"
COMPONENTS = "aks-vllm:"
#: What an update may change and still be called one of workloads alone. The provider is how they are reached.
WORKLOADS = ("kubernetes:",)
NO_RESOURCES = (COMPONENTS, "pulumi:pulumi:Stack")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One resource. `changed` and `replaced_for` are paths of properties."""

    op: Op
    type: str
    name: str
    changed: tuple[str, ...] = ()
    replaced_for: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What an update would do. With problems it would not even begin."""

    steps: tuple[Step, ...]
    problems: tuple[str, ...] = ()

    def of(self, op: Op) -> tuple[Step, ...]:
        """Resources, without the components that only group them."""
        return tuple(step for step in self.steps if step.op is op and not step.type.startswith(NO_RESOURCES))

    @property
    def changes(self) -> tuple[Step, ...]:
        """Everything that is not left alone, worst first."""
        return tuple(step for op in Op if op is not Op.SAME for step in self.of(op))

    @property
    def workloads_only(self) -> bool:
        """Whether nothing but objects inside the cluster changes, so that the former revision can be put back."""
        return all(step.type.startswith(WORKLOADS) for step in self.changes)


def read(document: Mapping[str, Any]) -> Preview:
    """From `pulumi preview --json` or `python -m sandbox preview --format json`.

    The CLI prints old and new states of every resource, and the stack's configuration: only names and paths are kept.
    """
    problems = [
        without_tokens(str(diagnostic.get("message", "")).strip().removeprefix("error: "))
        for diagnostic in document.get("diagnostics") or ()
        if diagnostic.get("severity") == "error" and FOLLOWS not in str(diagnostic.get("message"))
    ]
    if "error" in document:
        problems.append(without_tokens(str(document["error"])))
    by_urn: dict[str, list[Mapping[str, Any]]] = {}
    for raw in document.get("steps") or document.get("resources") or ():
        by_urn.setdefault(raw["urn"], []).append(raw)
    steps = tuple(_step(urn, raws) for urn, raws in by_urn.items())
    return Preview(steps=steps, problems=tuple(dict.fromkeys(filter(None, problems))))


def _step(urn: str, raws: Sequence[Mapping[str, Any]]) -> Step:
    """One resource: the CLI tells a replacement in three steps."""
    _, _, types, name = urn.split("::", 3)
    changed = {path for raw in raws for key in ("diff", "detailedDiff", "diffReasons") for path in raw.get(key) or ()}
    changed = changed or {path for raw in raws for path in _inputs_that_differ(raw)}
    return Step(
        op=min((OPS.get(raw["op"], Op.SAME) for raw in raws), key=list(Op).index),
        type=types.rpartition("$")[2],
        name=name,
        changed=tuple(sorted(changed)),
        replaced_for=tuple(sorted({path for raw in raws for path in raw.get("replaceReasons") or ()})),
    )


def _inputs_that_differ(raw: Mapping[str, Any]) -> Iterator[str]:
    """Where the provider names no property. Two secrets look the same here."""
    old, new = ((raw.get(side) or {}).get("inputs") for side in ("oldState", "newState"))
    if old is not None and new is not None:
        yield from (key for key in {**old, **new} if old.get(key) != new.get(key))


WORDS = {Op.REPLACE: "replaced", Op.DELETE: "deleted", Op.CREATE: "created", Op.UPDATE: "updated in place"}
SIGNS = {Op.REPLACE: "🛑 ", Op.DELETE: "🛑 "}


def blocks(preview: Preview, title: str) -> list[str]:
    """Markdown, most important first: what is lost, then what is added or changed."""
    head = [f"### {title}", ""]
    if preview.problems:
        head += ["**The update would be refused:**", "", *(f"- {escaped(problem)}" for problem in preview.problems)]
        return ["\n".join(head)]
    counts = {op: len(preview.of(op)) for op in Op}
    if not preview.changes:
        return ["\n".join([*head, f"No resource changes ({counts[Op.SAME]} are as declared)."])]
    said = [f"{counts[op]} {WORDS[op]}" for op in WORDS if counts[op]]
    said[0] = f"**{said[0]}**" if counts[Op.REPLACE] or counts[Op.DELETE] else said[0]
    head += [f"{', '.join(said)}; {counts[Op.SAME]} are left alone."]
    for op in (Op.REPLACE, Op.DELETE):
        if counts[op]:
            head += ["", f"{SIGNS[op]}**{_cap(WORDS[op])}**", "", *_lines(preview.of(op))]
    found = ["\n".join(head)]
    for op in (Op.UPDATE, Op.CREATE):
        if counts[op]:
            lines = [f"<details><summary>{_cap(WORDS[op])}: {counts[op]}</summary>", "", *_lines(preview.of(op))]
            found.append("\n".join([*lines, "", "</details>"]))
    return found


def _lines(steps: Iterable[Step]) -> list[str]:
    lines = []
    for step in steps:
        because = f", because of {_paths(step.replaced_for)}" if step.replaced_for else ""
        changed = f": {_paths(step.changed)}" if step.changed and not step.replaced_for else ""
        lines.append(f"- `{step.type}` **{escaped(step.name)}**{because}{changed}")
    return lines


def _paths(paths: Iterable[str]) -> str:
    return ", ".join(f"`{path.replace('`', '')}`" for path in paths)


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]
