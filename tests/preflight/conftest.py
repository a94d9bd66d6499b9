"""One front for each test; nothing waits longer than it must, and nothing leaves 127.0.0.1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from preflight import web
from sandbox.certificates import make_certificates
from tests.preflight.front import Front


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


@pytest.fixture
def front(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates / "ca.crt"))
    server = Front(certificates)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "TIMEOUT_SECONDS", 15)
    monkeypatch.setattr(web, "PAUSE_SECONDS", 0.01)
    for name in ("HF_TOKEN", "ARM_SUBSCRIPTION_ID", "HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
