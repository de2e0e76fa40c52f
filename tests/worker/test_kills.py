"""Whatever dies, the job ends once, with the bytes of an undisturbed run, and nothing of the old attempt lives."""

import pytest

from tests.servers import wait_for
from tests.worker.conftest import Stack, gone, kill, supervisor_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "victim", "unit"),
    [
        ("sqlite", "runner", "round-1/generate"),
        ("sqlite", "guardian", "round-1/train"),
        ("sqlite", "supervisor", "round-1/generate"),
        ("sqlite", "supervisor", "round-1/train"),
        ("postgres", "runner", "round-1/train"),
        ("postgres", "supervisor", "round-1/generate"),
        ("postgres", "main", "round-1/train"),
    ],
)
def test_a_kill_changes_nothing(
    request: pytest.FixtureRequest, undisturbed: dict[str, str], kind: str, victim: str, unit: str
) -> None:
    stack: Stack = request.getfixturevalue(f"{kind}_stack")
    job_id = stack.post_job()
    worker = stack.start_worker()
    running = stack.wait_until_running(job_id, unit)
    group = stack.runner_group(running)
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
    job = stack.wait_until_over(job_id)
    assert job.status == "succeeded", job.error
    assert stack.results(job_id) == undisturbed
    stack.check_invariants(job_id)
