"""A job on a whole stack of real processes: SQLite with the poller, or PostgreSQL, Redis and Celery workers."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol.recipe import Recipe
from semievol.workdir import sha256_of
from store import jobs
from store.database import Database
from store.ids import new_id
from store.models import File, Job, JobEvent, Project, PseudoLabel, StageRow, Unit, Worker
from store.objects import LocalObjects
from store.states import FINAL
from tests.servers import ROOT, Redis, alive, postgres, spawn, wait_for

BASE = str(ROOT / "demo" / "base")
RECIPE = {
    "warmup": {"learning_rate": 2e-3, "steps": 8, "batch_size": 8},
    "evolution": {"learning_rate": 2e-3, "steps": 48, "batch_size": 4},
    "generation": {"max_new_tokens": 12, "shard_size": 16, "n": 2},
    "evaluation": {"max_new_tokens": 12},
    "propagation": {"retriever": "bm25"},
}


@dataclass
class Stack:
    """Processes, database and objects. `pids`: of the processes that take units."""

    name: str
    folder: Path
    environment: dict[str, str]
    database: Database
    redis: Redis | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def objects(self) -> LocalObjects:
        return LocalObjects(self.folder / "data" / "objects")

    def start_worker(self) -> subprocess.Popen[bytes]:
        if self.redis is None:
            command = ["-m", "worker.local"]
        else:
            options = ["--concurrency=1", "--prefetch-multiplier=1", "-Q", "semievol-gpu,semievol-cpu"]
            node = f"w{len(self.workers)}@%h"
            command = ["-m", "celery", "-A", "worker.app", "worker", *options, "-n", node, "--without-gossip"]
        worker = spawn(*command, log=self.folder / "worker.log", **self.environment)
        self.workers.append(worker)
        return worker

    def worker(self) -> subprocess.Popen[bytes]:
        """The last one that was started, or a new one if that has ended."""
        return self.workers[-1] if self.workers and self.workers[-1].poll() is None else self.start_worker()

    def stop_workers(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(30)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self.workers = []

    def post_job(self, *, recipe: dict[str, Any] | None = None, seed: int = 3, **values: Any) -> str:
        """What the API does: rows in one transaction."""
        data = self.folder / "in"
        if not data.exists():
            write(data, HELPDESK, draw(HELPDESK, 91, 24, 128, 40))
        inputs = {}
        for role in ("labeled", "unlabeled", "test"):
            path = data / f"{role}.jsonl"
            digest, copy = sha256_of(path), self.folder / f"{role}.copy"
            shutil.copyfile(path, copy)
            self.objects.put(copy, digest)
            inputs[role] = {"file": "file-1", "filename": path.name, "sha256": digest, "bytes": path.stat().st_size}
        job_id = new_id("ftjob-")
        resolved = Recipe.resolve(RECIPE, recipe or {}).model_dump(mode="json")
        with self.database.write() as session:
            if session.get(Project, "default") is None:
                session.add(Project(id="default"))
                session.flush()
            job = Job(
                id=job_id,
                project_id="default",
                created_by="test",
                method="semievol",
                model="semievol-demo",
                model_source={"source": BASE},
                recipe=resolved,
                seed=seed,
                inputs=inputs,
                asked={},
            )
            for name, value in values.items():
                setattr(job, name, value)
            session.add(job)
            session.flush()
            jobs.add_unit(session, job_id, "prepare", "cpu")
        return job_id

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return session.get_one(Job, job_id)

    def wait_until_over(self, job_id: str, seconds: float = 240) -> Job:
        wait_for(lambda: self.job(job_id).status in FINAL, f"the end of {job_id}", seconds)
        return self.job(job_id)

    def wait_until_running(self, job_id: str, unit: str, done: int = 1) -> tuple[Unit, list[int]]:
        """The unit, once it runs and has done some rows or steps, and its processes: guardian, runner, children."""

        def look() -> tuple[Unit, list[int]] | None:
            query = select(Unit, Worker.runner_pid).join(Worker, Worker.unit_id == Unit.id)
            running = Unit.name.startswith(unit), Unit.state == "running", Unit.done >= done
            with self.database.read() as session:
                row = session.execute(query.where(Unit.job_id == job_id, *running)).first()
            if row is None or row.runner_pid is None:
                return None
            group = [row.runner_pid, *(pid for pid in pids() if group_of(pid) == row.runner_pid != pid)]
            return (row.Unit, group) if len(group) > 1 else None

        found = wait_for(look, f"the start of {unit}")
        assert found is not None
        return found

    def stage_files(self, job_id: str, stage: str) -> dict[str, str]:
        """SHA-256 by path of what a stage left."""
        with self.database.read() as session:
            row = session.get_one(StageRow, (job_id, stage))
            return {name: entry["sha256"] for name, entry in row.files.items()}

    def results(self, job_id: str) -> dict[str, str]:
        """What two runs of the same job have in common: labels, both adapters, and the answers of every shard."""
        with self.database.read() as session:
            rows = session.scalars(select(StageRow).where(StageRow.job_id == job_id)).all()
        return {
            f"{row.name}/{name}": entry["sha256"]
            for row in rows
            for name, entry in row.files.items()
            if not name.endswith(("report.json", "report.html"))
        }

    def check_invariants(self, job_id: str) -> None:
        """One end, rows and losses told once, one adapter, nothing alive, no scratch files, events that replay."""
        with self.database.read() as session:
            job = session.get_one(Job, job_id)
            numbers = list(session.scalars(select(JobEvent.number).where(JobEvent.job_id == job_id)))
            ends = [event for event in self._events(session, job_id) if (event.data or {}).get("status") in FINAL]
            labels = list(session.scalars(select(PseudoLabel.line).where(PseudoLabel.job_id == job_id)))
            results = list(session.scalars(select(File.filename).where(File.job_id == job_id)))
            open_units = session.scalars(
                select(Unit.name).where(Unit.job_id == job_id, Unit.state.in_(("ready", "running", "waiting")))
            ).all()
        assert sorted(numbers) == list(range(1, job.event_count + 1))
        assert [event.data["status"] for event in ends if event.data] == [job.status]
        assert not open_units
        if job.status == "succeeded":
            assert sorted(labels) == list(range(1, 129))
            assert self.told_losses(job_id) == self.losses(job_id)
            assert sorted(results) == ["adapter.zip", "pseudo_labels.jsonl", "report.html", "step_metrics.csv"]
        scratch = self.folder / "data" / "scratch"
        wait_for(lambda: not list(scratch.glob("*")), "the end of the scratch files", 15)  # the job ends before them

    def told_losses(self, job_id: str) -> dict[str, list[list[float]]]:
        """(Step, loss) of the events by stage, in order."""
        told: dict[str, list[list[float]]] = {}
        with self.database.read() as session:
            for event in self._events(session, job_id):
                if event.type == "metrics" and event.data:
                    told.setdefault(event.data["stage"], []).append([event.data["step"], event.data["train_loss"]])
        return told

    def losses(self, job_id: str) -> dict[str, list[list[float]]]:
        """(Step, loss) that the trainings logged, by stage."""
        with self.database.read() as session:
            rows = session.scalars(select(StageRow).where(StageRow.job_id == job_id)).all()
        return {row.name: row.facts["losses"] for row in rows if "losses" in row.facts}

    @staticmethod
    def _events(session: Session, job_id: str) -> list[JobEvent]:
        return list(session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.number)))


def pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def gone(group: list[int]) -> bool:
    return not any(alive(pid) for pid in group)


def _environment(folder: Path, **more: str) -> dict[str, str]:
    return {
        "SEMIEVOL_DATA": str(folder / "data"),
        "SEMIEVOL_LEASE_SECONDS": "4",
        "SEMIEVOL_SWEEP_SECONDS": "1",
        "SEMIEVOL_POLL_SECONDS": "0.1",
        "SEMIEVOL_CHECKPOINT_SECONDS": "1",
        **more,
    }


@contextmanager
def open_sqlite(tmp_path: Path) -> Iterator[Stack]:
    """SQLite in a folder; workers are started by the test."""
    url = f"sqlite:///{tmp_path / 'data' / 'semievol.db'}"
    database = Database(url)
    database.migrate()
    stack = Stack("sqlite", tmp_path, _environment(tmp_path, SEMIEVOL_DATABASE_URL=url), database)
    try:
        yield stack
    finally:
        stack.stop_workers()
        database.close()


@contextmanager
def open_postgres(tmp_path: Path) -> Iterator[Stack]:
    """PostgreSQL and Redis; Celery workers are started by the test."""
    with ExitStack() as ends:
        url = ends.enter_context(postgres())
        broker = Redis(tmp_path)
        broker.start()
        ends.callback(broker.stop)
        database = Database(url)
        ends.callback(database.close)
        database.migrate()
        environment = _environment(tmp_path, SEMIEVOL_DATABASE_URL=url, SEMIEVOL_BROKER_URL=broker.url)
        stack = Stack("postgres", tmp_path, environment, database, broker)
        ends.callback(stack.stop_workers)
        yield stack


@pytest.fixture
def sqlite_stack(tmp_path: Path) -> Iterator[Stack]:
    with open_sqlite(tmp_path) as stack:
        yield stack


@pytest.fixture
def postgres_stack(tmp_path: Path) -> Iterator[Stack]:
    with open_postgres(tmp_path) as stack:
        yield stack


def state_of(stack: Stack, unit_id: str) -> str:
    with stack.database.read() as session:
        return session.get_one(Unit, unit_id).state


def supervisor_of(worker: int, stack: Stack) -> int:
    """The process that owns units: the poller itself, or Celery's pool child."""
    if stack.redis is None:
        return worker
    children = [pid for pid in pids() if _parent(pid) == worker and alive(pid)]
    return max(children)


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])
