"""Who asks: the bearer key, whether it is an admin's, and how often it may ask.

The key is looked up in a transaction of its own, so that a route's transaction begins only for those who may ask.
"""

import hashlib
import logging
import re
import threading
import time
from collections import defaultdict, deque
from typing import Annotated

from fastapi import BackgroundTasks, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.exc import OperationalError

from api.deps import Caller, Services, ServicesDep
from api.errors import Forbidden, TooMany, Unauthorized
from store.keys import USED_EVERY_SECONDS, find_key, note_use

WINDOW_SECONDS = 60.0
KNOWN_SECONDS = 0.5
MOST_KNOWN = 10_000
_FORM = re.compile(r"sk-[0-9a-f]{16}-[A-Za-z0-9_-]{1,100}")
_log = logging.getLogger("semievol.auth")

_scheme = HTTPBearer(
    scheme_name="ApiKey", bearerFormat="sk-<id>-<secret>", description="A key of this service.", auto_error=False
)


class RateLimiter:
    """At most so many requests of one key in any minute. Counts in this process only."""

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
            return 0.0


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
    """Keys that were valid a moment ago, so that a burst of requests asks the database once.

    A key that another process revokes opens this one for at most KNOWN_SECONDS more; one revoked here is forgotten.
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
    """A key asked too often."""

    def __init__(self, per_minute: int, wait_seconds: float) -> None:
        self.retry_after = max(1, int(wait_seconds + 0.999))
        super().__init__(
            f"this key may make {per_minute} requests a minute; try again in {self.retry_after} s",
            code="rate_limit_exceeded",
        )

    def headers(self) -> dict[str, str]:
        """See `ApiError`."""
        return {"Retry-After": str(self.retry_after)}


async def caller(
    request: Request,
    parts: ServicesDep,
    background: BackgroundTasks,
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(_scheme)],
) -> Caller:
    """The valid key that the request carries. Raises Unauthorized and RateLimited."""
    if given is None:
        raise Unauthorized(
            "no API key was given; send the header 'Authorization: Bearer <key>'", code="missing_api_key"
        )
    at = time.monotonic()
    known: KnownKeys = request.app.state.known_keys
    found = known.get(given.credentials, at)
    if found is None:
        found = await run_in_threadpool(_find, parts, given.credentials)
        known.put(given.credentials, at, found)
    request.state.project = found.project_id
    limiter: RateLimiter = request.app.state.limiter
    if wait := limiter.wait_seconds(found.key_id, at):
        raise RateLimited(limiter.per_minute, wait)
    uses: Uses = request.app.state.uses
    if uses.due(found.key_id, at):
        background.add_task(_note_use, parts, found.key_id)
    return found


def _find(parts: Services, clear: str) -> Caller:
    if _FORM.fullmatch(clear):
        with parts.database.glance() as session:
            key = find_key(session, clear)
        if key is not None:
            return Caller(key.id, key.project_id, key.admin)
    raise Unauthorized("the API key is wrong, expired or revoked; an admin can make a new one", code="invalid_api_key")


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
