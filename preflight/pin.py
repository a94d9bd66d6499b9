"""Fill what a preset leaves open: the model's commit, licence and gating, and the images' digests.

`python -m preflight.pin PRESET`, online.

Only values that are `null` are replaced, in the text of the files, so that comments and everything else stay.
Exit codes: 0 all is pinned, 1 something could not be looked up (what could be is written), 2 there is no such preset.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import urllib.parse
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from planning.catalogue import PRESETS, SEVERAL_NODES
from preflight.endpoints import HUB
from preflight.registry import digest
from preflight.web import LookupFailed, ask_json

_LICENCE = re.compile(r"[A-Za-z][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def main(argv: list[str] | None = None) -> int:
    """The command line; prints what it filled in, and why it could not."""
    parser = argparse.ArgumentParser(prog="python -m preflight.pin", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("preset", metavar="PRESET", help="a name of presets/models/")
    return pin(parser.parse_args(argv).preset)


def pin(preset: str, *, folder: Path = PRESETS, hub: str = HUB) -> int:
    """Fill what is null of the preset, and every image's digest; the exit code."""
    models = {path.stem: path for part in ("", SEVERAL_NODES) for path in (folder / "models" / part).glob("*.yaml")}
    if preset not in models:
        near = difflib.get_close_matches(preset, models, n=3, cutoff=0.3) or sorted(models)[:3]
        remedy = f"did you mean {' or '.join(near)}? `make presets` lists them"
        print(f"{preset or 'PRESET'}: is not a preset; {remedy}", file=sys.stderr)
        return 2
    images = folder / "images.yaml"
    failures = []
    for key, look_up in (("revision", commit), ("license", licence), ("gated", gating)):
        failures += _fill(models[preset], (key,), lambda row, find=look_up: find(row["model-id"], hub))
    for key in _read(images)["images"]:
        failures += _fill(images, ("images", key, "digest"), lambda row: digest(row["repository"], row["tag"]))
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


@cache
def _model(model_id: str, hub: str) -> Mapping[str, Any]:
    """What the Hub says about the head of a model's main branch, asked once. Raises LookupFailed.

    https://huggingface.co/docs/hub/api, `/api/models/{repo_id}/revision/{revision}`; open for gated models too.
    """
    url = f"{hub}/api/models/{urllib.parse.quote(model_id)}/revision/main"
    body = ask_json(url, what=model_id)
    return body if isinstance(body, Mapping) else {}


def commit(model_id: str, hub: str) -> str:
    """The commit at the head of a model's main branch. Raises LookupFailed."""
    found = _model(model_id, hub).get("sha")
    if not isinstance(found, str) or not _COMMIT.fullmatch(found):
        raise LookupFailed(f"{model_id}: {hub} answered without a commit; is the model still there?")
    return found


def licence(model_id: str, hub: str) -> str:
    """The licence of the model card's metadata, by its own name where it is none of the usual ones."""
    card = _model(model_id, hub).get("cardData")
    card = card if isinstance(card, Mapping) else {}
    named = card.get("license")
    found = card.get("license_name") or named if named in (None, "other") else named
    if not isinstance(found, str) or not _LICENCE.fullmatch(found):
        raise LookupFailed(f"{model_id}: its card names no licence; read the card, and write it there by hand")
    return found


def gating(model_id: str, hub: str) -> str:
    """`true` where files are read only by those who accepted something, automatically or by hand; else `false`."""
    found = _model(model_id, hub).get("gated")
    if found not in (False, "auto", "manual"):
        raise LookupFailed(f"{model_id}: {hub} does not say whether it is gated")
    return "true" if found else "false"


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def _fill(path: Path, keys: tuple[str, ...], look_up: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """Write the value for a key that is null; what failed. The mapping around the key is given to `look_up`."""
    row = _read(path)
    for key in keys[:-1]:
        row = row[key]
    if keys[-1] not in row:
        return []
    if row[keys[-1]] is not None:
        print(f"{path.name}: {'.'.join(keys)} is {row[keys[-1]]}")
        return []
    try:
        value = look_up(row)
    except LookupFailed as failure:
        return [f"{path.name}: {failure}; {'.'.join(keys)} stays null"]
    whole = path.with_name(f".{path.name}.new")
    whole.write_text(replaced(path.read_text("utf-8"), keys, value), "utf-8")
    whole.replace(path)  # never half a file
    print(f"{path.name}: {'.'.join(keys)} is now {value}")
    return []


def replaced(text: str, keys: tuple[str, ...], value: str) -> str:
    """YAML text with the null at `keys` replaced; a comment that only said so goes, all others stay.

    The position comes from the parser, so that the same key elsewhere is never touched.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in keys:
        node = next(child for name, child in node.value if name.value == key)
    if node.tag != "tag:yaml.org,2002:null":
        raise ValueError(f"{'.'.join(keys)} is not null")
    start, end = node.start_mark.index, node.end_mark.index
    space = "" if text[:start].endswith(" ") else " "
    line_end = text.find("\n", end) if "\n" in text[end:] else len(text)
    rest = re.sub(r"^\s*#[^\n]*make pin[^\n]*$", "", text[end:line_end])
    return text[:start] + space + value + rest + text[line_end:]


if __name__ == "__main__":
    sys.exit(main())
