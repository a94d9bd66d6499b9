"""The control plane's five executables: found at `KUBEBUILDER_ASSETS`, cached, or built from their Go modules."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[str], None]

MODULE = Path(__file__).parent / "toolchain"


class ToolchainError(Exception):
    """The executables cannot be had; the message says what is missing and how to supply it."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One executable, the Go package that it is built from, and about how long that takes on two cores."""

    name: str
    package: str
    minutes: float


TOOLS = (
    Tool(name="etcd", package="go.etcd.io/etcd/server/v3", minutes=0.5),
    Tool(name="kwok", package="sigs.k8s.io/kwok/cmd/kwok", minutes=1),
    Tool(name="kube-scheduler", package="k8s.io/kubernetes/cmd/kube-scheduler", minutes=1.5),
    Tool(name="kube-controller-manager", package="k8s.io/kubernetes/cmd/kube-controller-manager", minutes=2.5),
    Tool(name="kube-apiserver", package="k8s.io/kubernetes/cmd/kube-apiserver", minutes=6),
)


def binaries(progress: Progress) -> Path:
    """A folder that holds all five executables; what is missing is built, which takes about ten minutes once.

    Killed at any moment, the next call goes on with the executables still missing.

    Raises ToolchainError when this is not Linux, when Go is missing or too old, when a build fails, or when
    KUBEBUILDER_ASSETS names a folder without etcd and kube-apiserver.
    """
    if sys.platform != "linux":  # processes are found in /proc and ended by descriptor
        raise ToolchainError(
            "the sandbox's control plane runs on Linux only: use a Linux machine, a virtual one or WSL 2"
        )
    assets = _assets()
    if assets and not _missing(assets):
        return assets
    folder = _cache(assets)
    if not _missing(folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder / ".lock", progress) as lock:
        for leftover in folder.glob(".partial-*"):
            leftover.unlink()
        for tool in _missing(folder):
            if assets and (assets / tool.name).exists():
                (folder / tool.name).unlink(missing_ok=True)
                (folder / tool.name).symlink_to((assets / tool.name).resolve())
        missing = _missing(folder)
        if missing:
            _require_go()
        for number, tool in enumerate(missing, 1):
            _build(tool, folder, f"{number} of {len(missing)}", lock, progress)
    return folder


def _assets() -> Path | None:
    """The folder that the Kubernetes ecosystem calls KUBEBUILDER_ASSETS, if the user has one."""
    value = os.environ.get("KUBEBUILDER_ASSETS")
    if not value:
        return None
    folder = Path(value).expanduser()
    for name in ("etcd", "kube-apiserver"):
        if not os.access(folder / name, os.X_OK):
            raise ToolchainError(
                f"KUBEBUILDER_ASSETS = {value}: there is no executable {name} in it; "
                "name a folder with etcd and kube-apiserver, or unset it to build them"
            )
    return folder


def _cache(assets: Path | None) -> Path:
    """Other sources, flags or assets make another folder."""
    sources = [(MODULE / name).read_bytes() for name in ("go.mod", "go.sum")]
    recipe = [*sources, " ".join(_flags()).encode(), str(assets or "").encode()]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "aks-vllm" / f"control-plane-{hashlib.sha256(b'|'.join(recipe)).hexdigest()[:12]}"


def _missing(folder: Path) -> list[Tool]:
    return [tool for tool in TOOLS if not os.access(folder / tool.name, os.X_OK)]


def _flags() -> list[str]:
    """Small, reproducible executables that tell clients their version (without it they would say v0.0.0)."""
    version = _pinned(r"k8s\.io/kubernetes v(\S+)")
    major, minor, _ = version.split(".", 2)
    stamps = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    stamped = " ".join(f"-X k8s.io/component-base/version.{key}={value}" for key, value in stamps.items())
    return ["-trimpath", "-ldflags", f"-s -w {stamped}"]


def _pinned(pattern: str) -> str:
    found = re.search(rf"^\s*{pattern}", (MODULE / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise ToolchainError(f"{MODULE / 'go.mod'} has no line like {pattern!r}")
    return found[1]


def _require_go() -> None:
    needed = _pinned(r"go (\d+\.\d+)")
    remedy = (
        f"Go {needed} or newer builds the sandbox's control plane: install it (https://go.dev/dl), or set "
        "KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kwok"
    )
    try:
        # In the module's folder: there Go itself says if it is too old, or fetches the version that it is asked for.
        asked = subprocess.run(["go", "env", "GOVERSION"], cwd=MODULE, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ToolchainError(f"there is no `go` on PATH. {remedy}") from None
    found = re.fullmatch(r"go(\d+)\.(\d+).*", asked.stdout.strip())
    if found is None:
        raise ToolchainError(f"go: {asked.stderr.strip() or asked.stdout.strip()}. {remedy}")
    if (int(found[1]), int(found[2])) < tuple(int(part) for part in needed.split(".")):
        raise ToolchainError(f"{asked.stdout.strip()} is too old. {remedy}")


def _build(tool: Tool, folder: Path, position: str, lock: int, progress: Progress) -> None:
    partial, log = folder / f".partial-{tool.name}-{os.getpid()}", folder / f"{tool.name}.log"
    command = ["go", "build", *_flags(), "-o", str(partial), tool.package]
    started = time.monotonic()
    with log.open("w") as output:
        build = subprocess.Popen(
            command,
            cwd=MODULE,
            env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"},  # a workspace around us would hide the module
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],  # outlives us if we are killed: the next call waits for it instead of building beside it
        )
        try:
            while build.poll() is None:
                elapsed = f"{time.monotonic() - started:.0f} s so far"
                progress(f"building {tool.name} ({position}), about {tool.minutes:g} min on two cores; {elapsed}")
                _wait(build, seconds=15)
        finally:
            if build.poll() is None:
                build.terminate()
                build.wait()
    if build.returncode != 0:
        partial.unlink(missing_ok=True)
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ToolchainError(f"`go build {tool.package}` failed with exit code {build.returncode} ({log}):\n{tail}")
    partial.replace(folder / tool.name)


def _wait(build: subprocess.Popen[bytes], *, seconds: float) -> None:
    try:
        build.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return


@contextmanager
def _only_one(path: Path, progress: Progress) -> Generator[int]:
    """Two builds at once would take twice the memory and no less time: the second one waits."""
    with path.open("w") as lock:
        for second in itertools.count():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if second % 15 == 0:
                    progress(f"another process builds the control plane: waiting for it, {second} s so far")
                time.sleep(1)
        yield lock.fileno()
