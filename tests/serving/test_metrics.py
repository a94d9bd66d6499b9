"""docs/monitoring.md asks of metrics that a real engine and a real edge have, by the labels that they have."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from planning.edge import ADMIN_PORT
from tests.serving.cluster import Cluster

pytestmark = pytest.mark.engine

PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"
NAME = re.compile(r"\b((?:vllm:|haproxy_)\w+)(?:\{(\w+)=(?:~\"(.+?)\"|\"(\w+)\")\})?")


def _asked() -> Iterator[tuple[str, str]]:
    """(name, pattern of its labels) of every metric in the page's queries."""
    for query in re.findall(r"\| `(.+)` \|$", PAGE.read_text(), re.MULTILINE):
        for name, label, pattern, value in NAME.findall(query):
            yield name, f'{label}="{pattern or re.escape(value)}"' if label else ""


def _metrics(address: str, port: int) -> str:
    connection = http.client.HTTPConnection(address, port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_every_metric_of_the_page_is_there(cluster: Cluster) -> None:
    cluster.wait_known()
    pod = cluster.models.pods[0]
    there = _metrics(pod.address, pod.port) + _metrics(cluster.edges[0][0], ADMIN_PORT)
    asked = set(_asked())
    assert len(asked) >= 10, "the queries were not found in the page"
    missing = [
        (name, label)
        for name, label in asked
        if not any(line.startswith((f"{name}{{", f"{name} ")) and re.search(label, line) for line in there.splitlines())
    ]
    assert not missing
