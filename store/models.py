"""The tables. Facts live here; bulk lives in the object store and is named here by its SHA-256.

Times are seconds since 1970 by the database's clock.
"""

from typing import Any, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from store.database import now
from store.states import JobStatus, UnitKind, UnitState

Json = JSON().with_variant(JSONB(), "postgresql")
BigInt = BigInteger().with_variant(Integer(), "sqlite")


_REVIEWED = text("reviewed_at IS NOT NULL")
_SUCCEEDED = text("status = 'succeeded'")


def _one_of(column: str, values: Any) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in get_args(values))})"


class Row(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  -- SQLAlchemy's own name and form
        dict[str, Any]: Json,
        list[Any]: Json,
        float: Double(),
        str: String(),
        bool: Boolean(),
        int: BigInt,
    }


class Project(Row):
    """Owns everything else. Limits left empty are the settings'."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[float] = mapped_column(default=now())
    max_active_jobs: Mapped[int | None]
    max_bytes: Mapped[int | None]


class ApiKey(Row):
    """A key `sk-<id>-<secret>`; only the secret's SHA-256 is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    secret_sha256: Mapped[str]
    admin: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[float] = mapped_column(default=now())
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
    last_used_at: Mapped[float | None]


class SignIn(Row):
    """A session of a browser, begun with a key."""

    __tablename__ = "sessions"

    secret_sha256: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    created_at: Mapped[float] = mapped_column(default=now())
    expires_at: Mapped[float]


class File(Row):
    """An uploaded or a result file. The bytes are the object `sha256`, shared by all files of the same content."""

    __tablename__ = "files"
    __table_args__ = (
        CheckConstraint("status IN ('uploaded', 'processed', 'error')", name="status"),
        Index("ix_files_project_id_created_at", "project_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    """The job that made it; None for uploads."""
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(index=True)
    status: Mapped[str]
    status_details: Mapped[str | None] = mapped_column(Text)
    facts: Mapped[dict[str, Any] | None]
    """What the check found: the fields of `examples.FileFacts`, or problems by line."""
    created_at: Mapped[float] = mapped_column(default=now())
    expires_at: Mapped[float | None]


class Upload(Row):
    """A file that comes in parts."""

    __tablename__ = "uploads"
    __table_args__ = (CheckConstraint("status IN ('pending', 'completed', 'cancelled', 'expired')", name="status"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int]
    mime_type: Mapped[str]
    status: Mapped[str] = mapped_column(default="pending")
    file_expires_after: Mapped[int | None]
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id", ondelete="SET NULL"))
    created_at: Mapped[float] = mapped_column(default=now())
    expires_at: Mapped[float]


class UploadPart(Row):
    """One part of an upload; its bytes are an object of their own."""

    __tablename__ = "upload_parts"

    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), index=True)
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[float] = mapped_column(default=now())


class Job(Row):
    """A fine-tuning job: what was asked, and where it stands."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(_one_of("status", JobStatus), name="status"),
        CheckConstraint("method IN ('semievol', 'supervised')", name="method"),
        Index("ix_jobs_project_id_created_at", "project_id", "created_at", "id"),
        Index("ix_jobs_status", "status"),
        # What estimates learn from: the last ones of a base model, of all projects.
        Index(
            "ix_jobs_model_finished_at", "model", "finished_at", postgresql_where=_SUCCEEDED, sqlite_where=_SUCCEEDED
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    created_by: Mapped[str]
    """Id of the key."""
    request_id: Mapped[str | None]
    method: Mapped[str]
    model: Mapped[str]
    """Public name of the base model."""
    model_source: Mapped[dict[str, Any]]
    """The allow-list's entry when the job was made."""
    recipe: Mapped[dict[str, Any]]
    seed: Mapped[int]
    inputs: Mapped[dict[str, Any]]
    """By role (labeled, unlabeled, validation, test): {"file", "filename", "sha256", "bytes"}."""
    asked: Mapped[dict[str, Any]]
    """The parts of the request that are only repeated: hyperparameters, method, integrations."""
    suffix: Mapped[str | None]
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata", Json)
    review: Mapped[bool] = mapped_column(default=False)
    reviewed_sha256: Mapped[str | None]
    """Object with the edits of a completed review, as JSON lines."""
    status: Mapped[str] = mapped_column(default="validating_files")
    resume_to: Mapped[str | None]
    """Status before the pause."""
    stage: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]
    """{"code", "message", "param"}"""
    fine_tuned_model: Mapped[str | None]
    trained_tokens: Mapped[int | None]
    event_count: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[float] = mapped_column(default=now())
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class Request(Row):
    """A create that was answered, so that the same one again gets the same job."""

    __tablename__ = "requests"
    __table_args__ = (
        UniqueConstraint("project_id", "idempotency_key"),
        Index("ix_requests_key_id_body_sha256", "key_id", "body_sha256"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    key_id: Mapped[str]
    idempotency_key: Mapped[str | None]
    body_sha256: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[float] = mapped_column(default=now())


class Unit(Row):
    """A piece of a job that one worker does in one process: a stage or a few, or one shard of generation."""

    __tablename__ = "units"
    __table_args__ = (
        UniqueConstraint("job_id", "name"),
        CheckConstraint(_one_of("state", UnitState), name="state"),
        CheckConstraint(_one_of("kind", UnitKind), name="kind"),
        Index("ix_units_state_kind_ready_at", "state", "kind", "ready_at", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    name: Mapped[str]
    kind: Mapped[str]
    state: Mapped[str]
    ready_at: Mapped[float] = mapped_column(default=now())
    rung_at: Mapped[float | None]
    """When a doorbell was last rung for it."""
    worker_id: Mapped[str | None]
    lease_token: Mapped[str | None]
    lease_until: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)
    """Times it was claimed."""
    lost: Mapped[int] = mapped_column(default=0)
    """Attempts that infrastructure ended."""
    failed: Mapped[int] = mapped_column(default=0)
    """Attempts that the job's own fault ended."""
    adjustments: Mapped[dict[str, Any] | None]
    """What later attempts do differently, such as a smaller micro-batch."""
    checkpoint: Mapped[dict[str, Any] | None]
    """Files of the last training checkpoint, as in a stage's manifest, with its stage and step."""
    stage: Mapped[str | None]
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class StageRow(Row):
    """A committed stage: its manifest. The files are objects."""

    __tablename__ = "stages"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"))
    number: Mapped[int]
    """Order of commit within the job."""
    seconds: Mapped[float]
    facts: Mapped[dict[str, Any]]
    files: Mapped[dict[str, Any]]
    """By path: {"bytes", "sha256"}."""
    committed_at: Mapped[float] = mapped_column(default=now())


class JobEvent(Row):
    """The job's log, numbered without gaps within the job, written in the transactions that it tells of."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    created_at: Mapped[float] = mapped_column(default=now())
    level: Mapped[str] = mapped_column(default="info")
    type: Mapped[str] = mapped_column(default="message")
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None]


class PseudoLabel(Row):
    """What was decided of one unlabeled row, and what a person made of it. The last round to ask the row wins.

    Replies and log-probabilities of all collaborators stay in the object store, with the shard that made them.
    """

    __tablename__ = "pseudo_labels"
    __table_args__ = (
        CheckConstraint("decision IN ('accept', 'reject')", name="decision"),
        Index("ix_pseudo_labels_job_id_decision", "job_id", "decision", "line"),
        Index("ix_pseudo_labels_job_id_answer", "job_id", "answer", "line"),
        # By decision first: it follows from the value, so rows of one decision may lie far down in an order by value.
        Index("ix_pseudo_labels_job_id_decision_entropy", "job_id", "decision", "entropy", "line"),
        Index("ix_pseudo_labels_job_id_decision_confidence", "job_id", "decision", "confidence", "line"),
        Index("ix_pseudo_labels_job_id_outcome", "job_id", "outcome", "line"),
        Index("ix_pseudo_labels_job_id_reviewed", "job_id", "line", postgresql_where=_REVIEWED, sqlite_where=_REVIEWED),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    """Line of the unlabeled file, from 1; the row's public number."""
    row_id: Mapped[str]
    round: Mapped[int] = mapped_column(Integer)
    question: Mapped[str] = mapped_column(Text)
    answer: Mapped[str | None] = mapped_column(Text)
    reply: Mapped[str | None] = mapped_column(Text)
    decision: Mapped[str]
    reason: Mapped[str]
    outcome: Mapped[str]
    """consistent, justified, majority, …: how the collaborators came to one answer."""
    confidence: Mapped[float | None]
    probability: Mapped[float | None]
    vote_share: Mapped[float | None]
    entropy: Mapped[float | None]
    answer_entropy: Mapped[float | None]
    shard: Mapped[int | None] = mapped_column(Integer)
    """Of the round: where the replies and log-probabilities of all collaborators are. None before version 0005."""
    reviewed_decision: Mapped[str | None]
    reviewed_answer: Mapped[str | None] = mapped_column(Text)
    reviewed_by: Mapped[str | None]
    reviewed_at: Mapped[float | None]


class FineTunedModel(Row):
    """An adapter that a job made."""

    __tablename__ = "models"

    id: Mapped[str] = mapped_column(primary_key=True)
    """ft:<base>:<suffix>:<id>"""
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    base: Mapped[str]
    created_at: Mapped[float] = mapped_column(default=now())
    deleted_at: Mapped[float | None]


class WebhookEndpoint(Row):
    """An address that is told of finished jobs. The secret signs, so it is kept as it is."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    url: Mapped[str]
    events: Mapped[list[Any]]
    secret: Mapped[str]
    created_at: Mapped[float] = mapped_column(default=now())


class WebhookDelivery(Row):
    """The outbox of webhooks: written with the fact it tells of, sent afterwards, again until it is taken."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index("ix_webhook_deliveries_next_attempt_at", "next_attempt_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), index=True)
    payload: Mapped[str] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[float | None] = mapped_column(default=now())
    """None when it was delivered or given up."""
    delivered_at: Mapped[float | None]
    last_error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(default=now())


class Worker(Row):
    """A supervisor that was seen, and what it does."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    """host:pid"""
    kinds: Mapped[list[Any]]
    started_at: Mapped[float] = mapped_column(default=now())
    seen_at: Mapped[float] = mapped_column(default=now())
    unit_id: Mapped[str | None]
    runner_pid: Mapped[int | None]
    runner_started: Mapped[float | None]
    """The runner's own start time, so that a process id used again is not taken for it."""
    memory_bytes: Mapped[int | None]
    """Resident memory of the supervisor, its fork server and its runner, when it was last seen."""
    gpu_memory_bytes: Mapped[int | None]
    """What the runner's torch has taken of its GPU; None where it uses none."""
