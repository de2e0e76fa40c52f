"""Where the files are that a finished job hands out."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.errors import Conflict, NotFound
from store.models import Job, StageRow


def published_file(session: Session, job: Job, stage: str, name: str) -> tuple[str, int]:
    """Digest and size of a committed stage's file. Raises Conflict before the stage, NotFound if it has none."""
    files = session.scalars(
        select(StageRow.files).where(StageRow.job_id == job.id, StageRow.name == stage)
    ).one_or_none()
    if files is None:
        message = f"the job is {job.status} and has not made this yet; it comes with the job's last stage"
        raise Conflict(message, code="not_ready", param="id")
    if name not in files:
        raise NotFound(f"the job made no file {name[:200]!r}", code="result_not_found", param="name")
    return files[name]["sha256"], files[name]["bytes"]
