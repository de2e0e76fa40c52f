"""Files: streamed in, listed, fetched and deleted."""

from typing import Annotated, Any, get_args

import anyio.to_thread
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from api.auth import CallerDep
from api.deps import ServicesDep, SessionDep
from api.errors import BadRequest
from api.schemas.common import After, Deleted, Limit, Order, Page, errors, page
from api.schemas.files import MAX_EXPIRY_SECONDS, MIN_EXPIRY_SECONDS, FileView, Purpose
from api.services import files
from api.services.content import object_response
from api.services.intake import receive, staging

router = APIRouter(prefix="/v1/files", tags=["files"])

FileId = Annotated[str, Path(max_length=64, examples=["file-0123456789abcdef01234567"])]

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(get_args(Purpose))},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": MIN_EXPIRY_SECONDS,
                            "maximum": MAX_EXPIRY_SECONDS,
                        },
                    },
                },
                "example": {"file": "@rows.jsonl", "purpose": "fine-tune"},
            }
        },
    }
}


@router.post("", responses=errors(400, 413), openapi_extra=_FORM)
async def create_file(request: Request, asking: CallerDep, parts: ServicesDep) -> FileView:
    """Upload a file in one request. A training file with problems is kept, with status `error` and their lines."""
    with staging(parts.settings.data) as staged:
        form = await receive(request, staged, file_field="file", limit_bytes=parts.settings.max_file_bytes)
        purpose, expires_after = purpose_of(form.fields), _expires_after(form.fields)
        filename = form.filename or ""
        return await anyio.to_thread.run_sync(
            lambda: files.add(
                parts, asking.project_id, staged, filename=filename, purpose=purpose, expires_after=expires_after
            )
        )


@router.get("", responses=errors(400))
def list_files(
    asking: CallerDep,
    session: SessionDep,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
    limit: Limit = 10_000,
    order: Order = "desc",
    after: After = None,
) -> Page[FileView]:
    """The project's files, newest first."""
    found = files.page_of_files(session, asking.project_id, purpose=purpose, limit=limit, order=order, after=after)
    return page([files.view(file) for file in found], limit)


@router.get("/{file_id}", responses=errors(404))
def retrieve_file(file_id: FileId, asking: CallerDep, session: SessionDep) -> FileView:
    """One file."""
    return files.view(files.find(session, asking.project_id, file_id))


@router.delete("/{file_id}", responses=errors(404, 409))
def delete_file(file_id: FileId, asking: CallerDep, session: SessionDep) -> Deleted:
    """Delete a file that no unfinished job needs."""
    files.delete(session, asking.project_id, file_id)
    return Deleted(id=file_id, object="file")


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses=errors(404, 416)
    | {
        200: {"description": "The bytes; their type follows the file's name.", "content": {"*/*": {}}},
        206: {"description": "The range of the bytes that was asked for."},
        302: {"description": "The bytes are at this address of the object store."},
        304: {"description": "The bytes that the client has are still right."},
    },
)
def retrieve_file_content(
    file_id: FileId, request: Request, asking: CallerDep, session: SessionDep, parts: ServicesDep
) -> Response:
    """The bytes of a file, or a range of them."""
    file = files.find(session, asking.project_id, file_id)
    kind = files.media_type(file.filename)
    return object_response(request, parts.objects, file.sha256, file.bytes, file.filename, kind, parts.settings)


def purpose_of(fields: dict[str, str]) -> str:
    """The form's purpose. Raises BadRequest."""
    purpose = fields.get("purpose", "")
    if purpose not in get_args(Purpose):
        message = f"purpose: is required, one of {', '.join(get_args(Purpose))}; training files are fine-tune"
        raise BadRequest(message, code="invalid_purpose", param="purpose")
    return purpose


def _expires_after(fields: dict[str, str]) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        message = "expires_after[anchor]: must be created_at"
        raise BadRequest(message, code="invalid_expires_after", param="expires_after.anchor")
    number = int(seconds) if seconds and len(seconds) < 9 and seconds.isascii() and seconds.isdigit() else 0
    if not MIN_EXPIRY_SECONDS <= number <= MAX_EXPIRY_SECONDS:
        message = f"expires_after[seconds]: must be a whole number from {MIN_EXPIRY_SECONDS} to {MAX_EXPIRY_SECONDS}"
        raise BadRequest(message, code="invalid_expires_after", param="expires_after.seconds")
    return number
