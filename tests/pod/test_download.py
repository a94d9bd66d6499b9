"""The download against a Hub that cuts, throttles, refuses and lies: whole and checked, or not there at all."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pod.fake_hub import COMMIT, MODEL, TOKEN, FakeHub, Fault

PROGRAM = Path(__file__).parents[2] / "pod" / "weights.py"
MARKER = ".complete"

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "empty.txt": b"",
    "model-1.safetensors": random.Random(1).randbytes(3_000_000),  # noqa: S311
    "model-2.safetensors": random.Random(2).randbytes(1_000_000),  # noqa: S311
    "original/consolidated.pth": b"a second copy" * 10_000,
}
WANTED = {path: data for path, data in FILES.items() if not path.startswith("original/")}
ONE = "model-1.safetensors"


def command(target: Path, revision: str = COMMIT, limit: float = 60) -> list[str]:
    words = [sys.executable, str(PROGRAM), "download", MODEL, "--revision", revision, "--to", str(target)]
    return [*words, "--give-up-after", str(limit), "--exclude", "original/*"]


def environment(hub: FakeHub, tmp_path: Path, token: str = "") -> dict[str, str]:
    file = tmp_path / "token"
    if token:
        file.write_text(token)
    kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    return kept | {"HF_ENDPOINT": hub.url, "HF_TOKEN_PATH": str(file), "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}


def run(
    hub: FakeHub, tmp_path: Path, *, token: str = "", largest: int | None = None, **words: object
) -> tuple[int, list[str]]:
    """Exit code and log."""
    limit = None if largest is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    done = subprocess.run(
        command(tmp_path / "model", **words),  # ty: ignore[invalid-argument-type]
        env=environment(hub, tmp_path, token),
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=limit,
    )
    assert TOKEN not in done.stderr + done.stdout, "a log is read by many"
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.splitlines()


def there(target: Path) -> dict[str, bytes]:
    """What has its final name."""
    if not target.exists():
        return {}
    found = {str(path.relative_to(target)): path for path in target.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.endswith(".part") and name[0] != "."}


def assert_complete(target: Path) -> None:
    assert there(target) == WANTED
    manifest = json.loads((target / MARKER).read_text())
    assert (manifest["model"], manifest["commit"]) == (MODEL, COMMIT)
    assert {file["path"] for file in manifest["files"]} == set(WANTED)


def assert_nothing_wrong(target: Path) -> None:
    """Whatever has its name has all of its bytes, and a marker only stands beside everything."""
    complete, found = (target / MARKER).exists(), there(target)
    assert all(found[name] == WANTED[name] for name in found), "half a file has the name of a whole one"
    assert not complete or found == WANTED, "the marker is there and the files are not"


# As it goes well.


def test_every_file_of_the_commit_comes_once_and_the_marker_last(tmp_path: Path) -> None:
    with FakeHub(FILES) as hub:
        code, log = run(hub, tmp_path)
    assert code == 0, log
    assert_complete(tmp_path / "model")
    assert hub.sent == {path: len(data) for path, data in WANTED.items() if data}
    assert COMMIT in log[-1]


def test_what_is_complete_needs_no_hub_any_more(tmp_path: Path) -> None:
    with FakeHub(FILES) as hub:
        run(hub, tmp_path)
    code, log = run(hub, tmp_path)
    assert (code, len(log)) == (0, 1), "a restart must not depend on Hugging Face"


def test_a_file_that_went_missing_beside_its_marker_is_fetched_again_alone(tmp_path: Path) -> None:
    with FakeHub(FILES) as hub:
        run(hub, tmp_path)
        (tmp_path / "model" / "model-2.safetensors").write_bytes(b"short")
        hub.sent.clear()
        assert run(hub, tmp_path)[0] == 0
    assert_complete(tmp_path / "model")
    assert hub.sent == {"model-2.safetensors": 1_000_000}


def test_a_branch_is_pinned_to_the_commit_that_it_is_at(tmp_path: Path) -> None:
    with FakeHub(FILES) as hub:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / ".commit").write_text("an older one")
        (tmp_path / "model" / "config.json").write_text('{"model_type": "other"}')  # of the same size
        assert run(hub, tmp_path, revision="main")[0] == 0
    assert_complete(tmp_path / "model")


def test_the_token_reaches_hugging_face_and_no_other_host(tmp_path: Path) -> None:
    with FakeHub(FILES, gated=True) as hub:
        code, log = run(hub, tmp_path, token=TOKEN)
    assert code == 0, log
    assert hub.tokens_elsewhere == [], "the files come from another origin, which has no business with the token"


# Interrupted.


def test_a_connection_that_breaks_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    cuts = [Fault(after=700_000), Fault(after=700_000), Fault(after=1), Fault(after=0)]
    with FakeHub(FILES, faults={ONE: cuts}) as hub:
        code, log = run(hub, tmp_path)
    assert code == 0, log
    assert_complete(tmp_path / "model")
    assert hub.sent[ONE] == 3_000_000, "no byte twice"
    assert hub.ranges[ONE] == [0, 700_000, 1_400_000, 1_400_001, 1_400_001]


def test_a_server_without_ranges_sends_all_of_it_again(tmp_path: Path) -> None:
    with FakeHub(FILES, faults={ONE: [Fault(after=700_000), Fault(no_ranges=True)]}) as hub:
        code, log = run(hub, tmp_path)
    assert code == 0, log
    assert_complete(tmp_path / "model")


def test_killed_in_the_middle_of_a_file_it_goes_on_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with FakeHub(FILES, faults={ONE: [Fault(after=700_000, stalls=True)]}) as hub:
        killed = subprocess.Popen(command(target), env=environment(hub, tmp_path), stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while _size(target / f"{ONE}.part") < 500_000 and time.monotonic() < until:
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        kept = _size(target / f"{ONE}.part")
        assert 500_000 <= kept <= 700_000
        assert ONE not in there(target)
        assert_nothing_wrong(target)
        assert run(hub, tmp_path)[0] == 0
    assert_complete(target)
    assert hub.ranges[ONE] == [0, kept], "what had arrived is not asked for again"
    assert hub.sent[ONE] == 700_000 + 3_000_000 - kept


def test_however_often_and_wherever_it_dies_nothing_half_written_has_a_name(tmp_path: Path) -> None:
    target, dice = tmp_path / "model", random.Random(5)  # noqa: S311
    faults = {name: [Fault(after=dice.randrange(400_000)) for _ in range(3)] for name in WANTED}
    faults[ONE].insert(1, Fault(corrupt=True))
    with FakeHub(FILES, faults=faults, bytes_a_second=2_000_000) as hub:
        for _ in range(8):
            process = subprocess.Popen(command(target), env=environment(hub, tmp_path), stderr=subprocess.DEVNULL)
            until = time.monotonic() + dice.uniform(0.7, 2.5)
            while time.monotonic() < until and process.poll() is None:
                assert_nothing_wrong(target)
            process.kill()
            process.wait()
            assert_nothing_wrong(target)
        hub.bytes_a_second = 0
        assert run(hub, tmp_path)[0] == 0
    assert_complete(target)


def test_the_note_of_the_commit_is_written_once(tmp_path: Path) -> None:
    """Written at every start, a kill in mid-write would leave an empty one, for which everything is fetched anew."""
    notes = []
    with FakeHub(FILES) as hub:
        for _ in range(2):
            assert run(hub, tmp_path)[0] == 0
            notes.append((tmp_path / "model" / ".commit").stat())
            (tmp_path / "model" / MARKER).unlink()
    assert notes[0].st_mtime_ns == notes[1].st_mtime_ns


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# Refused for a while.


@pytest.mark.parametrize(
    "headers",
    [{"Retry-After": "2"}, {"RateLimit": '"resolvers";r=0;t=2'}],
    ids=["Retry-After", "RateLimit"],
)
def test_a_rate_limit_is_waited_out_as_long_as_it_says(tmp_path: Path, headers: dict[str, str]) -> None:
    with FakeHub(FILES, faults={"config.json": [Fault(status=429, headers=headers)]}) as hub:
        code, log = run(hub, tmp_path)
    assert code == 0, log
    first, second = hub.times["config.json"]
    assert second - first >= 2, "asked again too early"
    assert any("limits the rate (429); again in 2 s" in line for line in log)


def test_server_errors_are_tried_again_with_longer_pauses(tmp_path: Path) -> None:
    with FakeHub(FILES, faults={"config.json": [Fault(status=503), Fault(status=500), Fault(status=502)]}) as hub:
        code, log = run(hub, tmp_path)
    assert code == 0, log
    pauses = [line.rpartition(" in ")[2] for line in log if "again in" in line]
    assert pauses == ["1 s", "2 s", "4 s"]


def test_a_rate_limit_longer_than_its_patience_ends_it_with_words(tmp_path: Path) -> None:
    with FakeHub(FILES, faults={ONE: [Fault(status=429, headers={"Retry-After": "300"})]}) as hub:
        code, log = run(hub, tmp_path, limit=5)
        assert code == 1
        assert "limits the rate (429)" in log[-1]
        assert "the next attempt goes on from there" in log[-1]
        assert_nothing_wrong(tmp_path / "model")
        assert run(hub, tmp_path)[0] == 0


def test_a_hub_that_is_not_there_is_a_broken_connection(tmp_path: Path) -> None:
    hub = FakeHub(FILES)
    with hub:
        pass
    code, log = run(hub, tmp_path, limit=2)
    assert code == 1
    assert "the connection broke" in log[-1]


# Refused for good: the last line says which, and what to do.


@pytest.mark.parametrize(
    ("hub", "token", "words", "remedy"),
    [
        (FakeHub(FILES, gated=True), "hf_wrong", "bad token", "pulumi config set --secret aks-vllm:hf-token"),
        (FakeHub(FILES, gated=True), "", "bad token", "pulumi config set --secret aks-vllm:hf-token"),
        (FakeHub(FILES, gated=True, accepted=False), TOKEN, "licence not accepted", f"huggingface.co/{MODEL}"),
    ],
    ids=["wrong token", "no token", "licence"],
)
def test_a_refusal_is_told_in_words(tmp_path: Path, hub: FakeHub, token: str, words: str, remedy: str) -> None:
    with hub:
        code, log = run(hub, tmp_path, token=token)
    assert code == 1
    assert log[-1].startswith(f"weights: {words}: ")
    assert remedy in log[-1]
    assert there(tmp_path / "model").keys() <= {"empty.txt"}


def test_a_commit_that_is_not_there_is_named(tmp_path: Path) -> None:
    with FakeHub(FILES) as hub:
        code, log = run(hub, tmp_path, revision="f" * 40)
    assert code == 1
    assert log[-1].startswith(f"weights: missing revision: {MODEL} has no commit {'f' * 40} (404)")
    assert "aks-vllm:revision" in log[-1]


def test_a_wrong_hash_is_never_kept(tmp_path: Path) -> None:
    with FakeHub(FILES, faults={ONE: [Fault(corrupt=True)] * 9, "config.json": [Fault(corrupt=True)]}) as hub:
        code, log = run(hub, tmp_path)
        assert code == 1
        assert log[-1].startswith(f"weights: wrong hash: {ONE} came 3 times")
        assert ONE not in there(tmp_path / "model")
        assert _size(tmp_path / "model" / f"{ONE}.part") == 0
        assert_nothing_wrong(tmp_path / "model")
        hub.faults.clear()
        assert run(hub, tmp_path)[0] == 0, "and does not stay in the way"
    assert_complete(tmp_path / "model")


def test_a_full_disk_is_told_and_what_fits_later_goes_on(tmp_path: Path) -> None:
    with FakeHub(FILES) as hub:
        code, log = run(hub, tmp_path, largest=2_000_000)
        assert code == 1
        assert log[-1].startswith("weights: full disk: ")
        assert "weights.storage-class" in log[-1]
        assert_nothing_wrong(tmp_path / "model")
        assert run(hub, tmp_path)[0] == 0
    assert_complete(tmp_path / "model")
    assert hub.ranges[ONE][-1] > 0, "what had fitted is kept"


def test_a_disk_too_small_from_the_start_costs_no_download(tmp_path: Path) -> None:
    with FakeHub({**FILES, "huge.safetensors": b""}) as hub:
        hub.tree = lambda: [{"type": "file", "path": "huge.safetensors", "size": 10**18, "oid": "00"}]
        code, log = run(hub, tmp_path)
    assert code == 1
    assert log[-1].startswith("weights: full disk: 1,000,000,000.0 GB are still to come")
    assert not hub.sent
