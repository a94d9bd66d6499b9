"""A real HAProxy: AKS_VLLM_HAPROXY, the one on PATH, or Debian's package unpacked into the cache."""

from __future__ import annotations

import subprocess
from functools import cache

from tests import debian


@cache
def command() -> tuple[str, ...]:
    """The words that start it. Raises FileNotFoundError where there is none and none can be fetched."""
    found = debian.program("haproxy")
    return ("env", *(f"{name}={value}" for name, value in found.env.items()), str(found.path))


def version() -> str:
    """As it says itself, for example 2.6.12-1+deb12u4."""
    return subprocess.run([*command(), "-v"], capture_output=True, text=True, check=True).stdout.split()[2]
