"""Uploads in parts, for large files."""

from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Path, Request

from api.auth import CallerDep
from api.deps import ServicesDep, SessionDep
from api.schemas.common import errors
from api.schemas.files import PartView, UploadComplete, UploadCreate, UploadView
from api.services import uploads
from api.services.intake import receive, staging

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

UploadId = Annotated[str, Path(max_length=64, examples=["upload_0123456789abcdef01234567"])]

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                },
                "example": {"data": "@rows.jsonl.part1"},
            }
        },
    }
}


@router.post("", responses=errors(400, 413))
def create_upload(body: UploadCreate, asking: CallerDep, session: SessionDep, parts: ServicesDep) -> UploadView:
    """Begin an upload; it expires after an hour."""
    return uploads.view(session, uploads.create(session, asking.project_id, body, parts.settings))


@router.get("/{upload_id}", responses=errors(404))
def retrieve_upload(upload_id: UploadId, asking: CallerDep, session: SessionDep) -> UploadView:
    """One upload."""
    return uploads.view(session, uploads.find(session, asking.project_id, upload_id))


@router.post("/{upload_id}/parts", responses=errors(400, 404, 409, 413), openapi_extra=_FORM)
async def add_upload_part(upload_id: UploadId, request: Request, asking: CallerDep, parts: ServicesDep) -> PartView:
    """Add a part. Parts may come at once and in any order."""
    await anyio.to_thread.run_sync(uploads.check_pending, parts, asking.project_id, upload_id)
    with staging(parts.settings.data) as staged:
        await receive(request, staged, file_field="data", limit_bytes=parts.settings.max_part_bytes)
        return await anyio.to_thread.run_sync(uploads.add_part, parts, asking.project_id, upload_id, staged)


@router.post("/{upload_id}/complete", responses=errors(400, 404, 409))
def complete_upload(upload_id: UploadId, body: UploadComplete, asking: CallerDep, parts: ServicesDep) -> UploadView:
    """Put the parts together, in the order of `part_ids`, as a file."""
    return uploads.complete(parts, asking.project_id, upload_id, body)


@router.post("/{upload_id}/cancel", responses=errors(404, 409))
def cancel_upload(upload_id: UploadId, asking: CallerDep, session: SessionDep) -> UploadView:
    """Give an upload up."""
    return uploads.cancel(session, asking.project_id, upload_id)
