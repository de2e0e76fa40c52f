"""An empty, migrated database of each kind, and a job to write about."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from store.database import Database
from store.models import Job, Project
from tests.servers import postgres as open_postgres

JOB = "ftjob-1"
EMPTY: dict[str, Any] = {"model_source": {}, "recipe": {}, "inputs": {}, "asked": {}}


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with open_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Migrated, with one project and one job."""
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    else:
        database = Database(request.getfixturevalue("postgres_url"))
        with database.engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
    database.migrate()
    with database.write() as session:
        session.add(Project(id="p"))
        session.flush()
        session.add(Job(id=JOB, project_id="p", created_by="k", method="semievol", model="m", seed=0, **EMPTY))
    yield database
    database.close()
