"""Signs of life: one row for each worker, and the memory that it holds."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from store import jobs, units
from store.database import Database
from store.models import Job, Project, Unit, Worker
from store.objects import LocalObjects
from store.settings import Settings
from tests.servers import ROOT, postgres, wait_for
from tests.worker.conftest import Stack
from worker import commits, registry
from worker.memory import held_bytes
from worker.runner import gpu_memory_bytes
from worker.supervisor import Attempt, Supervisor

MIB = 1024**2
HOLDER = f"import os, sys; held = b'x' * {64 * MIB}; print(os.getpid(), flush=True); sys.stdin.read()"
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], start_new_session=True)"

linux = pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux tells of memory in /proc")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    database.migrate()
    yield database
    database.close()


def workers(database: Database) -> list[Worker]:
    with database.read() as session:
        return list(session.scalars(select(Worker)))


@linux
def test_the_runners_group_counts_and_others_do_not() -> None:
    command = [sys.executable, "-c", PARENT, HOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        group = int(process.stdout.readline())
        alone, together = held_bytes(None), held_bytes(group)
        process.stdin.close()
    assert alone is not None
    assert together is not None
    assert alone > 10 * MIB
    assert 60 * MIB < together - alone < 160 * MIB


@linux
def test_a_runner_that_has_ended_holds_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], start_new_session=True) as process:
        process.wait()
        assert (held_bytes(process.pid) or 0) > 10 * MIB


@linux
def test_a_sign_of_life_tells_the_memory(database: Database) -> None:
    registry.beat(database, "here:1:0", ["cpu"])
    with database.write() as session:
        session.execute(update(Worker).values(seen_at=Worker.seen_at - 100, memory_bytes=None))
    before = workers(database)[0].seen_at
    registry.beat(database, "here:1:0", ["cpu"])
    (worker,) = workers(database)
    assert worker.seen_at > before + 99
    assert (worker.memory_bytes or 0) > 10 * MIB
    assert worker.gpu_memory_bytes is None


def test_a_worker_that_was_forgotten_is_known_again(database: Database) -> None:
    registry.beat(database, "here:1:0", ["cpu"])
    with database.write() as session:
        registry.leave(session, "here:1:0")
    registry.beat(database, "here:1:0", ["cpu"])
    assert [worker.kinds for worker in workers(database)] == [["cpu"]]


def test_what_the_runner_says_of_its_gpu_goes_with_the_runner(tmp_path: Path, database: Database) -> None:
    settings = Settings(data=tmp_path, database_url=str(database.url))
    with database.write() as session:
        session.add(Project(id="p"))
        session.flush()
        empty: dict[str, Any] = {"model_source": {"source": "m"}, "recipe": {}, "inputs": {}, "asked": {}}
        session.add(Job(id="j", project_id="p", created_by="k", method="semievol", model="m", seed=0, **empty))
        session.flush()
        unit = jobs.add_unit(session, "j", "propagate", "gpu").id
    runners: Any = None  # nothing is started here
    objects = LocalObjects(tmp_path / "objects")
    supervisor = Supervisor(
        settings, database, objects, runners=runners, ring=lambda kinds: None, kinds=["gpu"], stopping=lambda: False
    )
    registry.beat(database, supervisor.worker_id, ["gpu"])
    with database.write() as session:
        claim = units.claim(session, supervisor.worker_id, ["gpu"], 60)
        assert claim is not None
        attempt = Attempt(supervisor, claim, commits.begin(session, claim))
    for taken in (None, 5 * 2**30, 6 * 2**30):
        attempt._hear({"kind": "progress", "stage": "warm-up", "done": 1, "total": 9, "gpu_memory_bytes": taken})
        attempt._beat()
        assert workers(database)[0].gpu_memory_bytes == taken
    with database.read() as session:
        assert session.get_one(Unit, unit).done == 1
    attempt.clean_up()
    assert workers(database)[0].gpu_memory_bytes is None


def test_a_runner_without_torch_or_gpu_tells_nothing_of_it() -> None:
    code = (
        "import sys\nfrom worker.runner import gpu_memory_bytes\n"
        "assert gpu_memory_bytes() is None\nassert 'torch' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


@pytest.mark.gpu
def test_a_runner_with_a_gpu_tells_what_torch_has_taken() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    held = torch.zeros(64 * MIB, dtype=torch.uint8, device="cuda")
    assert (gpu_memory_bytes() or 0) >= held.numel()


def test_two_threads_of_a_worker_make_one_row() -> None:
    with postgres() as url:
        database = Database(url)
        database.migrate()
        with database.write() as session:
            registry.register(session, "here:1:0", ["cpu"])
            other = threading.Thread(target=registry.beat, args=(database, "here:1:0", ["cpu"]))
            other.start()
            time.sleep(0.5)  # it waits for this transaction by now, or comes later; both must do
        other.join()
        assert len(workers(database)) == 1
        database.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.long)])
def test_an_idle_worker_is_one_row_that_stays_young_and_goes_with_it(request: pytest.FixtureRequest, kind: str) -> None:
    stack: Stack = request.getfixturevalue(f"{kind}_stack")
    stack.start_worker()
    wait_for(lambda: workers(stack.database), "a worker")
    with stack.database.write() as session:
        session.execute(update(Worker).values(seen_at=1e9, memory_bytes=None))

    def seen() -> bool:
        return all(row.seen_at > 1e9 and row.memory_bytes for row in workers(stack.database))

    wait_for(seen, "another sign of life")
    (worker,) = workers(stack.database)
    assert set(worker.kinds) == {"cpu", "gpu"}
    assert (worker.memory_bytes or 0) > 10 * MIB
    stack.stop_workers()
    assert workers(stack.database) == []
