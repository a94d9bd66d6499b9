"""Whatever the settings, HAProxy takes the plan's files, and warns of nothing."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.edge import certificates, haproxy
from tests.edge.stand import VAULT, plan, write

KEYS = {
    name: {"sha256": hashlib.sha256(name.encode()).hexdigest(), **limit}
    for name, limit in (("team-a", {"requests-per-minute": 1}), ("team-b", {}))
}
SEVERAL = {
    "chat": {"preset": "qwen3-8b", "vm-size": "Standard_NC40ads_H100_v5"},
    "code-2": {"preset": "llama-3.3-70b-instruct", "replicas": 2},
}
SETTINGS = [
    {"edge": {**tls, **keys, **rest}, **models}
    for tls, keys, models, rest in itertools.product(
        ({}, {"tls-secret": "edge-tls"}),
        ({}, {"keys": KEYS}),
        ({}, {"models": SEVERAL}),
        ({}, {"paths": ["/v1/models", "/tokenize"], "max-body-mib": 1024}),
    )
] + [
    {"key_vault": VAULT},
    {"max_answer_tokens": 1},
    {"max_answer_tokens": 1_000_000},
    {"vllm": {"max-num-seqs": 1}},
    {"replicas": 40},
]
CLUSTER = "Microsoft.ContainerService/managedClusters/platform"
ID = f"/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/{CLUSTER}"
SETTINGS += [{"existing_cluster": {"id": ID}}]  # whose DNS server is found in resolv.conf


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_configuration_is_accepted_without_a_warning(tmp_path: Path, settings: dict[str, Any]) -> None:
    edge = plan(**settings)
    folder = write(edge, tmp_path / "haproxy")
    certificates.put(folder, "llm.example.com", vaulted="key_vault" in settings)
    words = [*haproxy.command(), "-c", "-f", "haproxy.cfg"]
    done = subprocess.run(words, cwd=folder, env=dict(edge.env), capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "WARNING" not in said and "warning" not in said, said


def test_a_configuration_with_a_mistake_is_refused(tmp_path: Path) -> None:
    edge = plan()
    folder = write(edge, tmp_path)
    (folder / "haproxy.cfg").write_text(edge.files["haproxy.cfg"].replace("balance leastconn", "balance least"))
    words = [*haproxy.command(), "-c", "-f", "haproxy.cfg"]
    assert subprocess.run(words, cwd=folder, env=dict(edge.env), capture_output=True).returncode, "the check is blind"
