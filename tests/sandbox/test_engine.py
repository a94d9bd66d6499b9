"""The embedded engine does to a stack what the Pulumi CLI's engine would do, on a small fake cloud."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pulumi
import pytest

from sandbox.engine import Engine, InputRefusedError, Result, RunFailedError, Secret
from sandbox.providers import must_replace
from sandbox.state import Store
from sandbox.values import UNKNOWN
from tests.sandbox.fake_cloud import FakeCloud
from tests.sandbox.fake_sdk import FakeProvider, Group, Thing

TOKEN = "hf_" + "abcdefghijklmnop"


class Stack:
    """One stack on one cloud; every run is a new engine, as every command is a new process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cloud = FakeCloud()
        self.config: dict[str, str] = {"test:token": TOKEN}
        self.engine = self._made()

    def _made(self) -> Engine:
        packages = {"fake": lambda inputs: self.cloud if inputs.get("reachable", True) is True else None}
        return Engine(project="test", stack="dev", store=Store(self.folder), packages=packages)

    def _run(self, verb: str, program: Callable[[], Any]) -> Result:
        self.engine = self._made()
        return getattr(self.engine, verb)(program, root=self.folder, config=self.config, secret_keys=["test:token"])

    def preview(self, program: Callable[[], Any]) -> Result:
        return self._run("preview", program)

    def up(self, program: Callable[[], Any]) -> Result:
        return self._run("up", program)

    def refresh(self) -> Result:
        self.engine = self._made()
        return self.engine.refresh(self.config)

    def destroy(self) -> Result:
        self.engine = self._made()
        return self.engine.destroy(self.config)

    def names(self) -> list[str]:
        return [resource.name for resource in Store(self.folder).load()]


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


def ops(result: Result) -> dict[str, str]:
    """What happens to each resource that something happens to."""
    return {step.name: step.op.value for step in result.steps if step.op.value != "same"}


def things(**options: Mapping[str, Any]) -> Callable[[], None]:
    """A program of unrelated things: `things(a={"size": 1})`; `opts` among them are the resource's options."""

    def program() -> None:
        for name, inputs in options.items():
            inputs = dict(inputs)
            opts = pulumi.ResourceOptions(**inputs.pop("opts", {}))
            Thing(name, opts, **inputs)

    return program


def chain(zone: str = "a") -> None:
    """Three things, each built on the one before it."""
    first = Thing("first", zone=zone, name="first")
    second = Thing("second", zone=first.serial, name="second")
    Thing("third", pulumi.ResourceOptions(depends_on=[second]), name="third")


def test_a_preview_tells_what_an_update_does_and_does_nothing(stack: Stack):
    planned = stack.preview(chain)
    assert stack.cloud.things == {}
    assert not stack.engine.store.file.exists(), "a preview must leave no state"
    assert ops(stack.up(chain)) == ops(planned)


def test_a_second_update_changes_nothing(stack: Stack):
    stack.up(chain)
    stack.cloud.calls.clear()
    assert ops(stack.preview(chain)) == {}
    assert stack.up(chain).changes == {"same": 4}
    assert stack.cloud.calls == []


def test_resources_are_made_in_the_order_of_their_dependencies_and_deleted_in_the_opposite_one(stack: Stack):
    stack.up(chain)
    made = [name for verb, name in stack.cloud.calls if verb == "create"]
    assert made == ["first", "second", "third"]
    assert ops(stack.destroy()) == dict.fromkeys(["third", "second", "first", "test-dev"], "delete")
    assert [name for verb, name in stack.cloud.calls if verb == "delete"] == made[::-1]
    assert stack.names() == []


def test_a_changed_property_is_an_update_that_names_the_path(stack: Stack):
    stack.up(things(a={"size": {"gpus": [4, 8]}}))
    for run in (stack.preview, stack.up):
        (step,) = [s for s in run(things(a={"size": {"gpus": [4, 2]}})).steps if s.op.value != "same"]
        assert step.op.value == "update"
        assert [(change.path, change.old, change.new) for change in step.changes] == [(("size", "gpus", 1), 8, 2)]


def test_an_immutable_property_makes_a_new_one_before_the_old_one_goes(stack: Stack):
    stack.up(things(a={"zone": "x"}))
    old = next(iter(stack.cloud.things))
    stack.cloud.calls.clear()

    def program() -> None:
        Thing("a", zone="y", name="another")

    assert ops(stack.preview(program)) == {"a": "replace"}
    assert ops(stack.up(program)) == {"a": "replace"}
    assert [verb for verb, _ in stack.cloud.calls] == ["create", "delete"]
    assert old not in stack.cloud.things
    assert set(stack.cloud.things) == {"another"}


def test_delete_before_replace_takes_along_what_is_built_on_it(stack: Stack):
    def program(zone: str) -> Callable[[], None]:
        def declare() -> None:
            first = Thing("first", pulumi.ResourceOptions(delete_before_replace=True), zone=zone, name="first")
            Thing("second", zone=first.serial, name="second")
            Thing("third", size=first.serial, name="third")

        return declare

    stack.up(program("a"))
    stack.cloud.calls.clear()
    planned = ops(stack.preview(program("b")))
    assert planned == {"first": "replace", "second": "replace", "third": "update"}
    assert ops(stack.up(program("b"))) == planned
    first, then = stack.cloud.calls[:3], stack.cloud.calls[3:]
    reason = "what cannot change in place goes before what it stands on"
    assert first == [("delete", "second"), ("delete", "first"), ("create", "first")], reason
    assert sorted(then) == [("create", "second"), ("update", "third")], "neither waits for the other"


def test_replace_on_changes_replaces_what_the_provider_would_update(stack: Stack):
    options = {"replace_on_changes": ["size"], "delete_before_replace": True}
    stack.up(things(a={"size": 1, "opts": options}))
    (step,) = [s for s in stack.preview(things(a={"size": 2, "opts": options})).steps if s.op.value != "same"]
    assert (step.op.value, step.because) == ("replace", "the program replaces it when size changes")


def test_what_is_no_longer_declared_is_deleted(stack: Stack):
    stack.up(things(a={}, b={}))
    assert ops(stack.preview(things(a={}))) == {"b": "delete"}
    assert ops(stack.up(things(a={}))) == {"b": "delete"}
    assert len(stack.cloud.things) == 1


def test_retain_on_delete_forgets_without_deleting(stack: Stack):
    stack.up(things(a={"opts": {"retain_on_delete": True}}))
    stack.up(things())
    assert stack.names() == ["test-dev"]
    assert len(stack.cloud.things) == 1


def test_deleted_with_calls_nothing_when_the_other_goes_too(stack: Stack):
    def both() -> None:
        cluster = Thing("cluster")
        Thing("inside", pulumi.ResourceOptions(deleted_with=cluster))

    stack.up(both)
    stack.destroy()
    assert [call for call in stack.cloud.calls if call[0] == "delete"] == [("delete", "cluster")]


@pytest.mark.parametrize("verb", ["up", "destroy"])
def test_a_protected_resource_stays_and_the_message_says_what_to_do(stack: Stack, verb: str):
    stack.up(things(a={"opts": {"protect": True}}))
    with pytest.raises(RunFailedError, match="protect=false"):
        stack.destroy() if verb == "destroy" else stack.up(things())
    assert len(stack.cloud.things) == 1
    stack.up(things(a={"opts": {"protect": False}}))
    stack.destroy()
    assert stack.cloud.things == {}


def test_children_inherit_protection_and_the_cluster_they_go_with(stack: Stack):
    def program() -> None:
        cluster = Thing("cluster")
        group = Group("group", pulumi.ResourceOptions(protect=True, deleted_with=cluster))
        Thing("child", pulumi.ResourceOptions(parent=group))

    stack.up(program)
    (child,) = [resource for resource in stack.engine.store.load() if resource.name == "child"]
    assert child.protect
    assert child.deleted_with.endswith("::cluster")


def test_an_alias_keeps_a_renamed_resource(stack: Stack):
    stack.up(things(old={"size": 1}))
    renamed = things(new={"size": 1, "opts": {"aliases": [pulumi.Alias(name="old")]}})
    assert ops(stack.up(renamed)) == {}
    assert stack.names() == ["test-dev", "new"]
    assert ops(stack.up(things(new={"size": 1}))) == {}, "an alias is needed once"


def test_children_follow_their_renamed_parent(stack: Stack):
    def program(name: str, aliases: list[pulumi.Alias]) -> Callable[[], None]:
        def declare() -> None:
            group = Group(name, pulumi.ResourceOptions(aliases=aliases))
            Thing(f"{name}-child", pulumi.ResourceOptions(parent=group), name="child")

        return declare

    stack.up(program("one", []))
    assert ops(stack.up(program("two", [pulumi.Alias(name="one")]))) == {}


def test_ignored_changes_leave_what_is_there(stack: Stack):
    stack.up(things(a={"size": {"count": 1, "kind": "x"}}))
    ignoring = things(a={"size": {"count": 5, "kind": "y"}, "opts": {"ignore_changes": ["size.count"]}})
    (step,) = [s for s in stack.up(ignoring).steps if s.op.value != "same"]
    assert [change.path for change in step.changes] == [("size", "kind")]
    (thing,) = stack.cloud.things.values()
    assert thing["size"] == {"count": 1, "kind": "y"}


def test_custom_timeouts_reach_the_provider_in_seconds(stack: Stack):
    stack.up(things(a={"opts": {"custom_timeouts": pulumi.CustomTimeouts(create="1h30m")}}, b={}))
    assert stack.cloud.timeouts == {"a": 5400, "b": 600}


def test_a_failed_step_stops_the_run_and_the_next_one_goes_on(stack: Stack):
    stack.cloud.fail = {"create second": "the region is full"}
    with pytest.raises(RunFailedError, match="second: the region is full"):
        stack.up(chain)
    assert stack.names() == ["test-dev", "first", "second"], "what was begun is recorded, what was not is not"
    assert ops(stack.up(chain)) == {"second": "create", "third": "create"}
    assert ops(stack.up(chain)) == {}


def test_a_failed_update_is_done_again_though_the_program_is_the_same(stack: Stack):
    stack.up(things(a={"size": 1}))
    stack.cloud.fail = {"update a": "conflict"}
    with pytest.raises(RunFailedError, match="conflict"):
        stack.up(things(a={"size": 2}))
    assert ops(stack.up(things(a={"size": 2}))) == {"a": "update"}
    (thing,) = stack.cloud.things.values()
    assert thing["size"] == 2


def test_a_failed_replacement_still_deletes_the_old_one_later(stack: Stack):
    stack.up(things(a={"zone": "x", "name": "old"}))
    stack.cloud.fail = {"create a": "no capacity"}
    with pytest.raises(RunFailedError, match="no capacity"):
        stack.up(things(a={"zone": "y", "name": "new"}))
    assert set(stack.cloud.things) == {"old"}
    stack.up(things(a={"zone": "y", "name": "new"}))
    assert set(stack.cloud.things) == {"new"}


@pytest.mark.parametrize("arrives", [True, False], ids=["cloud-acts", "cloud-never-hears"])
@pytest.mark.parametrize("save", range(1, 21))
def test_a_kill_after_any_write_of_the_state_is_healed_by_the_next_update(
    stack: Stack, save: int, arrives: bool, monkeypatch: pytest.MonkeyPatch
):
    """First run, change with a replacement, and removal: killed once, after the n-th write in all.

    What the cloud was about to be asked is done and never recorded, or never done.
    """
    programs = [
        things(a={"zone": "x", "name": "a"}, b={"size": 1, "name": "b"}),
        things(a={"zone": "y", "name": "a2"}, b={"size": 2, "name": "b"}, c={"name": "c"}),
        things(b={"size": 2, "name": "b"}),
    ]
    frozen = threading.Event()
    writes = 0
    real = Store.save

    def counted(store: Store, resources: Any) -> None:
        nonlocal writes
        if frozen.is_set():
            return
        real(store, resources)
        writes += 1
        if writes == save:
            frozen.set()
            stack.cloud.cut_off = not arrives
            stack.engine.cancelled.set()

    monkeypatch.setattr(Store, "save", counted)
    for program in programs:
        try:
            stack.up(program)
        except RunFailedError:
            assert frozen.is_set()
        if frozen.is_set():
            monkeypatch.setattr(Store, "save", real)
            stack.cloud.cut_off = False
        stack.up(program)
        assert ops(stack.preview(program)) == {}
    assert set(stack.cloud.things) == {"b"}, "nothing is left behind and nothing is missing"
    assert stack.names() == ["test-dev", "b"]


async def after_a_while(value: Any) -> Any:
    await asyncio.sleep(0.2)
    return value


def test_a_cancelled_run_begins_nothing_more(stack: Stack):
    def program() -> None:
        first = Thing("first")
        first.serial.apply(lambda _: threading.Thread(target=stack.engine.cancel).start())
        Thing("second", pulumi.ResourceOptions(depends_on=[first]), size=first.serial.apply(after_a_while))

    with pytest.raises(RunFailedError, match="what was done is recorded"):
        stack.up(program)
    assert [name for _, name in stack.cloud.calls] == ["first"]


def test_secrets_are_encrypted_in_state_and_marked_in_outputs(stack: Stack):
    def program() -> None:
        token = pulumi.Config("test").require_secret("token")
        thing = Thing("a", token=token, size=pulumi.Output.concat("Bearer ", token))
        pulumi.export("token", thing.token)
        pulumi.export("open", thing.name)

    result = stack.up(program)
    assert result.outputs["token"] == Secret(TOKEN)
    assert not isinstance(result.outputs["open"], Secret)
    written = b"".join(path.read_bytes() for path in stack.folder.iterdir())
    assert TOKEN.encode() not in written
    assert b"ciphertext" in written
    assert (stack.folder / "key").stat().st_mode & 0o777 == 0o600
    assert ops(stack.up(program)) == {}, "reading the secrets back must not look like a change"
    thing = next(r for r in stack.engine.store.load() if r.name == "a")
    assert thing.inputs["token"] == Secret(TOKEN)


def test_a_secret_in_a_provider_s_error_is_not_repeated(stack: Stack):
    stack.cloud.fail = {"create a": f"401 for {TOKEN}"}
    with pytest.raises(RunFailedError) as failure:
        stack.up(lambda: Thing("a", token=pulumi.Config("test").require_secret("token")))
    assert TOKEN not in str(failure.value)
    assert "401 for [secret]" in str(failure.value)


def test_a_changed_secret_is_a_change_that_shows_neither_value(stack: Stack):
    stack.up(lambda: Thing("a", token=pulumi.Output.secret("first secret")))
    result = stack.preview(lambda: Thing("a", token=pulumi.Output.secret("second secret")))
    (change,) = next(step.changes for step in result.steps if step.name == "a")
    assert repr(change.old) == repr(change.new) == "[secret]"


def test_refresh_takes_drift_into_the_state_and_the_next_update_takes_it_back(stack: Stack):
    stack.up(things(a={"size": 1, "name": "a"}, b={"name": "b"}))
    stack.cloud.things["a"]["size"] = 9
    del stack.cloud.things["b"]
    assert ops(stack.refresh()) == {"a": "update", "b": "delete"}
    assert ops(stack.refresh()) == {}
    assert ops(stack.up(things(a={"size": 1, "name": "a"}, b={"name": "b"}))) == {"a": "update", "b": "create"}
    assert stack.cloud.things["a"]["size"] == 1


def test_refresh_keeps_secrets_secret(stack: Stack):
    stack.up(lambda: Thing("a", token=pulumi.Config("test").require_secret("token"), name="a"))
    stack.cloud.things["a"]["token"] = TOKEN  # the cloud's answer has no mark
    stack.refresh()
    assert TOKEN not in stack.engine.store.file.read_text()


def test_everything_wrong_with_a_registration_is_told_in_words(stack: Stack):
    def twice() -> None:
        Thing("a")
        Thing("a")

    for program, words in (
        (twice, "Duplicate resource URN"),
        (things(a={"nmae": "x"}), "nmae: unknown property"),
        (things(a={"opts": {"custom_timeouts": pulumi.CustomTimeouts(create="soon")}}), "'soon' is not a duration"),
        (lambda: 1 / 0, "the program failed: ZeroDivisionError"),
    ):
        with pytest.raises(RunFailedError, match=words) as failure:
            stack.preview(program)
        assert "Traceback" not in str(failure.value)


def test_a_program_that_refuses_its_input_is_told_apart_from_one_that_fails(stack: Stack):
    def program() -> None:
        raise pulumi.RunError("replicas = 0: must be at least 1")

    with pytest.raises(InputRefusedError, match="replicas = 0"):
        stack.preview(program)


def test_an_explicit_provider_is_asked_once_it_is_known(stack: Stack):
    def program() -> None:
        cluster = Thing("cluster")
        provider = FakeProvider("inside", reachable=cluster.serial.apply(lambda _: True))
        Thing("pod", pulumi.ResourceOptions(provider=provider))

    assert ops(stack.preview(program)) == dict.fromkeys(["test-dev", "cluster", "inside", "pod"], "create")
    assert ops(stack.up(program)) == dict.fromkeys(["test-dev", "cluster", "inside", "pod"], "create")
    assert ops(stack.up(program)) == {}
    assert ops(stack.destroy())["pod"] == "delete", "destroy finds the provider in the state"
    assert stack.cloud.things == {}


@pytest.mark.parametrize("killed", [False, True])
def test_what_lives_in_a_replaced_cluster_is_made_again_and_never_deleted_by_name(stack: Stack, killed: bool):
    """Objects have the same names in the new cluster: a late deletion of the old ones would hit the new ones."""

    def program(zone: str) -> Callable[[], None]:
        def declare() -> None:
            cluster = Thing("cluster", pulumi.ResourceOptions(delete_before_replace=True), zone=zone, name="cluster")
            options = pulumi.ResourceOptions(depends_on=[cluster], replace_with=[cluster])
            provider = FakeProvider("inside", options, reachable=cluster.serial.apply(lambda _: True))
            Thing("pod", pulumi.ResourceOptions(provider=provider, deleted_with=cluster), name="pod")

        return declare

    stack.up(program("a"))
    planned = ops(stack.preview(program("b")))
    assert planned == dict.fromkeys(["cluster", "inside", "pod"], "replace")
    stack.cloud.calls.clear()
    if killed:
        stack.cloud.fail = {"create cluster": "killed"}
        with pytest.raises(RunFailedError):
            stack.up(program("b"))
        del stack.cloud.things["pod"]  # it went with the old cluster
    stack.up(program("b"))
    assert ("delete", "pod") not in stack.cloud.calls
    assert ("create", "pod") in stack.cloud.calls
    assert set(stack.cloud.things) == {"cluster", "pod"}
    assert ops(stack.up(program("b"))) == {}


def test_without_default_providers_a_resource_needs_its_own(stack: Stack):
    stack.config["pulumi:disable-default-providers"] = '["fake"]'
    with pytest.raises(RunFailedError, match="pass an explicit provider"):
        stack.up(things(a={}))


def test_a_preview_stays_linear_in_the_number_of_resources(stack: Stack, monkeypatch: pytest.MonkeyPatch):
    """Counted, not timed: a registration may not look at all the others."""
    from sandbox.deployment import Deployment

    looks = 0

    class Counted(dict):
        def __iter__(self):
            nonlocal looks
            looks += len(self)
            return super().__iter__()

    original = Deployment.__post_init__

    def counting(self: Deployment) -> None:
        original(self)
        self._seen, self._new = Counted(), Counted()

    monkeypatch.setattr(Deployment, "__post_init__", counting)
    stack.preview(things(**{f"thing{number}": {} for number in range(50)}))
    assert looks <= 2 * 51, "a walk over all earlier registrations per registration is quadratic"


def kubeconfig(server: str, user: str) -> str:
    parts = (
        f"contexts: [{{name: c, context: {{cluster: k, user: {user}}}}}], current-context: c, users: [{{name: {user}}}]"
    )
    return f"{{clusters: [{{name: k, cluster: {{server: {server}}}}}], {parts}}}"


@pytest.mark.parametrize(
    ("old", "new", "replaced"),
    [
        ({"kubeconfig": kubeconfig("a", "x")}, {"kubeconfig": Secret(kubeconfig("a", "y"))}, []),
        ({"kubeconfig": kubeconfig("a", "x")}, {"kubeconfig": kubeconfig("b", "x")}, ["kubeconfig"]),
        ({"kubeconfig": kubeconfig("a", "x")}, {"kubeconfig": UNKNOWN}, ["kubeconfig"]),
        ({"kubeconfig": "a", "clusterIdentifier": "k"}, {"kubeconfig": UNKNOWN, "clusterIdentifier": "k"}, []),
        ({"kubeconfig": "a", "clusterIdentifier": "k"}, {"kubeconfig": "a"}, ["clusterIdentifier"]),
    ],
    ids=["another user", "another server", "not known", "an identifier", "no identifier any more"],
)
def test_another_cluster_makes_another_provider_and_another_user_of_it_does_not(
    old: dict[str, Any], new: dict[str, Any], replaced: list[str]
) -> None:
    assert must_replace("pulumi:providers:kubernetes", old, new) == replaced
