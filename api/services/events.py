"""A job's log: pages of it, and the stream that goes on until the job is over. Also its checkpoints."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from anyio import sleep, to_thread
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.errors import BadRequest
from api.schemas.jobs import CheckpointView, EventView, SemievolView
from api.services.job_view import read_jobs, semievol_view
from store.database import Database
from store.ids import event_id, event_number
from store.models import Job, JobEvent, StageRow
from store.states import FINAL

POLL_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
BATCH = 200


# --- pages ------------------------------------------------------------------------------------------------------------


def list_events(session: Session, job_id: str, *, after: str | None, limit: int) -> list[EventView]:
    """The next events, newest first."""
    query = select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.number.desc()).limit(limit)
    if after is not None:
        query = query.where(JobEvent.number < number_of(job_id, after, "after"))
    return [event_view(event) for event in session.scalars(query)]


def number_of(job_id: str, public_id: str, param: str) -> int:
    """The number in an event's id. Raises BadRequest if it is no event of this job."""
    number = event_number(job_id, public_id)
    if number is None or number >= 2**63:
        raise BadRequest(f"{param} is not the id of an event of this job", code="invalid_after", param=param)
    return number


def event_view(event: JobEvent) -> EventView:
    """The event object."""
    return EventView(
        id=event_id(event.job_id, event.number),
        created_at=int(event.created_at),
        level=event.level,
        type=event.type,
        message=event.message,
        data=event.data,
    )


# --- the stream -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class News:
    """What is new since the last look. `over`: the job is final and nothing more will come."""

    events: Sequence[JobEvent]
    progress: SemievolView
    over: bool


def look(database: Database, project_id: str, job_id: str, after: int) -> News | None:
    """Events after a number, and how far the job is; None if the job is gone."""
    with database.read() as session:
        found = read_jobs(session, project_id, [job_id])
        if not found:
            return None
        events = session.scalars(
            select(JobEvent)
            .where(JobEvent.job_id == job_id, JobEvent.number > after)
            .order_by(JobEvent.number)
            .limit(BATCH)
        ).all()
    # The job was read first: an event that came with a final status is among the events read after it.
    over = found[0].job.status in FINAL and len(events) < BATCH
    return News(events, semievol_view(found[0]), over)


async def stream(
    database: Database, project_id: str, job_id: str, after: int, gone: Callable[[], Awaitable[bool]]
) -> AsyncIterator[str]:
    """Server-sent events: the log from `after` on, and `progress` when that changed. Ends with the job.

    The database is asked in a thread, once a second; `gone` tells whether the client has left.
    """
    told, heard = "", time.monotonic()
    while not await gone():
        news = await to_thread.run_sync(look, database, project_id, job_id, after)
        if news is None:
            return
        for event in news.events:
            after = event.number
            view = event_view(event)
            yield f"id: {view.id}\nevent: {view.type}\ndata: {view.model_dump_json()}\n\n"
        state = json.dumps(news.progress.model_dump(mode="json", exclude={"estimated_finish"}))
        if state != told:
            told = state
            yield f"event: progress\ndata: {news.progress.model_dump_json()}\n\n"
            heard = time.monotonic()
        if news.over:
            return
        if news.events:
            heard = time.monotonic()
        elif time.monotonic() - heard >= HEARTBEAT_SECONDS:
            heard = time.monotonic()
            yield ": still there\n\n"
        if len(news.events) < BATCH:
            await sleep(POLL_SECONDS)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def list_checkpoints(session: Session, job: Job) -> list[CheckpointView]:
    """The adapters of the job's trainings, newest first. Steps count on over the trainings, so each number is one."""
    stages = session.scalars(select(StageRow).where(StageRow.job_id == job.id).order_by(StageRow.number))
    accuracies = {}
    trained: list[tuple[StageRow, int]] = []
    steps = 0
    for stage in stages:
        if "accuracy" in stage.facts:
            accuracies[stage.name] = float(stage.facts["accuracy"]["value"])
        if stage.name == "warm-up" or stage.name.endswith("/train"):
            steps += int(stage.facts["steps"])
            trained.append((stage, steps))
    return [_checkpoint(job, stage, step, accuracies) for stage, step in reversed(trained)]


def _checkpoint(job: Job, stage: StageRow, step: int, accuracies: dict[str, float]) -> CheckpointView:
    metrics = {"step": float(step)}
    if losses := stage.facts.get("losses"):
        metrics["train_loss"] = float(losses[-1][1])
    validation = "warm-up-validation" if stage.name == "warm-up" else stage.name.removesuffix("train") + "validation"
    if validation in accuracies:
        metrics["valid_accuracy"] = accuracies[validation]
    number = job.id.removeprefix("ftjob-")
    return CheckpointView(
        id=f"ftckpt_{number}{stage.number:04d}",
        created_at=int(stage.committed_at),
        fine_tuned_model_checkpoint=f"{job.fine_tuned_model or job.id}:ckpt-step-{step}",
        fine_tuning_job_id=job.id,
        metrics=metrics,
        step_number=step,
    )
