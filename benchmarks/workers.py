"""How the generation of one job is faster with more workers: 1, 2 and 8 processes on PostgreSQL, the same bytes.

    python -m benchmarks.workers [--rows N] [--rounds N]

Everything is real but the engine, which waits 25 ms for each prompt (`waiting_runner`), so that two cores do not bound
eight workers. Timed is a round's generation by the database's clock: from the first shard that was taken to the last
that was done. Numbers of workers alternate.
"""

import argparse
import signal
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from sqlalchemy import select

from benchmarks.service_rig import verdict
from demo.generate import draw, write
from demo.tasks import HELPDESK
from store import jobs
from store.database import Database
from store.models import Unit, Worker
from store.objects import open_objects
from store.settings import Settings
from tests.servers import postgres, spawn, wait_for
from tests.worker.conftest import Stack
from worker import registry
from worker.forkserver import ForkServer
from worker.supervisor import Supervisor, runner_environment

WORKERS = (1, 2, 8)
LEAST = {2: 1.9, 8: 7.0}
SHARD = 64
SHARDS = "round-1/generate-"


def work() -> None:
    """A worker process: does ready units until SIGTERM."""
    settings, stopping = Settings(), threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    runners = ForkServer(runner_environment(settings), (), "benchmarks.waiting_runner")
    with closing(Database(settings.database_url)) as database, closing(runners):
        supervisor = Supervisor(
            settings,
            database,
            open_objects(settings),
            runners=runners,
            ring=lambda kinds: None,
            kinds=("gpu", "cpu"),
            stopping=stopping.is_set,
        )
        with database.write() as session:
            registry.register(session, supervisor.worker_id, supervisor.kinds)
        while not stopping.is_set():
            if not supervisor.work_once():
                stopping.wait(settings.poll_seconds)


@contextmanager
def working(stack: Stack, count: int) -> Iterator[None]:
    """So many worker processes."""
    log = stack.folder / "worker.log"
    processes = [spawn("-m", "benchmarks.workers", "--work", log=log, **stack.environment) for _ in range(count)]
    try:
        wait_for(lambda: len(registered(stack)) >= count, "the workers")
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        with stack.database.write() as session:
            for identity in registered(stack):
                registry.leave(session, identity)


def registered(stack: Stack) -> list[str]:
    """Workers that the database knows."""
    with stack.database.read() as session:
        return list(session.scalars(select(Worker.id)))


def measure(stack: Stack, count: int) -> tuple[float, list[dict[str, str]]]:
    """Seconds of a job's generation with so many workers, and digests of what each shard left."""
    recipe = {"generation": {"shard_size": SHARD, "answers": "sampled", "n": 4, "disagreement": "majority"}}
    with working(stack, count):
        job_id = stack.post_job(recipe=recipe)
        wait_for(
            lambda: shards(stack, job_id, "done") and not shards(stack, job_id, "running", "ready"), "shards", 3600
        )
        with stack.database.write() as session:
            jobs.move(session, job_id, "cancelled", "Cancelled")
    done = shards(stack, job_id, "done")
    taken = max(unit.finished_at or 0 for unit in done) - min(unit.started_at or 0 for unit in done)
    return taken, [stack.stage_files(job_id, unit.name) for unit in sorted(done, key=lambda unit: unit.name)]


def shards(stack: Stack, job_id: str, *states: str) -> list[Unit]:
    """The shards' units in these states."""
    with stack.database.read() as session:
        query = select(Unit).where(Unit.job_id == job_id, Unit.name.startswith(SHARDS), Unit.state.in_(states))
        return list(session.scalars(query))


def main(rows: int, rounds: int) -> bool:
    """Alternate, and print medians; whether the bars are met."""
    seconds: dict[int, list[float]] = {count: [] for count in WORKERS}
    left = []
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        write(folder / "in", HELPDESK, draw(HELPDESK, 91, 24, rows, 24))
        url = ends.enter_context(postgres())
        database = ends.enter_context(closing(Database(url)))
        database.migrate()
        environment = {"SEMIEVOL_DATA": str(folder / "data"), "SEMIEVOL_DATABASE_URL": url}
        stack = Stack("postgres", folder, environment | {"SEMIEVOL_POLL_SECONDS": "0.1"}, database)
        for number in range(rounds):
            for count in WORKERS if number % 2 else reversed(WORKERS):
                taken, files = measure(stack, count)
                seconds[count].append(taken)
                left.append(files)
                print(f"  round {number + 1}, {count} workers: {taken:.1f} s", flush=True)
    print(f"{rows:,} rows in {len(left[0])} shards; medians of {rounds} alternating rounds")
    medians = {count: statistics.median(taken) for count, taken in seconds.items()}
    for count, taken in medians.items():
        print(f"  {count} workers: {taken:6.1f} s")
    same = all(files == left[0] for files in left)
    print(f"  the same bytes in every run: {'met' if same else 'MISSED'}")
    met = [verdict(f"{n} workers against one", medians[1] / medians[n], "", least=least) for n, least in LEAST.items()]
    return all(met) and same


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8 * SHARD)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work()
    else:
        sys.exit(not main(arguments.rows, arguments.rounds))
