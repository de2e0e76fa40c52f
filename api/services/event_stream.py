"""The event stream of a job: one look a second for all that watch it in this process, and each text made once.

A watcher keeps no more than the number of the event that it sent last. What comes after that it takes from the hub, or
from the table where the hub does not hold it any more: because it came late, or reads slowly. Numbers have no gaps, so
either way every event comes once and in order, and nothing piles up for a reader that does not read.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from anyio import move_on_after, to_thread
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.services.events import event_view
from api.services.job_view import read_jobs, semievol_view
from store.database import Database
from store.models import JobEvent
from store.states import FINAL

POLL_SECONDS = 1.0
"""Between two looks, and at least between two `progress` events of a watcher."""
HEARTBEAT_SECONDS = 15.0
HEARTBEAT = b": still there\n\n"
BATCH = 200
"""Events that are read at once, and that the hub holds of a job."""
_log = logging.getLogger("semievol.events")

Text = tuple[int, bytes]
"""An event's number, and the event as it is sent."""


# --- looking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class News:
    """What a look has found. `newest`: the last event's number. `over`: the job is final, nothing more will come.

    `state`: what makes two progresses differ; the time of finishing is guessed anew each time.
    """

    newest: int
    events: Sequence[Text]
    state: str
    progress: bytes
    over: bool


def look(database: Database, project_id: str, job_id: str, after: int | None) -> News | None:
    """Events after a number, or none but the last one's number, and how far the job is; None if the job is gone."""
    with database.read() as session:
        found = read_jobs(session, project_id, [job_id])
        if not found:
            return None
        job = found[0].job
        events = _events(session, job_id, after) if after is not None else []
    view = semievol_view(found[0])
    return News(
        newest=events[-1][0] if events else job.event_count if after is None else after,
        events=events,
        state=view.model_dump_json(exclude={"estimated_finish"}),
        progress=f"event: progress\ndata: {view.model_dump_json()}\n\n".encode(),
        # The job was read first: an event that came with a final status is among the events read after it.
        over=job.status in FINAL and len(events) < BATCH,
    )


def read_events(database: Database, job_id: str, after: int) -> list[Text]:
    """The next events after a number, oldest first."""
    with database.read() as session:
        return _events(session, job_id, after)


def _events(session: Session, job_id: str, after: int) -> list[Text]:
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.number > after)
    return [(event.number, _text(event)) for event in session.scalars(query.order_by(JobEvent.number).limit(BATCH))]


def _text(event: JobEvent) -> bytes:
    view = event_view(event)
    return f"id: {view.id}\nevent: {view.type}\ndata: {view.model_dump_json()}\n\n".encode()


# --- the hub ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Watch:
    """What is known of a job that is watched. `changed` is set, and replaced, when there is more."""

    watchers: int = 0
    newest: int = 0
    recent: deque[Text] = field(default_factory=lambda: deque(maxlen=BATCH))
    state: str = ""
    progress: bytes = b""
    over: bool = False
    failure: BaseException | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None

    def hear(self, news: News) -> None:
        """Take what a look has found. With events that are not the last yet, the progress waits for those."""
        more = bool(news.events) or news.newest != self.newest
        self.newest = news.newest
        self.recent.extend(news.events)
        if news.state != self.state and len(news.events) < BATCH:
            self.state, self.progress, more = news.state, news.progress, True
        if more:
            self.wake()

    def wake(self) -> None:
        """Tell all watchers to look here."""
        self.changed.set()
        self.changed = asyncio.Event()

    def since(self, after: int) -> list[Text]:
        """The events after a number; none if the first of them is not held."""
        if not self.recent or self.recent[0][0] > after + 1:
            return []
        return [text for text in self.recent if text[0] > after]


class Hub:
    """All watched jobs of this process. Lives in one event loop."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.watches: dict[tuple[str, str], Watch] = {}
        self.closed = False

    def close(self) -> None:
        """End all streams: the process shall end. Clients come again with the id of the last event that they have."""
        self.closed = True
        for watch in self.watches.values():
            watch.wake()

    async def stream(self, project_id: str, job_id: str, after: int) -> AsyncGenerator[bytes]:
        """Server-sent events: the log from `after` on, and `progress` when that changed. Ends with the job.

        Close it when the client has left: with its last watcher the looks at a job end.
        """
        told, told_at, spoke_at = b"", -math.inf, time.monotonic()
        with self._watching((project_id, job_id)) as watch:
            while not self.closed:
                changed, at = watch.changed, time.monotonic()
                silent_until, due_at = spoke_at + HEARTBEAT_SECONDS, told_at + POLL_SECONDS
                if watch.newest > after:
                    events = watch.since(after) or await to_thread.run_sync(read_events, self.database, job_id, after)
                    if not events:
                        return  # the job is gone
                    after, text = events[-1][0], b"".join(text for _, text in events)
                elif watch.progress is not told and (at >= due_at or watch.over):
                    text, told, told_at = watch.progress, watch.progress, at
                elif watch.over:
                    if watch.failure is not None:
                        raise watch.failure
                    return
                elif at >= silent_until:
                    text = HEARTBEAT
                else:
                    until = silent_until if watch.progress is told else min(due_at, silent_until)
                    with move_on_after(until - at):
                        await changed.wait()
                    continue
                yield text
                spoke_at = time.monotonic()

    @contextmanager
    def _watching(self, key: tuple[str, str]) -> Iterator[Watch]:
        """The job's watch; the first watcher starts it, the last one ends it."""
        watch = self.watches.get(key)
        if watch is None:
            watch = self.watches[key] = Watch()
            watch.task = asyncio.create_task(self._follow(key, watch), name=f"watch {key[1]}")
            watch.task.add_done_callback(lambda task: self._end(key, watch, task))
        watch.watchers += 1
        try:
            yield watch
        finally:
            watch.watchers -= 1
            if not watch.watchers and watch.task is not None:
                watch.task.cancel()
                self._forget(key, watch)

    async def _follow(self, key: tuple[str, str], watch: Watch) -> None:
        """Look once a second until the job is over. A database that is away for a while is waited for."""
        after: int | None = None
        while True:
            try:
                news = await to_thread.run_sync(look, self.database, *key, after)
            except OperationalError as error:
                _log.warning("the streams of %s wait for the database: %s", key[1], type(error.orig).__name__)
                await asyncio.sleep(POLL_SECONDS)
                continue
            if news is None:
                return
            watch.hear(news)
            after = watch.newest
            if news.over:
                return
            if len(news.events) < BATCH:
                await asyncio.sleep(POLL_SECONDS)

    def _end(self, key: tuple[str, str], watch: Watch, task: "asyncio.Task[None]") -> None:
        watch.failure = None if task.cancelled() else task.exception()
        watch.over = True
        watch.wake()
        self._forget(key, watch)

    def _forget(self, key: tuple[str, str], watch: Watch) -> None:
        if self.watches.get(key) is watch:
            del self.watches[key]


class EventStream(StreamingResponse):
    """Sends a stream, and closes it however the answer ends: left to itself it would go on until it is collected."""

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        # A proxy that buffers would keep events from the reader.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.events.aclose()
