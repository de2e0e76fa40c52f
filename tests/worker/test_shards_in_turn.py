"""A runner that has loaded its engine goes on with other shards of the round, unless somebody else is first in line."""

from sqlalchemy import update

from store import jobs, units
from store.models import Unit
from tests.worker.conftest import Stack
from worker import commits


def claim(stack: Stack) -> units.Claim:
    with stack.database.write() as session:
        found = units.claim(session, "w", ("gpu",), 60)
    assert found is not None
    return found


def after(stack: Stack, done: units.Claim) -> str | None:
    """The shard that follows, by its unit's name."""
    with stack.database.write() as session:
        found = commits.another_shard(session, done, "w", ("gpu",), 60)
    return found.name if found else None


def ready(stack: Stack, job_id: str, *names: str) -> None:
    for name in names:
        with stack.database.write() as session:
            jobs.add_unit(session, job_id, name, "gpu")
    with stack.database.write() as session:
        jobs.move(session, job_id, "queued", "Queued", only_from="validating_files")


def test_the_next_shard_of_the_round_follows(sqlite_stack: Stack) -> None:
    ready(sqlite_stack, sqlite_stack.post_job(), *(f"round-1/generate-0000{shard}" for shard in range(3)))
    first = claim(sqlite_stack)
    assert after(sqlite_stack, first) == "round-1/generate-00001"
    assert after(sqlite_stack, first) == "round-1/generate-00002"
    assert after(sqlite_stack, first) is None


def test_another_job_that_has_waited_longer_comes_first(sqlite_stack: Stack) -> None:
    mine, other = sqlite_stack.post_job(), sqlite_stack.post_job()
    ready(sqlite_stack, mine, "round-1/generate-00000")
    ready(sqlite_stack, other, "propagate")
    ready(sqlite_stack, mine, "round-1/generate-00001")
    first = claim(sqlite_stack)
    assert after(sqlite_stack, first) is None
    assert claim(sqlite_stack).job_id == other
    assert after(sqlite_stack, first) == "round-1/generate-00001"


def test_what_is_no_shard_of_the_round_or_was_tried_before_gets_its_own_process(sqlite_stack: Stack) -> None:
    shards = ("round-1/generate-00000", "round-1/generate-00001", "round-2/generate-00000")
    ready(sqlite_stack, sqlite_stack.post_job(), "propagate", *shards)
    assert after(sqlite_stack, claim(sqlite_stack)) is None  # after `propagate`
    first = claim(sqlite_stack)
    with sqlite_stack.database.write() as session:
        session.execute(update(Unit).where(Unit.name == "round-1/generate-00001").values(attempts=1))
    assert after(sqlite_stack, first) is None
    assert claim(sqlite_stack).name == "round-1/generate-00001"
    assert after(sqlite_stack, first) is None  # the next round's
