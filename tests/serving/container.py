"""A container runtime as far as these tests need one: bubblewrap, told by a rendered pod what to run.

What the pod says holds: command, arguments, environment, volumes at their paths (read-only where it says so), the user
and group, no capabilities, no new privileges, and the command as process 1 of a process namespace of its own, which is
what decides whether SIGTERM reaches it. The network is the machine's: pods get loopback addresses. Processor and memory
limits do not hold. Should the tests be killed, the kernel ends every container with them (`--die-with-parent`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import debian

#: What every container of a Linux distribution has; /bin and the like are links into /usr, or folders.
SYSTEM = ("/bin", "/etc", "/lib", "/lib64", "/opt", "/sbin", "/sys", "/usr")


@dataclass(frozen=True, kw_only=True)
class Image:
    """What a container image brings: its own programs and its environment, which the pod's overrides."""

    folders: Sequence[Path] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)  # path in the container -> what lies there
    stop_signal: signal.Signals = signal.SIGTERM


@dataclass(frozen=True, kw_only=True)
class Container:
    """A running container; `pid` is its process 1 as this machine numbers it."""

    process: subprocess.Popen[bytes]
    pid: int
    stop_signal: signal.Signals

    def terminate(self) -> None:
        """What a container runtime does first when it is told to stop: the image's signal, to process 1 alone."""
        self._send(self.stop_signal)

    def kill(self) -> None:
        """SIGKILL to process 1: the kernel ends the rest of the namespace."""
        self._send(signal.SIGKILL)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def _send(self, number: signal.Signals) -> None:
        if self.running:
            os.kill(self.pid, number)


def start(
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    *,
    image: Image,
    env: Mapping[str, str],
    volumes: Mapping[str, Path],
    log: Path,
) -> Container:
    """Run one container of a rendered pod spec; `volumes` maps its volumes' names to folders, its output goes to `log`.

    The calling thread must live as long as the container: the kernel ends it with the thread.
    """
    security = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
    words = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--as-pid-1", "--die-with-parent", "--new-session"]
    words += ["--uid", str(security["runAsUser"]), "--gid", str(security["runAsGroup"]), "--cap-drop", "ALL"]
    mounts = sorted(container.get("volumeMounts", ()), key=lambda mount: mount["mountPath"])
    for folder in map(Path, SYSTEM):
        words += _read_only(folder, [Path(mount["mountPath"]) for mount in mounts])
    words += ["--proc", "/proc", "--dev", "/dev"]
    for folder in image.folders:
        words += ["--ro-bind", str(folder), str(folder)]
    for inside, source in image.files.items():
        words += ["--ro-bind", str(source), inside]
    for mount in mounts:
        source = volumes[mount["name"]] / mount.get("subPath", "")
        if "subPath" in mount and not source.exists():
            source.mkdir(parents=True)
        words += ["--ro-bind" if mount.get("readOnly") else "--bind", str(source), mount["mountPath"]]
    if security.get("readOnlyRootFilesystem"):
        words += ["--remount-ro", "/"]
    if "workingDir" in container:
        words += ["--chdir", container["workingDir"]]
    reading, writing = os.pipe()
    bubblewrap = debian.program("bwrap")
    command = [*container.get("command", ()), *container.get("args", ())]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [bubblewrap.path, *words, "--info-fd", str(writing), "--", *command],
            # Not on the command line: a process list would show it.
            env={**bubblewrap.env, "PATH": os.environ["PATH"], **image.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[writing],
        )
    os.close(writing)
    with os.fdopen(reading) as information:
        told = information.read()
    if not told:
        raise RuntimeError(f"{container['name']} did not start: {log.read_text()[-2000:]}")
    return Container(process=process, pid=json.loads(told)["child-pid"], stop_signal=image.stop_signal)


def _read_only(path: Path, mounts: Sequence[Path]) -> Iterator[str]:
    """The machine's own file or folder; one that holds mount points is made anew, as they may not exist here."""
    if path.is_symlink():
        yield from ("--symlink", str(path.readlink()), str(path))
    elif path.is_dir() and any(path in mount.parents for mount in mounts):
        yield from ("--dir", str(path))
        for child in path.iterdir():
            yield from _read_only(child, mounts)
    elif path.exists():
        yield from ("--ro-bind", str(path), str(path))
