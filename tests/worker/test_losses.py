"""Losses while training runs: each step once and in order, whatever becomes of the attempts."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from store import jobs, units
from store.database import Database, now
from store.models import Unit
from store.settings import Settings
from store.units import Claim
from tests.servers import postgres
from tests.worker.conftest import Stack, open_sqlite
from worker import commits
from worker.forkserver import ForkServer
from worker.supervisor import Attempt, LeaseLost, Supervisor

STAGE = "round-1/train"
CURVE = [(step, 2.0 - step / 40) for step in range(1, 41)]


@pytest.fixture(params=["sqlite", "postgres"])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    """A database without workers."""
    with ExitStack() as ends:
        if request.param == "sqlite":
            yield ends.enter_context(open_sqlite(tmp_path))
            return
        database = Database(ends.enter_context(postgres()))
        ends.callback(database.close)
        database.migrate()
        yield Stack("postgres", tmp_path, {}, database)


def claim(stack: Stack) -> Claim:
    """The job's only unit."""
    with stack.database.write() as session:
        found = units.claim(session, "w", ("cpu",), 60)
    assert found is not None
    return found


def tell(stack: Stack, job_id: str, losses: list[tuple[int, float]], steps: int = 40, stage: str = STAGE) -> None:
    with stack.database.write() as session:
        commits.tell_losses(session, job_id, stage, losses, steps)


def steps_of(stack: Stack, job_id: str, stage: str = STAGE) -> list[int]:
    return [int(step) for step, _ in stack.told_losses(job_id).get(stage, [])]


def test_what_was_told_is_not_told_again(stack: Stack) -> None:
    """An attempt tells 20 steps and dies; the next one starts at step 11, and the commit brings them all."""
    job_id = stack.post_job()
    held = claim(stack)
    tell(stack, job_id, [(step, 3.0) for step in range(1, 9)], 8, "warm-up")
    for losses in (CURVE[:10], CURVE[10:20], CURVE[10:30], []):
        tell(stack, job_id, losses)
    assert steps_of(stack, job_id) == list(range(1, 31))
    with stack.database.write() as session:
        facts = {"losses": CURVE, "steps": 40, "rows": 60}
        commits.commit_stage(session, held, stack.objects, stage=STAGE, facts=facts, seconds=1.0, files={})
    assert stack.told_losses(job_id)[STAGE] == [list(point) for point in CURVE]
    assert steps_of(stack, job_id, "warm-up") == list(range(1, 9))


@pytest.mark.parametrize("cut", [0, 1, 333, 1000])
def test_a_dense_curve_is_thinned_the_same_way_however_it_comes(sqlite_stack: Stack, cut: int) -> None:
    job_id = sqlite_stack.post_job()
    curve = [(step, 1.0) for step in range(1, 1001)]
    tell(sqlite_stack, job_id, curve[:cut], 1000)
    tell(sqlite_stack, job_id, curve, 1000)
    told = steps_of(sqlite_stack, job_id)
    assert told == [1, *(-(-bucket * 1000 // commits.MAX_LOSS_EVENTS) for bucket in range(1, 81))]
    assert told[-1] == 1000


def test_nothing_is_told_after_the_end(stack: Stack) -> None:
    job_id = stack.post_job()
    with stack.database.write() as session:
        jobs.move(session, job_id, "cancelled", "Cancelled")
    tell(stack, job_id, CURVE)
    assert steps_of(stack, job_id) == []


@pytest.fixture
def attempt(sqlite_stack: Stack) -> Iterator[Attempt]:
    """An attempt that has heard two losses of its runner."""
    stack = sqlite_stack
    stack.post_job()
    settings = Settings(data=stack.folder / "data", database_url=stack.environment["SEMIEVOL_DATABASE_URL"])
    runners = ForkServer({}, ())
    options: dict[str, Any] = {"runners": runners, "ring": print, "kinds": ["cpu"], "stopping": lambda: False}
    supervisor = Supervisor(settings, stack.database, stack.objects, **options)
    held = claim(stack)
    with stack.database.write() as session:
        spec = commits.begin(session, held)
    made = Attempt(supervisor, held, spec)
    for step, loss in CURVE[:2]:
        made.progress.hear(stage=STAGE, done=step, total=40, loss=loss)
    yield made
    runners.close()


def test_a_beat_writes_what_is_new_and_only_once(sqlite_stack: Stack, attempt: Attempt) -> None:
    attempt._beat()
    before = sqlite_stack.job(attempt.claim.job_id).event_count
    attempt._beat()
    assert steps_of(sqlite_stack, attempt.claim.job_id) == [1, 2]
    assert sqlite_stack.job(attempt.claim.job_id).event_count == before


def test_a_checkpoint_is_noted_with_the_losses_before_it(sqlite_stack: Stack, attempt: Attempt) -> None:
    """Else a supervisor that dies now would leave a gap: the next attempt starts behind them."""
    attempt._hear({"kind": "checkpoint", "stage": STAGE, "step": 2, "files": {}})
    assert steps_of(sqlite_stack, attempt.claim.job_id) == [1, 2]
    assert not attempt.progress.losses


def test_an_attempt_that_lost_its_lease_tells_nothing(sqlite_stack: Stack, attempt: Attempt) -> None:
    with sqlite_stack.database.write() as session:
        session.execute(update(Unit).values(lease_until=now() - 1))
        units.expire(session)
    claim(sqlite_stack)
    with pytest.raises(LeaseLost):
        attempt._beat()
    with pytest.raises(LeaseLost):
        attempt._hear({"kind": "checkpoint", "stage": STAGE, "step": 2, "files": {}})
    assert steps_of(sqlite_stack, attempt.claim.job_id) == []
