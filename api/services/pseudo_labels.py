"""A job's pseudo-labels: pages, the export of all of them, and the review by a person."""

import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from api.deps import Services
from api.errors import BadRequest, Conflict, NotFound
from api.schemas.jobs import LabelEdit
from api.schemas.labels import LabelReview, LabelView
from api.services.job_view import REVIEW
from api.services.jobs import find_job
from store.database import Database, now
from store.jobs import add_event
from store.models import Job, PseudoLabel, Unit
from store.objects import ObjectStore
from store.pseudo_labels import CHUNK_ROWS, LabelFilter, Order, UnknownLine, labels_after, write_edits


def label_view(label: PseudoLabel) -> LabelView:
    """The row as it stands after the review."""
    review = None
    if label.reviewed_at is not None:
        review = LabelReview(
            decision=label.reviewed_decision,
            answer=label.reviewed_answer,
            by=label.reviewed_by or "",
            at=int(label.reviewed_at),
        )
    return LabelView(
        id=str(label.line),
        line=label.line,
        row_id=label.row_id,
        round=label.round,
        question=label.question,
        answer=label.reviewed_answer if label.reviewed_answer is not None else label.answer,
        reply=label.reviewed_answer if label.reviewed_answer is not None else label.reply,
        decision=label.reviewed_decision or label.decision,
        reason=label.reason,
        outcome=label.outcome,
        confidence=label.confidence,
        probability=label.probability,
        vote_share=label.vote_share,
        entropy=label.entropy,
        answer_entropy=label.answer_entropy,
        review=review,
    )


def list_labels(
    session: Session, job_id: str, wanted: LabelFilter, *, after: int, limit: int, order: Order = "line"
) -> list[LabelView]:
    """The next rows in that order. Raises BadRequest if an order by value is to go on after a row that is not there."""
    try:
        return [label_view(label) for label in labels_after(session, job_id, wanted, after, limit, order)]
    except UnknownLine:
        message = f"after: the job has no pseudo-label of line {after}; use last_id, or leave it out to begin"
        raise BadRequest(message, code="invalid_after", param="after") from None


def label_lines(database: Database, job_id: str, wanted: LabelFilter, order: Order = "line") -> Iterator[bytes]:
    """All rows as JSON lines. Each chunk is a transaction of its own, so a slow reader holds none open."""
    after: int | None = 0
    while after is not None:
        with database.read() as session:
            views = list_labels(session, job_id, wanted, after=after, limit=CHUNK_ROWS, order=order)
        if views:
            yield "".join(view.model_dump_json() + "\n" for view in views).encode()
        after = views[-1].line if len(views) == CHUNK_ROWS else None


def find_label(session: Session, job: Job, line: int) -> PseudoLabel:
    """The job's row of that line. Raises NotFound."""
    label = session.get(PseudoLabel, (job.id, line))
    if label is None:
        raise NotFound(f"the job has no pseudo-label of line {line}", code="pseudo_label_not_found", param="row")
    return label


# --- review -----------------------------------------------------------------------------------------------------------


def edit_label(session: Session, project_id: str, key_id: str, job_id: str, line: int, edit: LabelEdit) -> LabelView:
    """Keep what a person decided. Raises NotFound, BadRequest, and Conflict unless the job waits for review."""
    job = find_job(session, project_id, job_id)
    label = find_label(session, job, line)
    if edit.decision is None and edit.answer is None:
        raise BadRequest("give a decision, an answer or both", code="missing_required_parameter", param="decision")
    # Shared lock: edits do not wait for one another, and the review cannot be completed until this one is committed.
    waiting = _waiting_review(job.id).with_for_update(read=True)
    unit = session.scalars(waiting).one_or_none()
    if unit is None:
        raise _not_reviewable(job)
    if unit.name != f"round-{label.round}{REVIEW}":
        message = f"line {line} was decided in round {label.round}, which is over"
        raise Conflict(message, code="not_reviewable", param="row")
    if edit.answer is not None:
        label.reviewed_answer = edit.answer
    label.reviewed_decision = edit.decision or label.reviewed_decision or "accept"
    if label.reviewed_decision == "accept" and label.answer is None and label.reviewed_answer is None:
        message = f"line {line} has no answer to accept; give one"
        raise BadRequest(message, code="missing_required_parameter", param="answer")
    label.reviewed_by, label.reviewed_at = key_id, session.scalar(select(now()))
    session.flush()
    return label_view(label)


def complete_review(session: Session, parts: Services, project_id: str, key_id: str, job_id: str) -> None:
    """Freeze the edits as an object and let the job go on. Raises Conflict unless it waits for review."""
    job = find_job(session, project_id, job_id)
    # The job's row before the unit's, in the order of all moves, so that a cancel and this cannot lock each other out.
    session.execute(select(Job.id).where(Job.id == job.id).with_for_update())
    released = session.execute(
        update(Unit)
        .where(Unit.id.in_(_waiting_review(job.id).with_only_columns(Unit.id)), Unit.state == "waiting")
        .values(state="ready", ready_at=now())
        .returning(Unit.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if released is None:
        raise _not_reviewable(job)
    sha256, count = _store_edits(session, parts.objects, job.id, parts.settings.data / "staging")
    session.execute(update(Job).where(Job.id == job.id).values(reviewed_sha256=sha256))
    add_event(session, job.id, f"Review completed: {count} rows changed", data={"review": "completed", "by": key_id})


def _waiting_review(job_id: str) -> Select[Unit]:
    return select(Unit).where(Unit.job_id == job_id, Unit.name.like(f"%{REVIEW}"), Unit.state == "waiting")


def _not_reviewable(job: Job) -> Conflict:
    why = "was created without review" if not job.review else f"is {job.status} and no review waits"
    return Conflict(f"the job {why}; rows can be changed while it waits for one", code="not_reviewable", param="id")


def _store_edits(session: Session, objects: ObjectStore, job_id: str, staging: Path) -> tuple[str, int]:
    staging.mkdir(parents=True, exist_ok=True)
    path = staging / f"{secrets.token_hex(16)}.partial"
    try:
        count = write_edits(session, job_id, path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        objects.put(path, sha256)
    finally:
        path.unlink(missing_ok=True)
    return sha256, count
