"""Whatever dies, the job ends once, with the bytes of an undisturbed run, and nothing of the old attempt lives."""

import pytest

from tests.servers import wait_for
from tests.worker.conftest import Stack, gone, kill, supervisor_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "victims"),
    [
        ("sqlite", ("runner", "guardian")),
        ("sqlite", ("supervisor", "supervisor")),
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
        kill(group[0] if victim == "guardian" else group[1])
        group = group if victim == "guardian" else group[1:]
    wait_for(lambda: gone(group), "the end of the old attempt", 15)
    if worker.poll() is not None:
        stack.start_worker()
