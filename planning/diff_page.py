"""A comparison for people (text, Markdown) and for programs (JSON): the same content. Decides nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from planning.diff import Kind, Line, ModelDiff, StackDiff

#: What the eye should find first in a comment.
MARKS = {Kind.IMPOSSIBLE: "🛑", Kind.CLUSTER: "🛑", Kind.STUCK: "🛑", Kind.NODES: "⚠️", Kind.OUTAGE: "⚠️"}


def as_json(diff: StackDiff) -> dict[str, Any]:
    """Every field, with the longest outage."""
    return {**dataclasses.asdict(diff), "outage_minutes": diff.outage_minutes}


def as_markdown(diff: StackDiff) -> str:
    """For a pull request's comment."""
    return "\n\n".join(markdown_blocks(diff)) + "\n"


def markdown_blocks(diff: StackDiff) -> list[str]:
    """The head, which has the answer, and a block for each model, table and list, most important first."""
    head = [f"## aks-vllm: stack {diff.stack}", "", f"{_cap(diff.before)} → {diff.after}.", ""]
    head += [f"- {_mark(diff, sentence)}{escaped(sentence)}" for sentence in diff.verdict]
    for title, problems in _problems(diff):
        head += ["", f"**{title}**", "", *(f"- {escaped(problem)}" for problem in problems)]
    blocks = ["\n".join(head)]
    for model in diff.models:
        lines = [f"### {_heading(model)}", *_table(model.lines)]
        if model.removed or model.added:
            options = [*(f"- {option}" for option in model.removed), *(f"+ {option}" for option in model.added)]
            lines += ["", "```diff", *(_fenced(option) for option in options), "```"]
        blocks.append("\n".join(lines))
    blocks += ["\n".join([f"### {title}", *_table(rows)]) for title, rows in _tables(diff)]
    blocks += [
        "\n".join([f"### {title}", "", *(f"- {escaped(text)}" for text in texts)]) for title, texts in _lists(diff)
    ]
    return blocks


def as_text(diff: StackDiff) -> str:
    """For a terminal; lines are as long as what they say."""
    lines = [f"aks-vllm · stack {diff.stack} · {diff.before} → {diff.after}", ""]
    lines += [f" {sentence}" for sentence in diff.verdict]
    for title, problems in _problems(diff):
        lines += ["", title, *(f"  {problem}" for problem in problems)]
    for model in diff.models:
        lines += ["", _heading(model), *_rows(model.lines)]
        lines += [f"  - {option}" for option in model.removed]
        lines += [f"  + {option}" for option in model.added]
    for title, rows in _tables(diff):
        lines += ["", title, *_rows(rows)]
    for title, texts in _lists(diff):
        lines += ["", title, *(f"  {text}" for text in texts)]
    return "\n".join(lines)


def _problems(diff: StackDiff) -> Iterator[tuple[str, tuple[str, ...]]]:
    for title, problems in (("Problems", diff.problems_after), ("Problems before", diff.problems_before)):
        if problems:
            yield title, problems


def _tables(diff: StackDiff) -> Iterator[tuple[str, tuple[Line, ...]]]:
    tables = (
        ("Nodes, price and exposure", diff.stack_lines),
        ("Settings that changed", diff.settings),
        ("Also different in the plan", diff.other),
    )
    yield from ((title, rows) for title, rows in tables if rows)


def _lists(diff: StackDiff) -> Iterator[tuple[str, list[str]]]:
    titles = {"gained": "Findings gained", "changed": "Findings with other figures", "lost": "Findings lost"}
    for change, title in titles.items():
        texts = [f"{f.severity}: {f.text}" for f in diff.findings if f.change == change]
        if texts:
            yield title, texts
    if diff.steps:
        yield "Still to do before an update", list(diff.steps)


def _heading(model: ModelDiff) -> str:
    return f"{model.name} (new)" if model.is_new else f"{model.name} (removed)" if model.is_gone else model.name


def _mark(diff: StackDiff, sentence: str) -> str:
    kinds = [each.kind for each in diff.consequences if each.sentence == sentence]
    return f"{MARKS[kinds[0]]} " if kinds and kinds[0] in MARKS else ""


def _table(rows: Sequence[Line]) -> list[str]:
    if not rows:
        return []
    lines = ["", "| | before | after |", "|---|---|---|"]
    for row in rows:
        after = f"{row.after} ({row.note})" if row.note else row.after
        lines.append(f"| {escaped(row.what)} | {escaped(row.before) or '–'} | {escaped(after) or '–'} |")
    return lines


def _fenced(text: str) -> str:
    """One line of a block, which nothing in it may end."""
    return text.replace("`" * 3, "'" * 3).replace("\n", "\\n")


def escaped(text: str) -> str:
    """Text of whoever wrote a stack file: a bar would end a cell, a tag would be drawn, a name after @ be called."""
    for char, written in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("@", "&#64;"), ("\n", " ")):
        text = text.replace(char, written)
    return text


def _rows(rows: Sequence[Line]) -> list[str]:
    width = max((len(row.what) for row in rows), default=0)
    return [
        f"  {row.what:<{width}}  {row.before or '–'} → {row.after or '–'}{f'  ({row.note})' if row.note else ''}"
        for row in rows
    ]


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]
