"""What it costs to watch: a worker's speed and the API's memory, with no stream of the job's events open and with 200.

PostgreSQL, the API and a worker that polls, each a process; the worker generates answers with the demo's base model.
The pace of a shared machine changes from minute to minute by more than is asked here, so the watchers come and go
within one long stage: turns without, with, with and without them make a block, in which a steady change cancels out.
"""

import math
import os
import selectors
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select

from benchmarks.service_rig import Process, memory_mb, service, verdict
from demo.generate import draw, write
from demo.tasks import HELPDESK
from store.database import Database
from store.models import Unit
from tests.servers import postgres, wait_for
from tests.worker.conftest import Stack

WATCHERS = 200
MOST_MB = 300
MOST_SLOWER = 1.03
BLOCK = (0, WATCHERS, WATCHERS, 0)
TURN_SECONDS = 12.0
ROWS = 40_000
"""More than a worker answers in all turns."""
RECIPE = {
    "engine": {"name": "huggingface"},
    "propagation": {"retriever": "bm25"},
    "generation": {"shard_size": ROWS, "answers": "sampled", "disagreement": "majority"},
}


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
class Turn:
    """So many seconds of the stage. `api_seconds`: the API's CPU time in them; `progress`: events that were sent."""

    seconds: float
    rows: int
    api_seconds: float
    progress: int

    @property
    def pace(self) -> float:
        """Seconds per row."""
        return self.seconds / self.rows


def turn(stack: Stack, api: Process, key: str, unit: Unit, count: int) -> Turn:
    """A while with so many watchers, from one report of the worker to another."""
    with watching(api.port, key, unit.job_id, count) if count else nullcontext(Watchers()) as watchers:
        first, begun = next_report(stack, unit.id)
        used, told = cpu_seconds(api.pid), watchers.progress
        time.sleep(TURN_SECONDS)
        last, ended = next_report(stack, unit.id)
        return Turn(ended - begun, last - first, cpu_seconds(api.pid) - used, watchers.progress - told)


def next_report(stack: Stack, unit_id: str) -> tuple[int, float]:
    """Rows done, and the monotonic time, when the worker next says that it has done more."""
    known = rows_done(stack, unit_id)
    done = wait_for(lambda: now if (now := rows_done(stack, unit_id)) > known else None, "a report", 60)
    assert done is not None
    return done, time.monotonic()


def rows_done(stack: Stack, unit_id: str) -> int:
    """As the worker reported. The unit runs all the while: else there would be nothing to measure."""
    with stack.database.read() as session:
        unit = session.get_one(Unit, unit_id)
        if unit.state != "running":
            raise RuntimeError(f"generation is {unit.state}: more rows are needed")
        return unit.done


def main(blocks: int = 12) -> bool:
    """Let watchers come and go, print what each block shows; whether both bars are met."""
    found: dict[int, list[Turn]] = {0: [], WATCHERS: []}
    ratios = []
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        write(folder / "in", HELPDESK, draw(HELPDESK, 91, 24, ROWS, 24))
        url = ends.enter_context(postgres())
        api, key = ends.enter_context(service(folder, url))
        database = ends.enter_context(closing(Database(url)))
        environment = {"SEMIEVOL_DATA": str(folder / "data"), "SEMIEVOL_DATABASE_URL": url}
        stack = Stack("postgres", folder, environment | {"SEMIEVOL_POLL_SECONDS": "0.1"}, database)
        stack.start_worker()
        ends.callback(stack.stop_workers)
        job_id = stack.post_job(recipe=RECIPE)
        unit = wait_for(lambda: generating(stack, job_id), "generation", 600)
        assert unit is not None
        turn(stack, api, key, unit, WATCHERS)  # loads what is loaded late
        for _ in range(blocks):
            block = [(count, turn(stack, api, key, unit, count)) for count in BLOCK]
            for count, one in block:
                found[count].append(one)
            ratios.append(pace(one for count, one in block if count) / pace(one for count, one in block if not count))
            print(f"  block {len(ratios)}: with / without {ratios[-1]:.3f}", flush=True)
        peak = memory_mb(api.pid, "VmHWM")
    print(f"generation with the demo's base model, {blocks} blocks of {len(BLOCK)} turns of {TURN_SECONDS:.0f} s")
    for count, ones in found.items():
        seconds, used = sum(one.seconds for one in ones), sum(one.api_seconds for one in ones)
        print(
            f"  {count:4d} watchers: {1 / pace(ones):6.2f} rows/s, API {used:5.2f} s of CPU in {seconds:.0f} s, "
            f"{sum(one.progress for one in ones):,} progress events"
        )
    error = statistics.stdev(ratios) / math.sqrt(blocks)
    print(f"  mean {statistics.mean(ratios):.3f} with a standard error of {error:.3f}")
    small = verdict(f"resident memory of the API, highest, {WATCHERS} watchers", peak, "MB", most=MOST_MB)
    slower = statistics.median(ratios)
    return verdict("time of a row, with / without, median", slower, "", most=MOST_SLOWER) and small


def pace(turns: Iterable[Turn]) -> float:
    """Seconds per row of all of them."""
    taken = list(turns)
    return sum(one.seconds for one in taken) / sum(one.rows for one in taken)


def generating(stack: Stack, job_id: str) -> Unit | None:
    """The unit that generates, once it has answered rows."""
    with stack.database.read() as session:
        query = select(Unit).where(Unit.job_id == job_id, Unit.name == "round-1/generate-00000", Unit.done > 0)
        return session.scalars(query).first()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
