"""The state file: whole at any moment, secrets encrypted, errors in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sandbox.state import ResourceState, StackBusyError, Store, UnreadableStateError, write_atomically
from sandbox.values import Secret

TOKEN = "correct horse battery staple"  # noqa: S105  not a real one


def resource(name: str = "a", **more: Any) -> ResourceState:
    urn = f"urn:pulumi:dev::test::fake:index:Thing::{name}"
    rest: dict[str, Any] = {"id": name, **more}
    return ResourceState(urn=urn, type="fake:index:Thing", custom=True, **rest)


def test_what_is_saved_is_loaded(tmp_path: Path):
    saved = [
        resource(inputs={"size": 1, "token": Secret(TOKEN)}, outputs={"list": [None, True, 1.5, {"x": "y"}]}),
        resource("b", parent="p", timeouts={"create": 5400.0}, pending="updating", dependencies=["a"]),
        resource("b", delete=True),
    ]
    Store(tmp_path).save(saved)
    assert Store(tmp_path).load() == saved


def test_a_step_is_written_even_where_only_a_mark_changes(tmp_path: Path):
    """The file is written step by step from what was encoded before: nothing stale may stay in it."""
    store, thing = Store(tmp_path), resource("a", id="")
    for change in ({"pending": "creating"}, {"id": "1", "pending": ""}, {"outputs": {"x": 1}}, {"pending": "deleting"}):
        for name, value in change.items():
            setattr(thing, name, value)
        store.save([thing, resource("a", delete=True, id="old")])
        assert Store(tmp_path).load() == [thing, resource("a", delete=True, id="old")]


def test_secrets_are_encrypted_and_the_key_is_the_owner_s_alone(tmp_path: Path):
    Store(tmp_path).save([resource(inputs={"deep": [{"token": Secret({"inner": TOKEN})}]})])
    assert TOKEN not in (tmp_path / "state.json").read_text()
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (thing,) = Store(tmp_path).load()
    assert thing.inputs == {"deep": [{"token": Secret({"inner": TOKEN})}]}


def test_a_missing_state_is_an_empty_stack(tmp_path: Path):
    assert Store(tmp_path / "none").load() == []
    assert not (tmp_path / "none").exists(), "looking must not create anything"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"format": 99, "resources": []}', '{"format": 1, "resources": [{"urn": 1}]}', "\xff"],
)
def test_a_broken_file_is_named_with_the_way_out(tmp_path: Path, content: str):
    (tmp_path / "state.json").write_text(content, encoding="latin-1")
    with pytest.raises(UnreadableStateError, match=r"state\.json: .*destroy"):
        Store(tmp_path).load()


@pytest.mark.parametrize("key", ["not a key", "A" * 43 + "="])
def test_a_wrong_key_is_named_with_the_way_out(tmp_path: Path, key: str):
    Store(tmp_path).save([resource(inputs={"token": Secret(TOKEN)})])
    (tmp_path / "key").write_text(key)
    with pytest.raises(UnreadableStateError, match=r"key.*destroy"):
        Store(tmp_path).load()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(_descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_command_on_the_same_stack_is_turned_away(tmp_path: Path):
    with Store(tmp_path).locked(), pytest.raises(StackBusyError, match="another command"), Store(tmp_path).locked():
        pytest.fail("two engines held one stack")
    with Store(tmp_path).locked():
        assert (tmp_path / "lock").exists()


def test_unchanged_resources_are_not_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A step of one resource costs one encoding, or an update of a thousand models would take hours."""
    store = Store(tmp_path)
    things = [resource(str(number), inputs={"token": Secret(TOKEN)}) for number in range(20)]
    store.save(things)
    first = json.loads(store.file.read_text())
    encoded = []
    monkeypatch.setattr(store.vault, "encode", lambda value: encoded.append(value))
    store.save(things)
    assert encoded == []
    assert json.loads(store.file.read_text()) == first
