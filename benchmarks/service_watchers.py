"""What it costs to watch: a worker's stage and the API's memory, with no stream of the job's events open and with 200.

PostgreSQL, the API and a worker that polls, each a process; the worker generates answers with the demo's base model.
Each measurement is a job of its own, ended when that stage is over; the streams are opened before the stage begins.
"""

import os
import selectors
import socket
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path

from sqlalchemy import select

from benchmarks.service_rig import Process, memory_mb, service, verdict
from demo.generate import draw, write
from demo.tasks import HELPDESK
from store import jobs
from store.database import Database
from store.models import StageRow, Unit
from tests.servers import postgres, wait_for
from tests.worker.conftest import Stack, group_of, pids

WATCHERS = 200
MOST_MB = 300
MOST_SLOWER = 1.03
STAGE = "round-1/generate-00000"


@dataclass
class Watchers:
    """Open event streams, read by one thread. `received`: bytes of each; `progress`: how many such events."""

    received: dict[int, int] = field(default_factory=dict)
    progress: int = 0


@contextmanager
def watching(port: int, key: str, job_id: str, count: int) -> Iterator[Watchers]:
    """So many streams of the job, until the end of the block."""
    asked = f"GET /v1/fine_tuning/jobs/{job_id}/events?stream=true HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}"
    watchers, ended = Watchers(), threading.Event()

    def read() -> None:
        while not ended.is_set():
            for ready, _ in selector.select(timeout=0.2):
                got = os.read(ready.fd, 1 << 20)
                watchers.received[ready.fd] += len(got)
                watchers.progress += got.count(b"event: progress")

    with ExitStack() as opened:
        selector = opened.enter_context(selectors.DefaultSelector())
        for _ in range(count):
            connection = opened.enter_context(closing(socket.create_connection(("127.0.0.1", port))))
            connection.sendall(f"{asked}\r\n\r\n".encode())
            selector.register(connection, selectors.EVENT_READ)
            watchers.received[connection.fileno()] = 0
        reader = threading.Thread(target=read)
        reader.start()
        try:
            wait_for(lambda: all(watchers.received.values()), "the streams")
            yield watchers
        finally:
            ended.set()
            reader.join()


@dataclass(frozen=True)
class Measured:
    """One job. `runner_seconds`, `api_seconds`: CPU time while the stage ran; `memory`: the API's at its end, in MB."""

    stage_seconds: float
    runner_seconds: float
    api_seconds: float
    memory: float
    progress: int


def measure(stack: Stack, api: Process, key: str, count: int) -> Measured:
    """A job up to the end of its generation, with so many watchers."""
    job_id = stack.post_job(recipe={"generation": {"shard_size": 100_000}})
    with watching(api.port, key, job_id, count) as watchers:
        unit = wait_for(lambda: running(stack, job_id), "generation", 600)
        assert unit is not None
        before, told = cpu_seconds(api.pid), watchers.progress
        leader, spent = stack.runner_group(unit)[0], 0.0

        def over() -> float:
            nonlocal spent
            spent = max(spent, sum(cpu_seconds(pid) for pid in pids() if group_of(pid) == leader))
            return stage_seconds(stack, job_id)

        seconds = wait_for(over, "the end of generation", 600)
        used, told = cpu_seconds(api.pid) - before, watchers.progress - told
        memory = memory_mb(api.pid, "VmRSS")
    with stack.database.write() as session:
        jobs.move(session, job_id, "cancelled", "Cancelled")
    wait_for(lambda: running(stack, job_id, "") is None, "an idle worker", 60)
    return Measured(seconds, spent, used, memory, told)


def running(stack: Stack, job_id: str, name: str = STAGE) -> Unit | None:
    """The unit of that name if the worker does it."""
    with stack.database.read() as session:
        query = select(Unit).where(Unit.job_id == job_id, Unit.name.startswith(name), Unit.state == "running")
        return session.scalars(query).first()


def stage_seconds(stack: Stack, job_id: str) -> float:
    """How long the stage took by the worker's own clock; 0 while it is not over."""
    with stack.database.read() as session:
        row = session.get(StageRow, (job_id, STAGE))
        return row.seconds if row is not None else 0.0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(rows: int = 1600, rounds: int = 7) -> bool:
    """Alternate, print medians; whether both bars are met."""
    found: dict[int, list[Measured]] = {0: [], WATCHERS: []}
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        write(folder / "in", HELPDESK, draw(HELPDESK, 91, 24, rows, 24))
        url = ends.enter_context(postgres())
        api, key = ends.enter_context(service(folder, url))
        database = ends.enter_context(closing(Database(url)))
        environment = {"SEMIEVOL_DATA": str(folder / "data"), "SEMIEVOL_DATABASE_URL": url}
        stack = Stack("postgres", folder, environment | {"SEMIEVOL_POLL_SECONDS": "0.1"}, database)
        stack.start_worker()
        ends.callback(stack.stop_workers)
        measure(stack, api, key, WATCHERS)  # loads what is loaded late
        for number in range(rounds):
            for count in (0, WATCHERS) if number % 2 else (WATCHERS, 0):
                found[count].append(measure(stack, api, key, count))
        peak = memory_mb(api.pid, "VmHWM")
    print(f"generation of {rows:,} rows, medians of {rounds} alternating rounds")
    for count, ones in found.items():
        stage, runner, used, memory, told = (
            statistics.median(values) for values in zip(*map(astuple, ones), strict=True)
        )
        print(
            f"  {count:4d} watchers: stage {stage:6.2f} s, runner {runner:6.2f} s of CPU, API {used:5.2f} s of CPU, "
            f"{memory:5.1f} MB resident, {told:,.0f} progress events"
        )
    pairs = [with_all.stage_seconds / alone.stage_seconds for alone, with_all in zip(*found.values(), strict=True)]
    print(f"  with / without, round by round: {', '.join(f'{ratio:.3f}' for ratio in pairs)}")
    small = verdict(f"resident memory of the API, highest, {WATCHERS} watchers", peak, "MB", most=MOST_MB)
    medians = [statistics.median(one.stage_seconds for one in ones) for ones in found.values()]
    return verdict("stage's time, with / without", medians[1] / medians[0], "", most=MOST_SLOWER) and small
