"""The upload into a container: nothing is a blob before it is whole and checked, and the marker comes last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.pod.fake_blob import FakeBlob
from tests.pod.fake_hub import COMMIT, MODEL, TOKEN, FakeHub, Fault
from tests.pod.test_download import FILES, ONE, PROGRAM, WANTED

TARGET = f"az://models/{MODEL}/{COMMIT}"
PREFIX = f"{MODEL}/{COMMIT}/"
MARKER = f"{PREFIX}.complete"


def environment(hub: FakeHub, store: FakeBlob, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "token").write_text(TOKEN)
    kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HOME": str(tmp_path),
        "AZURE_STORAGE_CONNECTION_STRING": store.connection,
    }


def upload(*, limit: float = 60) -> list[str]:
    words = [sys.executable, str(PROGRAM), "upload", MODEL, "--revision", COMMIT, "--to", TARGET]
    return [*words, "--give-up-after", str(limit), "--exclude", "original/*"]


def ready() -> list[str]:
    return [sys.executable, str(PROGRAM), "ready", TARGET, "--give-up-after", "5"]


def run(command: list[str], hub: FakeHub, store: FakeBlob, tmp_path: Path) -> tuple[int, list[str]]:
    """Exit code and log."""
    done = subprocess.run(
        command, env=environment(hub, store, tmp_path), capture_output=True, text=True, timeout=120, check=False
    )
    assert TOKEN not in done.stderr + done.stdout, "a log is read by many"
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.splitlines()


def there(store: FakeBlob) -> dict[str, bytes]:
    return {name.removeprefix(PREFIX): data for name, (data, _) in store.blobs.items() if name != MARKER}


def test_every_file_is_there_once_with_its_hash_and_the_marker_names_them(tmp_path: Path) -> None:
    with FakeHub(FILES, gated=True) as hub, FakeBlob() as store:
        code, log = run(upload(), hub, store, tmp_path)
        assert code == 0, log
        assert there(store) == WANTED
        manifest = json.loads(store.blobs[MARKER][0])
        assert {file["path"] for file in manifest["files"]} == set(WANTED)
        assert all(metadata["digest"] for name, (_, metadata) in store.blobs.items() if name != MARKER)
        assert hub.tokens_elsewhere == []
        assert run(ready(), hub, store, tmp_path)[0] == 0


def test_a_second_upload_sends_nothing_and_needs_no_hub(tmp_path: Path) -> None:
    with FakeBlob() as store:
        with FakeHub(FILES) as hub:
            assert run(upload(), hub, store, tmp_path)[0] == 0
        store.received.clear()
        code, log = run(upload(), hub, store, tmp_path)
        assert (code, len(log), dict(store.received)) == (0, 1, {}), "a Job that is made again ends in seconds"


def test_killed_it_leaves_no_half_blob_and_goes_on_with_the_files_that_are_missing(tmp_path: Path) -> None:
    with FakeHub(FILES, faults={ONE: [Fault(after=700_000, stalls=True)]}) as hub, FakeBlob() as store:
        killed = subprocess.Popen(upload(), env=environment(hub, store, tmp_path), stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while len(there(store)) < len(WANTED) - 1 and time.monotonic() < until:
            time.sleep(0.02)
        killed.kill()
        killed.wait()
        assert set(WANTED) - set(there(store)) == {ONE}, "it is still on its way"
        assert all(WANTED[name] == data for name, data in there(store).items())
        assert MARKER not in store.blobs
        code, log = run(ready(), hub, store, tmp_path)
        assert code == 1, "vLLM must not start on this"
        assert log[-1].startswith(f"weights: not uploaded: {TARGET} is not complete")
        assert run(upload(), hub, store, tmp_path)[0] == 0
        assert hub.sent["model-2.safetensors"] == 1_000_000, "what was there was not sent again"
        assert there(store) == WANTED


def test_a_cut_connection_is_taken_up_within_the_file(tmp_path: Path) -> None:
    with FakeHub(FILES, faults={ONE: [Fault(after=700_000), Fault(after=1)]}) as hub, FakeBlob() as store:
        code, log = run(upload(), hub, store, tmp_path)
        assert code == 0, log
        assert there(store) == WANTED
        assert hub.sent[ONE] == 3_000_000, "no byte twice"


def test_a_wrong_hash_never_becomes_a_blob(tmp_path: Path) -> None:
    with FakeHub(FILES, faults={ONE: [Fault(corrupt=True)] * 3}) as hub, FakeBlob() as store:
        code, log = run(upload(), hub, store, tmp_path)
        assert code == 1
        assert log[-1].startswith(f"weights: wrong hash: {ONE}")
        assert ONE not in there(store)
        assert MARKER not in store.blobs


def test_what_an_earlier_choice_of_files_left_is_removed(tmp_path: Path) -> None:
    with FakeHub(FILES) as hub, FakeBlob() as store:
        store.blobs[f"{PREFIX}old.safetensors"] = (b"x", {})
        store.blobs["maker/model/another-commit/config.json"] = (b"x", {})
        assert run(upload(), hub, store, tmp_path)[0] == 0
        assert f"{PREFIX}old.safetensors" not in store.blobs, "vLLM would read it"
        assert "maker/model/another-commit/config.json" in store.blobs, "rolling back needs no upload"


def test_a_blob_that_is_gone_makes_an_upload_incomplete(tmp_path: Path) -> None:
    with FakeHub(FILES) as hub, FakeBlob() as store:
        assert run(upload(), hub, store, tmp_path)[0] == 0
        del store.blobs[f"{PREFIX}config.json"]
        assert run(ready(), hub, store, tmp_path)[0] == 1
        assert run(upload(), hub, store, tmp_path)[0] == 0
        assert there(store) == WANTED


def test_a_role_that_is_not_known_yet_is_waited_for(tmp_path: Path) -> None:
    with FakeHub(FILES) as hub, FakeBlob() as store:
        store.refusals = [(403, "AuthorizationPermissionMismatch")]
        code, log = run(ready(), hub, store, tmp_path)
        assert code == 1
        assert "does not let this pod in (403, AuthorizationPermissionMismatch), maybe not yet" in log[-1]
