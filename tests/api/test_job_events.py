"""A job's log: pages, and the stream of server-sent events."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import pytest

from api.services import events
from store import jobs
from store.ids import event_id
from tests.api import rows
from tests.api.service import PROJECT, Server, Service

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


def test_a_stream_stops_when_the_client_leaves(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    service, looks = server.service, list[float]()
    look = events.look

    def counted(*values: Any) -> Any:
        looks.append(time.monotonic())
        return look(*values)

    monkeypatch.setattr(events, "look", counted)
    job_id = rows.create(service)
    with open_stream(server, job_id) as stream:
        next(stream)
    time.sleep(2.5)
    seen = len(looks)
    time.sleep(1.5)
    assert len(looks) == seen


def test_a_quiet_stream_sends_heartbeats(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.03)
    job_id = rows.create(service)
    asked = 0

    async def gone() -> bool:
        nonlocal asked
        asked += 1
        return asked > 20

    async def collect() -> list[str]:
        return [text async for text in events.stream(service.database, PROJECT, job_id, 0, gone)]

    run: Callable[..., list[str]] = anyio.run
    sent = run(collect)
    assert sent[0].startswith("id: ")
    assert sent[1].startswith("event: progress")
    assert set(sent[2:]) == {": still there\n\n"}
    assert len(sent) >= 4
