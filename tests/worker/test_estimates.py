"""A job is estimated by the unit that reads its files, from what finished jobs of its base model took."""

import io
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update

from store import units
from store.measured import finished_jobs
from store.models import Job, JobEvent, StageRow, Unit
from store.settings import Settings
from store.units import Claim
from tests.worker.conftest import Stack
from worker import commits
from worker.messages import Pipe
from worker.plan import JobSpec
from worker.runner import Runner

ANSWERS = {"kind": "choice", "options": ["a", "b"], "tolerance": 0.01, "bare": True}
ASKED = {"rows": 128, "tokens": 512, "prompt_tokens": 50_000, "engine": "huggingface"}


@pytest.fixture(params=["sqlite_stack", "postgres_stack"])
def stack(request: pytest.FixtureRequest) -> Stack:
    found: Stack = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def sigterm() -> Iterator[None]:
    """Runners listen to it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def finished(stack: Stack, *, shards: int = 2, model: str = "semievol-demo", finished_at: float = 1.0) -> str:
    """A job that succeeded, with what an estimate learns from."""
    job_id = stack.post_job(model=model, finished_at=finished_at, status="succeeded")
    facts = {
        "prepare": {"answers": ANSWERS, "rows": {"labeled": 21, "unlabeled": 128}},
        "warm-up": {"rows": 21, "steps": 8, "tokens": 1100},
        **{f"round-1/generate-{shard:05d}": ASKED for shard in range(shards)},
    }
    with stack.database.write() as session:
        unit = session.scalars(select(Unit).where(Unit.job_id == job_id)).one()
        unit.state, unit.attempts = "done", 1
        for number, (name, told) in enumerate(facts.items()):
            told_of = {"job_id": job_id, "unit_id": unit.id, "name": name, "number": number}
            session.add(StageRow(**told_of, seconds=3.0, facts=told, files={}))
    return job_id


def begin(stack: Stack) -> tuple[Claim, JobSpec]:
    with stack.database.write() as session:
        claim = units.claim(session, "w", ("cpu",), 60)
        assert claim is not None
        return claim, commits.begin(session, claim)


def prepare(stack: Stack, claim: Claim, spec: JobSpec) -> dict[str, Any]:
    """What the runner tells of the stage that it commits."""
    told = stack.folder / "told"
    pipe = Pipe(os.open(told, os.O_CREAT | os.O_WRONLY), io.StringIO())
    more: dict[str, Any] = {
        "unit": claim.name,
        "scratch": str(stack.folder / "scratch"),
        "checkpoint": None,
        "adjustments": {},
    }
    Runner(spec, more, Settings(data=stack.folder / "data"), pipe).run()
    os.close(pipe.handle)
    [committed] = [one for one in map(json.loads, told.read_text().splitlines()) if one.pop("kind") == "committed"]
    return dict(committed)


def test_a_job_is_estimated_when_its_files_are_read(sqlite_stack: Stack, sigterm: None) -> None:
    finished(sqlite_stack)
    job_id = sqlite_stack.post_job()
    claim, spec = begin(sqlite_stack)
    committed = prepare(sqlite_stack, claim, spec)
    estimate = committed["facts"]["estimate"]
    assert estimate["learned_from"] == 1
    # 21 rows in 3 steps of an epoch, and 8 steps: as in the job that was learned from.
    assert estimate["stages"]["warm-up"]["seconds"] == pytest.approx(3, rel=0.4)
    with sqlite_stack.database.write() as session:
        commits.commit_stage(session, claim, sqlite_stack.objects, **committed)
    with sqlite_stack.database.read() as session:
        told = list(session.scalars(select(JobEvent.message).where(JobEvent.job_id == job_id)))
    assert "learned from 1 finished job of this base model" in told[-1]


def test_only_the_last_jobs_of_the_model_and_their_first_shards_are_read(stack: Stack) -> None:
    for number in range(12):
        finished(stack, finished_at=float(number), shards=15 if number == 11 else 1)
    finished(stack, model="another", finished_at=99.0)
    with stack.database.write() as session:
        session.execute(update(Job).where(Job.finished_at == 10).values(status="failed"))
        found = finished_jobs(session, "semievol-demo")
    assert [len(job) for job in found] == [3] * 10
    assert {done.work.kind for done in found[0]} == {"files", "train", "score"}
    [ten, one] = [next(done.work.read for done in job if done.work.kind == "score") for job in found[:2]]
    assert ten == 10 * one


def test_only_the_unit_that_estimates_hears_of_other_jobs(sqlite_stack: Stack) -> None:
    finished(sqlite_stack)
    sqlite_stack.post_job()
    claim, spec = begin(sqlite_stack)
    assert [len(job) for job in spec.measured] == [3]
    with sqlite_stack.database.write() as session:
        assert commits.begin(session, replace(claim, name="propagate")).measured == []
