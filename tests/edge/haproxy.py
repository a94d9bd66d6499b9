"""A real HAProxy: AKS_VLLM_HAPROXY, the one on PATH, or Debian's package unpacked into the cache."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

#: What Debian's HAProxy needs and a small system may lack.
PACKAGES = ("haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1", "libpcre2-8-0")


@cache
def command() -> tuple[str, ...]:
    """The words that start it. Raises subprocess.CalledProcessError where there is none and none can be fetched."""
    named = os.environ.get("AKS_VLLM_HAPROXY") or shutil.which("haproxy")
    if named:
        return (named,)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aks-vllm" / "haproxy-debian"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "root").exists():
            _unpack(folder)
    libraries = [str(path.parent) for path in (folder / "root").rglob("liblua5.3.so.0")]
    return ("env", f"LD_LIBRARY_PATH={':'.join(libraries)}", str(folder / "root" / "usr" / "sbin" / "haproxy"))


def version() -> str:
    """As it says itself, for example 2.6.12-1+deb12u4."""
    return subprocess.run([*command(), "-v"], capture_output=True, text=True, check=True).stdout.split()[2]


def _unpack(folder: Path) -> None:
    print("Unpacking Debian's HAProxy into the cache (3 MB, once)", file=sys.stderr, flush=True)
    downloads, partial = folder / "downloads", folder / "partial"
    for leftover in (downloads, partial):
        shutil.rmtree(leftover, ignore_errors=True)
        leftover.mkdir()
    fetch = ["apt-get", "download", *PACKAGES]
    if subprocess.run(fetch, cwd=downloads, stdout=sys.stderr, stderr=sys.stderr).returncode:
        subprocess.run(["apt-get", "update"], stdout=sys.stderr, check=True)
        subprocess.run(fetch, cwd=downloads, stdout=sys.stderr, check=True)
    for package in downloads.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, partial], check=True)
    partial.rename(folder / "root")
    shutil.rmtree(downloads)
