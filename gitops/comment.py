"""One comment for a stack: what changes for users, what an update would do, and what the checks say."""

from __future__ import annotations

from collections.abc import Sequence

#: GitHub refuses a body of more characters; Azure DevOps takes 150,000.
LIMIT = 65_536
FENCE = "`" * 3


def marker(stack: str) -> str:
    """The first line, invisible: by it the comment is found again and edited in place."""
    return f"<!-- aks-vllm stack {stack} -->"


def write(stack: str, blocks: Sequence[str], footer: str = "", limit: int = LIMIT) -> str:
    """The blocks under the marker, in their order; where the limit cuts one, what it leaves out is counted."""
    end = f"\n\n{footer}" if footer else ""
    room = limit - len(marker(stack)) - len(end) - 400  # 400: for the words on what was left out, and closing marks
    kept: list[str] = []
    for at, block in enumerate(blocks):
        if len(block) + 2 <= room:
            kept.append(block)
            room -= len(block) + 2
            continue
        lines, taken = block.splitlines(), 0
        while taken < len(lines) and len(lines[taken]) + 1 <= room:
            room -= len(lines[taken]) + 1
            taken += 1
        kept.append(_closed(lines[:taken]))
        left_out = len(lines) - taken + sum(len(rest.splitlines()) for rest in blocks[at + 1 :])
        kept.append(f"*{left_out} more lines do not fit into a comment; the job's log has all of them.*")
        break
    return "\n\n".join([marker(stack), *filter(None, kept)]) + end + "\n"


def _closed(lines: list[str]) -> str:
    """A cut block whose code ends and whose details close."""
    closed = list(lines)
    if sum(line.startswith(FENCE) for line in lines) % 2:
        closed.append(FENCE)
    if sum(line.startswith("<details>") for line in lines) > sum(line.startswith("</details>") for line in lines):
        closed += ["", "</details>"]
    return "\n".join(closed)
