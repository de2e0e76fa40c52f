"""Every way to stop a job or a worker in order: cancel, pause and resume, and SIGTERM."""

import time

import pytest

from store import jobs
from store.models import Unit
from tests.servers import wait_for
from tests.worker.conftest import Stack, gone, state_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("unit", ["propagate", "round-1/train"])
def test_cancel_frees_the_worker_within_ten_seconds(sqlite_stack: Stack, unit: str) -> None:
    job_id = sqlite_stack.post_job()
    sqlite_stack.start_worker()
    running = sqlite_stack.wait_until_running(job_id, unit)
    group = sqlite_stack.runner_group(running)
    with sqlite_stack.database.write() as session:
        assert jobs.move(session, job_id, "cancelled", "Cancelled")
    asked = time.monotonic()
    wait_for(lambda: gone(group), "the end of the runner", 10)
    next_job = sqlite_stack.post_job()
    sqlite_stack.wait_until_running(next_job, "prepare", done=0)
    assert time.monotonic() - asked < 10
    wait_for(lambda: not list((sqlite_stack.folder / "data" / "scratch").glob(f"*/{running.id}-*")), "clean scratch")
    with sqlite_stack.database.write() as session:
        jobs.move(session, next_job, "cancelled", "Cancelled")
    sqlite_stack.stop_workers()
    sqlite_stack.check_invariants(job_id)


@pytest.mark.parametrize(
    ("kind", "unit", "done"), [("sqlite", "round-1/train", 10), ("postgres", "round-1/generate", 1)]
)
def test_pause_and_resume_lose_at_most_a_checkpoint(
    request: pytest.FixtureRequest, undisturbed: dict[str, str], kind: str, unit: str, done: int
) -> None:
    stack: Stack = request.getfixturevalue(f"{kind}_stack")
    job_id = stack.post_job()
    stack.start_worker()
    running = stack.wait_until_running(job_id, unit, done)
    group = stack.runner_group(running)
    with stack.database.write() as session:
        assert jobs.pause(session, job_id)
    wait_for(lambda: gone(group), "the end of the runner", 20)
    assert stack.job(job_id).status == "paused"
    # A shard that was nearly done may have ended instead of stopping; a training of 40 steps has not.
    wait_for(lambda: state_of(stack, running.id) in {"ready", "done"}, "the unit to be given back")
    with stack.database.read() as session:
        unit_row = session.get_one(Unit, running.id)
    assert (unit_row.lost, unit_row.failed) == (0, 0)
    if unit.endswith("train"):
        assert unit_row.state == "ready"
        assert unit_row.checkpoint is not None
        assert unit_row.checkpoint["step"] >= running.done
    with stack.database.write() as session:
        assert jobs.resume(session, job_id)
    assert stack.wait_until_over(job_id).status == "succeeded"
    assert stack.results(job_id) == undisturbed
    stack.check_invariants(job_id)


def test_a_stopped_worker_gives_its_unit_back_at_once(postgres_stack: Stack, undisturbed: dict[str, str]) -> None:
    job_id = postgres_stack.post_job()
    worker = postgres_stack.start_worker()
    running = postgres_stack.wait_until_running(job_id, "round-1/train", done=5)
    worker.terminate()
    assert worker.wait(30) == 0
    assert state_of(postgres_stack, running.id) == "ready"
    postgres_stack.start_worker()
    assert postgres_stack.wait_until_over(job_id).status == "succeeded"
    assert postgres_stack.results(job_id) == undisturbed
    postgres_stack.check_invariants(job_id)
