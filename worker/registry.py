"""Who works on what: rows for people to look at, and for ending what a dead worker on this machine left alive."""

import logging
import os
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from store.database import now
from store.models import Worker

log = logging.getLogger(__name__)
FORGOTTEN_SECONDS = 3600


def worker_id(slot: int = 0) -> str:
    """host:pid:slot"""
    return f"{socket.gethostname()}:{os.getpid()}:{slot}"


def register(session: Session, identity: str, kinds: Sequence[str]) -> None:
    """This worker is here."""
    if session.get(Worker, identity) is None:
        session.add(Worker(id=identity, kinds=list(kinds)))
        session.flush()
    note_seen(session, identity)


def note_seen(session: Session, identity: str) -> None:
    """This worker is still here; those not seen for an hour are forgotten."""
    session.execute(update(Worker).where(Worker.id == identity).values(seen_at=now()))
    session.execute(delete(Worker).where(Worker.seen_at < now() - FORGOTTEN_SECONDS, Worker.runner_pid.is_(None)))


def leave(session: Session, identity: str) -> None:
    """This worker ends in order."""
    session.execute(delete(Worker).where(Worker.id == identity))


def record_runner(session: Session, identity: str, unit_id: str | None, pid: int | None) -> None:
    """Which unit the worker is at, and the process group that does it."""
    started = process_start(pid) if pid is not None else None
    session.execute(
        update(Worker)
        .where(Worker.id == identity)
        .values(unit_id=unit_id, runner_pid=pid, runner_started=started, seen_at=now())
    )


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
