"""Serves the dashboard: every address of a page answers with the same document, whose script draws the page.

Everything is read and packed once, when the application is made. What is asked for is looked up by name among that, so
no path leads out of the folder.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fastapi import APIRouter, Request, Response

from api.errors import NotFound
from api.services.content import matches
from semievol import wording

router = APIRouter(include_in_schema=False)

STATIC = Path(__file__).with_name("static")
DOCUMENT = "index.html"
WORDS = "assets/words.js"
PAGES = (
    "/",
    "/sign-in",
    "/new",
    "/jobs/{job_id}",
    "/jobs/{job_id}/labels",
    "/jobs/{job_id}/verdict",
    "/files",
    "/models",
    "/workers",
    "/keys",
)
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "frame-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_PACKED = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".mjs": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
_MEDIA_TYPES = _PACKED | {".ico": "image/x-icon", ".png": "image/png", ".woff2": "font/woff2"}
_TAKES_GZIP = re.compile(r"(?:^|[,\s])(?:gzip|\*)\s*(?:$|,|;\s*q=(?!0(?:\.0*)?\s*(?:,|$)))", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent. `packed`: by gzip, where that is shorter. `lasting`: under this name it never changes."""

    body: bytes
    packed: bytes | None
    media_type: str
    etag: str
    lasting: bool = False


def load_site(folder: Path = STATIC) -> dict[str, Asset]:
    """All files of the folder by their path in it. Raises OSError.

    Parts have a second name with the version of all of them, by which the document asks for them: twenty questions
    whether a part is still the same take longer than drawing the page. It names all modules, so that none waits for
    the one that imports it.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths} | {WORDS: _words()}
    version = hashlib.sha256(b"".join(body for _, body in sorted(files.items()))).hexdigest()[:12]
    if DOCUMENT in files:
        modules = [f'<link rel="modulepreload" href="/{name}">\n' for name in files if name.endswith(".js")]
        document = files[DOCUMENT].replace(b"<script", "".join(modules).encode() + b"<script", 1)
        files[DOCUMENT] = document.replace(b'"/assets/', f'"/assets/{version}/'.encode())
    site = {name: _asset(name, body) for name, body in files.items()}
    lasting = {
        name.replace("assets/", f"assets/{version}/", 1): replace(asset, lasting=True)
        for name, asset in site.items()
        if name.startswith("assets/")
    }
    return site | lasting


def _words() -> bytes:
    """A module with the words that report and command line use, so that the pages say the same."""
    told = {name: getattr(wording, name) for name in ("MEASURES", "MODELS", "OUTCOMES", "REASONS")}
    return "".join(f"export const {name} = {json.dumps(words)};\n" for name, words in told.items()).encode()


def _asset(name: str, body: bytes) -> Asset:
    ending = Path(name).suffix
    packed = gzip.compress(body, mtime=0) if ending in _PACKED else body
    return Asset(
        body=body,
        packed=packed if len(packed) < len(body) else None,
        media_type=_MEDIA_TYPES.get(ending, "application/octet-stream"),
        etag=hashlib.sha256(body).hexdigest()[:32],
    )


def _page(request: Request) -> Response:
    """The document."""
    return _answer(request, request.app.state.site[DOCUMENT])


for _path in PAGES:
    router.add_api_route(_path, _page, methods=["GET"])


@router.get("/assets/{path:path}")
def asset(path: str, request: Request) -> Response:
    """A part of the pages. Raises NotFound."""
    site: Mapping[str, Asset] = request.app.state.site
    found = site.get(f"assets/{path}")
    if found is None:
        raise NotFound("the pages have no such part", code="unknown_url")
    return _answer(request, found)


def _answer(request: Request, found: Asset) -> Response:
    """The file, or 304 where the client has it. A new version of the service is seen at the next look."""
    packed = found.packed if _TAKES_GZIP.search(request.headers.get("accept-encoding", "")) else None
    etag = f'"{found.etag}{"" if packed is None else "-gzip"}"'
    caching = "public, max-age=31536000, immutable" if found.lasting else "no-cache"
    headers = HEADERS | {"ETag": etag, "Cache-Control": caching, "Vary": "Accept-Encoding"}
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if packed is not None:
        headers["Content-Encoding"] = "gzip"
    return Response(found.body if packed is None else packed, headers=headers, media_type=found.media_type)
