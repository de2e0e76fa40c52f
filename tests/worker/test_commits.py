"""What a supervisor writes when an attempt fails."""

from dataclasses import asdict

from sqlalchemy import select, update

from semievol.answers import Answers
from semievol.errors import OutOfMemory
from store import jobs, units
from store.database import now
from store.models import JobEvent, StageRow, Unit
from tests.worker.conftest import Stack
from worker import commits, runner

ATTEMPTS = 5


def fail(stack: Stack, code: str) -> float:
    """Claim the only unit, let it fail, and tell how many seconds it then waits."""
    with stack.database.write() as session:
        claim = units.claim(session, "w", ("cpu",), 60)
    assert claim is not None
    with stack.database.write() as session:
        commits.unit_failed(session, claim, {"code": code, "message": "away", "own": False}, ATTEMPTS)
        return session.execute(select(Unit.ready_at - now()).where(Unit.id == claim.unit_id)).scalar_one()


def test_a_unit_whose_storage_is_away_waits_longer_each_time(sqlite_stack: Stack) -> None:
    job_id = sqlite_stack.post_job()
    waits = []
    for _ in range(ATTEMPTS - 1):
        waits.append(round(fail(sqlite_stack, "io_error")))
        with sqlite_stack.database.write() as session:
            assert units.claim(session, "w", ("cpu",), 60) is None
            assert units.unheard(session, 0) == []
            session.execute(update(Unit).values(ready_at=now()))
    assert waits == [5, 20, 80, 320]
    fail(sqlite_stack, "io_error")
    assert sqlite_stack.job(job_id).status == "failed"
    with sqlite_stack.database.read() as session:
        told = session.scalars(select(JobEvent.message).where(JobEvent.job_id == job_id, JobEvent.level == "warn"))
        assert next(iter(told)) == "prepare will be tried again in 5 s: away"


def test_a_unit_that_failed_by_itself_is_tried_again_at_once(sqlite_stack: Stack) -> None:
    sqlite_stack.post_job()
    assert fail(sqlite_stack, "internal_error") <= 0
    with sqlite_stack.database.write() as session:
        assert units.claim(session, "w", ("cpu",), 60) is not None


def test_a_batch_that_did_not_fit_is_halved_in_the_next_attempt(sqlite_stack: Stack) -> None:
    job_id = sqlite_stack.post_job()
    for rows, halvings in ((8, {}), (4, {"training": 1, "generation": 0}), (2, {"training": 2, "generation": 0})):
        with sqlite_stack.database.write() as session:
            claim = units.claim(session, "w", ("cpu",), 60)
            assert claim is not None
            assert claim.adjustments == halvings
            spec = commits.begin(session, claim)
        error = runner.told(OutOfMemory("training", rows), spec, claim.adjustments)
        with sqlite_stack.database.write() as session:
            assert commits.unit_failed(session, claim, error, ATTEMPTS) == {"cpu"}
    with sqlite_stack.database.write() as session:
        claim = units.claim(session, "w", ("cpu",), 60)
        assert claim is not None
        error = runner.told(OutOfMemory("training", 1), spec, claim.adjustments)
        commits.unit_failed(session, claim, error, ATTEMPTS)
    job = sqlite_stack.job(job_id)
    assert (job.status, (job.error or {})["code"]) == ("failed", "out_of_memory")


def test_rows_that_were_left_out_are_told_in_the_job_s_events(sqlite_stack: Stack) -> None:
    job_id = sqlite_stack.post_job()
    overlaps = {"left_out": [{"role": "labeled", "also_in": "test", "rows": 2, "lines": [4, 9]}]}
    with sqlite_stack.database.write() as session:
        claim = units.claim(session, "w", ("cpu",), 60)
        assert claim is not None
        facts = {"rows": {"labeled": 7}, "overlaps": overlaps}
        commits.commit_stage(session, claim, sqlite_stack.objects, stage="prepare", facts=facts, seconds=1, files={})
    with sqlite_stack.database.read() as session:
        told = list(
            session.scalars(select(JobEvent.message).where(JobEvent.job_id == job_id, JobEvent.level == "warn"))
        )
    assert len(told) == 1
    assert "2 labeled rows (lines 4 and 9) also in the test file" in told[0]


def test_a_pause_outlives_what_its_workers_finish(sqlite_stack: Stack) -> None:
    """The job is paused between a worker's claim and its last word, of the first unit and of the next."""
    job_id = sqlite_stack.post_job()
    with sqlite_stack.database.write() as session:
        claim = units.claim(session, "w", ("cpu",), 60)
        assert claim is not None
        commits.begin(session, claim)
        assert jobs.pause(session, job_id)
    facts = {"answers": asdict(Answers("exact")), "rows": {"test": 0, "unlabeled": 2}}
    done = {"job_id": job_id, "unit_id": claim.unit_id, "name": "prepare", "number": 1}
    with sqlite_stack.database.write() as session:
        session.add(StageRow(**done, seconds=1, facts=facts, files={}))
        session.flush()
        commits.finish_unit(session, claim)
    assert sqlite_stack.job(job_id).status == "paused"
    with sqlite_stack.database.write() as session:
        assert jobs.resume(session, job_id)
        assert not jobs.resume(session, job_id)
    assert sqlite_stack.job(job_id).status == "queued"
    with sqlite_stack.database.write() as session:
        claim = units.claim(session, "w", ("gpu",), 60)
        assert claim is not None
        assert jobs.pause(session, job_id)
        commits.begin(session, claim)
    assert sqlite_stack.job(job_id).status == "paused"
