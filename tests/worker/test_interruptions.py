"""Kills, pauses, cancels and stopped workers: the job ends once, with the bytes of an undisturbed run.

One file, so that one process makes the undisturbed run.
"""

import time

import pytest

from store import jobs
from store.models import Unit
from tests.servers import wait_for
from tests.worker.conftest import Stack, gone, kill, state_of, supervisor_of

pytestmark = pytest.mark.slow


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "victims"),
    [
        ("sqlite", ("runner", "supervisor")),
        ("postgres", ("runner", "runner")),
        ("postgres", ("supervisor", "supervisor")),
        ("postgres", ("main", "main")),
    ],
)
def test_kills_during_generation_and_training_change_nothing(
    request: pytest.FixtureRequest, undisturbed: dict[str, str], kind: str, victims: tuple[str, str]
) -> None:
    stack: Stack = request.getfixturevalue(f"{kind}_stack")
    job_id = stack.post_job()
    stack.start_worker()
    for unit, victim in zip(("round-1/generate", "round-1/train"), victims, strict=True):
        end_one(stack, job_id, unit, victim)
    job = stack.wait_until_over(job_id)
    assert job.status == "succeeded", job.error
    assert stack.results(job_id) == undisturbed
    stack.check_invariants(job_id)


def end_one(stack: Stack, job_id: str, unit: str, victim: str) -> None:
    """Kill the victim of the running unit, see the attempt end, and start a worker where none is left."""
    worker = stack.workers[-1]
    group = stack.runner_group(stack.wait_until_running(job_id, unit))
    if victim in {"supervisor", "main"}:
        owner = supervisor_of(worker.pid, stack)
        group.append(owner)
        kill(owner if victim == "supervisor" else worker.pid)
    else:
        group = group[1:]  # the guardian sees the runner's end
        kill(group[0])
    wait_for(lambda: gone(group), "the end of the old attempt", 15)
    if worker.poll() is not None:
        stack.start_worker()


@pytest.mark.parametrize(("unit", "done"), [("propagate", 0), pytest.param("round-1/train", 1, marks=pytest.mark.long)])
def test_cancel_frees_the_worker_within_ten_seconds(sqlite_stack: Stack, unit: str, done: int) -> None:
    job_id = sqlite_stack.post_job()
    sqlite_stack.start_worker()
    running = sqlite_stack.wait_until_running(job_id, unit, done)
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


@pytest.mark.long
def test_pause_and_resume_lose_at_most_a_checkpoint(sqlite_stack: Stack, undisturbed: dict[str, str]) -> None:
    job_id = sqlite_stack.post_job()
    sqlite_stack.start_worker()
    running = sqlite_stack.wait_until_running(job_id, "round-1/train", done=10)
    unit = pause(sqlite_stack, running)
    assert unit.state == "ready"
    assert unit.checkpoint is not None
    assert unit.checkpoint["step"] >= running.done
    finish(sqlite_stack, job_id, undisturbed)


@pytest.mark.long
def test_a_paused_generation_and_a_stopped_worker_change_nothing(
    postgres_stack: Stack, undisturbed: dict[str, str]
) -> None:
    job_id = postgres_stack.post_job()
    worker = postgres_stack.start_worker()
    unit = pause(postgres_stack, postgres_stack.wait_until_running(job_id, "round-1/generate"))
    assert unit.state in {"ready", "done"}  # a shard that was nearly done may have ended instead of stopping
    with postgres_stack.database.write() as session:
        assert jobs.resume(session, job_id)
    running = postgres_stack.wait_until_running(job_id, "round-1/train", done=5)
    worker.terminate()
    assert worker.wait(30) == 0
    assert state_of(postgres_stack, running.id) == "ready"
    postgres_stack.start_worker()
    finish(postgres_stack, job_id, undisturbed)


def pause(stack: Stack, running: Unit) -> Unit:
    """Pause the job of the unit; the unit as it then is, given back without being counted as lost."""
    group = stack.runner_group(running)
    with stack.database.write() as session:
        assert jobs.pause(session, running.job_id)
    wait_for(lambda: gone(group), "the end of the runner", 20)
    assert stack.job(running.job_id).status == "paused"
    wait_for(lambda: state_of(stack, running.id) in {"ready", "done"}, "the unit to be given back")
    with stack.database.read() as session:
        unit = session.get_one(Unit, running.id)
    assert (unit.lost, unit.failed) == (0, 0)
    return unit


def finish(stack: Stack, job_id: str, undisturbed: dict[str, str]) -> None:
    """Let the job go on if it is paused, to the same end as if nothing had happened."""
    with stack.database.write() as session:
        jobs.resume(session, job_id)
    assert stack.wait_until_over(job_id).status == "succeeded"
    assert stack.results(job_id) == undisturbed
    stack.check_invariants(job_id)
