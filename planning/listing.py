"""The models there are presets for, as a table: for a terminal, as Markdown (docs/models.md) and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from planning import catalogue
from planning.catalogue import Preset
from planning.memory import EngineOptions
from planning.parallelism import choose_layout

GIB = 1 << 30

INTRODUCTION = """# Models

Made by `python -m planning presets --format markdown`; [change-the-model.md](change-the-model.md) tells how to serve
another one.

The VM size is what a stack gets that names none: the cheapest of known price that holds eight requests of 32,768 tokens
(or of the whole context where that is shorter), else the cheapest that holds one of them, else one without a known
price. The layout is the default one there: replicas × tensor parallel size (TP) × pipeline parallel size (PP). The
price is the list price of the whole VM in the cheapest region known, in US dollars. What is *unknown* of licence and
gating, `make pin PRESET=name` asks Hugging Face for. NVFP4 weights are calculated in 16 bits: these GPUs have no units
for four."""


def rows() -> list[dict[str, Any]]:
    """What a choice needs, a row for each model, by maker, then name; where several nodes are needed, no layout."""
    names = (*catalogue.preset_names(), *catalogue.several_nodes_names())
    presets = sorted(map(catalogue.preset, names), key=lambda preset: (preset.maker.lower(), preset.name))
    return [_row(preset) for preset in presets]


def _row(preset: Preset) -> dict[str, Any]:
    shape = preset.architecture
    row: dict[str, Any] = {
        "name": preset.name,
        "model_id": preset.model_id,
        "maker": preset.maker,
        "revision": preset.revision,
        "license": preset.license,
        "gated": preset.gated,
        "unknown": list(preset.unknown),
        "parameters": shape.parameters,
        "dtype": shape.dtype,
        "quantization": shape.quantization or None,
        "weights_gib": round(shape.checkpoint_bytes / GIB, 2),
        "native_context": shape.native_context,
        "chat": preset.chat,
        "tool_call_parser": preset.tool_call_parser,
        "reasoning_parser": preset.reasoning_parser,
        "needs_several_nodes": preset.needs_several_nodes,
    }
    if preset.needs_several_nodes:
        return row
    vm = catalogue.vm_size(preset.default_vm_size)
    layout, memory = choose_layout(
        shape, vm, replicas=None, tensor_parallel_size=None, pipeline_parallel_size=None, options=EngineOptions()
    )
    return row | {
        "default_vm_size": vm.name,
        "default_tensor_parallel_size": layout.tensor_parallel_size,
        "default_pipeline_parallel_size": layout.pipeline_parallel_size,
        "default_replicas": layout.replicas,
        "default_max_model_len": memory.max_model_len,
        "price_per_hour": vm.cheapest_price,
    }


def _by_maker(chosen: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, list[Mapping[str, Any]]]]:
    return ((maker, list(group)) for maker, group in groupby(chosen, key=lambda row: row["maker"]))


def _billions(row: Mapping[str, Any]) -> str:
    return f"{row['parameters'] / 1e9:,.1f} B"


def _context(row: Mapping[str, Any]) -> str:
    """The context of the default layout, and the model's own where that is longer."""
    own, here = row["native_context"], row.get("default_max_model_len", row["native_context"])
    return f"{own:,}" if here == own else f"{here:,} of {own:,}"


def _layout(row: Mapping[str, Any]) -> str:
    stages = row["default_pipeline_parallel_size"]
    return f"{row['default_replicas']} × TP{row['default_tensor_parallel_size']}" + f" × PP{stages}" * (stages > 1)


def _price(row: Mapping[str, Any]) -> str:
    return "not known" if row["price_per_hour"] is None else f"{row['price_per_hour']:,.2f}"


def as_text(found: list[dict[str, Any]], width: int, color: bool) -> str:
    """A table for a terminal of so many columns; where it is narrow, the licence is cut, then left out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    served = [row for row in found if not row["needs_several_nodes"]]
    lines = {row["name"]: _line(row) for row in served}
    widths = {
        title: max(len(title), *(len(line[title]) for line in lines.values())) for title in lines[served[0]["name"]]
    }
    room = width - sum(widths.values()) - len(widths) + 1 + widths["licence"]
    titles = [title for title in widths if title != "licence" or room >= LICENCE_MIN]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for title in titles:
        right = title in ("size", "GiB", "context", "$/hour")
        wide = min(widths[title], room) if title == "licence" else widths[title]
        table.add_column(title, justify="right" if right else "left", no_wrap=True, min_width=wide, max_width=wide)
    for maker, group in _by_maker(served):
        table.add_row(Text(maker, style="bold cyan", overflow="ignore"))
        for row in group:
            table.add_row(*(lines[row["name"]][title] for title in titles))
    system = "standard" if color else None
    console = Console(width=width, force_terminal=color, color_system=system, highlight=False, emoji=False)
    several = ", ".join(f"{row['name']} ({row['weights_gib']:,.0f} GiB)" for row in found if row["needs_several_nodes"])
    with console.capture() as captured:
        console.print(table)
        console.print(
            f"\n{len(served)} models. Size in parameters, GiB of weights, context in 1,024 tokens (* less than the "
            "model's own: no more fit), price of the whole VM in the cheapest region known. ? and -: not known.\n"
            f"Known, but no VM size holds them: {several or 'none'}."
        )
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


LICENCE_MIN = 8  # columns; with fewer, nobody can read it


def _line(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of the terminal's table, by its titles."""
    shorter = "*" if row["default_max_model_len"] < row["native_context"] else ""
    return {
        "model": f" {row['name']}",
        "size": f"{row['parameters'] / 1e9:,.{0 if row['parameters'] > 1e11 else 1}f} B",
        "GiB": f"{row['weights_gib']:,.0f}",
        "context": f"{row['default_max_model_len'] // 1024:,}k{shorter}",
        "licence": "?" if row["license"] == "unknown" else row["license"],
        "gated": "?" if "whether it is gated" in row["unknown"] else "yes" if row["gated"] else "no",
        "VM size": row["default_vm_size"].removeprefix("Standard_"),
        "layout": _layout(row),
        "$/hour": "-" if row["price_per_hour"] is None else _price(row),
    }


def as_markdown(found: list[dict[str, Any]]) -> str:
    """The whole page docs/models.md."""
    parts = [INTRODUCTION]
    served = [row for row in found if not row["needs_several_nodes"]]
    for maker, group in _by_maker(served):
        parts += [
            f"\n## {maker}\n",
            "| preset | parameters | weights, GiB | format | context, tokens | licence | tools, reasoning | VM size | "
            "layout | $/hour |",
            "|---|--:|--:|---|--:|---|---|---|---|--:|",
        ]
        parts += ["| " + " | ".join(_cells(row)) + " |" for row in group]
    parts += [
        "\n## Known, but no VM size holds them\n",
        "A replica that spans nodes is not built yet; a stack that names one of these is refused.\n",
        "| preset | parameters | weights, GiB | format | context, tokens | licence |",
        "|---|--:|--:|---|--:|---|",
    ]
    parts += ["| " + " | ".join(_cells(row)[:6]) + " |" for row in found if row["needs_several_nodes"]]
    return "\n".join(parts)


def _cells(row: Mapping[str, Any]) -> list[str]:
    unknown = " ".join(row["unknown"])
    licence = "*unknown*" if "licence" in unknown else row["license"]
    gating = ", *gating unknown*" if "gated" in unknown else ", gated" if row["gated"] else ""
    parsers = f"{row['tool_call_parser'] or '-'}, {row['reasoning_parser'] or '-'}" if row["chat"] else "base model"
    cells = [
        f"[{row['name']}](https://huggingface.co/{row['model_id']})",
        _billions(row),
        f"{row['weights_gib']:,.1f}",
        row["quantization"] or row["dtype"],
        _context(row),
        licence + gating,
        parsers,
    ]
    if row["needs_several_nodes"]:
        return cells
    return [*cells, row["default_vm_size"], _layout(row), _price(row)]
