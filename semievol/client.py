"""A thin client of the service's HTTP API: JSON in and out, pages, streams, and errors that say what the server said.

ServiceError
├── Refused             the server understood and said no, 4xx (exit code 2)
└── Unreachable         no answer, or one of 5xx (exit code 3)
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from semievol.errors import SemiEvolError

TRIES = 3
"""Of requests that may be made again without harm."""
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 60.0
SILENCE_SECONDS = 60.0
"""A stream that says nothing for so long, not even a heartbeat, is dead."""
JOBS = "/fine_tuning/jobs"

Json = dict[str, Any]


class ServiceError(SemiEvolError):
    """A request did not get what it asked for. `told` is the server's own error where it gave one, `status` HTTP's."""

    def __init__(self, message: str, told: Mapping[str, Any] | None = None, status: int = 0) -> None:
        super().__init__(message, told, status)
        self.message, self.told, self.status = message, dict(told or {}), status

    def __str__(self) -> str:
        notes = [f"{name}: {self.told[name]}" for name in ("code", "param") if self.told.get(name)]
        return f"{self.message} ({', '.join(notes)})" if notes else self.message


class Refused(ServiceError):
    """The server said no."""

    code = "refused"
    exit_code = 2


class Unreachable(ServiceError):
    """The server did not answer, or has a fault of its own."""

    code = "unreachable"
    exit_code = 3


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event."""

    id: str
    name: str
    data: str


class Client:
    """A connection to one service with one key."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        try:
            self.http = httpx.Client(
                base_url=f"{self.url}/v1/",
                headers={"Authorization": f"Bearer {key}"},
                timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
                follow_redirects=True,  # object stores; httpx keeps the key to itself then
            )
        except (httpx.InvalidURL, UnicodeEncodeError):
            raise Refused(f"{url} is no address, or the key holds characters that no key has") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    # --- requests -----------------------------------------------------------------------------------------------------

    def get(self, path: str, **params: Any) -> Json:
        """GET as JSON; tried again a few times where the server does not answer. Raises ServiceError."""
        given = {name: value for name, value in params.items() if value is not None}
        for attempt in range(1, TRIES + 1):
            try:
                return self._json(self._send("GET", path, params=given))
            except Unreachable:
                if attempt == TRIES:
                    raise
                time.sleep(0.3 * attempt)
        raise AssertionError("the last try returns or raises")

    def post(self, path: str, body: Json | None = None, **options: Any) -> Json:
        """POST as JSON, once. Raises ServiceError."""
        sent = {"json": body} if body is not None else {}
        return self._json(self._send("POST", path, **sent, **options))

    def delete(self, path: str) -> Json:
        """DELETE, once. Raises ServiceError."""
        return self._json(self._send("DELETE", path))

    def pages(self, path: str, limit: int, **params: Any) -> Iterator[Json]:
        """The first `limit` items of a list. Raises ServiceError."""
        after: str | None = None
        while limit > 0:
            page = self.get(path, limit=min(limit, 100), after=after, **params)
            yield from page["data"]
            limit -= len(page["data"])
            after = page.get("last_id") or (page["data"][-1].get("id") if page["data"] else None)
            if not page.get("has_more") or not page["data"]:
                return

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str] | None = None, **params: Any) -> Iterator[httpx.Response]:
        """An answer whose body is read as it comes. Raises ServiceError, amid the body too."""
        given = {name: value for name, value in params.items() if value is not None}
        try:
            with self.http.stream("GET", path.lstrip("/"), params=given, headers=dict(headers or {})) as response:
                if response.is_error:
                    response.read()
                    raise self._error(response)
                yield response
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def events(self, job_id: str, last: str | None = None) -> Iterator[ServerEvent]:
        """The job's events as they happen, those after `last` only. Ends with the job. Raises ServiceError."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        with self.stream(f"{JOBS}/{job_id}/events", headers, stream="true") as response:
            yield from parse_events(response.iter_lines())

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self.http.request(method, path.lstrip("/"), **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _json(self, response: httpx.Response) -> Json:
        if response.is_error:
            raise self._error(response)
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Unreachable(f"{self.url} answered, but not as this service does; is the address right?")
        return found

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        reason = str(error) or type(error).__name__
        return Unreachable(f"no answer from {self.url}: {reason}. Is the service running (semievol serve)?")

    def _error(self, response: httpx.Response) -> ServiceError:
        try:
            told = response.json()["error"]
            message = str(told["message"])
        except (ValueError, LookupError, TypeError):
            told, message = {}, f"{self.url} answered {response.status_code} {response.reason_phrase}"
        return (Unreachable if response.is_server_error else Refused)(message, told, response.status_code)


def parse_events(lines: Iterator[str]) -> Iterator[ServerEvent]:
    """Server-sent events out of a stream's lines; comments are heartbeats and dropped. Pure."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in fields:
                yield ServerEvent(fields.get("id", ""), fields.get("event", "message"), fields["data"])
            fields = {}
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data" and "data" in fields:
            value = f"{fields['data']}\n{value}"
        if name:
            fields[name] = value


def decode(event: ServerEvent) -> Json:
    """The event's data where that is a JSON object, else an empty one."""
    try:
        found = json.loads(event.data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
