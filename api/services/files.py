"""Files of a project: a row each, over objects that are shared by content."""

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlalchemy.orm import Session

from api.deps import Services
from api.errors import BadRequest, Conflict, NotFound, TooMany
from api.schemas.files import FileFacts, FileView
from api.services.intake import Staging, check, display_name
from store.database import now
from store.ids import new_id
from store.models import File, Job, Project
from store.settings import Settings
from store.states import FINAL

_MEDIA_TYPES = {
    ".jsonl": "application/jsonl",
    ".ndjson": "application/x-ndjson",
    ".csv": "text/csv",
    ".zip": "application/zip",
    ".html": "text/html",
    ".json": "application/json",
}


def view(file: File) -> FileView:
    """The row as the API shows it."""
    facts = file.facts or {}
    return FileView(
        id=file.id,
        bytes=file.bytes,
        created_at=int(file.created_at),
        filename=file.filename,
        purpose=file.purpose,
        status=file.status,
        expires_at=None if file.expires_at is None else int(file.expires_at),
        status_details=file.status_details,
        semievol=FileFacts(
            kind=facts.get("kind"), rows=facts.get("rows"), problems=facts.get("problems", []), sha256=file.sha256
        ),
    )


def media_type(filename: str) -> str:
    """By the ending of the name."""
    return next(
        (kind for ending, kind in _MEDIA_TYPES.items() if filename.endswith(ending)), "application/octet-stream"
    )


def _alive() -> ColumnElement[bool]:
    return or_(File.expires_at.is_(None), File.expires_at > now())


def find(session: Session, project_id: str, file_id: str) -> File:
    """The project's file. Raises NotFound, for another project's and an expired one too."""
    found = session.scalars(
        select(File).where(File.id == file_id, File.project_id == project_id, _alive())
    ).one_or_none()
    if found is None:
        raise NotFound("there is no such file in this project", code="file_not_found", param="file_id")
    return found


def page_of_files(
    session: Session, project_id: str, *, purpose: str | None, limit: int, order: str, after: str | None
) -> list[File]:
    """One more file than asked for, to know whether there are more. Raises BadRequest for an unknown `after`."""
    query = select(File).where(File.project_id == project_id, _alive())
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    query = _after(session, query, project_id, order, after)
    keys = (File.created_at, File.id)
    ordered = [key.asc() for key in keys] if order == "asc" else [key.desc() for key in keys]
    return list(session.scalars(query.order_by(*ordered).limit(limit + 1)))


def _after(session: Session, query: Select[File], project_id: str, order: str, after: str | None) -> Select[File]:
    if after is None:
        return query
    last = session.scalars(select(File).where(File.id == after, File.project_id == project_id)).one_or_none()
    if last is None:
        raise BadRequest("after: give the id of the last file of the page before", code="invalid_after", param="after")
    same = File.created_at == last.created_at
    if order == "asc":
        return query.where(or_(File.created_at > last.created_at, and_(same, File.id > last.id)))
    return query.where(or_(File.created_at < last.created_at, and_(same, File.id < last.id)))


def held_bytes(session: Session, settings: Settings, project_id: str) -> tuple[int, int]:
    """Bytes of all files of the project, and how many they may be."""
    project = session.get_one(Project, project_id)
    limit = settings.max_project_bytes if project.max_bytes is None else project.max_bytes
    held = session.execute(
        select(func.coalesce(func.sum(File.bytes), 0)).where(File.project_id == project_id, _alive())
    ).scalar_one()
    return int(held), limit


def check_quota(session: Session, project_id: str, more_bytes: int, settings: Settings) -> None:
    """Raises TooMany if the project's files would hold more bytes than it may have."""
    held, limit = held_bytes(session, settings, project_id)
    if held + more_bytes > limit:
        message = f"the project's files may hold {limit:,} bytes and hold {held:,}; delete files that are done with"
        raise TooMany(message, code="quota_exceeded")


def lock_project(session: Session, project_id: str) -> None:
    """Let nobody else reserve of this project's quota, or take its files, until the commit."""
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update())


def new_file(
    parts: Services, project_id: str, staged: Staging, *, filename: str, purpose: str, expires_after: int | None
) -> File:
    """Check the staged bytes, store them, and make the row of them; the caller adds it with `insert`."""
    if not staged.size:
        raise BadRequest("the file is empty; it needs at least one row", code="empty_file", param="file")
    with parts.database.read() as session:
        check_quota(session, project_id, staged.size, parts.settings)
    name, sha256, size = display_name(filename), staged.sha256, staged.size
    checked = check(staged.path, name, purpose)
    parts.objects.put(staged.path, sha256)
    return File(
        id=new_id("file-"),
        project_id=project_id,
        filename=name,
        purpose=purpose,
        bytes=size,
        sha256=sha256,
        status=checked.status,
        status_details=checked.details,
        facts=checked.facts,
        expires_at=expires_after,
    )


def insert(session: Session, file: File, settings: Settings) -> None:
    """Reserve the quota and add the row. `expires_at` comes as seconds from now. Raises TooMany."""
    lock_project(session, file.project_id)
    check_quota(session, file.project_id, file.bytes, settings)
    file.created_at = session.execute(select(now())).scalar_one()
    if file.expires_at is not None:
        file.expires_at += file.created_at
    session.add(file)
    session.flush()


def add(
    parts: Services, project_id: str, staged: Staging, *, filename: str, purpose: str, expires_after: int | None
) -> FileView:
    """The staged bytes as a new file. Blocks; raises BadRequest and TooMany."""
    file = new_file(parts, project_id, staged, filename=filename, purpose=purpose, expires_after=expires_after)
    with parts.database.write() as session:
        insert(session, file, parts.settings)
        return view(file)


def delete(session: Session, project_id: str, file_id: str) -> None:
    """Remove the row; a sweep removes bytes that no row names. Raises NotFound, and Conflict if a job needs it."""
    lock_project(session, project_id)
    file = find(session, project_id, file_id)
    unfinished = session.execute(
        select(Job.id, Job.inputs).where(Job.project_id == project_id, Job.status.not_in(FINAL))
    )
    for job_id, inputs in unfinished:
        if any(given.get("file") == file_id for given in inputs.values()):
            message = f"the job {job_id} still needs this file; cancel it or wait for its end"
            raise Conflict(message, code="file_in_use", param="file_id")
    session.delete(file)
    session.flush()
