"""The processes of one folder: found in the process table, started so that they outlive the program, ended by id."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

#: Seconds a process may take to end before it is killed.
STOP_LIMIT = 10
#: Bytes above which a log is cut to its last half of that; idle, they grow by some lines an hour.
LOG_LIMIT = 1_000_000


class Processes:
    """Programs known by name, each with `=<folder>/...` in its arguments: that is how they are recognised.

    Read from the process table, not from pid files: such a file is missing after a kill between start and write, and
    wrong once the number belongs to somebody else.
    """

    def __init__(self, folder: Path, names: Sequence[str], progress: Callable[[str], None]) -> None:
        self._folder = folder
        self._names = names
        self._progress = progress
        self._children: list[subprocess.Popen[bytes]] = []

    def ids(self) -> dict[str, int]:
        """The process id of each one that runs."""
        for child in self._children:
            child.poll()  # an ended child would stay a zombie
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                command = _command_line(int(entry.name))
                if self._is_ours(command):
                    found[Path(command[0]).name] = int(entry.name)
        return found

    def runs(self, name: str, command: list[str]) -> bool:
        """Whether a program runs with exactly this command."""
        pid = self.ids().get(name)
        return pid is not None and _command_line(pid) == command

    def ensure(self, name: str, command: list[str]) -> None:
        """Start a program, unless it runs with exactly this command already."""
        if self.runs(name, command):
            return
        self.end([name])  # other flags, or another version
        self._progress(f"starting {name}")
        self._log(name).parent.mkdir(exist_ok=True)
        with self._log(name).open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                # No home and no variables of the user's: nothing is read or written outside the folder.
                env={"HOME": str(self._folder), "TMPDIR": str(self._folder), "PATH": os.environ.get("PATH", "")},
                start_new_session=True,  # Ctrl-C is for the program, not for a database in mid-write
            )
        self._children.append(child)
        # For a moment after exec a process has no command line, and would look as if it had stopped already.
        while name not in self.ids() and child.poll() is None:
            time.sleep(0.01)

    def end(self, names: Sequence[str]) -> None:
        """End programs, the last one first, and wait until they are gone."""
        for name in reversed(names):
            pid = self.ids().get(name)
            if pid is not None:
                self._end(pid)

    def trim_logs(self) -> None:
        """Cut long logs to their ends. The programs append, so that they go on behind the cut."""
        for name in self._names:
            path = self._log(name)
            if path.exists() and path.stat().st_size > LOG_LIMIT:
                with path.open("r+b") as log:
                    log.seek(-LOG_LIMIT // 2, os.SEEK_END)
                    end = log.read()
                    log.seek(0)
                    log.write(end)
                    log.truncate()

    def last_words(self, name: str) -> str:
        """Where a program's log is and how it ends, to be put behind an error."""
        path = self._log(name)
        lines = path.read_text(errors="replace").splitlines()[-8:] if path.exists() else []
        return f"; the last lines of {path}:\n" + "\n".join(lines)

    def _log(self, name: str) -> Path:
        return self._folder / "logs" / f"{name}.log"

    def _end(self, pid: int) -> None:
        """End a process of ours: held by descriptor, so that its number cannot pass to a stranger in between."""
        try:
            held = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        ended = select.poll()
        ended.register(held, select.POLLIN)
        try:
            if self._is_ours(_command_line(pid)):
                for number in (signal.SIGTERM, signal.SIGKILL):
                    signal.pidfd_send_signal(held, number)
                    if ended.poll(STOP_LIMIT * 1000):
                        break
        except ProcessLookupError:
            return
        finally:
            os.close(held)

    def _is_ours(self, command: list[str]) -> bool:
        return Path(command[0]).name in self._names and any(f"={self._folder}/" in part for part in command[1:])


def _command_line(pid: int) -> list[str]:
    """The arguments of a process; a zombie has none, and neither has one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return [""]
