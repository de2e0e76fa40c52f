"""What the database says of workers, of the queue, and of what a project uses."""

from sqlalchemy import ColumnElement, and_, case, func, or_, select
from sqlalchemy.orm import Session

from api.schemas.house import KindCounts, QueueUnit, QueueView, Quota, UsageView, WorkerView, WorkView
from api.services.files import held_bytes
from api.services.jobs import unfinished_jobs
from store.database import now
from store.models import Job, Unit, Worker
from store.settings import Settings
from store.states import ACTIVE

ALIVE_SECONDS = 60
MOST_UNITS = 100


def workers(session: Session) -> list[WorkerView]:
    """All that were seen within the hour, newest first."""
    at_work = and_(Unit.id == Worker.unit_id, Unit.worker_id == Worker.id, Unit.state == "running")
    query = (
        select(Worker, Unit, Worker.seen_at > now() - ALIVE_SECONDS)
        .outerjoin(Unit, at_work)
        .order_by(Worker.started_at.desc(), Worker.id)
    )
    return [_worker(worker, unit, bool(alive)) for worker, unit, alive in session.execute(query)]


def _worker(worker: Worker, unit: Unit | None, alive: bool) -> WorkerView:
    return WorkerView(
        id=worker.id,
        kinds=worker.kinds,
        started_at=int(worker.started_at),
        seen_at=int(worker.seen_at),
        alive=alive,
        memory_bytes=worker.memory_bytes,
        gpu_memory_bytes=worker.gpu_memory_bytes,
        work=None if unit is None else _work(unit),
    )


def _work(unit: Unit) -> WorkView:
    return WorkView(
        job_id=unit.job_id,
        unit=unit.name,
        stage=unit.stage,
        done=unit.done,
        total=unit.total,
        since=int(unit.started_at or unit.ready_at),
    )


def queue(session: Session, project_id: str | None) -> QueueView:
    """Units that run, then those that have been ready longest, at most MOST_UNITS. None: of all projects."""
    counted = {("ready", "cpu"): 0, ("ready", "gpu"): 0, ("running", "cpu"): 0, ("running", "gpu"): 0}
    waited: list[float] = []
    counts = select(Unit.state, Unit.kind, func.count(), now() - func.min(Unit.ready_at)).join(Job)
    for state, kind, count, seconds in session.execute(
        counts.where(*_open(project_id)).group_by(Unit.state, Unit.kind)
    ):
        counted[state, kind] = count
        if state == "ready":
            waited.append(max(0.0, seconds))
    return QueueView(
        ready=KindCounts(cpu=counted["ready", "cpu"], gpu=counted["ready", "gpu"]),
        running=KindCounts(cpu=counted["running", "cpu"], gpu=counted["running", "gpu"]),
        oldest_ready_seconds=max(waited, default=None),
        units=_units(session, project_id),
    )


def _units(session: Session, project_id: str | None) -> list[QueueUnit]:
    runs = Unit.state == "running"
    since = case((runs, func.coalesce(Unit.started_at, Unit.ready_at)), else_=Unit.ready_at)
    query = (
        select(Unit.job_id, Unit.name, Unit.kind, Unit.state, since, Unit.worker_id)
        .join(Job)
        .where(*_open(project_id))
        .order_by(case((runs, 0), else_=1), since, Unit.id)
        .limit(MOST_UNITS)
    )
    return [
        QueueUnit(job_id=job_id, unit=name, kind=kind, state=state, since=int(began), worker=worker)
        for job_id, name, kind, state, began, worker in session.execute(query)
    ]


def _open(project_id: str | None) -> list[ColumnElement[bool]]:
    """A unit that runs may still be stopping for a job that was paused or cancelled."""
    ready = and_(Unit.state == "ready", Job.status.in_(ACTIVE))
    conditions: list[ColumnElement[bool]] = [
        Unit.state.in_(("ready", "running")),  # said for the index
        or_(Unit.state == "running", ready),
    ]
    return conditions if project_id is None else [*conditions, Job.project_id == project_id]


def usage(session: Session, settings: Settings, project_id: str) -> UsageView:
    """How much of its limits a project uses."""
    jobs, most_jobs = unfinished_jobs(session, settings, project_id)
    held, most_bytes = held_bytes(session, settings, project_id)
    return UsageView(
        project=project_id,
        active_jobs=Quota(used=jobs, limit=most_jobs),
        bytes=Quota(used=held, limit=most_bytes),
        requests_per_minute=settings.requests_per_minute or None,
    )
