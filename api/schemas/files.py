"""Files and uploads in parts, as the OpenAI API writes them, with our own facts beside."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.schemas.common import Body

Purpose = Literal["fine-tune", "user_data", "assistants", "batch", "vision", "evals"]
MIN_EXPIRY_SECONDS, MAX_EXPIRY_SECONDS = 3600, 2_592_000


class FileProblem(BaseModel):
    """One thing wrong with a file. `line` counts from 1; 0 means the whole file.

    `field`: where in the row, such as `messages[0].role`. `byte_offset`: where in the text. Both where known.
    """

    line: int
    code: str
    message: str
    field: str | None = None
    byte_offset: int | None = None


class FileFacts(BaseModel):
    """What the check found. `kind` and `rows` are null where the file was not or could not be read."""

    kind: Literal["labeled", "unlabeled"] | None
    rows: int | None
    problems: list[FileProblem]
    sha256: str


class FileView(BaseModel):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    expires_at: int | None
    status_details: str | None
    semievol: FileFacts


class ExpiresAfter(Body):
    """When a file goes by itself."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=MIN_EXPIRY_SECONDS, le=MAX_EXPIRY_SECONDS)]


class UploadCreate(Body):
    """What will come in parts."""

    filename: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    bytes: Annotated[int, Field(ge=1, le=2**53)]
    purpose: Purpose
    mime_type: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    expires_after: ExpiresAfter | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"filename": "rows.jsonl", "bytes": 120, "purpose": "fine-tune", "mime_type": "application/jsonl"}
            ]
        }
    )


class UploadComplete(Body):
    """The parts in their order, and the MD5 of the whole in hexadecimal digits."""

    part_ids: Annotated[list[Annotated[str, StringConstraints(max_length=64)]], Field(min_length=1, max_length=10_000)]
    md5: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{32}$")] | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"part_ids": ["part_0123456789abcdef01234567"], "md5": "9e107d9d372bb6826bd81d3542a419d6"}]
        }
    )


class UploadView(BaseModel):
    """An upload; `file` is there once it is completed."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    expires_at: int
    file: FileView | None


class PartView(BaseModel):
    """A part that was received."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
