"""Kills, pauses, cancels and stopped workers: the job ends once, with the bytes of an undisturbed run.

The stacks are shared, as starting a worker takes longer than most of a job; tests leave them with nothing to do.
"""

import time
from collections.abc import Iterator

import pytest

from store import jobs
from store.models import StageRow, Unit
from tests.servers import wait_for
from tests.worker.conftest import Stack, gone, kill, open_postgres, open_sqlite, state_of, supervisor_of

pytestmark = pytest.mark.slow

GENERATION = "round-1/generate"
TRAINING = "round-1/train"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """SQLite and a worker that polls."""
    with open_sqlite(tmp_path_factory.mktemp("machine")) as stack:
        yield stack


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """PostgreSQL, Redis and a Celery worker."""
    with open_postgres(tmp_path_factory.mktemp("cluster")) as stack:
        yield stack


@pytest.fixture(scope="module")
def undisturbed(machine: Stack) -> dict[str, str]:
    """Digests of all that the job leaves when nothing happens to it."""
    job_id = begin(machine)
    assert machine.wait_until_over(job_id).status == "succeeded"
    machine.check_invariants(job_id)
    return machine.results(job_id)


def begin(stack: Stack) -> str:
    """A job, always the same, and a worker that does it."""
    stack.worker()
    return stack.post_job()


def finish(stack: Stack, job_id: str, undisturbed: dict[str, str]) -> None:
    """Let the job come to the same end as if nothing had happened."""
    job = stack.wait_until_over(job_id)
    assert job.status == "succeeded", job.error
    assert stack.results(job_id) == undisturbed
    stack.check_invariants(job_id)


# --- killed runners ---------------------------------------------------------------------------------------------------


def test_killed_runners_cost_the_shard_that_runs_and_no_loss_is_told_twice(
    machine: Stack, undisturbed: dict[str, str]
) -> None:
    job_id = begin(machine)
    _, early = machine.wait_until_running(job_id, GENERATION, done=0)
    _, late = machine.wait_until_running(job_id, f"{GENERATION}-00003", done=0)
    assert late[0] == early[0], "shards share a process"
    kill_runner(late)
    for more in (1, 5):
        before = len(losses_amid(machine, job_id))
        wait_for(lambda: len(losses_amid(machine, job_id)) >= before + more, "losses")  # noqa: B023
        kill_runner(machine.wait_until_running(job_id, TRAINING)[1])
    finish(machine, job_id, undisturbed)
    with machine.database.read() as session:
        shards = session.query(Unit).where(Unit.job_id == job_id, Unit.name.contains("/generate-")).all()
        tries = {unit.name: (unit.attempts, unit.lost) for unit in shards}
    killed = [shard for shard, (_, lost) in tries.items() if lost]
    assert len(killed) == 1
    assert all(tried == (1, 0) for shard, tried in tries.items() if shard not in killed)


def kill_runner(group: list[int]) -> None:
    """The guardian sees the runner's end."""
    _, runner, *_ = group
    kill(runner)
    wait_for(lambda: gone(group), "the end of the attempt", 15)


def losses_amid(stack: Stack, job_id: str) -> list[list[float]]:
    """What was told of a training that still runs."""
    with stack.database.read() as session:
        done = session.get(StageRow, (job_id, TRAINING)) is not None
    assert not done, "training was over before its first losses came"
    return stack.told_losses(job_id).get(TRAINING, [])


# --- killed workers ---------------------------------------------------------------------------------------------------


def kill_worker(stack: Stack, job_id: str, unit: str, victim: str) -> None:
    """Kill what owns the running unit, or what started that; no process of the attempt is left."""
    worker = stack.worker()
    _, group = stack.wait_until_running(job_id, unit, done=int(unit == TRAINING))
    owner = supervisor_of(worker.pid, stack)
    kill(owner if victim == "supervisor" else worker.pid)
    wait_for(lambda: gone([*group, owner]), "the end of the old attempt", 15)
    stack.worker()


@pytest.mark.long
def test_a_killed_supervisor_and_a_killed_worker_change_nothing(cluster: Stack, undisturbed: dict[str, str]) -> None:
    job_id = begin(cluster)
    kill_worker(cluster, job_id, GENERATION, "supervisor")
    kill_worker(cluster, job_id, TRAINING, "main")
    finish(cluster, job_id, undisturbed)


@pytest.mark.long
def test_a_pause_loses_at_most_a_checkpoint_and_a_killed_worker_changes_nothing(
    machine: Stack, undisturbed: dict[str, str]
) -> None:
    job_id = begin(machine)
    running, group = machine.wait_until_running(job_id, TRAINING, done=10)
    unit = pause(machine, running, group)
    assert unit.state == "ready"
    assert unit.checkpoint is not None
    assert unit.checkpoint["step"] >= running.done
    resume(machine, job_id)
    kill_worker(machine, job_id, TRAINING, "supervisor")
    finish(machine, job_id, undisturbed)


# --- asked to stop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "done"), [("propagate", 0), pytest.param(TRAINING, 1, marks=pytest.mark.long)])
def test_cancel_frees_the_worker_within_ten_seconds(machine: Stack, unit: str, done: int) -> None:
    job_id = begin(machine)
    _, group = machine.wait_until_running(job_id, unit, done)
    with machine.database.write() as session:
        assert jobs.move(session, job_id, "cancelled", "Cancelled")
    asked = time.monotonic()
    wait_for(lambda: gone(group), "the end of the runner", 10)
    next_job = machine.post_job()
    wait_for(lambda: machine.job(next_job).status == "running", "the next job")
    assert time.monotonic() - asked < 10
    with machine.database.write() as session:
        jobs.move(session, next_job, "cancelled", "Cancelled")
    machine.check_invariants(job_id)


@pytest.mark.long
def test_a_paused_generation_a_stopped_worker_and_killed_runners_change_nothing(
    cluster: Stack, undisturbed: dict[str, str]
) -> None:
    job_id = begin(cluster)
    unit = pause(cluster, *cluster.wait_until_running(job_id, GENERATION, done=0))
    assert unit.state in {"ready", "done"}  # a shard that was nearly done may have ended instead of stopping
    resume(cluster, job_id)
    kill_runner(cluster.wait_until_running(job_id, GENERATION, done=0)[1])
    running, _ = cluster.wait_until_running(job_id, TRAINING, done=5)
    worker = cluster.worker()
    worker.terminate()
    assert worker.wait(30) == 0
    assert state_of(cluster, running.id) == "ready"
    cluster.worker()
    kill_runner(cluster.wait_until_running(job_id, TRAINING)[1])
    finish(cluster, job_id, undisturbed)


def pause(stack: Stack, running: Unit, group: list[int]) -> Unit:
    """Pause the job of the unit; the unit as it then is, given back without being counted as lost."""
    with stack.database.write() as session:
        assert jobs.pause(session, running.job_id)
    wait_for(lambda: gone(group), "the end of the runner", 20)
    assert stack.job(running.job_id).status == "paused"
    wait_for(lambda: state_of(stack, running.id) in {"ready", "done"}, "the unit to be given back")
    with stack.database.read() as session:
        unit = session.get_one(Unit, running.id)
    assert (unit.lost, unit.failed) == (0, 0)
    return unit


def resume(stack: Stack, job_id: str) -> None:
    with stack.database.write() as session:
        assert jobs.resume(session, job_id)
