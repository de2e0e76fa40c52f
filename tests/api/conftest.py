"""Fixtures of the HTTP tests: `service` (in this process) and `server` (behind uvicorn on a free port)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from store.settings import Settings
from tests.api.service import Server, Service, make_settings, open_server, open_service


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Override it to change the service."""
    return make_settings(tmp_path)


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    with open_service(settings) as opened:
        yield opened


@pytest.fixture
def server(service: Service) -> Iterator[Server]:
    with open_server(service) as opened:
        yield opened
