"""A real HAProxy: AKS_VLLM_HAPROXY, the one on PATH, or Debian's package unpacked into the cache."""

from __future__ import annotations

from functools import cache

from tests import debian


@cache
def command() -> tuple[str, ...]:
    """The words that start it. Raises FileNotFoundError where there is none and none can be fetched."""
    program = debian.program("haproxy")
    return ("env", *(f"{name}={value}" for name, value in program.env.items()), str(program.path))
