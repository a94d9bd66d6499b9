"""Pinning against a Hub and a registry on this machine: what is filled in, what is left alone, what is said."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from preflight import pin

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "sha256:" + "ab" * 32
MODEL = """# The model.
model-id: Some/Model
revision: null # not pinned yet: make pin PRESET=some-model
license: null # not known yet: make pin PRESET=some-model
gated: null # not known yet: make pin PRESET=some-model
config: {revision: null}
"""
IMAGES = """# Images.
images:
  engine:
    repository: {host}/some/engine
    tag: v1
    digest: null
    source: the project # keep this
  plugin:
    repository: {host}/some/plugin
    tag: v2
    digest: sha256:{known}
"""


class Online(ThreadingHTTPServer):
    """A Hub and a registry; `broken` maps paths to the status they answer with instead."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.address = f"127.0.0.1:{self.server_port}"
        self.broken: dict[str, int] = {}
        self.model: dict[str, object] = {"sha": COMMIT, "gated": False, "cardData": {"license": "mit"}}
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        online = self.server
        assert isinstance(online, Online)
        path = self.path.partition("?")[0]
        online.asked.append(path)
        if path in online.broken:
            self._send(online.broken[path])
        elif path == "/api/models/Some/Model/revision/main":
            self._send(200, {"id": "Some/Model", **online.model})
        elif path == "/token" and "scope=repository" in self.path:
            self._send(200, {"token": "anonymous"})
        elif path.startswith("/v2/") and self.headers.get("Authorization") != "Bearer anonymous":
            realm = f'Bearer realm="http://{online.address}/token",service="here",scope="repository:x:pull"'
            self._send(401, headers={"WWW-Authenticate": realm})
        elif path == "/v2/some/engine/manifests/v1" and "image.index" in self.headers.get("Accept", ""):
            self._send(200, headers={"Docker-Content-Digest": DIGEST})
        else:
            self._send(404)

    do_HEAD = do_GET  # noqa: N815  the name that http.server looks for

    def _send(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if body is not None:
            self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's own name
        """Quiet."""


@pytest.fixture
def online() -> Iterator[Online]:
    server = Online()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path, online: Online) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/some-model.yaml").write_text(MODEL)
    (tmp_path / "images.yaml").write_text(IMAGES.format(host=online.address, known="cd" * 32))
    return tmp_path


def _pin(folder: Path, online: Online, preset: str = "some-model") -> int:
    pin._model.cache_clear()  # another server may have had the same port
    return pin.pin(preset, folder=folder, hub=f"http://{online.address}")


def test_every_null_is_filled_and_nothing_else_changes(folder: Path, online: Online) -> None:
    before = (folder / "images.yaml").read_text()
    assert _pin(folder, online) == 0
    assert (folder / "models/some-model.yaml").read_text() == (
        f"# The model.\nmodel-id: Some/Model\nrevision: {COMMIT}\n"
        "license: mit\ngated: false\nconfig: {revision: null}\n"
    ), "comments, order and the `revision` inside another map stay; only the comments that are no longer true go"
    assert online.asked.count("/api/models/Some/Model/revision/main") == 1, "one answer has all three"
    assert (folder / "images.yaml").read_text() == before.replace("digest: null", f"digest: {DIGEST}")


def test_a_second_run_asks_nobody_and_writes_nothing(folder: Path, online: Online) -> None:
    assert _pin(folder, online) == 0
    files = {path: (path.read_text(), path.stat().st_mtime_ns) for path in folder.rglob("*.yaml")}
    online.asked.clear()
    assert _pin(folder, online) == 0
    assert online.asked == []
    assert files == {path: (path.read_text(), path.stat().st_mtime_ns) for path in folder.rglob("*.yaml")}


@pytest.mark.parametrize(
    ("status", "words"), [(404, "does not know it"), (429, "too many requests"), (500, "HTTP 500"), (403, "refuses")]
)
def test_a_hub_that_does_not_answer_is_named_and_the_rest_is_still_filled(
    folder: Path, online: Online, capsys: pytest.CaptureFixture[str], status: int, words: str
) -> None:
    online.broken["/api/models/Some/Model/revision/main"] = status
    assert _pin(folder, online) == 1
    said = capsys.readouterr()
    assert words in said.err
    assert "Some/Model" in said.err
    assert (folder / "models/some-model.yaml").read_text() == MODEL, "an unknown value is never invented"
    assert DIGEST in (folder / "images.yaml").read_text()


def test_an_answer_without_anything_fills_nothing(folder: Path, online: Online) -> None:
    online.broken["/api/models/Some/Model/revision/main"] = 200  # empty
    assert _pin(folder, online) == 1
    assert (folder / "models/some-model.yaml").read_text() == MODEL


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ({"license": "apache-2.0"}, "license: apache-2.0\n"),
        ({"license": "other", "license_name": "modified-mit"}, "license: modified-mit\n"),
        ({"license": "other"}, "license: other\n"),
        ({"license": ["mit", "gpl"]}, "license: null #"),
        ({"license": "a: b\nrevision: x"}, "license: null #"),
        (None, "license: null #"),
    ],
)
def test_a_licence_is_the_cards_own_or_stays_unknown(folder: Path, online: Online, said: object, written: str) -> None:
    online.model["cardData"] = said
    assert _pin(folder, online) == ("null" in written)
    text = (folder / "models/some-model.yaml").read_text()
    assert written in text
    assert f"revision: {COMMIT}" in text, "what is known is written all the same"


@pytest.mark.parametrize(("said", "written"), [("auto", "true"), ("manual", "true"), (False, "false"), (None, "null")])
def test_gated_is_what_someone_must_accept(folder: Path, online: Online, said: object, written: str) -> None:
    online.model["gated"] = said
    assert _pin(folder, online) == (written == "null")
    assert f"gated: {written}" in (folder / "models/some-model.yaml").read_text()


def test_what_is_known_is_left_alone(folder: Path, online: Online) -> None:
    path = folder / "models/some-model.yaml"
    path.write_text(MODEL.replace("license: null", "license: mine").replace("gated: null", "gated: true"))
    assert _pin(folder, online) == 0
    data = yaml.safe_load(path.read_text())
    assert (data["license"], data["gated"]) == ("mine", True)


def test_a_model_that_needs_several_nodes_is_pinned_too(folder: Path, online: Online) -> None:
    (folder / "models/several-nodes").mkdir()
    (folder / "models/some-model.yaml").rename(folder / "models/several-nodes/some-model.yaml")
    assert _pin(folder, online) == 0
    assert COMMIT in (folder / "models/several-nodes/some-model.yaml").read_text()


def test_without_a_network_it_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images.yaml").write_text("images: {}\n")
    assert pin.pin("some-model", folder=folder, hub="http://127.0.0.1:1") == 1
    assert "cannot reach 127.0.0.1:1" in capsys.readouterr().err


def test_an_unknown_preset_is_wrong_input_and_the_known_ones_are_named(
    folder: Path, online: Online, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _pin(folder, online, "nothing") == 2
    assert "some-model" in capsys.readouterr().err
    assert online.asked == []


@pytest.mark.parametrize("written", ["null", "~", "", "null # why"])
def test_every_way_to_write_null_is_replaced(written: str) -> None:
    text = f"a:\n  digest: {written}\nb: 1\n"
    done = pin.replaced(text, ("a", "digest"), DIGEST)
    assert yaml.safe_load(done) == {"a": {"digest": DIGEST}, "b": 1}
    assert ("# why" in done) == ("# why" in written)


def test_a_value_is_never_overwritten() -> None:
    with pytest.raises(ValueError, match="not null"):
        pin.replaced("revision: abc\n", ("revision",), COMMIT)
