"""What browsers bring along: the cookie of a session, and the proof that a request comes from the service's own page.

A browser adds the cookie to requests to this host, whoever wrote the page that asks. SameSite=Strict keeps it from
other sites' pages, but not from other hosts of the same site; what changes something is therefore looked at again.
"""

from fastapi import Request, Response

from api.errors import Forbidden

COOKIE = "semievol_session"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class CrossSite(Forbidden):
    """The request changes something and was not made by a page of this service."""

    def __init__(self, hint: str) -> None:
        super().__init__(f"this request was not made by a page of this service; {hint}", code="cross_site_request")


def check_signed_in(request: Request) -> None:
    """Of a request that the cookie opens: it reads, or one of our pages made it. Raises CrossSite."""
    if request.method in SAFE_METHODS:
        return
    told = "sec-fetch-site" in request.headers or "origin" in request.headers
    if not told or not _is_own(request):
        raise CrossSite("send the header 'Authorization: Bearer <key>' instead of the cookie, or use the pages")


def check_signing_in(request: Request) -> None:
    """No other site signs its visitors in here; programs, which say nothing of a page, may. Raises CrossSite."""
    if not _is_own(request):
        raise CrossSite("open /sign-in of this service and sign in there")


def _is_own(request: Request) -> bool:
    """Whether nothing that the browser tells speaks against it."""
    origin = request.headers.get("origin")
    host = request.headers.get("host", "").lower()
    from_host = origin is None or (origin != "null" and origin.partition("://")[2].lower() == host)
    return from_host and request.headers.get("sec-fetch-site", "same-origin") == "same-origin"


def set_cookie(request: Request, response: Response, clear: str, seconds: int) -> None:
    """Give the browser its session. Over plain HTTP, as on one's own machine, it cannot be kept to HTTPS."""
    response.set_cookie(
        COOKIE, clear, max_age=seconds, path="/", secure=_is_encrypted(request), httponly=True, samesite="strict"
    )


def clear_cookie(request: Request, response: Response) -> None:
    """Take the session from the browser."""
    response.delete_cookie(COOKIE, path="/", secure=_is_encrypted(request), httponly=True, samesite="strict")


def _is_encrypted(request: Request) -> bool:
    """A proxy with TLS that is not trusted to say so is known by the page's own address."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
