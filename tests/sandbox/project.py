"""A checkout of its own, and the command line in it: what tests of the whole way share."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client, config

ROOT = Path(__file__).parents[2]
ROOMS = (
    "__main__.py",
    "Pulumi.yaml",
    "planning",
    "components",
    "pod",
    "presets",
    "stacks",
    "sandbox",
    "gitops",
    "policy",
)
#: Parts that most stacks are made without.
OPTIONS = (
    "add-ons=[managed-prometheus, managed-grafana, log-analytics]",
    "key-vault={id: /subscriptions/00000000-0000-0000-0000-00000000aaaa/resourceGroups/rg-platform/providers"
    "/Microsoft.KeyVault/vaults/platform, hf-token: hugging-face, certificate: llm-example-com}",
)
STATE = ".sandbox/sandbox"
QUICK = {**os.environ, "AKS_VLLM_POD_READY_SECONDS": "0.5"}


@dataclass(frozen=True)
class Project:
    """A checkout of its own, so that its sandbox is nobody else's."""

    folder: Path

    def run(self, *arguments: str, exit_code: int = 0) -> Any:
        """`python -m sandbox ... --format json`; its one JSON document."""
        done = subprocess.run(
            self.command(*arguments), cwd=self.folder, capture_output=True, text=True, timeout=240, env=QUICK
        )
        assert done.returncode == exit_code, f"{arguments}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    @staticmethod
    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "sandbox", *arguments, "--format", "json"]

    def api(self) -> client.ApiClient:
        """The API server, past every layer of ours."""
        (kubeconfig,) = (self.folder / STATE).rglob("admin.kubeconfig")
        return config.new_client_from_config(str(kubeconfig))

    def processes(self) -> list[str]:
        """Command lines that name this folder, but for this test's own."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            if path.parent.name == str(os.getpid()):
                continue
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.folder) in line:
                found.append(line)
        return found

    def state(self) -> list[dict[str, Any]]:
        """The resources in the state file, as far as there is one."""
        try:
            return json.loads((self.folder / STATE / "state.json").read_text())["resources"]
        except FileNotFoundError:
            return []


def drift(refreshed: Any) -> dict[str, list[str]]:
    """What a refresh found to differ, by name; but for the GPU pools, which Azure lists with the cluster's own."""
    return {
        row["urn"].rsplit("::", 1)[1]: paths
        for row in refreshed["resources"]
        if row["op"] != "same" and (paths := [path for path in row["diff"] if not path.startswith("agentPoolProfiles")])
    }


@contextlib.contextmanager
def copied(folder: Path) -> Generator[Project]:
    """A copy of the project; the sandboxes of all its stacks are gone at the end."""
    ignore = shutil.ignore_patterns("__pycache__", "venv")
    for room in ROOMS:
        source = ROOT / room
        if source.is_dir():
            shutil.copytree(source, folder / room, ignore=ignore)
        else:
            shutil.copy(source, folder / room)
    copy = Project(folder)
    try:
        yield copy
    finally:
        for made in (folder / ".sandbox").glob("*"):
            copy.run("destroy", "--stack", made.name)
