"""One run of the engine over a stack: every registration becomes a step, as the Pulumi CLI's engine would take it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

import pulumi
from pulumi.provider.experimental import provider as sdk

from sandbox.monitor import STACK_TYPE, Alias, Answer, Registration, make_urn, seconds
from sandbox.providers import PROVIDER_TYPE, BadReferenceError, Providers, call, must_replace
from sandbox.state import ResourceState
from sandbox.values import (
    UNKNOWN,
    Change,
    Scrubber,
    Value,
    covers,
    differences,
    from_properties,
    has_unknown,
    parse_path,
    to_properties,
    with_old_values,
    with_secrets_of,
)

#: Seconds a provider may take where the program sets no `custom_timeouts` (the Kubernetes provider's default await).
DEFAULT_TIMEOUT = 600.0


class Op(StrEnum):
    """What happens to a resource."""

    CREATE = "create"
    UPDATE = "update"
    REPLACE = "replace"
    DELETE = "delete"
    SAME = "same"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One resource and what happens to it."""

    urn: str
    type: str
    op: Op
    custom: bool
    changes: tuple[Change, ...] = ()
    because: str = ""  # why it is replaced, deleted or done again, in words

    @property
    def name(self) -> str:
        """The logical name."""
        return self.urn.rsplit("::", 1)[1]


class Listener(Protocol):
    """Who shows the run to people. Called from several threads at once; text is free of secrets.

    `message` is the engine's own, `logged` the program's.
    """

    def planned(self, step: Step) -> None: ...

    def started(self, step: Step) -> None: ...

    def finished(self, step: Step, elapsed: float) -> None: ...

    def failed(self, step: Step, message: str) -> None: ...

    def message(self, severity: str, text: str) -> None: ...

    def logged(self, severity: str, text: str) -> None: ...


class Silent:
    """A listener for those who only want the result."""

    def planned(self, step: Step) -> None: ...

    def started(self, step: Step) -> None: ...

    def finished(self, step: Step, elapsed: float) -> None: ...

    def failed(self, step: Step, message: str) -> None: ...

    def message(self, severity: str, text: str) -> None: ...

    def logged(self, severity: str, text: str) -> None: ...


class StepFailedError(pulumi.RunError):
    """A registration could not be done; the run stops. The message is free of secrets."""


#: States of an interrupted step in which the resource may not exist.
_GONE = ("creating", "deleting")


@dataclass(kw_only=True)
class _Decision:
    """What the comparison of old and new came to."""

    op: Op
    changes: list[Change]
    because: str = ""
    delete_first: bool = False


@dataclass(kw_only=True)
class Deployment:
    """Registrations in, steps out. Safe to call from several threads; providers are called without the lock.

    `save` gets the whole state after every step of an update, and is never called in a preview.
    """

    project: str
    stack: str
    olds: Sequence[ResourceState]
    providers: Providers
    save: Callable[[list[ResourceState]], None]
    listener: Listener
    scrubber: Scrubber
    dry_run: bool
    cancelled: threading.Event = field(default_factory=threading.Event)
    why_delete: str = "the program no longer declares it"

    steps: list[Step] = field(default_factory=list)
    registrations: list[Registration] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)
    outputs: dict[str, Value] = field(default_factory=dict)  # of the stack
    component_outputs: dict[str, dict[str, Value]] = field(default_factory=dict)  # by URN

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._old = {r.urn: r for r in self.olds if not r.delete}
        self._condemned = [r for r in self.olds if r.delete]
        self._new: dict[str, ResourceState] = {}
        self._seen: dict[str, Registration] = {}
        self._aliases: dict[str, list[str]] = {}  # URN -> its earlier URNs
        self._claimed: set[str] = set()  # old URNs that a registration has taken over
        self._deleted_first: dict[str, ResourceState] = {}  # deleted to make room for their replacements
        self._replaced: set[str] = set()
        self._origin: dict[str, str] = {}  # new URN -> the old URN it was found under
        self._clock: dict[str, float] = {}

    # What the monitor calls.

    def register(self, registration: Registration) -> Answer:
        """Bring one resource to the declared state.

        Raises StepFailedError.
        """
        try:
            with self._lock:
                self._admit(registration)
                old = self._find_old(registration)
                goal = self._inherit(registration)
            if not goal.custom:
                return self._component(goal, old)
            return self._custom(goal, old)
        except StepFailedError:
            raise
        except BadReferenceError as problem:
            raise self.refuse(str(problem)) from None

    def register_outputs(self, urn: str, outputs: dict[str, Value]) -> None:
        """Keep what a component (or the stack) gives to the outside."""
        with self._lock:
            self.scrubber.learn(outputs)
            if urn not in self._new:
                raise self.refuse(f"outputs for {urn}, which is not registered")
            if self._new[urn].type == STACK_TYPE:
                self.outputs = outputs
            else:
                self.component_outputs[urn] = outputs
            self._new[urn].outputs = outputs

    def invoke(self, token: str, provider: str, arguments: dict[str, Value]) -> dict[str, Value] | None:
        """Call a provider's function; None while its provider or its arguments are unknown.

        Raises StepFailedError.
        """
        try:
            found = self.providers.find(token, provider, f"function {token}")
            if found is None or has_unknown(arguments):
                return None
            response = call(found.invoke(sdk.InvokeRequest(tok=token, args=to_properties(arguments))))
        except Exception as problem:
            raise self.refuse(f"{token}: {problem}") from None
        if response.failures:
            raise self.refuse(f"{token}: " + "; ".join(f"{f.property}: {f.reason}" for f in response.failures))
        result = from_properties(response.return_value)
        self.scrubber.learn(result)
        return result

    def log(self, severity: str, text: str, urn: str) -> None:
        """A message of the program."""
        text = self.scrubber.clean(text)
        with self._lock:
            self.messages.append((severity, text))
        self.listener.logged(severity, text)

    def refuse(self, what: str) -> StepFailedError:
        """Note a failure; the caller raises what is returned."""
        what = self.scrubber.clean(what)
        with self._lock:
            self.failures.append(what)
        return StepFailedError(what)

    # Registration.

    def _admit(self, registration: Registration) -> None:
        """Refuse what Pulumi's engine refuses, and remember the rest."""
        urn = registration.urn
        if self.cancelled.is_set() or self.failures:
            raise StepFailedError(f"{urn}: not done, the run was stopped")
        if urn in self._seen:
            raise self.refuse(f"Duplicate resource URN {urn!r}; try giving it a unique name")
        known = {*registration.depends_on, *registration.replace_with, registration.deleted_with, registration.parent}
        for other in sorted(other for other in known if other and other not in self._seen):
            raise self.refuse(f"{urn} depends on {other}, which is not registered")
        self._seen[urn] = registration
        self.registrations.append(registration)
        self.scrubber.learn(dict(registration.inputs))

    def _find_old(self, registration: Registration) -> ResourceState | None:
        """The state under the registration's URN, else under one of its aliases (its parent's aliases included)."""
        candidates = [urn for alias in registration.aliases for urn in self._alias_urns(alias, registration)]
        for parent_alias in self._aliases.get(registration.parent, []):
            candidates.append(self._under(parent_alias, registration))
            for alias in registration.aliases:
                if not alias.urn and not alias.parent and not alias.no_parent:
                    moved = replace(alias, parent=parent_alias)
                    candidates += self._alias_urns(moved, registration)
        self._aliases[registration.urn] = candidates
        for urn in [registration.urn, *candidates]:
            old = self._old.get(urn)
            if old is not None and urn not in self._claimed:
                self._claimed.add(urn)
                self._origin[registration.urn] = urn
                return old
        return None

    def _alias_urns(self, alias: Alias, registration: Registration) -> list[str]:
        if alias.urn:
            return [alias.urn]
        parent = "" if alias.no_parent else alias.parent or registration.parent
        name, type_ = alias.name or registration.name, alias.type or registration.type
        return [make_urn(alias.stack or self.stack, alias.project or self.project, parent, type_, name)]

    def _under(self, parent_alias: str, registration: Registration) -> str:
        """The URN under the parent's earlier identity; a name that begins with the parent's follows it."""
        old_name, new_name = (urn.rsplit("::", 1)[1] for urn in (parent_alias, registration.parent))
        name = registration.name
        if name.startswith(new_name):
            name = old_name + name[len(new_name) :]
        stack, project = parent_alias.split("::")[0].rsplit(":", 1)[1], parent_alias.split("::")[1]
        return make_urn(stack, project, parent_alias, registration.type, name)

    def _inherit(self, registration: Registration) -> Registration:
        """The registration with what Pulumi's engine passes from parent to child."""
        parent = self._new.get(registration.parent)
        if parent is None:
            return replace(
                registration,
                protect=bool(registration.protect),
                retain_on_delete=bool(registration.retain_on_delete),
            )
        keep = registration.retain_on_delete
        return replace(
            registration,
            protect=parent.protect if registration.protect is None else registration.protect,
            retain_on_delete=parent.retain_on_delete if keep is None else keep,
            deleted_with=registration.deleted_with or parent.deleted_with,
        )

    def _fresh(self, goal: Registration, inputs: dict[str, Value]) -> ResourceState:
        try:
            timeouts = {operation: seconds(text) for operation, text in goal.custom_timeouts.items()}
        except ValueError as problem:
            raise self.refuse(f"{goal.urn}: custom timeout: {problem}") from None
        return ResourceState(
            urn=goal.urn,
            type=goal.type,
            custom=goal.custom,
            parent=goal.parent,
            provider=goal.provider,
            declared=dict(goal.inputs),
            inputs=inputs,
            protect=bool(goal.protect),
            retain_on_delete=bool(goal.retain_on_delete),
            deleted_with=goal.deleted_with,
            replace_with=list(goal.replace_with),
            dependencies=list(goal.depends_on),
            property_dependencies={key: list(urns) for key, urns in goal.property_dependencies.items()},
            timeouts=timeouts,
            replacement_trigger=goal.replacement_trigger,
        )

    def _component(self, goal: Registration, old: ResourceState | None) -> Answer:
        new = self._fresh(goal, dict(goal.inputs))
        new.outputs = old.outputs if old else {}
        step = Step(urn=goal.urn, type=goal.type, op=Op.SAME if old else Op.CREATE, custom=False)
        self._plan(step)
        self._settle(step, new)
        return Answer()

    def _custom(self, goal: Registration, old: ResourceState | None) -> Answer:
        is_provider = goal.type.startswith(PROVIDER_TYPE)
        provider = None if is_provider else self.providers.find(goal.type, goal.provider, goal.urn)
        if provider is None and not is_provider and not self.dry_run:
            raise self.refuse(f"{goal.urn}: its provider is not configured, though the update has come to it")
        goal = self._with_ignored(goal, old)
        inputs = self._check(goal, old, provider)
        new = self._fresh(goal, inputs)
        decision = self._decide(goal, old, new, provider)
        changes = tuple(decision.changes)
        step = Step(
            urn=goal.urn, type=goal.type, op=decision.op, custom=True, changes=changes, because=decision.because
        )
        self._plan(step)
        if decision.op is Op.REPLACE and old is not None:
            self._make_room(step, old, delete_first=decision.delete_first)
            old = None
        self._apply(step, goal, old, new, provider)
        if is_provider:
            self.providers.configure(goal.urn, new.id, new.inputs)
        return Answer(id=new.id, outputs=new.outputs)

    def _with_ignored(self, goal: Registration, old: ResourceState | None) -> Registration:
        """`ignoreChanges` acts before the provider sees anything: the old inputs win."""
        if old is None or not goal.ignore_changes or old.pending in _GONE:
            return goal
        paths = [parse_path(path) for path in goal.ignore_changes]
        return replace(goal, inputs=with_old_values(dict(goal.inputs), old.inputs, paths))

    def _check(self, goal: Registration, old: ResourceState | None, provider: sdk.Provider | None) -> dict[str, Value]:
        if provider is None:
            return dict(goal.inputs)
        request = sdk.CheckRequest(
            urn=goal.urn,
            old_inputs=to_properties(old.inputs if old else {}),
            new_inputs=to_properties(goal.inputs),
            random_seed=goal.urn.encode(),
        )
        response = self._ask(goal.urn, provider.check(request))
        if response.failures:
            reasons = "; ".join(f"{f.property}: {f.reason}" if f.property else f.reason for f in response.failures)
            raise self.refuse(f"{goal.urn}: {reasons}")
        inputs = from_properties(response.inputs)
        return with_secrets_of(inputs, goal.inputs, ())

    def _decide(
        self, goal: Registration, old: ResourceState | None, new: ResourceState, provider: sdk.Provider | None
    ) -> _Decision:
        if old is None:
            deleted = self._deleted_first.get(goal.urn)
            if deleted is not None:
                because = "something that it is built on is replaced"
                return _Decision(op=Op.REPLACE, changes=differences(deleted.inputs, new.inputs), because=because)
            return _Decision(op=Op.CREATE, changes=[])
        if old.pending in _GONE:
            return _Decision(op=Op.CREATE, changes=[], because=f"an earlier run was stopped while {old.pending} it")
        changes = differences(old.inputs, new.inputs)
        replaces: list[str] = []
        delete_first = False
        if provider is not None:
            request = sdk.DiffRequest(
                urn=goal.urn,
                resource_id=old.id,
                old_state=to_properties(old.outputs),
                new_inputs=to_properties(new.inputs),
                ignore_changes=list(goal.ignore_changes),
            )
            # The SDK's request has no field for them, the wire format has: providers compare inputs with inputs.
            vars(request)["old_inputs"] = to_properties(old.inputs)
            response = self._ask(goal.urn, provider.diff(request))
            changed = bool(changes) if response.changes is None else response.changes
            replaces, delete_first = response.replaces, response.delete_before_replace
        elif goal.type.startswith(PROVIDER_TYPE):
            changed, replaces = bool(changes), must_replace(goal.type, old.inputs, new.inputs)
        else:
            # Nobody to ask: what check added last time (names, defaults) is no change of the program's.
            changes = differences(old.declared, dict(goal.inputs))
            changed = bool(changes)
            new.inputs = new.inputs if changed else old.inputs
        because = self._forced(goal, old, changes)
        if changed and replaces and not because:
            because = f"{', '.join(replaces)} cannot change in place"
        if because:
            first = delete_first if goal.delete_before_replace is None else goal.delete_before_replace
            return _Decision(op=Op.REPLACE, changes=changes, because=because, delete_first=first)
        if old.pending == "updating":
            return _Decision(op=Op.UPDATE, changes=changes, because="an earlier run was stopped while updating it")
        if changed:
            return _Decision(op=Op.UPDATE, changes=changes)
        return _Decision(op=Op.SAME, changes=[])

    def _forced(self, goal: Registration, old: ResourceState, changes: Sequence[Change]) -> str:
        """Why the program's options demand a replacement; empty when they do not."""
        for text in goal.replace_on_changes:
            if any(covers(parse_path(text), change.path) for change in changes):
                return f"the program replaces it when {text} changes"
        if old.replacement_trigger != goal.replacement_trigger:
            return "its replacement trigger changed"
        replaced = self._replaced & {*goal.replace_with, goal.provider.rpartition("::")[0]}
        return f"{min(replaced).rsplit('::', 1)[1]} is replaced" if replaced else ""

    # Steps.

    def _apply(
        self,
        step: Step,
        goal: Registration,
        old: ResourceState | None,
        new: ResourceState,
        provider: sdk.Provider | None,
    ) -> None:
        """Create or update through the provider, or only record; `new` gets its id and outputs."""
        is_provider = goal.type.startswith(PROVIDER_TYPE)
        if step.op is Op.SAME and old is not None:
            new.id, new.outputs, new.pending = old.id, old.outputs, old.pending
        elif is_provider or provider is None:
            new.id = old.id if old and old.pending not in _GONE else ""
            if is_provider and not self.dry_run:
                new.id = new.id or str(uuid.uuid4())
            new.outputs = dict(new.inputs)
        else:
            if not self.dry_run:
                self._begin(step, new, old, provider)
            if step.op is Op.UPDATE and old is not None:
                self._update(step, goal, old, new, provider)
            else:
                self._create(step, new, provider)
            new.outputs = with_secrets_of(new.outputs, new.inputs, goal.additional_secret_outputs)
            self.scrubber.learn(new.outputs)
        self._settle(step, new)

    def _begin(self, step: Step, new: ResourceState, old: ResourceState | None, provider: sdk.Provider) -> None:
        """Record that a step is under way, so that a killed run is taken up where it stopped."""
        with self._lock:
            if step.op is Op.UPDATE and old is not None:
                self._take_over(replace(old, urn=new.urn, pending="updating"))
            else:
                new.pending = "creating"
                predict = getattr(provider, "predicted_id", None)
                new.id = (predict(new.type, to_properties(new.inputs)) if predict else "") or ""
                self._take_over(new)
            self._save()
        self._clock[step.urn] = time.monotonic()
        self.listener.started(step)

    def _take_over(self, new: ResourceState) -> None:
        """The new state stands where the old one stood."""
        self._old.pop(self._origin.get(new.urn, ""), None)
        self._new[new.urn] = new

    def _create(self, step: Step, new: ResourceState, provider: sdk.Provider) -> None:
        timeout = new.timeouts.get("create", DEFAULT_TIMEOUT)
        request = sdk.CreateRequest(
            urn=new.urn, properties=to_properties(new.inputs), timeout=timeout, preview=self.dry_run
        )
        response = self._ask(new.urn, provider.create(request), step)
        outputs = from_properties(response.properties)
        if self.dry_run:
            new.id, new.outputs = "", outputs
            return
        if not response.resource_id:
            raise self.refuse(f"{new.urn}: the provider created it without an id")
        new.id, new.outputs = response.resource_id, outputs

    def _update(
        self, step: Step, goal: Registration, old: ResourceState, new: ResourceState, provider: sdk.Provider
    ) -> None:
        request = sdk.UpdateRequest(
            urn=new.urn,
            resource_id=old.id,
            olds=to_properties(old.outputs),
            news=to_properties(new.inputs),
            timeout=new.timeouts.get("update", DEFAULT_TIMEOUT),
            ignore_changes=list(goal.ignore_changes),
            preview=self.dry_run,
        )
        response = self._ask(new.urn, provider.update(request), step)
        new.id, new.outputs = old.id, from_properties(response.properties)

    def _settle(self, step: Step, new: ResourceState) -> None:
        """The step is done: the new state takes the old one's place."""
        with self._lock:
            if step.op is not Op.SAME:
                new.pending = ""
            self._take_over(new)
            if step.op is Op.SAME:
                return  # the file has it already; the last step of the run writes what little is new
            self._save()
        if not self.dry_run:
            self._finished(step)

    def _make_room(self, step: Step, old: ResourceState, *, delete_first: bool) -> None:
        """A replacement: the old one is deleted now, or condemned to be deleted when everything else is done."""
        if old.protect:
            raise self.refuse(self.protected(old))
        with self._lock:
            self._old.pop(old.urn, None)
            self._replaced.add(step.urn)
            if old.deleted_with in self._replaced:
                return  # gone with the other; deleting by name could hit its successor
            if not delete_first:
                self._condemned.append(replace(old, delete=True))
                return
        if self.dry_run:
            for dependent in self._must_go_before(old):
                self._take_out(dependent)
            return
        for dependent in self._must_go_before(old):
            self._delete(dependent, (old.urn,))
            self._take_out(dependent)
        self._delete(old, ())

    def _take_out(self, old: ResourceState) -> None:
        with self._lock:
            self._old.pop(old.urn, None)
            self._deleted_first[old.urn] = old

    def _must_go_before(self, old: ResourceState) -> list[ResourceState]:
        """Old resources that would have to be replaced with `old`, dependents first.

        They use its id or another output in a property that cannot change in place, it is their provider, or they
        say so (`replaceWith`).
        """
        gone, doomed = {old.urn}, []
        with self._lock:
            unclaimed = [r for r in self._old.values() if r.urn not in self._claimed]
        for other in unclaimed:
            through = [key for key, urns in other.property_dependencies.items() if gone & set(urns)]
            bound = bool(gone & {other.provider.rpartition("::")[0], *other.replace_with})
            if not bound and not (through and self._would_replace(other, through)):
                continue
            gone.add(other.urn)
            doomed.append(other)
        return doomed[::-1]

    def _would_replace(self, other: ResourceState, keys: Iterable[str]) -> bool:
        provider = None
        if other.custom and not other.type.startswith(PROVIDER_TYPE):
            provider = self.providers.find(other.type, other.provider, other.urn)
        if provider is None:
            return False
        inputs = {**other.inputs, **dict.fromkeys(keys, UNKNOWN)}
        request = sdk.DiffRequest(
            urn=other.urn,
            resource_id=other.id,
            old_state=to_properties(other.outputs),
            new_inputs=to_properties(inputs),
            ignore_changes=[],
        )
        vars(request)["old_inputs"] = to_properties(other.inputs)
        return bool(self._ask(other.urn, provider.diff(request)).replaces)

    # Deleting.

    def delete_leftovers(self) -> None:
        """Delete what the program no longer declares and what was replaced, dependents first: the run's last step.

        Raises StepFailedError.
        """
        leftovers = list(self._old.values())
        going = [*leftovers, *self._condemned]
        gone = {r.urn for r in going}
        for resource in going[::-1]:
            step = Step(
                urn=resource.urn, type=resource.type, op=Op.DELETE, custom=resource.custom, because=self.why_delete
            )
            if not resource.delete:
                if resource.protect:
                    raise self.refuse(self.protected(resource))
                self._plan(step)
            if self.dry_run:
                continue
            if self.cancelled.is_set():
                raise StepFailedError("stopped before everything was deleted")
            self._delete(resource, gone)
        self._save()

    def _delete(self, resource: ResourceState, gone: Iterable[str]) -> None:
        """Delete one resource and forget it; with `deletedWith` among the gone ones there is nothing to call."""
        step = Step(urn=resource.urn, type=resource.type, op=Op.DELETE, custom=resource.custom)
        managed = resource.custom and not resource.type.startswith(PROVIDER_TYPE)
        if managed and not resource.retain_on_delete and resource.deleted_with not in set(gone) - {""}:
            if not resource.id:
                self.listener.message(
                    "warning", f"{resource.urn}: its creation was interrupted and left no id to delete"
                )
            else:
                self.providers.restore(self.olds)
                provider = self.providers.find(resource.type, resource.provider, resource.urn)
                if provider is None:
                    raise self.refuse(f"{resource.urn}: its provider is not configured, so it cannot be deleted")
                with self._lock:
                    resource.pending = "deleting"
                    self._save()
                self._clock[step.urn] = time.monotonic()
                self.listener.started(step)
                request = sdk.DeleteRequest(
                    urn=resource.urn,
                    resource_id=resource.id,
                    properties=to_properties(resource.outputs),
                    timeout=resource.timeouts.get("delete", DEFAULT_TIMEOUT),
                )
                self._ask(resource.urn, provider.delete(request), step)
        with self._lock:
            self._condemned = [r for r in self._condemned if r is not resource]
            if self._old.get(resource.urn) is resource:
                del self._old[resource.urn]
            self._save()
        self._finished(step)

    @staticmethod
    def protected(resource: ResourceState) -> str:
        """Why it stays, and the way out."""
        return (
            f"{resource.urn} is protected and cannot be deleted. Set `aks-vllm:protect: false` "
            "(on the sandbox: `--set protect=false`), run `up`, then try again"
        )

    # Helpers.

    def _ask(self, urn: str, coroutine: Any, step: Step | None = None) -> Any:
        """A provider's answer; its errors become failures of the run, in words."""
        try:
            return call(coroutine)
        except Exception as problem:
            failure = self.refuse(f"{urn}: {problem}" if str(problem) else f"{urn}: {type(problem).__name__}")
            if step is not None and not self.dry_run:
                self.listener.failed(step, str(failure))
            raise failure from None

    def _finished(self, step: Step) -> None:
        began = self._clock.pop(step.urn, None)
        self.listener.finished(step, time.monotonic() - began if began else 0.0)

    def _plan(self, step: Step) -> None:
        with self._lock:
            self.steps.append(step)
        self.listener.planned(step)

    def state(self) -> list[ResourceState]:
        """Everything known now, dependencies first."""
        with self._lock:
            return [*self._new.values(), *self._old.values(), *self._condemned]

    def _save(self) -> None:
        if not self.dry_run:
            self.save(self.state())
