"""Leases: nobody works twice, nobody writes late, nothing is forgotten."""

import threading
from dataclasses import replace

import pytest
from sqlalchemy import select, update

from store import jobs, units
from store.database import Database, now
from store.models import Job, JobEvent, Unit
from store.states import FINAL, JOB_MOVES, sources
from tests.store.conftest import JOB

KINDS = ("gpu", "cpu")


def add_units(database: Database, count: int) -> None:
    with database.write() as session:
        for number in range(count):
            jobs.add_unit(session, JOB, f"unit-{number}", "gpu")


def take(
    database: Database, worker: str = "w", kinds: tuple[str, ...] = KINDS, lease: float = 60
) -> units.Claim | None:
    with database.write() as session:
        return units.claim(session, worker, kinds, lease)


def test_no_unit_is_claimed_twice(database: Database) -> None:
    add_units(database, 120)
    claimed: list[str] = []

    def work(name: str) -> None:
        while claim := take(database, name):
            claimed.append(claim.name)
            with database.write() as session:
                assert units.finish(session, claim)

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(f"unit-{number}" for number in range(120))


def test_the_oldest_ready_unit_comes_first_and_only_of_the_kinds_asked_for(database: Database) -> None:
    with database.write() as session:
        jobs.add_unit(session, JOB, "first", "cpu")
    with database.write() as session:
        jobs.add_unit(session, JOB, "second", "gpu")
    only = take(database, kinds=("gpu",))
    rest = take(database)
    assert only is not None
    assert rest is not None
    assert (only.name, rest.name) == ("second", "first")
    assert take(database) is None


def test_a_stale_token_changes_nothing(database: Database) -> None:
    add_units(database, 1)
    claim = take(database)
    assert claim is not None
    stale = replace(claim, token="0" * 32)
    with database.write() as session:
        assert not units.hold(session, stale)
        assert units.renew(session, stale, 60, done=5) is None
        assert not any(leave(session, stale) for leave in (units.finish, units.fail, units.cancel, units.release))
    with database.read() as session:
        assert session.get_one(Unit, claim.unit_id).state == "running"


def test_a_lease_that_ended_is_nobody_s_and_the_unit_ready_again(database: Database) -> None:
    add_units(database, 1)
    claim = take(database)
    assert claim is not None
    with database.write() as session:
        session.execute(update(Unit).values(lease_until=now() - 1))
    with database.write() as session:
        assert units.renew(session, claim, 60) is None
        assert not units.finish(session, claim)
        assert units.expire(session) == [(claim.unit_id, JOB, 1)]
        assert units.expire(session) == []
    again = take(database)
    assert again is not None
    assert (again.unit_id, again.attempt) == (claim.unit_id, 2)
    with database.write() as session:
        assert not units.finish(session, claim)


def test_renewing_tells_what_became_of_the_job(database: Database) -> None:
    add_units(database, 1)
    claim = take(database)
    assert claim is not None
    with database.write() as session:
        assert units.renew(session, claim, 60, stage="base", done=3, total=9) == "validating_files"
        assert jobs.move(session, JOB, "cancelled", "Cancelled")
        assert units.renew(session, claim, 60) == "cancelled"
    with database.read() as session:
        unit = session.get_one(Unit, claim.unit_id)
        assert (unit.stage, unit.done, unit.total) == ("base", 3, 9)


def test_units_of_paused_jobs_wait(database: Database) -> None:
    add_units(database, 1)
    with database.write() as session:
        assert jobs.pause(session, JOB)
        assert not jobs.pause(session, JOB)
        assert units.unheard(session, 0) == []
    assert take(database) is None
    with database.write() as session:
        assert jobs.resume(session, JOB)
        assert not jobs.resume(session, JOB)
        assert session.get_one(Job, JOB).status == "validating_files"
        assert len(units.unheard(session, 60)) == 1
        assert units.unheard(session, 60) == []
    assert take(database) is not None


@pytest.mark.parametrize("end", FINAL)
def test_the_first_end_wins_and_closes_open_units(database: Database, end: str) -> None:
    add_units(database, 2)
    with database.write() as session:
        assert jobs.move(session, JOB, end, "Over")  # type: ignore[arg-type]
        assert not any(jobs.move(session, JOB, target, "Again") for target in JOB_MOVES)
    with database.read() as session:
        assert set(session.scalars(select(Unit.state))) == {"cancelled"}
        events = session.scalars(select(JobEvent)).all()
        assert [(event.number, (event.data or {})["status"]) for event in events] == [(1, end)]
        assert session.get_one(Job, JOB).finished_at is not None


def test_only_one_of_many_racing_ends_wins(database: Database) -> None:
    won: list[str] = []

    def end(target: str) -> None:
        with database.write() as session:
            if jobs.move(session, JOB, target, target):  # type: ignore[arg-type]
                won.append(target)

    threads = [threading.Thread(target=end, args=(FINAL[number % 3],)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert won == [session.get_one(Job, JOB).status]
        assert len(session.scalars(select(JobEvent)).all()) == 1


def test_moves_are_what_the_table_says() -> None:
    assert set(FINAL) == {"succeeded", "failed", "cancelled"}
    assert set(sources("running")) == {"queued", "paused"}
    assert not set(sources("cancelled")) & set(FINAL)
