"""Programs that Debian packages, for tests and benchmarks: from PATH, or unpacked into the cache; none is installed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: Program -> the packages that hold it and those of its libraries that a minimal Debian 12 lacks.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "haproxy": ("haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1", "libpcre2-8-0"),
    "bwrap": ("bubblewrap",),
    "wrk": ("wrk", "libluajit-5.1-2"),
}


@dataclass(frozen=True, kw_only=True)
class Program:
    """An executable, and the folders its loader needs named (`LD_LIBRARY_PATH`)."""

    path: Path
    libraries: tuple[Path, ...] = ()

    @property
    def env(self) -> dict[str, str]:
        """What its process environment must hold."""
        return {"LD_LIBRARY_PATH": ":".join(map(str, self.libraries))} if self.libraries else {}


def program(name: str) -> Program:
    """One of PACKAGES: what AKS_VLLM_HAPROXY, for one, says, else PATH, else Debian's package.

    Raises FileNotFoundError, with what to do, where there is none.
    """
    if chosen := os.environ.get(_variable(name)) or shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin"):
        return Program(path=Path(chosen))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = cache / "aks-vllm" / f"debian-{name}"
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            _unpack(name, root)
    found = next(path for folder in ("usr/bin", "usr/sbin") if (path := root / folder / name).exists())
    return Program(path=found, libraries=tuple(sorted({path.parent for path in root.rglob("*.so.*")})))


def _variable(name: str) -> str:
    return f"AKS_VLLM_{name.upper()}"


def _unpack(name: str, root: Path) -> None:
    remedy = f"{name} is missing: install it, or name it with {_variable(name)}=/path/to/{name}"
    if not shutil.which("apt-get"):
        raise FileNotFoundError(f"{remedy} (this is no Debian, whose package could be unpacked)")
    partial = root.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    download = ["apt-get", "download", "--quiet", *PACKAGES[name]]
    # The list of packages may be missing or old: then it is fetched once.
    if subprocess.run(download, cwd=partial, stdout=sys.stderr).returncode:
        subprocess.run(["apt-get", "update", "--quiet"], stdout=sys.stderr)
        if subprocess.run(download, cwd=partial, stdout=sys.stderr).returncode:
            raise FileNotFoundError(f"{remedy} (apt-get download did not get {', '.join(PACKAGES[name])})")
    for package in partial.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, partial], check=True)
        package.unlink()
    partial.rename(root)
