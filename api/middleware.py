"""What surrounds every request, as pure ASGI: its id and time, crashes, HEAD, the size and the strings of JSON bodies.

Pure ASGI because Starlette's BaseHTTPMiddleware runs the application in a task of its own, which breaks streaming.
"""

import json
import logging
import math
import re
import secrets
import time
from typing import Any, NoReturn

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ApiError, BadRequest, TooLarge
from api.logs import REQUEST_ID
from api.metrics import Latency

_SAFE_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_STREAMED = re.compile(r"/v1/(files|uploads/[^/]+/parts)/?")
_SUSPECT = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])|NaN|Infinity|\d{400}|\d[eE]\+?\d{3}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CLIENT_GONE = 499
"""The status that logs show where the client left before the answer; nginx's number."""

_log = logging.getLogger("semievol.requests")


class InternalError(ApiError):
    """A mistake of ours."""


def answer(error: ApiError) -> JSONResponse:
    """The error as an HTTP answer."""
    return JSONResponse(error.body(), error.status, headers=error.headers())


class RequestContext:
    """Outermost: gives the request its id, times it, logs it, and turns a crash into an answer."""

    def __init__(self, app: ASGIApp, *, latency: Latency) -> None:
        self.app, self.latency = app, latency

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SAFE_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.perf_counter(), 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round((time.perf_counter() - started) * 1000))
            await send(message)

        token = REQUEST_ID.set(request_id)
        try:
            await self.app(scope, receive, send_marked)
        except ClientDisconnect:
            status = status or _CLIENT_GONE
        except Exception:
            _log.exception("a request crashed")
            if status:
                raise  # half an answer is out: only a broken connection tells the client so
            crash = InternalError(
                f"the service made a mistake; its log has more under the request id {request_id}", code="internal_error"
            )
            await answer(crash)(scope, receive, send_marked)
        finally:
            self._note(scope, status, time.perf_counter() - started)
            REQUEST_ID.reset(token)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        template = getattr(scope.get("route"), "path", "(none)")
        self.latency.observe(scope["method"], template, status, seconds)
        fields = {
            "method": scope["method"],
            "route": template,
            "status": status,
            "ms": round(seconds * 1000, 1),
            "project": scope["state"].get("project"),
        }
        _log.info("request", extra=fields)


class _Enough(Exception):
    """Ends the stream of an answer whose headers were all that was wanted."""


class HeadAsGet:
    """Answers HEAD with the headers of GET, without reading what GET would send."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        inner = dict(scope, method="GET")  # a copy: the server must still know that it was HEAD
        done = False

        async def send_head(message: Message) -> None:
            nonlocal done
            if message["type"] != "http.response.body":
                await send(message)
            elif not done:
                done = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                if message.get("more_body"):
                    raise _Enough

        try:
            await self.app(inner, receive, send_head)
        except _Enough:
            pass
        finally:
            scope.update({key: inner[key] for key in ("route", "endpoint") if key in inner})


class CheckedBody:
    """Reads JSON bodies up to a limit, and refuses what JSON or PostgreSQL does not know: NUL, half surrogates, NaN."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int) -> None:
        self.app, self.limit_bytes = app, limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            _check_address(scope)
            if not (scope["method"] == "POST" and _STREAMED.fullmatch(scope["path"])):
                receive = await self._read(scope, receive)
        except ApiError as error:
            await answer(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive) -> Receive:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.limit_bytes:
            raise self._too_large()
        if scope["method"] in {"GET", "HEAD", "OPTIONS"} and length in {"", "0"}:
            return receive
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            if len(body) > self.limit_bytes:
                raise self._too_large()
            more = message.get("more_body", False)
        check_json(bytes(body))
        return _replay(bytes(body), receive)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self.limit_bytes:,} bytes", code="body_too_large")


def _check_address(scope: Scope) -> None:
    if "\0" in scope["path"] or b"%00" in scope["query_string"]:
        raise BadRequest("the address holds a NUL character; remove it", code="invalid_request")


def check_json(body: bytes) -> None:
    """Raises BadRequest for JSON with NUL, half a surrogate pair, NaN, Infinity or a number without end."""
    if not _SUSPECT.search(body):
        return  # nearly every body: no need to parse it twice
    try:
        parsed = json.loads(body, parse_constant=_no_constant)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return  # the route says so, with the position
    except ValueError as error:
        message = str(error) if str(error).startswith("JSON") else "a number in the JSON is too long"
        raise BadRequest(message, code="invalid_request") from None
    if _holds_bad_value(parsed):
        message = "the JSON holds a NUL character, half of a surrogate pair or a number without bounds; remove it"
        raise BadRequest(message, code="invalid_request")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}; use null")


def _holds_bad_value(value: Any) -> bool:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if "\0" in item or _SURROGATE.search(item):
                return True
        elif isinstance(item, float):
            if not math.isfinite(item):
                return True
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            waiting += item
    return False


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
