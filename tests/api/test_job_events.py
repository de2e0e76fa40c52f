"""A job's log: pages, and the stream of server-sent events."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from api.services import event_stream
from store import jobs
from store.database import Database
from store.ids import event_id
from tests.api import rows
from tests.api.service import PROJECT, Server, Service
from tests.servers import wait_for

JOBS = "/v1/fine_tuning/jobs"


@dataclass
class Sent:
    """One server-sent event."""

    id: str | None
    event: str
    data: dict[str, Any]


def add_events(service: Service, job_id: str, count: int, kind: str = "message") -> None:
    with service.database.write() as session:
        for number in range(count):
            jobs.add_event(session, job_id, f"step {number}", kind=kind, data={"step": number})


@contextmanager
def open_stream(server: Server, job_id: str, **headers: str) -> Iterator[Iterator[Sent]]:
    headers = {"Authorization": f"Bearer {server.service.key}"} | headers
    url = f"{server.url}{JOBS}/{job_id}/events?stream=true"
    with httpx.Client(timeout=20) as client, client.stream("GET", url, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield parse(answer.iter_lines())


def parse(lines: Iterator[str]) -> Iterator[Sent]:
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if fields:
                yield Sent(fields.get("id"), fields["event"], json.loads(fields["data"]))
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


def messages(sent: list[Sent]) -> list[str]:
    return [one.data["message"] for one in sent if one.event != "progress"]


def test_the_client_pages_through_the_log(server: Server) -> None:
    job_id = rows.create(server.service)
    add_events(server.service, job_id, 25)
    with server.openai() as client:
        first = client.fine_tuning.jobs.list_events(job_id)
        assert (len(first.data), first.has_more) == (20, True)
        found = list(client.fine_tuning.jobs.list_events(job_id, limit=7))
    assert len({one.id for one in found}) == 26
    assert found[-1].message == f"Created fine-tuning job: {job_id}"
    assert (found[0].object, found[0].level, found[0].type) == ("fine_tuning.job.event", "info", "message")
    assert found[0].data == {"step": 24}


def test_pages_refuse_other_jobs_events(service: Service) -> None:
    first, second = rows.create(service), rows.create(service)
    for name in (event_id(second, 1), "nonsense", f"ftevent-{first.removeprefix('ftjob-')}-{'9' * 30}"):
        answer = service.client.get(f"{JOBS}/{first}/events", params={"after": name})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_after")
    answer = service.client.get(f"{JOBS}/{first}/events?stream=true", headers={"Last-Event-ID": "x"})
    assert answer.status_code == 400


def test_a_stream_replays_goes_on_and_ends_with_the_job(server: Server) -> None:
    service = server.service
    job_id = rows.create(service)
    rows.start_job(service, job_id)

    def later() -> None:
        time.sleep(0.3)
        add_events(service, job_id, 2, kind="metrics")
        rows.set_unit(service, job_id, "propagate", state="running", done=1, total=2)
        time.sleep(1.2)
        rows.finish_job(service, job_id)

    worker = threading.Thread(target=later)
    worker.start()
    with open_stream(server, job_id) as stream:
        sent = list(stream)
    worker.join()
    assert messages(sent) == [
        f"Created fine-tuning job: {job_id}",
        "Files validated",
        "Training started",
        "step 0",
        "step 1",
        "The job succeeded",
    ]
    assert [one.event for one in sent if one.event != "progress"][3:5] == ["metrics", "metrics"]
    assert [one.id for one in sent if one.id] == [event_id(job_id, number) for number in range(1, 7)]
    shown = [one.data["progress"] for one in sent if one.event == "progress"]
    assert shown == sorted(shown)
    assert len(shown) >= 3
    assert shown[-1] == 1


def test_a_stream_resumes_after_the_last_event(server: Server) -> None:
    service = server.service
    job_id = rows.create(service)
    add_events(service, job_id, 500)
    rows.finish_job(service, job_id)
    with open_stream(server, job_id) as stream:
        assert len(messages(list(stream))) == 502
    with open_stream(server, job_id, **{"Last-Event-ID": event_id(job_id, 499)}) as stream:
        assert messages(list(stream)) == ["step 497", "step 498", "step 499", "The job succeeded"][-3:]


def test_a_stream_stops_when_the_client_leaves(server: Server, looks: list[str]) -> None:
    job_id = rows.create(server.service)
    with open_stream(server, job_id) as stream:
        next(stream)
    wait_for(lambda: not hub_of(server).watches, "the end of the watch", 5)
    seen = len(looks)
    time.sleep(1.5)
    assert len(looks) == seen


# --- many watchers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs that the database was asked for, one by one."""
    asked, look = list[str](), event_stream.look

    def counted(database: Database, project_id: str, job_id: str, after: int | None) -> Any:
        asked.append(job_id)
        return look(database, project_id, job_id, after)

    monkeypatch.setattr(event_stream, "look", counted)
    return asked


def hub_of(server: Server) -> event_stream.Hub:
    hub: event_stream.Hub = server.service.app.state.hub
    return hub


def test_many_watchers_share_a_look_and_each_hears_everything_once(server: Server, looks: list[str]) -> None:
    """They come at different times and from different places in the log."""
    service = server.service
    job_id = rows.create(service)
    rows.start_job(service, job_id)
    add_events(service, job_id, 450, kind="metrics")
    starts = [number * 37 % 454 for number in range(24)]
    heard: dict[int, list[str | None]] = {}

    def watch(place: int) -> None:
        time.sleep(place / 10)
        with open_stream(server, job_id, **{"Last-Event-ID": event_id(job_id, starts[place])}) as stream:
            heard[place] = [one.id for one in stream if one.id]

    threads = [threading.Thread(target=watch, args=(place,)) for place in range(len(starts))]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for _ in range(30):
        add_events(service, job_id, 20)
        time.sleep(0.1)
    rows.finish_job(service, job_id)
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    for place, start in enumerate(starts):
        assert heard[place] == [event_id(job_id, number) for number in range(start + 1, 1055)]
    assert len(looks) <= seconds / event_stream.POLL_SECONDS + 1054 / event_stream.BATCH + 2
    wait_for(lambda: not hub_of(server).watches, "the end of the watch", 5)


def test_each_job_and_project_has_a_watch_of_its_own(server: Server, looks: list[str]) -> None:
    service = server.service
    first, second = rows.create(service), rows.create(service)
    with open_stream(server, first) as one, open_stream(server, second) as two:
        assert {next(one).data["message"], next(two).data["message"]} == {
            f"Created fine-tuning job: {job_id}" for job_id in (first, second)
        }
        assert set(hub_of(server).watches) == {(PROJECT, first), (PROJECT, second)}
    answer = service.other.get(f"{JOBS}/{first}/events?stream=true")
    assert answer.status_code == 404
    assert set(looks) == {first, second}


def test_a_reader_that_does_not_read_holds_nobody_back_and_costs_no_memory(server: Server) -> None:
    service = server.service
    job_id = rows.create(service)
    rows.start_job(service, job_id)
    large = {"text": "x" * 20_000}
    with open_stream(server, job_id) as slow, open_stream(server, job_id) as quick:
        next(slow)
        for _ in range(5):
            with service.database.write() as session:
                for _ in range(event_stream.BATCH):
                    jobs.add_event(session, job_id, "large", data=large)
            time.sleep(0.5)
        [watch] = hub_of(server).watches.values()
        rows.finish_job(service, job_id)
        assert [one.id for one in quick if one.id][-1] == event_id(job_id, 1004)
        assert len(watch.recent) == event_stream.BATCH
        # 20 MB do not fit into the buffers of a connection: what it missed comes from the table.
        assert [one.id for one in slow if one.id] == [event_id(job_id, number) for number in range(2, 1005)]
    wait_for(lambda: not hub_of(server).watches, "the end of the watch", 5)


def test_progress_comes_at_most_once_a_second(server: Server) -> None:
    service = server.service
    job_id = rows.create(service)
    rows.start_job(service, job_id)
    ended = threading.Event()

    def move() -> None:
        done = 0
        while not ended.wait(0.05):
            done += 1
            rows.set_unit(service, job_id, "propagate", state="running", done=done, total=1000)

    mover = threading.Thread(target=move)
    mover.start()
    try:
        with open_stream(server, job_id) as first:
            next(first)
            time.sleep(0.5)
            with open_stream(server, job_id) as second:
                came = [time.monotonic() for one, _ in zip(second, range(7), strict=False) if one.event == "progress"]
    finally:
        ended.set()
        mover.join()
    assert len(came) >= 3
    assert all(later - earlier > 0.9 for earlier, later in pairwise(came))


def collect(hub: event_stream.Hub, job_id: str, stop: Callable[[list[bytes]], bool]) -> list[bytes]:
    """What a watcher is sent until `stop` says so, or until the stream ends."""

    async def watch() -> list[bytes]:
        sent: list[bytes] = []
        stream = hub.stream(PROJECT, job_id, 0)
        async for text in stream:
            sent.append(text)
            if stop(sent):
                break
        await stream.aclose()
        assert not hub.watches
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return sent

    return asyncio.run(watch())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.03)


def test_a_quiet_stream_sends_heartbeats_and_leaves_no_task(service: Service, quick: None) -> None:
    job_id = rows.create(service)
    sent = collect(event_stream.Hub(service.database), job_id, lambda sent: len(sent) == 5)
    assert sent[0].startswith(b"id: ")
    assert sent[1].startswith(b"event: progress")
    assert sent[2:] == [event_stream.HEARTBEAT] * 3


def test_a_database_that_is_away_is_waited_for(service: Service, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, look, tries = rows.create(service), event_stream.look, 0

    def away(*asked: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries in {1, 2, 4}:
            raise OperationalError("", None, OSError("away"))
        if tries == 6:
            rows.finish_job(service, job_id)
        return look(*asked)

    monkeypatch.setattr(event_stream, "look", away)
    sent = collect(event_stream.Hub(service.database), job_id, lambda sent: False)
    assert b"".join(sent).count(b"id: ") == 2


def test_a_mistake_in_a_look_breaks_the_stream(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = rows.create(service)
    monkeypatch.setattr(event_stream, "look", lambda *_: 1 / 0)
    hub = event_stream.Hub(service.database)
    with pytest.raises(ZeroDivisionError):
        collect(hub, job_id, lambda sent: False)
    assert not hub.watches


def test_a_job_that_is_gone_ends_its_stream(service: Service) -> None:
    assert collect(event_stream.Hub(service.database), "ftjob-none", lambda sent: False) == []
