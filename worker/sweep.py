"""What has to be looked for, because nobody will say it: lost leases, unheard doorbells, due webhooks, old files.

Any number of workers may sweep at once: each step is a fenced statement.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from sqlalchemy import String, cast, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from store import sessions, units, webhooks
from store.database import Database, now
from store.models import File, Job, StageRow, Unit, Upload, UploadPart
from store.objects import ObjectStore
from store.settings import Settings
from worker import commits

log = logging.getLogger(__name__)
UNCLAIMED_SECONDS = 24 * 3600
"""How old an object is before a sweep may take it for forgotten: longer than any upload or stage takes."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """One round of looking."""

    settings: Settings
    database: Database
    objects: ObjectStore
    ring: Callable[[set[str]], None]
    client: httpx.Client

    def once(self) -> None:
        """Leases, bells, webhooks."""
        with self.database.write() as session:
            for unit_id, job_id, lost in units.expire(session):
                log.warning("lease of %s (%s) ended, lost %d times", unit_id, job_id, lost)
                commits.fail_worn_out(session, unit_id, job_id, lost, self.settings.max_attempts)
            rings = {kind for _, kind in units.unheard(session, self.settings.sweep_seconds)}
            session.execute(
                update(Upload).where(Upload.status == "pending", Upload.expires_at < now()).values(status="expired")
            )
        if rings:
            self.ring(rings)
        webhooks.deliver_due(self.database, self.settings, self.client)

    def collect_garbage(self) -> int:
        """Delete expired files and sessions, and objects that no row names any more; how many objects went."""
        with self.database.write() as session:
            sessions.forget_expired(session)
            for file in session.scalars(select(File).where(File.expires_at < now())):
                session.delete(file)
        self._clear_staging()
        removed = 0
        for sha256, written_at in self.objects.names():
            with self.database.write() as session:
                young = session.scalar(select(now())) or 0.0
                if young - written_at < UNCLAIMED_SECONDS or _named(session, sha256):
                    continue
            self.objects.delete(sha256)
            removed += 1
        return removed

    def _clear_staging(self) -> None:
        """Remove what a killed process left half-received or half-done on this machine."""
        oldest = time.time() - UNCLAIMED_SECONDS
        for folder in ("staging", "scratch"):
            for path in (self.settings.data / folder).glob("*"):
                if path.stat().st_mtime < oldest:
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _named(session: Session, sha256: str) -> bool:
    direct = (
        select(File.id).where(File.sha256 == sha256),
        select(UploadPart.id).join(Upload).where(UploadPart.sha256 == sha256, Upload.status == "pending"),
        select(Job.id).where(Job.reviewed_sha256 == sha256),
    )
    if any(session.execute(query.limit(1)).first() for query in direct):
        return True
    like = f'%"{sha256}"%'
    indirect = (
        select(StageRow.name).where(cast(StageRow.files, String).like(like)),
        select(Unit.id).where(cast(Unit.checkpoint, String).like(like)),
        select(Job.id).where(cast(Job.inputs, String).like(like)),
    )
    return any(session.execute(query.limit(1)).first() for query in indirect)


def run(sweep: Sweep, stopping: threading.Event, seen: Callable[[], None] = lambda: None) -> None:
    """Sweep until told to stop, and call `seen` each time. A database that is away for a while is waited for."""
    rounds = 0
    while not stopping.wait(sweep.settings.sweep_seconds if rounds else 0.1):
        rounds += 1
        try:
            seen()
            sweep.once()
            if rounds % 240 == 1:
                sweep.collect_garbage()
        except OperationalError as error:
            log.warning("the sweep waits for the database: %s", error.orig)
