"""Running the unmodified Pulumi program in this process."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import runpy
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pulumi
from pulumi import runtime

from sandbox.monitor import EngineLog, Monitor, Registrar

#: Registrations wait in threads for their providers. asyncio's default (CPU count + 4) would serialise rollouts.
THREADS = 32

Program = Path | Callable[[], Any]


class ProgramRefusedError(Exception):
    """The program stopped on purpose (`pulumi.RunError`): its message is meant for people."""


class ProgramCrashedError(Exception):
    """The program raised something else; `details` holds the traceback."""

    def __init__(self, message: str, details: str) -> None:
        super().__init__(message)
        self.details = details


def run(
    program: Program,
    registrar: Registrar,
    *,
    root: Path,
    config: Mapping[str, str],
    secret_keys: Collection[str],
) -> None:
    """Run the program to its end, with every registration answered by the registrar.

    Raises ProgramRefusedError or ProgramCrashedError; a failure that the registrar noted arrives as the former.
    """
    context = contextvars.copy_context()  # the SDK keeps settings, config and root stack in context variables
    context.run(_run, program, registrar, root, dict(config), list(secret_keys))


def _run(program: Program, registrar: Registrar, root: Path, config: dict[str, str], secret_keys: list[str]) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(lambda *_: None)  # registrations after a failure; the failure itself is reported
    threads = ThreadPoolExecutor(THREADS)
    loop.set_default_executor(threads)
    runtime.set_all_config(config, secret_keys)
    runtime.configure(
        runtime.Settings(
            project=registrar.project,
            stack=registrar.stack,
            organization="organization",
            monitor=Monitor(registrar),
            engine=EngineLog(registrar),
            parallel=THREADS,
            dry_run=registrar.dry_run,
            root_directory=str(root),
        )
    )
    runtime.settings.ROOT.set(None)
    collecting = gc.get_threshold()
    if registrar.dry_run:
        # A preview only makes objects that stay: with a thousand models the search for garbage takes twice the run
        # itself. `gc.disable()` would be undone by a program that enables it.
        gc.set_threshold(0)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        loop.run_until_complete(runtime.run_in_stack(_callable(program)))
    except pulumi.RunError as refusal:
        raise ProgramRefusedError(str(refusal)) from None
    except Exception as crash:
        details = "".join(traceback.format_exception(crash))
        raise ProgramCrashedError(f"{type(crash).__name__}: {crash}", details) from None
    finally:
        gc.set_threshold(*collecting)
        threads.shutdown(wait=True)  # steps under way end and are recorded
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        asyncio.set_event_loop(None)


def _callable(program: Program) -> Callable[[], Any]:
    if not isinstance(program, Path):
        return program

    def run_file() -> None:
        runpy.run_path(str(program), run_name="__main__")

    return run_file
