"""Downloads: an immutable object as an answer, whole or one range of it, with its SHA-256 as ETag and Repr-Digest."""

import base64
import re
from collections.abc import Iterator
from urllib.parse import quote

from fastapi import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from api.errors import ApiError
from store.objects import ObjectStore
from store.settings import Settings

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_PLAIN = re.compile(r"[^A-Za-z0-9 ._()-]")


class RangeNotSatisfiable(ApiError):
    """The range lies outside of the bytes."""

    status, type = 416, "invalid_request_error"

    def __init__(self, size: int) -> None:
        super().__init__(f"the range lies outside of the {size:,} bytes", code="invalid_range", param="Range")
        self.size = size

    def headers(self) -> dict[str, str]:
        """See `ApiError`."""
        return {"Content-Range": f"bytes */{self.size}"}


def object_response(
    request: Request,
    objects: ObjectStore,
    sha256: str,
    size: int,
    filename: str,
    media_type: str,
    settings: Settings,
) -> Response:
    """The object of that digest and size as a download. Check the owner first. Raises RangeNotSatisfiable."""
    etag = f'"{sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": disposition(filename),
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:",
        "X-Content-Type-Options": "nosniff",
    }
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if settings.s3_presigned and (address := objects.presigned(sha256, plain_name(filename))):
        return RedirectResponse(address, 302, headers={"ETag": etag, "Cache-Control": "no-store"})
    span = _span(request, etag, size)
    start, length = span or (0, size)
    headers["Content-Length"] = str(length)
    if span:
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
    # Asked for before the answer begins, so that a missing object is an error and not half an answer.
    chunks: Iterator[bytes] = objects.read(sha256, start, length)
    return StreamingResponse(chunks, 206 if span else 200, headers=headers, media_type=media_type)


def disposition(filename: str) -> str:
    """`Content-Disposition` after RFC 6266: a plain name for old clients, and the real one in UTF-8."""
    return f"attachment; filename=\"{plain_name(filename)}\"; filename*=UTF-8''{quote(filename, safe='')}"


def plain_name(filename: str) -> str:
    """The name with everything but the plainest characters replaced."""
    return _PLAIN.sub("_", filename)


def matches(given: str | None, etag: str) -> bool:
    """Whether `If-None-Match` names what there is."""
    if given is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in given.split(",")]
    return etag in tags or "*" in tags


def _span(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """Start and length of the one range asked for; None for the whole. Several ranges are answered with the whole."""
    given = request.headers.get("range")
    condition = request.headers.get("if-range")
    if given is None or (condition is not None and condition != etag):
        return None
    found = _RANGE.fullmatch(given.replace(" ", ""))
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        length = min(int(last), size)
        start = size - length
    else:
        start = int(first)
        if last and int(last) < start:
            return None
        length = min(int(last) + 1 if last else size, size) - start
    if length <= 0:
        raise RangeNotSatisfiable(size)
    return start, length
