"""The same requests on PostgreSQL, where statements differ: JSON filters, groups, locks and races."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select
from starlette.testclient import TestClient

from store import jobs
from store.ids import event_id
from store.models import Job
from store.settings import Settings
from tests.api import rows
from tests.api.service import Server, Service, make_settings
from tests.servers import postgres

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def database_url() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return make_settings(tmp_path, database_url=database_url)


def test_a_job_from_create_to_review(service: Service) -> None:
    metadata = {"a'\"b": "c"}
    job_id = rows.create(service, metadata=metadata, semievol={"review": True})
    other = rows.create(service)
    rows.start_job(service, job_id)
    for number, state in enumerate(("done", "running", "ready")):
        rows.set_unit(service, job_id, f"round-1/generate-{number:05d}", state=state, done=1, total=4)
    rows.commit_stage(service, job_id, "warm-up", unit="propagate", facts={"steps": 3, "accuracy": {"value": 0.5}})
    rows.load_labels(service, job_id, [rows.label(1), rows.label(2)])
    rows.set_unit(service, job_id, "round-1/review", "cpu", state="waiting")
    told = service.client.get(f"{JOBS}/{job_id}").json()
    assert "round-1/generate" in [stage["name"] for stage in told["semievol"]["stages"]]
    assert told["semievol"]["metrics"] == {"warm-up": {"value": 0.5}}
    listed = service.client.get(JOBS, params={"metadata[a'\"b]": "c"}).json()["data"]
    assert [job["id"] for job in listed] == [job_id]
    bare = [job["id"] for job in service.client.get(f"{JOBS}?metadata=null").json()["data"]]
    assert bare[0] == other  # other tests leave jobs of their own
    assert job_id not in bare
    assert service.client.get(JOBS, params={"limit": 1, "after": other}).json()["data"][0]["id"] == job_id
    labels = f"{JOBS}/{job_id}/pseudo_labels"
    assert service.client.patch(f"{labels}/2", json={"decision": "accept"}).status_code == 200
    query: dict[str, Any] = {"decision": "accept", "q": "question", "consistent": "true", "max_entropy": 5}
    assert len(service.client.get(labels, params=query).json()["data"]) == 2
    assert service.client.post(f"{JOBS}/{job_id}/review/complete").status_code == 200
    assert service.client.get(f"{JOBS}/{job_id}/checkpoints").json()["data"][0]["step_number"] == 3
    assert service.client.get(f"{JOBS}/{job_id}/events", params={"limit": 1}).json()["has_more"]
    for move in ("pause", "resume", "cancel"):
        assert service.client.post(f"{JOBS}/{job_id}/{move}").status_code == 200
    assert service.client.post(f"{JOBS}/{job_id}/cancel").status_code == 409


def test_a_session_from_sign_in_to_sign_out(service: Service) -> None:
    origin = {"Origin": "http://testserver"}
    with TestClient(service.app) as browser:
        told = browser.post("/v1/session", json={"api_key": service.user_key}, headers=origin).json()
        assert browser.get("/v1/session").json() == told
        assert browser.get("/v1/files").status_code == 200
        assert browser.delete("/v1/session", headers=origin).json()["deleted"] is True
        assert browser.get("/v1/session").status_code == 401


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "same"}])
def test_racing_creates_make_one_job(service: Service, headers: dict[str, str]) -> None:
    request = rows.body(service, seed=len(headers))
    before = _count(service)
    answers: list[Any] = []

    def post() -> None:
        answers.append(service.client.post(JOBS, json=request, headers=headers))

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert _count(service) == before + 1


def test_watchers_miss_nothing_that_several_write_at_once(server: Server) -> None:
    """Writers that overlap commit their numbers in order, so a look that comes amid them skips none."""
    service = server.service
    job_id = rows.create(service)
    rows.start_job(service, job_id)
    heard: list[list[str]] = []

    def write() -> None:
        for _ in range(40):
            with service.database.write() as session:
                for number in range(2):
                    jobs.add_event(session, job_id, f"something {number}")
                    time.sleep(0.005)

    def watch(after: int) -> None:
        headers = {"Authorization": f"Bearer {service.key}", "Last-Event-ID": event_id(job_id, after)}
        url = f"{server.url}{JOBS}/{job_id}/events?stream=true"
        heard.append(re.findall("^id: (.*)$", httpx.get(url, headers=headers, timeout=60).text, re.MULTILINE))

    writers = [threading.Thread(target=write) for _ in range(3)]
    watchers = [threading.Thread(target=watch, args=(3,)) for _ in range(12)]
    for thread in (*watchers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    rows.finish_job(service, job_id)
    for thread in watchers:
        thread.join()
    assert heard == [[event_id(job_id, number) for number in range(4, 245)]] * len(watchers)


def _count(service: Service) -> int:
    with service.database.read() as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0
