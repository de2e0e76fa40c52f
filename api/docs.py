"""`/docs`: the API's description as one page that needs no network. The script draws /openapi.json."""

import base64
import hashlib
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

docs = APIRouter(include_in_schema=False)

_PAGE = Path(__file__).with_name("docs.html").read_text(encoding="utf-8")


def _digest(tag: str) -> str:
    """How a Content-Security-Policy allows exactly the text between these tags."""
    text = _PAGE.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_digest('script')}; style-src {_digest('style')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@docs.get("/docs")
def page() -> HTMLResponse:
    """The page."""
    return HTMLResponse(_PAGE, headers=_HEADERS)
