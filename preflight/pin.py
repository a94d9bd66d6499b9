"""Fill what a preset leaves open: the model's commit, licence and gating, and the images' digests.

`python -m preflight.pin PRESET`, online.

Only values that are `null` are replaced, in the text of the files, so that comments and everything else stay.
Exit codes: 0 all is pinned, 1 something could not be looked up (what could be is written), 2 there is no such preset.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from planning.catalogue import PRESETS, SEVERAL_NODES

#: Where the Hub is; the variable is huggingface_hub's own, for mirrors.
HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
#: A repository without a host is Docker's: https://docs.docker.com/reference/cli/docker/image/pull/
DOCKER_HUB = "registry-1.docker.io"
TIMEOUT_SECONDS = 20

#: Lists of platforms first: their digest is right on every node. https://github.com/opencontainers/image-spec
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_LICENCE = re.compile(r"[A-Za-z][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class LookupFailed(Exception):  # noqa: N818  it says what happened
    """Something could not be found out; the text says what, where and why."""


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
    url = f"{hub.rstrip('/')}/api/models/{urllib.parse.quote(model_id)}/revision/main"
    body, _ = _get(url, what=model_id)
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


def digest(repository: str, tag: str) -> str:
    """The digest behind a tag, by the registry's HTTP API. Raises LookupFailed.

    https://github.com/opencontainers/distribution-spec, with the anonymous token that public registries hand out.
    """
    host, slash, name = repository.partition("/")
    if not slash or not re.search(r"[.:]|^localhost$", host):
        host, name = DOCKER_HUB, repository if slash else f"library/{repository}"
    scheme = "http" if re.match(r"(localhost|127\.0\.0\.1)(:|$)", host) else "https"
    url = f"{scheme}://{host}/v2/{name}/manifests/{tag}"
    what = f"the digest of {repository}:{tag}"
    accept = {"Accept": ", ".join(MANIFESTS)}
    try:
        _, headers = _get(url, what=what, method="HEAD", headers=accept)
    except _Unauthorised as refused:
        _, headers = _get(url, what=what, method="HEAD", headers=accept | _token(refused.challenge, what))
    found = headers.get("Docker-Content-Digest", "")
    if not _DIGEST.fullmatch(found):
        raise LookupFailed(f"{what}: {host} answered without one")
    return found


class _Unauthorised(LookupFailed):
    """401, with the challenge that says where to get a token."""

    def __init__(self, text: str, challenge: str) -> None:
        super().__init__(text)
        self.challenge = challenge


def _token(challenge: str, what: str) -> dict[str, str]:
    """The header that answers `Bearer realm="...",service="...",scope="..."`."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = fields.pop("realm", "")
    if not challenge.lower().startswith("bearer ") or not realm.startswith(("https://", "http://127.0.0.1:")):
        raise LookupFailed(f"{what}: the registry wants a sign-in that this command does not have")
    body, _ = _get(f"{realm}?{urllib.parse.urlencode(fields)}", what=what)
    token = (body.get("token") or body.get("access_token")) if isinstance(body, Mapping) else None
    if not isinstance(token, str):
        raise LookupFailed(f"{what}: {realm} gave no token")
    return {"Authorization": f"Bearer {token}"}


def _get(
    url: str, *, what: str, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[Any, Mapping[str, str]]:
    """The JSON body (None without one) and the headers. Raises LookupFailed with the reason in words."""
    request = urllib.request.Request(  # noqa: S310  https, or http to this machine: both callers see to it
        url, method=method, headers={"User-Agent": "aks-vllm-pin", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310  the same request
            text = answer.read(1 << 20)
            return (json.loads(text) if text else None), answer.headers
    except urllib.error.HTTPError as error:
        reason = {
            401: "wants a sign-in",
            403: "refuses",
            404: "does not know it",
            429: "has had too many requests from this address; wait some minutes",
        }.get(error.code, "failed")
        text = f"{what}: {urllib.parse.urlsplit(url).netloc} {reason} (HTTP {error.code})"
        if error.code == 401:
            raise _Unauthorised(text, error.headers.get("WWW-Authenticate", "")) from None
        raise LookupFailed(text) from None
    except ValueError:
        raise LookupFailed(f"{what}: {url} did not answer with JSON") from None
    except OSError as error:
        why = getattr(error, "reason", error)
        raise LookupFailed(f"{what}: cannot reach {urllib.parse.urlsplit(url).netloc}: {why}") from None


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
