"""Who asks: by a key or by the cookie of a session, whether as an admin, and how often it may ask.

The key is looked up in a transaction of its own, so that a route's transaction begins only for those who may ask.
"""

import hashlib
import logging
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Annotated

from fastapi import BackgroundTasks, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.exc import OperationalError

from api.browser import COOKIE, check_signed_in
from api.deps import Caller, Services, ServicesDep
from api.errors import Forbidden, TooMany, Unauthorized
from store import sessions
from store.keys import USED_EVERY_SECONDS, find_key, note_use

WINDOW_SECONDS = 60.0
KNOWN_SECONDS = 0.5
MOST_KNOWN = 10_000
_FORM = re.compile(r"sk-[0-9a-f]{16}-[A-Za-z0-9_-]{1,100}")
_log = logging.getLogger("semievol.auth")

_bearer = HTTPBearer(
    scheme_name="ApiKey", bearerFormat="sk-<id>-<secret>", description="A key of this service.", auto_error=False
)
_cookie = APIKeyCookie(
    scheme_name="Session",
    name=COOKIE,
    description="What POST /v1/session gives to browsers. What changes something must come from the service's pages.",
    auto_error=False,
)


class RateLimiter:
    """At most so many requests of one key (or client address) in any minute. Counts in this process only."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._asked: defaultdict[str, deque[float]] = defaultdict(deque)
        self._lock = threading.Lock()

    def wait_seconds(self, key_id: str, at: float) -> float:
        """0 if the key may ask at this monotonic time, which then counts; else how long it should wait."""
        if not self.per_minute:
            return 0.0
        with self._lock:
            asked = self._asked[key_id]
            while asked and asked[0] <= at - WINDOW_SECONDS:
                asked.popleft()
            if len(asked) >= self.per_minute:
                return asked[0] + WINDOW_SECONDS - at
            asked.append(at)
            if len(self._asked) > MOST_KNOWN:
                self._forget_idle(at)
            return 0.0

    def take_back(self, key_id: str) -> None:
        """The last request of this key shall not count."""
        with self._lock:
            if asked := self._asked.get(key_id):
                asked.pop()

    def _forget_idle(self, at: float) -> None:
        """Addresses are as many as somebody likes, so those that no longer count go."""
        for key_id, asked in list(self._asked.items()):
            if not asked or asked[-1] <= at - WINDOW_SECONDS:
                del self._asked[key_id]


class Uses:
    """Which keys' use is to be written down: each once in a while."""

    def __init__(self) -> None:
        self._noted: dict[str, float] = {}

    def due(self, key_id: str, at: float) -> bool:
        """Whether the key's use at this monotonic time is to be written; the next time not for a while."""
        last = self._noted.get(key_id)
        if last is not None and at - last < USED_EVERY_SECONDS:
            return False
        self._noted[key_id] = at
        return True


class KnownKeys:
    """Keys and sessions that were valid a moment ago, so that a burst of requests asks the database once.

    What another process ends opens this one for at most KNOWN_SECONDS more; what ends here is forgotten at once.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[float, Caller]] = {}

    def get(self, clear: str, at: float) -> Caller | None:
        """Whose key it is, if it was valid shortly before this monotonic time."""
        known = self._known.get(_digest(clear))
        return known[1] if known is not None and at - known[0] < KNOWN_SECONDS else None

    def put(self, clear: str, at: float, found: Caller) -> None:
        """The key was looked up at this monotonic time and is valid."""
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[_digest(clear)] = (at, found)

    def forget(self) -> None:
        """Look all keys up again."""
        self._known.clear()


def _digest(clear: str) -> bytes:
    return hashlib.sha256(clear.encode("utf-8", "surrogatepass")).digest()


class RateLimited(TooMany):
    """Somebody asked too often. `limit`: the rule, in words."""

    def __init__(self, limit: str, wait_seconds: float) -> None:
        self.retry_after = max(1, int(wait_seconds + 0.999))
        super().__init__(f"{limit}; try again in {self.retry_after} s", code="rate_limit_exceeded")

    def headers(self) -> dict[str, str]:
        """See `ApiError`."""
        return {"Retry-After": str(self.retry_after)}


async def caller(
    request: Request,
    parts: ServicesDep,
    background: BackgroundTasks,
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    cookie: Annotated[str | None, Depends(_cookie)],
) -> Caller:
    """Who asks: by the key that was sent, else by the session. Raises Unauthorized, CrossSite and RateLimited."""
    at = time.monotonic()
    if given is not None:
        found = await _look_up(request, parts, given.credentials, at, find_caller)
    elif cookie is not None:
        found = await _look_up(request, parts, cookie, at, _find_signed_in)
        check_signed_in(request)
    else:
        raise Unauthorized(
            "no API key was given; send the header 'Authorization: Bearer <key>'", code="missing_api_key"
        )
    request.state.project = found.project_id
    limiter: RateLimiter = request.app.state.limiter
    if wait := limiter.wait_seconds(found.key_id, at):
        raise RateLimited(f"this key may make {limiter.per_minute} requests a minute", wait)
    uses: Uses = request.app.state.uses
    if uses.due(found.key_id, at):
        background.add_task(_note_use, parts, found.key_id)
    return found


async def _look_up(
    request: Request, parts: Services, clear: str, at: float, find: Callable[[Services, str], Caller]
) -> Caller:
    known: KnownKeys = request.app.state.known_keys
    found = known.get(clear, at)
    is_session = find is _find_signed_in
    if found is not None and is_session == (found.session is not None):  # neither passes for the other
        return found
    found = await run_in_threadpool(find, parts, clear)
    known.put(clear, at, found)
    return found


def find_caller(parts: Services, clear: str) -> Caller:
    """Whose key it is. Raises Unauthorized."""
    if _FORM.fullmatch(clear):
        with parts.database.glance() as session:
            key = find_key(session, clear)
        if key is not None:
            return Caller(key.id, key.project_id, key.admin)
    raise Unauthorized("the API key is wrong, expired or revoked; an admin can make a new one", code="invalid_api_key")


def _find_signed_in(parts: Services, clear: str) -> Caller:
    """Whose session it is. Raises Unauthorized."""
    if sessions.FORM.fullmatch(clear):
        with parts.database.glance() as session:
            found = sessions.find(session, clear)
        if found is not None:
            key, session_id = found
            return Caller(key.id, key.project_id, key.admin, session_id)
    raise Unauthorized("the session has ended, or its key was revoked; sign in again", code="invalid_session")


def _note_use(parts: Services, key_id: str) -> None:
    try:
        with parts.database.write() as session:
            note_use(session, key_id)
    except OperationalError as error:  # a busy or absent database: the next minute's request tries again
        _log.info("the use of a key was not noted: %s", type(error.orig).__name__)


CallerDep = Annotated[Caller, Depends(caller)]


async def admin(asking: CallerDep) -> Caller:
    """The caller, if its key is an admin's. Raises Forbidden."""
    if not asking.admin:
        raise Forbidden("this needs an admin's key", code="not_admin")
    return asking


AdminDep = Annotated[Caller, Depends(admin)]
