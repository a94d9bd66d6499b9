"""The production stack as it is declared, under the checks of checkov: what fails, and is not accepted with a reason?

checkov (https://www.checkov.io: the CIS benchmarks for Kubernetes and AKS, Azure's baselines) is a program of its own;
it is taken from PATH, or from CHECKOV.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from bench.figure import Figure
from sandbox.azure import rules
from sandbox.values import UNKNOWN, Secret
from tests.components.harness import recorded_preview

ACCEPTED = Path(__file__).parent / "data" / "accepted-checks.yaml"
#: Of an ARM resource, what stands beside `properties`.
BESIDE = {"location", "tags", "sku", "identity", "zones", "kind"}
_KEY = {"sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}
STACK: dict[str, Any] = {
    "environment": "production",
    "edge": {"keys": {"team-a": _KEY}, "tls-secret": "edge-tls", "host": "llm.example.com"},
    "add_ons": ["azure-policy", "defender", "image-cleaner", "log-analytics", "managed-grafana", "managed-prometheus"],
}


def figures() -> list[Figure]:
    """A row for each failed check on standard error, then the count of those that nobody accepted."""
    program = os.environ.get("CHECKOV") or shutil.which("checkov")
    if program is None:
        print(
            "not run here: there is no `checkov` on PATH (`pip install checkov` elsewhere, then CHECKOV=…)",
            file=sys.stderr,
        )
        return []
    with tempfile.TemporaryDirectory() as folder:
        render(Path(folder))
        command = [
            program,
            "-d",
            folder,
            "--framework",
            "kubernetes",
            "arm",
            "--compact",
            "--skip-download",
            "-o",
            "json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    reports = json.loads(done.stdout)
    failed: dict[tuple[str, str], list[str]] = defaultdict(list)
    for report in reports:
        for check in report["results"]["failed_checks"]:
            failed[check["check_id"], check["check_name"]].append(check["resource"].rpartition("/")[2])
    passed = sum(report["summary"]["passed"] for report in reports)
    accepted = yaml.safe_load(ACCEPTED.read_text())
    known = {check for check, _ in failed}
    wrong = [check for check in known if check not in accepted] + [check for check in accepted if check not in known]
    print("| check | of | accepted, because |\n|---|---|---|", file=sys.stderr)
    for (check, name), resources in sorted(failed.items()):
        where = ", ".join(sorted(set(resources)))
        print(f"| {check}: {name} | {where} | {accepted.get(check, '**not accepted**')} |", file=sys.stderr)
    print(*(f"{check} is accepted and does not fail" for check in set(accepted) - known), sep="\n", file=sys.stderr)
    return [
        Figure(
            what="checks of checkov that the production stack fails without a reason, or has a reason for and passes",
            command="make bench ARGS=security",
            value=len(wrong),
            limit=0,
            unit="",
            detail=f"{passed} passed, {sum(map(len, failed.values()))} failed, of {len(failed)} kinds",
        )
    ]


def render(folder: Path) -> None:
    """The stack's objects as manifests, its Azure resources as one ARM template."""
    resources = []
    for registration in recorded_preview(**STACK).registrations:
        inputs = _plain(registration.inputs)
        if registration.type.startswith("kubernetes:"):
            name = registration.urn.rsplit("::", 1)[1]
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(inputs))
        elif rule := rules()["resources"].get(registration.type):
            beside = {key: inputs[key] for key in sorted(BESIDE & inputs.keys())}
            rest = {
                key: value for key, value in inputs.items() if key not in {*BESIDE, rule["name"], "resourceGroupName"}
            }
            named = {"type": rule["arm-type"], "apiVersion": rule.get("api-version", "2025-09-01")}
            resources.append({**named, "name": inputs.get(rule["name"], "none"), **beside, "properties": rest})
    schema = "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#"
    template = {"$schema": schema, "contentVersion": "1.0.0.0", "resources": resources}
    (folder / "azure.json").write_text(json.dumps(template, indent=1))


def _plain(value: Any) -> Any:
    match value:
        case Secret():
            return "c2VjcmV0"  # "secret", as a Secret's data has it
        case dict():
            return {key: _plain(item) for key, item in value.items() if item is not None}
        case list() | tuple():
            return [_plain(item) for item in value]
    return "known-later" if value is UNKNOWN else value
