"""What a production stack fails of a general list of checks, and why it stands: one thing in data and on the page."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from bench import security
from tests.components.harness import TOKEN

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()


def test_the_page_shows_every_accepted_check_with_its_reason_and_no_other() -> None:
    shown = dict(line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| CKV_"))
    assert shown == yaml.safe_load(security.ACCEPTED.read_text())


def test_what_is_checked_is_the_whole_stack_and_holds_no_secret(tmp_path: Path) -> None:
    security.render(tmp_path)
    kinds = {yaml.safe_load(path.read_text())["kind"] for path in tmp_path.glob("*.yaml")}
    assert {"Deployment", "DaemonSet", "Job", "NetworkPolicy", "Secret", "Service"} <= kinds
    types = {row["type"] for row in json.loads((tmp_path / "azure.json").read_text())["resources"]}
    assert {"Microsoft.ContainerService/managedClusters", "Microsoft.Storage/storageAccounts"} <= types
    assert not any(TOKEN in path.read_text() for path in tmp_path.iterdir())
