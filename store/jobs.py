"""Moves of jobs: each is one UPDATE with the from-states in its WHERE, and its event in the same transaction."""

import json
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from store.database import now
from store.ids import new_id
from store.models import Job, JobEvent, Unit, WebhookDelivery, WebhookEndpoint
from store.states import ACTIVE, FINAL, JobStatus, UnitKind, sources


def add_event(
    session: Session,
    job_id: str,
    message: str,
    *,
    level: str = "info",
    kind: str = "message",
    data: dict[str, Any] | None = None,
) -> None:
    """Append to the job's log. Takes the job's row, so numbers are committed in order and without gaps."""
    number = session.execute(
        update(Job).where(Job.id == job_id).values(event_count=Job.event_count + 1).returning(Job.event_count)
    ).scalar_one()
    session.add(JobEvent(job_id=job_id, number=number, message=message, level=level, type=kind, data=data))
    session.flush()


def move(
    session: Session, job_id: str, target: JobStatus, message: str, *, only_from: JobStatus | None = None, **values: Any
) -> bool:
    """Move the job to `target` if its status allows that; tells whether it did. Writes the event, and webhooks.

    `only_from`: the one status that this move leaves; by default all that lead to `target`.
    """
    if target in FINAL:
        values["finished_at"] = now()
    moved = session.execute(
        update(Job)
        .where(Job.id == job_id, Job.status.in_([only_from] if only_from else sources(target)))
        .values(status=target, **values)
        .returning(Job.id)
    ).scalar_one_or_none()
    if moved is None:
        return False
    error = values.get("error")
    level = "error" if target == "failed" else "info"
    data = {"status": target} | ({"error": error} if error else {})
    add_event(session, job_id, message, level=level, data=data)
    if target in FINAL:
        session.execute(
            update(Unit).where(Unit.job_id == job_id, Unit.state.in_(("waiting", "ready"))).values(state="cancelled")
        )
        _tell(session, job_id, target)
    return True


def _tell(session: Session, job_id: str, target: str) -> None:
    """Put a finished job into the outbox of every endpoint that wants to know."""
    event_type = f"fine_tuning.job.{target}"
    job = session.get_one(Job, job_id)
    endpoints = session.scalars(select(WebhookEndpoint).where(WebhookEndpoint.project_id == job.project_id))
    for endpoint in endpoints:
        if event_type in endpoint.events:
            delivery = new_id("evt_")
            payload = {
                "id": delivery,
                "object": "event",
                "created_at": int(session.execute(select(now())).scalar_one()),
                "type": event_type,
                "data": {"id": job_id},
            }
            session.add(WebhookDelivery(id=delivery, endpoint_id=endpoint.id, payload=json.dumps(payload)))


def add_unit(session: Session, job_id: str, name: str, kind: UnitKind, *, waiting: bool = False) -> Unit:
    """A new unit that workers may take; a waiting one after somebody's word."""
    unit = Unit(id=new_id("unit_"), job_id=job_id, name=name, kind=kind, state="waiting" if waiting else "ready")
    session.add(unit)
    session.flush()
    return unit


def pause(session: Session, job_id: str, message: str = "Paused") -> bool:
    """Stop taking units; running ones stop at their next safe point."""
    return move(session, job_id, "paused", message, resume_to=Job.status)


def resume(session: Session, job_id: str, message: str = "Resumed") -> bool:
    """Go on where a paused job was."""
    # Locked: the last word of a worker may just be changing where the job resumes.
    before = session.execute(select(Job.resume_to).where(Job.id == job_id).with_for_update()).scalar_one_or_none()
    target: JobStatus = next((status for status in ACTIVE if status == before), "queued")
    return move(session, job_id, target, message, only_from="paused", resume_to=None)
