"""The Pulumi CLI as it is called: settings for one update alone, and nothing left of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
#: Keeps what it was given, and says where that was.
PULUMI = """#!/bin/sh
while [ "$1" != "--config-file" ]; do shift; done
cp "$2" "$SEEN"
echo "$2"
"""
UPDATE = """
from pathlib import Path
from gitops.tools import PulumiCli
raise SystemExit(PulumiCli("prod", Path.cwd()).update(["benchmark=true"]).wait())
"""


def test_settings_of_one_update_travel_in_a_copy_that_goes_with_it(tmp_path: Path) -> None:
    stack = tmp_path / "stacks" / "Pulumi.prod.yaml"
    stack.parent.mkdir()
    written = {"encryptedkey": "opens the secrets", "config": {"aks-vllm:preset": "qwen3-8b"}}
    stack.write_text(yaml.safe_dump(written))
    pulumi = tmp_path / "bin" / "pulumi"
    pulumi.parent.mkdir()
    pulumi.write_text(PULUMI)
    pulumi.chmod(0o755)
    seen = tmp_path / "seen.yaml"
    environment = {"PATH": f"{pulumi.parent}:{os.environ['PATH']}", "SEEN": str(seen), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", UPDATE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    given = yaml.safe_load(seen.read_text())
    assert given["config"] == {"aks-vllm:preset": "qwen3-8b", "aks-vllm:benchmark": "true"}
    assert given["encryptedkey"] == "opens the secrets", "without it the CLI could not read the stack's secrets"
    assert not Path(done.stdout.strip()).parent.exists(), "the copy stays behind"
    assert yaml.safe_load(stack.read_text()) == written, "the setting would be in the next update, too"
