"""Fixtures: recorded previews of the unmodified program."""

from __future__ import annotations

import pytest

from sandbox.engine import Registration
from tests.components.harness import DEPLOYMENT, Record, recorded_preview


@pytest.fixture(scope="session")
def recorded() -> Record:
    """Records a preview with the given settings."""
    return recorded_preview


@pytest.fixture(scope="session")
def deployment() -> Registration:
    """The Deployment of one gated model."""
    return recorded_preview().one(DEPLOYMENT, "model-deployment")
