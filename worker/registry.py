"""Who works on what: rows for people to look at, and for ending what a dead worker on this machine left alive."""

import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from store.database import Database, now
from store.models import Worker
from worker.memory import held_bytes

log = logging.getLogger(__name__)
FORGOTTEN_SECONDS = 3600


def worker_id(slot: int = 0) -> str:
    """host:pid:slot"""
    return f"{socket.gethostname()}:{os.getpid()}:{slot}"


def register(session: Session, identity: str, kinds: Sequence[str]) -> None:
    """This worker is here."""
    if session.get(Worker, identity) is None:
        with suppress(IntegrityError), session.begin_nested():  # another thread of it may say the same just now
            session.add(Worker(id=identity, kinds=list(kinds)))
    note_seen(session, identity)


def note_seen(session: Session, identity: str) -> None:
    """This worker is still here; those not seen for an hour are forgotten."""
    session.execute(update(Worker).where(Worker.id == identity).values(seen_at=now()))
    session.execute(delete(Worker).where(Worker.seen_at < now() - FORGOTTEN_SECONDS, Worker.runner_pid.is_(None)))


def beat(database: Database, identity: str, kinds: Sequence[str]) -> None:
    """This worker, a thread of this process, is still here and holds so much memory."""
    with database.read() as session:
        runner = session.scalar(select(Worker.runner_pid).where(Worker.id == identity))
    memory = held_bytes(runner)
    with database.write() as session:
        register(session, identity, kinds)
        session.execute(update(Worker).where(Worker.id == identity).values(memory_bytes=memory))


def beat_forever(database: Database, identity: str, kinds: Sequence[str], every_seconds: float) -> None:
    """For a thread that ends with its process. A database that is away for a while is waited for."""
    while True:
        try:
            beat(database, identity, kinds)
        except OperationalError as error:
            log.warning("the sign of life waits for the database: %s", error.orig)
        time.sleep(every_seconds)


def leave(session: Session, identity: str) -> None:
    """This worker ends in order."""
    session.execute(delete(Worker).where(Worker.id == identity))


def record_runner(session: Session, identity: str, unit_id: str | None, pid: int | None) -> None:
    """Which unit the worker is at, and the process group that does it."""
    started = process_start(pid) if pid is not None else None
    session.execute(
        update(Worker)
        .where(Worker.id == identity)
        .values(unit_id=unit_id, runner_pid=pid, runner_started=started, gpu_memory_bytes=None, seen_at=now())
    )


def note_gpu_memory(session: Session, identity: str, taken_bytes: int) -> None:
    """What the worker's runner says that it has taken of its GPU."""
    session.execute(update(Worker).where(Worker.id == identity).values(gpu_memory_bytes=taken_bytes))


def scratch_of(data: Path, identity: str) -> Path:
    """Where a worker's attempts keep their files."""
    return data / "scratch" / identity.replace(":", "-")


def end_leftovers(session: Session, data: Path) -> None:
    """Kill the process groups that dead workers of this machine left behind, and remove their files.

    A process id may have been given to somebody else since: only one with the recorded start time is ours.
    """
    for row in session.scalars(select(Worker).where(Worker.id.startswith(f"{socket.gethostname()}:"))):
        owner = int(row.id.split(":")[1])
        if owner == os.getpid() or process_start(owner) is not None:
            continue
        if row.runner_pid is not None and process_start(row.runner_pid) == row.runner_started:
            log.warning("ending the process group %d that the dead worker %s left", row.runner_pid, row.id)
            os.killpg(row.runner_pid, signal.SIGKILL)
        shutil.rmtree(scratch_of(data, row.id), ignore_errors=True)
        session.delete(row)


def process_start(pid: int) -> float | None:
    """When the process started, in clock ticks since boot; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else float(fields[19])
