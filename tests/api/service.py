"""A real application over SQLite in a temporary folder, and a real server around it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.deps import Services
from api.main import create_app
from store.database import Database
from store.keys import create_key
from store.settings import BaseModelEntry, Settings

PROJECT, OTHER_PROJECT = "default", "other"
START_SECONDS = 20


@dataclass(frozen=True)
class Service:
    """The application, clients of it, and what it was made of."""

    app: FastAPI
    settings: Settings
    parts: Services
    key: str
    """An admin's key of the project `default`."""
    user_key: str
    """A key of the same project without admin rights."""
    other_key: str
    """An admin's key of the project `other`."""
    client: TestClient
    """Sends `key`."""
    user: TestClient
    """Sends `user_key`."""
    other: TestClient
    """Sends `other_key`."""
    anonymous: TestClient
    """Sends no key."""

    @property
    def database(self) -> Database:
        """The application's own."""
        return self.parts.database


@dataclass(frozen=True)
class Server:
    """A service that listens."""

    service: Service
    url: str

    def openai(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        """The official client. Close it, or use it as a context manager."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.service.key, **options)


def make_settings(folder: Path, **changes: Any) -> Settings:
    """Settings with everything in the folder and one base model, `tiny`."""
    values: dict[str, Any] = {
        "data": folder / "data",
        "models": {"tiny": BaseModelEntry(source=str(folder / "tiny"))},
        "max_file_bytes": 64 * 1024**2,
    }
    return Settings(**(values | changes))


@contextmanager
def open_service(settings: Settings, **parts: Any) -> Iterator[Service]:
    """The application with its database made and three keys. `parts` go to `create_app`."""
    database = Database(settings.database_url)
    database.migrate()
    with database.write() as session:
        key = create_key(session, PROJECT, "admin", admin=True)[1]
        user_key = create_key(session, PROJECT, "user")[1]
        other_key = create_key(session, OTHER_PROJECT, "other", admin=True)[1]
    database.close()
    app = create_app(settings, **parts)

    def client(key: str | None) -> TestClient:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return TestClient(app, headers=headers, follow_redirects=False)

    with client(key) as first:  # the first one runs the application's start and end
        user, other, anonymous = client(user_key), client(other_key), client(None)
        yield Service(app, settings, app.state.services, key, user_key, other_key, first, user, other, anonymous)
        for opened in (user, other, anonymous):
            opened.close()


@contextmanager
def open_server(service: Service) -> Iterator[Server]:
    """The service behind uvicorn on a free port of this machine."""
    config = uvicorn.Config(service.app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="uvicorn")
        thread.start()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS):
                yield Server(service, f"http://127.0.0.1:{port}")
        finally:
            server.should_exit = True
            thread.join(START_SECONDS)
            assert not thread.is_alive()
