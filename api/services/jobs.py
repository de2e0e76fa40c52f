"""Creating, finding and moving jobs. Each function works in its caller's transaction."""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import String, cast, func, or_, select, tuple_, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session
from sqlalchemy.sql import ColumnElement

from api.deps import Caller
from api.errors import BadRequest, Conflict, NotFound, TooMany, Unprocessable
from api.schemas.jobs import JobCreate
from api.services.recipes import Asked, find_model, resolve, understand
from semievol.recipe import Recipe
from store import jobs
from store.database import now
from store.ids import new_id
from store.models import File, Job, Project, Request
from store.settings import Settings
from store.states import FINAL

SAME_AGAIN_SECONDS = 300
"""How long an identical create without `Idempotency-Key` is taken for a retry: the client retries without a header."""
MAX_KEY_CHARACTERS = 255
PURPOSE = "fine-tune"

_RIGHT_KIND = {
    "labeled": "each line ends with the assistant's reply",
    "unlabeled": "each line ends with the user's message",
}


@dataclass(frozen=True, slots=True)
class Order:
    """A checked request: everything that a job needs."""

    asked: Asked
    source: dict[str, Any]
    recipe: Recipe
    files: dict[str, File]


# --- create -----------------------------------------------------------------------------------------------------------


def create_job(
    session: Session,
    settings: Settings,
    caller: Caller,
    body: JobCreate,
    *,
    idempotency_key: str | None,
    request_id: str | None,
) -> tuple[Job, bool]:
    """The job of this request, and whether it is new. Raises BadRequest, Unprocessable and TooMany."""
    digest = body_digest(body)
    check_key(idempotency_key)
    # One create of a project at a time: what is read below of its requests and jobs stays true until the commit.
    session.execute(select(Project).where(Project.id == caller.project_id).with_for_update()).scalar_one()
    if (first := _answered(session, caller, idempotency_key, digest)) is not None:
        return first, False
    order = check_order(session, settings, caller.project_id, body)
    _check_quota(session, settings, caller.project_id)
    job = _insert(session, caller, body, order, request_id)
    session.add(
        Request(
            project_id=caller.project_id,
            key_id=caller.key_id,
            idempotency_key=idempotency_key,
            body_sha256=digest,
            job_id=job.id,
        )
    )
    session.flush()
    return job, True


def body_digest(body: JobCreate) -> str:
    """SHA-256 of what was given, in canonical JSON."""
    given = body.model_dump(mode="json", exclude_unset=True)
    canonical = json.dumps(given, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_key(idempotency_key: str | None) -> None:
    """Raises BadRequest for a header that is no key."""
    if idempotency_key is None:
        return
    if not 1 <= len(idempotency_key) <= MAX_KEY_CHARACTERS or not idempotency_key.isprintable():
        message = f"Idempotency-Key is 1 to {MAX_KEY_CHARACTERS} printable characters"
        raise BadRequest(message, code="invalid_idempotency_key", param="Idempotency-Key")


def check_order(session: Session, settings: Settings, project_id: str, body: JobCreate) -> Order:
    """All checks of a request that need no quota. Raises BadRequest."""
    if body.suffix is not None and not body.suffix.isprintable():
        raise BadRequest("suffix holds a character that cannot be printed", code="invalid_suffix", param="suffix")
    asked = understand(body)
    entry = find_model(settings, body.model)
    files = {
        role: find_input(session, project_id, file_id, role, place)
        for role, (file_id, place) in wanted_files(body, asked).items()
    }
    return Order(asked, entry.model_dump(), resolve(settings, entry, asked), files)


def wanted_files(body: JobCreate, asked: Asked) -> dict[str, tuple[str, str]]:
    """The files that the request names: {role: (id, place in the body)}."""
    wanted = {"labeled": (body.training_file, "training_file")}
    if asked.block is not None:
        wanted["unlabeled"] = (asked.block.unlabeled_file, f"{asked.place}.unlabeled_file")
        if asked.block.test_file is not None:
            wanted["test"] = (asked.block.test_file, f"{asked.place}.test_file")
    if body.validation_file is not None:
        wanted["validation"] = (body.validation_file, "validation_file")
    return wanted


def find_input(session: Session, project_id: str, file_id: str, role: str, place: str) -> File:
    """A file that may play this role. Raises BadRequest that says what would be right."""
    code = f"invalid_{place.rpartition('.')[2]}"
    file = session.scalars(select(File).where(File.id == file_id, File.project_id == project_id)).one_or_none()
    if file is None:
        message = f"{place}: there is no such file in this project; upload it with purpose {PURPOSE}"
        raise BadRequest(message, code=code, param=place)
    if file.purpose != PURPOSE:
        message = f"{place}: the file's purpose is {file.purpose}; upload it with purpose {PURPOSE}"
        raise BadRequest(message, code=code, param=place)
    if file.status != "processed":
        why = file.status_details or f"its status is {file.status}; wait until it is processed"
        raise BadRequest(f"{place}: the file cannot be used: {why}", code=code, param=place)
    needed, facts = "unlabeled" if role == "unlabeled" else "labeled", file.facts or {}
    if facts.get("kind") != needed and not (needed == "unlabeled" and facts.get("answers_apart")):
        raise BadRequest(f"{place}: the file is not {needed}; {_RIGHT_KIND[needed]}", code=code, param=place)
    return file


def _answered(session: Session, caller: Caller, idempotency_key: str | None, digest: str) -> Job | None:
    """The job that the same request got before. Raises Unprocessable if the key was used for another body."""
    answered = select(Request).where(Request.project_id == caller.project_id)
    if idempotency_key is not None:
        request = session.scalars(answered.where(Request.idempotency_key == idempotency_key)).one_or_none()
        if request is None:
            return None
        if request.body_sha256 != digest:
            message = "this Idempotency-Key was used with another body; use a new key for a new job"
            raise Unprocessable(message, code="idempotency_key_reused", param="Idempotency-Key")
        return session.get_one(Job, request.job_id)
    recent = (
        select(Job)
        .join(Request, Request.job_id == Job.id)
        .where(
            Request.key_id == caller.key_id,
            Request.idempotency_key.is_(None),
            Request.body_sha256 == digest,
            Request.created_at > now() - SAME_AGAIN_SECONDS,
            Job.status.not_in(("failed", "cancelled")),
        )
        .order_by(Request.id.desc())
        .limit(1)
    )
    return session.scalars(recent).one_or_none()


def unfinished_jobs(session: Session, settings: Settings, project_id: str) -> tuple[int, int]:
    """Jobs of the project that are not over, and how many they may be."""
    most = session.get_one(Project, project_id).max_active_jobs or settings.max_active_jobs
    unfinished = select(func.count()).where(Job.project_id == project_id, Job.status.not_in(FINAL))
    return session.scalar(unfinished) or 0, most


def _check_quota(session: Session, settings: Settings, project_id: str) -> None:
    count, most = unfinished_jobs(session, settings, project_id)
    if count >= most:
        message = f"the project has {count} unfinished jobs and may have {most}; cancel one or wait"
        raise TooMany(message, code="too_many_jobs")


def _insert(session: Session, caller: Caller, body: JobCreate, order: Order, request_id: str | None) -> Job:
    asked = order.asked
    # A None would be stored as JSON null, not as no value, so what is not given is left out.
    optional = {} if body.metadata is None else {"metadata_": dict(body.metadata)}
    job = Job(
        id=new_id("ftjob-"),
        project_id=caller.project_id,
        created_by=caller.key_id,
        request_id=request_id,
        method=asked.method,
        model=body.model,
        model_source=order.source,
        recipe=order.recipe.model_dump(mode="json"),
        seed=body.seed if body.seed is not None else secrets.randbelow(2**31),
        inputs={role: input_facts(file) for role, file in order.files.items()},
        asked=asked.told() | {"integrations": body.integrations},
        suffix=body.suffix,
        review=asked.block.review if asked.block else False,
        status="validating_files",
        **optional,
    )
    session.add(job)
    session.flush()
    jobs.add_event(session, job.id, f"Created fine-tuning job: {job.id}")
    jobs.add_unit(session, job.id, "prepare", "cpu")
    return job


def input_facts(file: File) -> dict[str, Any]:
    """What a job remembers of a file: enough to run even if the file is deleted."""
    return {"file": file.id, "filename": file.filename, "sha256": file.sha256, "bytes": file.bytes}


# --- find -------------------------------------------------------------------------------------------------------------


def find_job(session: Session, project_id: str, job_id: str) -> Job:
    """The project's job. Raises NotFound."""
    job = session.scalars(select(Job).where(Job.id == job_id, Job.project_id == project_id)).one_or_none()
    if job is None:
        raise no_such_job(job_id)
    return job


def no_such_job(job_id: str) -> NotFound:
    """There is none, or it is another project's."""
    return NotFound(f"there is no fine-tuning job {job_id[:64]!r} in this project", code="job_not_found", param="id")


def list_jobs(
    session: Session,
    project_id: str,
    *,
    after: str | None,
    limit: int,
    metadata: Mapping[str, str] | None,
    statuses: Sequence[str] = (),
    part: str = "",
) -> list[str]:
    """Ids of the next jobs, newest first.

    `metadata`: pairs that a job must have; None asks for jobs without any. `statuses`: one of them, if there are any.
    `part`: of the id, suffix, model or a value of the metadata, whatever its case. Raises BadRequest.
    """
    query = select(Job.id).where(Job.project_id == project_id)
    if statuses:
        query = query.where(Job.status.in_(statuses))
    if part:
        query = query.where(_mentions(session, part))
    if metadata is None:
        query = query.where(Job.metadata_.is_(None))
    for key, value in (metadata or {}).items():
        query = query.where(_has_pair(session, key, value))
    if after is not None:
        last = session.scalars(select(Job).where(Job.id == after, Job.project_id == project_id)).one_or_none()
        if last is None:
            raise BadRequest("after is not a job of this project; use last_id", code="invalid_after", param="after")
        query = query.where(tuple_(Job.created_at, Job.id) < tuple_(last.created_at, last.id))
    return list(session.scalars(query.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit)))


def _has_pair(session: Session, key: str, value: str) -> ColumnElement[bool]:
    if session.get_bind().dialect.name == "postgresql":
        return type_coerce(Job.metadata_, JSONB).contains({key: value})
    # SQLite's JSON paths have no way to quote every key.
    pairs = func.json_each(Job.metadata_).table_valued("key", "value")
    return select(1).select_from(pairs).where(pairs.c.key == key, pairs.c.value == value).exists()


def _mentions(session: Session, part: str) -> ColumnElement[bool]:
    each = func.jsonb_each_text if session.get_bind().dialect.name == "postgresql" else func.json_each
    pairs = each(Job.metadata_).table_valued("key", "value")
    valued = select(1).select_from(pairs).where(cast(pairs.c.value, String).icontains(part, autoescape=True)).exists()
    return or_(*(column.icontains(part, autoescape=True) for column in (Job.id, Job.suffix, Job.model)), valued)


# --- move -------------------------------------------------------------------------------------------------------------


def cancel_job(session: Session, project_id: str, job_id: str) -> None:
    """Cancel it; workers see the status at their next heartbeat. Raises Conflict if it is over."""
    job = find_job(session, project_id, job_id)
    if not jobs.move(session, job.id, "cancelled", "Cancelled by request"):
        raise _wrong_state(session, job, "cancelled")


def pause_job(session: Session, project_id: str, job_id: str) -> None:
    """Pause it. Raises Conflict if it is paused or over."""
    job = find_job(session, project_id, job_id)
    if not jobs.pause(session, job.id, "Paused by request"):
        raise _wrong_state(session, job, "paused")


def resume_job(session: Session, project_id: str, job_id: str) -> None:
    """Go on. Raises Conflict if it is not paused."""
    job = find_job(session, project_id, job_id)
    if not jobs.resume(session, job.id, "Resumed by request"):
        raise _wrong_state(session, job, "resumed")


def _wrong_state(session: Session, job: Job, wish: str) -> Conflict:
    session.refresh(job)  # whoever was faster has changed it
    return Conflict(f"the job is {job.status} and cannot be {wish}", code="invalid_state", param="id")
