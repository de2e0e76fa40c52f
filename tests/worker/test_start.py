"""What a worker refuses to start over, each with one clear line."""

import subprocess
from pathlib import Path

import pytest

from store.database import Database
from tests.servers import Redis, spawn


def outcome(process: subprocess.Popen[bytes], log: Path) -> tuple[int, str]:
    return process.wait(60), log.read_text(encoding="utf-8")


def celery(tmp_path: Path, url: str, broker: str) -> tuple[int, str]:
    log = tmp_path / "worker.log"
    command = ["-m", "celery", "-A", "worker.app", "worker", "--concurrency=1", "-Q", "semievol-cpu"]
    variables = {"SEMIEVOL_DATA": str(tmp_path), "SEMIEVOL_DATABASE_URL": url, "SEMIEVOL_BROKER_URL": broker}
    return outcome(spawn(*command, log=log, **variables), log)


def test_a_redis_that_evicts_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    database = Database(url)
    database.migrate()
    database.close()
    broker = Redis(tmp_path, "--maxmemory-policy", "allkeys-lru")
    broker.start()
    try:
        status, said = celery(tmp_path, url, broker.url)
    finally:
        broker.stop()
    assert status == 1
    assert "maxmemory-policy allkeys-lru; set noeviction" in said
    assert "Traceback" not in said


def test_a_database_without_tables_is_refused(tmp_path: Path) -> None:
    status, said = celery(tmp_path, f"sqlite:///{tmp_path / 'x.db'}", "redis://127.0.0.1:1/0")
    assert status == 1
    assert "run: semievol migrate" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("revision", "message"), [("9999", "a newer program made"), (None, "run: semievol migrate")])
def test_a_database_of_another_version_is_refused(tmp_path: Path, revision: str | None, message: str) -> None:
    from store.database import DatabaseError

    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    if revision is not None:
        database.migrate()
        with database.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")
    with pytest.raises(DatabaseError, match=message):
        database.check()
    database.close()
