"""Real `config.json` files of 86 Hugging Face models, as their repositories publish them, in `hf-configs.zip`."""

import json
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

ARCHIVE = Path(__file__).with_name("hf-configs.zip")


@cache
def _archive() -> zipfile.ZipFile:
    return zipfile.ZipFile(ARCHIVE)


def names() -> tuple[str, ...]:
    """Folder names, sorted: `organisation--model`."""
    return tuple(sorted({entry.split("/")[0] for entry in _archive().namelist()}))


def load(name: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The content of `config.json`, and of `hf_quant_config.json` where the repository has one."""
    return _read(f"{name}/config.json"), _read(f"{name}/hf_quant_config.json") or None


def _read(entry: str) -> dict[str, Any]:
    return json.loads(_archive().read(entry)) if entry in _archive().namelist() else {}
