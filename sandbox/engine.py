"""The embedded engine: preview, up, refresh and destroy of a stack, with the real program and real provider classes.

    engine = Engine(project="aks-vllm", stack="sandbox", store=Store(folder), packages={...})
    result = engine.preview(program, root=root, config=config, secret_keys=keys)

`record` runs a preview against nothing at all and returns what the program registered: the test harness of components.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pulumi.provider.experimental import provider as sdk

from sandbox.deployment import Deployment, Listener, Op, Silent, Step, StepFailedError
from sandbox.monitor import STACK_TYPE, Registration
from sandbox.program import Program, ProgramCrashedError, ProgramRefusedError, run
from sandbox.providers import PROVIDER_TYPE, BadReferenceError, Package, Providers, call
from sandbox.state import ResourceState, Store
from sandbox.values import Scrubber, Secret, Value, differences, from_properties, to_properties, with_secrets_of

#: What a cancelled run says last.
RECORDED = "what was done is recorded"
STOPPED = f"stopped; {RECORDED}"


class RunFailedError(Exception):
    """The run did not reach its end; every line is free of secrets."""

    def __init__(self, problems: list[str], details: str = "") -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.details = details  # a traceback, for a file, never for the screen


class InputRefusedError(RunFailedError):
    """The program refused its configuration."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run did, or in a preview would do."""

    steps: tuple[Step, ...]
    outputs: Mapping[str, Value] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, int]:
        """How many steps of each kind."""
        counts: dict[str, int] = {}
        for step in self.steps:
            counts[step.op.value] = counts.get(step.op.value, 0) + 1
        return counts


@dataclass(kw_only=True)
class Engine:
    """The verbs on one stack. Callers hold `store.locked()` around them."""

    project: str
    stack: str
    store: Store
    packages: Mapping[str, Package]
    listener: Listener = field(default_factory=Silent)
    scrubber: Scrubber = field(default_factory=Scrubber)
    cancelled: threading.Event = field(default_factory=threading.Event)
    _current: Providers | None = None

    def preview(
        self, program: Program, *, root: Path, config: Mapping[str, str], secret_keys: Collection[str]
    ) -> Result:
        """What `up` would do. Writes nothing.

        Raises RunFailedError, InputRefusedError, UnreadableStateError.
        """
        return self._run(program, root, config, secret_keys, dry_run=True)

    def up(self, program: Program, *, root: Path, config: Mapping[str, str], secret_keys: Collection[str]) -> Result:
        """Bring the stack to what the program declares, and delete what it no longer does.

        Raises RunFailedError, InputRefusedError, UnreadableStateError.
        """
        return self._run(program, root, config, secret_keys, dry_run=False)

    def refresh(self, config: Mapping[str, str]) -> Result:
        """Read every resource through its provider and take what it says into the state.

        Raises RunFailedError, UnreadableStateError.
        """
        state = self.store.load()
        providers = self._providers(config, state)
        providers.restore(state)
        kept, steps, problems = [], [], []
        for resource in state:
            try:
                fresh, step = self._read(resource, providers)
            except Exception as problem:
                problems.append(self.scrubber.clean(f"{resource.urn}: {problem}"))
                kept.append(resource)
                continue
            if step is not None:
                self.listener.planned(step)
                steps.append(step)
            if fresh is not None:
                kept.append(fresh)
        self.store.save(kept)
        if problems:
            raise RunFailedError(problems)
        return Result(steps=tuple(steps), outputs=self.outputs())

    def destroy(self, config: Mapping[str, str]) -> Result:
        """Delete every resource of the stack, dependents first.

        Raises RunFailedError (also when a resource is protected: then nothing is deleted), UnreadableStateError.
        """
        state = self.store.load()
        deployment = self._deployment(config, state, dry_run=False)
        deployment.why_delete = ""
        protected = [r for r in state if r.protect and r.custom]
        if protected:
            raise RunFailedError([deployment.protected(resource) for resource in protected])
        try:
            deployment.delete_leftovers()
        except (StepFailedError, BadReferenceError) as stopped:
            if self.cancelled.is_set():
                raise RunFailedError([*deployment.failures, STOPPED]) from None
            raise RunFailedError([*(deployment.failures or [self.scrubber.clean(str(stopped))]), RECORDED]) from None
        return Result(steps=tuple(deployment.steps))

    def outputs(self) -> dict[str, Value]:
        """The stack's outputs as last recorded; secrets are marked."""
        return next((r.outputs for r in self.store.load() if r.type == STACK_TYPE), {})

    def cancel(self) -> None:
        """Let the steps under way end, and begin no other."""
        self.cancelled.set()
        for provider in self._current.all() if self._current else []:
            call(provider.cancel())

    def _providers(self, config: Mapping[str, str], state: list[ResourceState]) -> Providers:
        for resource in state:
            self.scrubber.learn(resource.inputs)
            self.scrubber.learn(resource.outputs)
        self._current = Providers(self.packages, config)
        return self._current

    def _deployment(self, config: Mapping[str, str], state: list[ResourceState], *, dry_run: bool) -> Deployment:
        return Deployment(
            project=self.project,
            stack=self.stack,
            olds=state,
            providers=self._providers(config, state),
            save=self.store.save,
            listener=self.listener,
            scrubber=self.scrubber,
            dry_run=dry_run,
            cancelled=self.cancelled,
        )

    def _run(
        self, program: Program, root: Path, config: Mapping[str, str], secret_keys: Collection[str], *, dry_run: bool
    ) -> Result:
        for key in secret_keys:
            self.scrubber.learn_text(config[key])
        deployment = self._deployment(config, self.store.load(), dry_run=dry_run)
        execute(deployment, program, root=root, config=config, secret_keys=secret_keys)
        return Result(steps=tuple(deployment.steps), outputs=deployment.outputs)

    def _read(self, resource: ResourceState, providers: Providers) -> tuple[ResourceState | None, Step | None]:
        if not resource.custom or resource.type.startswith(PROVIDER_TYPE) or not resource.id:
            return resource, None
        provider = providers.find(resource.type, resource.provider, resource.urn)
        if provider is None:
            raise BadReferenceError("its provider is not configured")
        request = sdk.ReadRequest(
            urn=resource.urn,
            resource_id=resource.id,
            properties=to_properties(resource.outputs),
            inputs=to_properties(resource.inputs),
        )
        response = call(provider.read(request))
        step = Step(urn=resource.urn, type=resource.type, op=Op.SAME, custom=True)
        if not response.resource_id:
            return None, replace(step, op=Op.DELETE)
        outputs = with_secrets_of(from_properties(response.properties), resource.outputs, ())
        inputs = with_secrets_of(from_properties(response.inputs), resource.inputs, ()) or resource.inputs
        self.scrubber.learn(outputs)
        # What was declared and is otherwise now, as the CLI tells it; states and counters change all the time.
        changes = differences(resource.inputs, inputs)
        # What was interrupted stays so: that it exists does not mean that it is finished.
        fresh = replace(resource, id=response.resource_id, inputs=inputs, outputs=outputs)
        return fresh, replace(step, op=Op.UPDATE if changes else Op.SAME, changes=tuple(changes))


def execute(
    deployment: Deployment, program: Program, *, root: Path, config: Mapping[str, str], secret_keys: Collection[str]
) -> None:
    """Run the program through the deployment, and delete what it no longer declares.

    Raises RunFailedError or InputRefusedError.
    """
    try:
        run(program, deployment, root=root, config=config, secret_keys=secret_keys)
        deployment.delete_leftovers()
    except (ProgramRefusedError, ProgramCrashedError, StepFailedError, BadReferenceError) as stopped:
        if deployment.cancelled.is_set():
            raise RunFailedError([*deployment.failures, STOPPED]) from None
        if deployment.failures:
            raise RunFailedError([*deployment.failures, *([] if deployment.dry_run else [RECORDED])]) from None
        clean = deployment.scrubber.clean
        if isinstance(stopped, ProgramRefusedError):
            logged = [text for severity, text in deployment.messages if severity == "error"]
            raise InputRefusedError([*logged, clean(str(stopped))]) from None
        details = clean(stopped.details) if isinstance(stopped, ProgramCrashedError) else ""
        raise RunFailedError([f"the program failed: {clean(str(stopped))}"], details) from None
    if deployment.failures:
        raise RunFailedError(deployment.failures)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Everything a program registered in a preview of an empty stack."""

    registrations: tuple[Registration, ...]  # in the order in which they arrived
    outputs: Mapping[str, Value]  # of the stack; secrets as `Secret`, what only an update can tell as `UNKNOWN`
    messages: tuple[tuple[str, str], ...]  # (info | warning | error, text)
    component_outputs: Mapping[str, Mapping[str, Value]]  # by URN

    def of_type(self, type_: str) -> tuple[Registration, ...]:
        """The registrations of one type token."""
        return tuple(r for r in self.registrations if r.type == type_)

    def one(self, type_: str, name: str | None = None) -> Registration:
        """The only registration of a type, or of a type and logical name.

        Raises LookupError when there is none, or more than one.
        """
        found = [r for r in self.of_type(type_) if name in (None, r.name)]
        if len(found) != 1:
            raise LookupError(f"{len(found)} registrations of {type_} {name or ''}, not one")
        return found[0]


def record(
    root: Path,
    stack: str,
    config: Mapping[str, str],
    secret_keys: Collection[str] = (),
    program: Program | None = None,
    project: str = "aks-vllm",
) -> Recording:
    """Preview the program against an empty, simulated Azure and no cluster; write nothing, start nothing.

    `config` is what the Pulumi CLI would hand over: full keys (`aks-vllm:preset`), values as strings, maps and lists as
    JSON text. `program` is `root/__main__.py` unless given. Unknown, misspelt or badly formed Azure properties fail.

    Raises RunFailedError, or InputRefusedError when the program refused its configuration.
    """
    from sandbox.azure import SimulatedAzure

    location = config.get("azure-native:location", "")
    azure = SimulatedAzure(location=location)
    packages: dict[str, Package] = {"azure-native": lambda _: azure, "kubernetes": lambda _: None}
    deployment = Deployment(
        project=project,
        stack=stack,
        olds=[],
        providers=Providers(packages, config),
        save=lambda _: None,
        listener=Silent(),
        scrubber=Scrubber(),
        dry_run=True,
    )
    for key in secret_keys:
        deployment.scrubber.learn_text(config[key])
    execute(deployment, program or root / "__main__.py", root=root, config=config, secret_keys=secret_keys)
    return Recording(
        registrations=tuple(deployment.registrations),
        outputs=deployment.outputs,
        messages=tuple(deployment.messages),
        component_outputs=deployment.component_outputs,
    )


__all__ = [
    "Engine",
    "InputRefusedError",
    "Op",
    "Recording",
    "Registration",
    "Result",
    "RunFailedError",
    "Secret",
    "Step",
    "record",
]
