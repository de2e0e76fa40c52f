"""Units under a lease. Claim, renew and finish are one UPDATE each, with state and token in the WHERE.

No row changed means that the ownership is lost: whoever gets None or False stops its work and writes nothing.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from store.database import now
from store.models import Job, Unit
from store.states import ACTIVE


@dataclass(frozen=True, slots=True)
class Claim:
    """A unit that is ours until the lease ends."""

    unit_id: str
    job_id: str
    name: str
    kind: str
    token: str
    attempt: int
    adjustments: dict[str, Any]
    checkpoint: dict[str, Any] | None


def claim(
    session: Session, worker_id: str, kinds: Sequence[str], lease_seconds: float, *wanted: ColumnElement[bool]
) -> Claim | None:
    """Take the unit that has been ready longest, of a job that is neither paused nor over; None if there is none.

    `wanted`: what has to be so of that unit, as nobody is passed over: else it is left to others.
    """
    token = secrets.token_hex(16)
    ready = (
        select(Unit.id)
        .join(Job, Job.id == Unit.job_id)
        .where(Unit.state == "ready", Unit.ready_at <= now(), Unit.kind.in_(kinds), Job.status.in_(ACTIVE))
        .order_by(Unit.ready_at, Unit.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=Unit)  # nothing on SQLite, where writers stand in line anyway
    )
    row = session.execute(
        update(Unit)
        .where(Unit.id == ready.scalar_subquery(), Unit.state == "ready", *wanted)
        .values(
            state="running",
            worker_id=worker_id,
            lease_token=token,
            lease_until=now() + lease_seconds,
            attempts=Unit.attempts + 1,
            started_at=now(),
            done=0,
            total=0,
        )
        .returning(Unit.id, Unit.job_id, Unit.name, Unit.kind, Unit.attempts, Unit.adjustments, Unit.checkpoint)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        return None
    unit_id, job_id, name, kind, attempt, adjustments, checkpoint = row
    return Claim(unit_id, job_id, name, kind, token, attempt, adjustments or {}, checkpoint)


def renew(session: Session, claim: Claim, lease_seconds: float, **progress: Any) -> str | None:
    """Keep the unit and write its progress. Returns the job's status, None if the unit is not ours any more."""
    status = select(Job.status).where(Job.id == Unit.job_id).scalar_subquery()
    return session.execute(
        _ours(claim).values(lease_until=now() + lease_seconds, **progress).returning(status)
    ).scalar_one_or_none()


def hold(session: Session, claim: Claim) -> bool:
    """Whether the unit is ours; if so nobody takes it before this transaction ends. Fences all that it writes."""
    held = session.execute(_ours(claim).values(lease_token=claim.token).returning(Unit.id)).scalar_one_or_none()
    return held is not None


def finish(session: Session, claim: Claim) -> bool:
    """The unit is done."""
    return _leave(session, claim, state="done", finished_at=now())


def fail(session: Session, claim: Claim) -> bool:
    """The unit cannot be done; its job fails with it."""
    return _leave(session, claim, state="failed", failed=Unit.failed + 1, finished_at=now())


def cancel(session: Session, claim: Claim) -> bool:
    """The job was cancelled while we worked."""
    return _leave(session, claim, state="cancelled", finished_at=now())


def release(session: Session, claim: Claim, pause_seconds: float = 0.0, **values: Any) -> bool:
    """Give the unit back, ready for anybody after the pause; `values` say what the attempt is charged to."""
    return _leave(session, claim, state="ready", ready_at=now() + pause_seconds, rung_at=None, **values)


def _leave(session: Session, claim: Claim, **values: Any) -> bool:
    left = session.execute(
        _ours(claim).values(lease_token=None, lease_until=None, worker_id=None, **values).returning(Unit.id)
    ).scalar_one_or_none()
    return left is not None


def _ours(claim: Claim) -> Any:
    return (
        update(Unit)
        .where(
            Unit.id == claim.unit_id, Unit.state == "running", Unit.lease_token == claim.token, Unit.lease_until > now()
        )
        .execution_options(synchronize_session=False)
    )


def expire(session: Session) -> list[tuple[str, str, int]]:
    """Units whose lease has ended become ready again: (unit, job, times lost). Charged to infrastructure."""
    rows = session.execute(
        update(Unit)
        .where(Unit.state == "running", Unit.lease_until < now())
        .values(state="ready", ready_at=now(), rung_at=None, lease_token=None, worker_id=None, lost=Unit.lost + 1)
        .returning(Unit.id, Unit.job_id, Unit.lost)
        .execution_options(synchronize_session=False)
    )
    return [(unit, job, lost) for unit, job, lost in rows]


def unheard(session: Session, after_seconds: float) -> list[tuple[str, str]]:
    """Ready units of active jobs that no bell has been rung for of late: (unit, kind). Marks them as rung now."""
    rows = session.execute(
        update(Unit)
        .where(
            Unit.state == "ready",
            Unit.ready_at <= now(),
            func.coalesce(Unit.rung_at, 0) < now() - after_seconds,
            Unit.job_id.in_(select(Job.id).where(Job.status.in_(ACTIVE))),
        )
        .values(rung_at=now())
        .returning(Unit.id, Unit.kind)
        .execution_options(synchronize_session=False)
    )
    return [(unit, kind) for unit, kind in rows]
