"""A job's log in pages, and its checkpoints."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.errors import BadRequest
from api.schemas.jobs import CheckpointView, EventView
from store.ids import event_id, event_number
from store.models import Job, JobEvent, StageRow

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
