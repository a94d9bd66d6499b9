"""One cluster for the session: a start of vLLM costs most of a minute of two cores."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from tests.engine import environment
from tests.serving.cluster import Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two real vLLM servers and two real HAProxy in their rendered pods, ready to answer."""
    with Cluster(environment.make(), tmp_path_factory.mktemp("serving")).running() as cluster:
        yield cluster
