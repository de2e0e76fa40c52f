"""Whole jobs on both stacks: the same bytes everywhere, whatever dies, and every stop is heard."""

import time
from pathlib import Path

import pytest

from tests.servers import alive, wait_for
from tests.worker.conftest import Stack, gone, kill, pids

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the job on SQLite, one worker, nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    from tests.worker import conftest

    for stack in conftest.sqlite_stack.__wrapped__(folder):  # type: ignore[attr-defined]
        job_id = stack.post_job()
        stack.start_worker()
        assert stack.wait_until_over(job_id).status == "succeeded"
        return dict(stack.results(job_id))
    raise AssertionError


def test_two_celery_workers_give_the_bytes_of_one_poller(postgres_stack: Stack, undisturbed: dict[str, str]) -> None:
    job_id = postgres_stack.post_job()
    postgres_stack.start_worker()
    postgres_stack.start_worker()
    job = postgres_stack.wait_until_over(job_id)
    assert job.status == "succeeded", job.error
    assert postgres_stack.results(job_id) == undisturbed
    postgres_stack.check_invariants(job_id)


@pytest.mark.parametrize("unit", ["round-1/generate", "round-1/train"])
@pytest.mark.parametrize("victim", ["runner", "guardian", "supervisor"])
def test_a_kill_changes_nothing(stack: Stack, undisturbed: dict[str, str], victim: str, unit: str) -> None:
    if stack.name == "postgres" and victim == "guardian":
        pytest.skip("the guardian knows neither Celery nor the database: shown on SQLite")
    job_id = stack.post_job()
    worker = stack.start_worker()
    running = stack.wait_until_running(job_id, unit)
    group = stack.runner_group(running)
    if victim == "supervisor":
        kill(_supervisor(worker.pid, stack))
    else:
        kill(group[0] if victim == "guardian" else group[1])
    wait_for(lambda: gone(group), "the end of the old attempt", 15)
    if worker.poll() is not None:
        stack.start_worker()
    job = stack.wait_until_over(job_id)
    assert job.status == "succeeded", job.error
    assert stack.results(job_id) == undisturbed
    stack.check_invariants(job_id)


def test_the_death_of_celery_s_main_process_ends_its_child(postgres_stack: Stack, undisturbed: dict[str, str]) -> None:
    job_id = postgres_stack.post_job()
    worker = postgres_stack.start_worker()
    running = postgres_stack.wait_until_running(job_id, "round-1/train")
    group = [*postgres_stack.runner_group(running), _supervisor(worker.pid, postgres_stack)]
    kill(worker.pid)
    wait_for(lambda: gone(group), "the end of the old attempt", 15)
    postgres_stack.start_worker()
    assert postgres_stack.wait_until_over(job_id).status == "succeeded"
    assert postgres_stack.results(job_id) == undisturbed
    postgres_stack.check_invariants(job_id)


@pytest.mark.parametrize("unit", ["propagate", "round-1/generate", "round-1/train"])
def test_cancel_frees_the_worker_within_ten_seconds(sqlite_stack: Stack, unit: str) -> None:
    from store import jobs

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
    wait_for(lambda: not list((sqlite_stack.folder / "data" / "scratch").glob(f"{running.id}-*")), "clean scratch")
    with sqlite_stack.database.write() as session:
        jobs.move(session, next_job, "cancelled", "Cancelled")
    sqlite_stack.stop_workers()
    sqlite_stack.check_invariants(job_id)


@pytest.mark.parametrize("unit", ["round-1/generate", "round-1/train"])
def test_pause_and_resume_lose_at_most_a_checkpoint(stack: Stack, undisturbed: dict[str, str], unit: str) -> None:
    from store import jobs

    job_id = stack.post_job()
    stack.start_worker()
    running = stack.wait_until_running(job_id, unit, done=10)
    group = stack.runner_group(running)
    with stack.database.write() as session:
        assert jobs.pause(session, job_id)
    wait_for(lambda: gone(group), "the end of the runner", 20)
    assert stack.job(job_id).status == "paused"
    with stack.database.read() as session:
        from store.models import Unit

        paused = wait_for(lambda: _state(stack, running.id) == "ready", "the unit to be given back")
        assert paused
        unit_row = session.get_one(Unit, running.id)
        assert (unit_row.lost, unit_row.failed) == (0, 0)
        if unit.endswith("train"):
            assert unit_row.checkpoint is not None
            assert unit_row.checkpoint["step"] >= running.done
    with stack.database.write() as session:
        assert jobs.resume(session, job_id)
    assert stack.wait_until_over(job_id).status == "succeeded"
    assert stack.results(job_id) == undisturbed
    stack.check_invariants(job_id)


def test_a_stopped_worker_gives_its_unit_back_at_once(stack: Stack, undisturbed: dict[str, str]) -> None:
    job_id = stack.post_job()
    worker = stack.start_worker()
    running = stack.wait_until_running(job_id, "round-1/train", done=5)
    worker.terminate()
    assert worker.wait(30) == 0
    assert _state(stack, running.id) == "ready"
    stack.start_worker()
    assert stack.wait_until_over(job_id).status == "succeeded"
    assert stack.results(job_id) == undisturbed
    stack.check_invariants(job_id)


def test_a_job_made_while_redis_is_away_runs_when_it_is_back(postgres_stack: Stack) -> None:
    assert postgres_stack.redis is not None
    postgres_stack.start_worker()
    postgres_stack.redis.stop()
    job_id = postgres_stack.post_job()
    postgres_stack.redis.start()
    assert postgres_stack.wait_until_over(job_id).status == "succeeded"
    postgres_stack.check_invariants(job_id)


def _state(stack: Stack, unit_id: str) -> str:
    from store.models import Unit

    with stack.database.read() as session:
        return session.get_one(Unit, unit_id).state


def _supervisor(worker: int, stack: Stack) -> int:
    """The process that owns units: the poller itself, or Celery's pool child."""
    if stack.redis is None:
        return worker
    children = [pid for pid in pids() if _parent(pid) == worker and alive(pid)]
    return max(children)


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])
