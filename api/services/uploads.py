"""Uploads in parts: each part is an object of its own until the whole is put together."""

from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from api.deps import Services
from api.errors import BadRequest, Conflict, NotFound
from api.schemas.files import PartView, UploadComplete, UploadCreate, UploadView
from api.services import files
from api.services.intake import Staging, check_room, display_name, staging, too_large
from store.database import now
from store.ids import new_id
from store.models import File, Upload, UploadPart
from store.settings import Settings

LIVES_SECONDS = 3600


def view(session: Session, upload: Upload) -> UploadView:
    """The row as the API shows it."""
    file = session.get(File, upload.file_id) if upload.file_id else None
    return UploadView(
        id=upload.id,
        bytes=upload.bytes,
        created_at=int(upload.created_at),
        filename=upload.filename,
        purpose=upload.purpose,
        status=_status(session, upload),
        expires_at=int(upload.expires_at),
        file=files.view(file) if file else None,
    )


def create(session: Session, project_id: str, asked: UploadCreate, settings: Settings) -> Upload:
    """A new upload. Raises TooLarge and TooMany before any byte has come."""
    if asked.bytes > settings.max_file_bytes:
        raise too_large(settings.max_file_bytes, param="bytes")
    files.check_quota(session, project_id, asked.bytes, settings)
    created = session.execute(select(now())).scalar_one()
    upload = Upload(
        id=new_id("upload_"),
        project_id=project_id,
        filename=display_name(asked.filename),
        purpose=asked.purpose,
        bytes=asked.bytes,
        mime_type=asked.mime_type,
        status="pending",
        file_expires_after=asked.expires_after.seconds if asked.expires_after else None,
        created_at=created,
        expires_at=created + LIVES_SECONDS,
    )
    session.add(upload)
    session.flush()
    return upload


def find(session: Session, project_id: str, upload_id: str, *, lock: bool = False) -> Upload:
    """The project's upload. Raises NotFound."""
    query = select(Upload).where(Upload.id == upload_id, Upload.project_id == project_id)
    found = session.scalars(query.with_for_update() if lock else query).one_or_none()
    if found is None:
        raise NotFound("there is no such upload in this project", code="upload_not_found", param="upload_id")
    return found


def find_pending(session: Session, project_id: str, upload_id: str, *, lock: bool = False) -> Upload:
    """The project's upload that still takes parts. Raises NotFound and Conflict."""
    upload = find(session, project_id, upload_id, lock=lock)
    status = _status(session, upload)
    if status == "expired":
        message = f"the upload has expired, {LIVES_SECONDS // 60} minutes after it was made; begin a new one"
        raise Conflict(message, code="upload_expired", param="upload_id")
    if status != "pending":
        raise Conflict(f"the upload is {status}; begin a new one", code=f"upload_{status}", param="upload_id")
    return upload


def _status(session: Session, upload: Upload) -> str:
    late = upload.status == "pending" and session.execute(select(now())).scalar_one() >= upload.expires_at
    return "expired" if late else upload.status


def check_pending(parts: Services, project_id: str, upload_id: str) -> None:
    """Before a part is received. Raises NotFound and Conflict."""
    with parts.database.read() as session:
        find_pending(session, project_id, upload_id)


def add_part(parts: Services, project_id: str, upload_id: str, staged: Staging) -> PartView:
    """The staged bytes as a part. Blocks; raises BadRequest and Conflict."""
    if not staged.size:
        raise BadRequest("data: the part is empty", code="empty_part", param="data")
    sha256, size = staged.sha256, staged.size
    parts.objects.put(staged.path, sha256)
    with parts.database.write() as session:
        upload = find_pending(session, project_id, upload_id, lock=True)
        held = session.execute(
            select(func.coalesce(func.sum(UploadPart.bytes), 0)).where(UploadPart.upload_id == upload_id)
        ).scalar_one()
        # A client may send a part again whose answer was lost, so twice the announced size is room enough.
        if held + size > 2 * upload.bytes:
            message = f"the parts hold far more than the {upload.bytes:,} bytes that were announced"
            raise BadRequest(message, code="size_mismatch", param="data")
        part = UploadPart(id=new_id("part_"), upload_id=upload_id, bytes=size, sha256=sha256)
        session.add(part)
        session.flush()
        session.refresh(part)
        return PartView(id=part.id, created_at=int(part.created_at), upload_id=upload_id)


def complete(parts: Services, project_id: str, upload_id: str, asked: UploadComplete) -> UploadView:
    """Put the parts together as a file. Of two at once one wins. Blocks; raises BadRequest, Conflict and TooMany."""
    with parts.database.read() as session:
        upload = find_pending(session, project_id, upload_id)
        chosen = _chosen(session, upload, asked.part_ids)
    check_room(parts.settings.data, upload.bytes)
    with staging(parts.settings.data, with_md5=asked.md5 is not None) as staged:
        for part in chosen:
            for chunk in parts.objects.read(part.sha256):
                staged.write(chunk)
        staged.flush()
        if asked.md5 is not None and staged.md5 != asked.md5.lower():
            message = "md5: is not that of the parts in this order; send what differs again"
            raise BadRequest(message, code="md5_mismatch", param="md5")
        file = files.new_file(
            parts,
            project_id,
            staged,
            filename=upload.filename,
            purpose=upload.purpose,
            expires_after=upload.file_expires_after,
        )
    with parts.database.write() as session:
        upload = find_pending(session, project_id, upload_id, lock=True)
        files.insert(session, file, parts.settings)
        upload.status, upload.file_id = "completed", file.id
        session.flush()
        return view(session, upload)


def _chosen(session: Session, upload: Upload, part_ids: Sequence[str]) -> list[UploadPart]:
    """The parts in the order asked for, whole together. Raises BadRequest."""
    if len(set(part_ids)) != len(part_ids):
        raise BadRequest("part_ids: name each part once", code="duplicate_part", param="part_ids")
    held = {part.id: part for part in session.scalars(select(UploadPart).where(UploadPart.upload_id == upload.id))}
    missing = sum(part_id not in held for part_id in part_ids)
    if missing:
        message = f"part_ids: {missing} of the {len(part_ids)} are no parts of this upload"
        raise BadRequest(message, code="part_not_found", param="part_ids")
    chosen = [held[part_id] for part_id in part_ids]
    total = sum(part.bytes for part in chosen)
    if total != upload.bytes:
        message = f"part_ids: the parts hold {total:,} bytes, and {upload.bytes:,} were announced"
        raise BadRequest(message, code="size_mismatch", param="part_ids")
    return chosen


def cancel(session: Session, project_id: str, upload_id: str) -> UploadView:
    """Give the upload up. Raises NotFound and Conflict."""
    find_pending(session, project_id, upload_id, lock=True)
    session.execute(update(Upload).where(Upload.id == upload_id, Upload.status == "pending").values(status="cancelled"))
    return view(session, find(session, project_id, upload_id))
