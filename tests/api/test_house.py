"""Workers, the queue, a project's usage and the recipe's settings, and jobs found by status and by part of a text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from semievol.recipe import PAPER, Recipe
from store.database import now
from store.models import Job, Project, Unit, Worker
from store.settings import Settings
from tests.api import rows
from tests.api.service import PROJECT, Service, make_settings, open_service
from tests.api.test_files import error_of
from tests.servers import postgres

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "sqlite":
        return make_settings(tmp_path)
    return make_settings(tmp_path, database_url=request.getfixturevalue("postgres_url"))


@pytest.fixture
def empty(service: Service) -> Service:
    """Without what other tests left in the same database."""
    with service.database.write() as session:
        for table in (Unit, Worker):
            session.execute(delete(table))
    return service


def add_worker(service: Service, identity: str, **values: Any) -> None:
    with service.database.write() as session:
        session.add(Worker(id=identity, **({"kinds": ["gpu", "cpu"]} | values)))


# --- workers ----------------------------------------------------------------------------------------------------------


def test_workers_tell_what_they_are_at(empty: Service) -> None:
    job_id = rows.create(empty)
    rows.start_job(empty, job_id)
    values: dict[str, Any] = {
        "state": "running",
        "worker_id": "a:1:0",
        "stage": "round-1/generate-00000",
        "done": 3,
        "total": 9,
    }
    unit_id = rows.set_unit(empty, job_id, "round-1/generate-00000", started_at=1000.0, **values)
    add_worker(empty, "a:1:0", started_at=50.0, unit_id=unit_id, memory_bytes=2**31, gpu_memory_bytes=2**35)
    add_worker(empty, "b:1:0", started_at=100.0, seen_at=200.0, kinds=["cpu"])
    add_worker(empty, "c:1:0", started_at=20.0, unit_id=unit_id)  # it has lost the unit to the first
    told = empty.client.get("/v1/workers").json()
    assert (told["object"], told["has_more"]) == ("list", False)
    assert (told["first_id"], told["last_id"]) == ("b:1:0", "c:1:0")
    idle, busy, late = told["data"]
    assert idle == {
        "id": "b:1:0",
        "object": "worker",
        "kinds": ["cpu"],
        "started_at": 100,
        "seen_at": 200,
        "alive": False,
        "memory_bytes": None,
        "gpu_memory_bytes": None,
        "work": None,
    }
    assert (busy["alive"], busy["kinds"]) == (True, ["gpu", "cpu"])
    assert (busy["memory_bytes"], busy["gpu_memory_bytes"]) == (2**31, 2**35)
    assert busy["work"] == {
        "job_id": job_id,
        "unit": "round-1/generate-00000",
        "stage": "round-1/generate-00000",
        "done": 3,
        "total": 9,
        "since": 1000,
    }
    assert late["work"] is None


def test_workers_are_the_admins_to_see(empty: Service) -> None:
    assert error_of(empty.user.get("/v1/workers"), 403)["code"] == "not_admin"
    assert empty.client.get("/v1/workers").json()["data"] == []


# --- the queue --------------------------------------------------------------------------------------------------------


def test_the_queue_tells_what_runs_and_what_waits_longest(empty: Service) -> None:
    job_id = rows.create(empty)
    rows.start_job(empty, job_id)
    with empty.database.read() as session:
        at = session.connection().scalar(now().select()) or 0.0
    rows.set_unit(empty, job_id, "late", state="ready", ready_at=at - 10)
    rows.set_unit(empty, job_id, "early", "cpu", state="ready", ready_at=at - 500)
    rows.set_unit(empty, job_id, "runs", state="running", ready_at=at - 900, started_at=at - 20, worker_id="a:1:0")
    rows.set_unit(empty, job_id, "waits", state="waiting", ready_at=at - 9000)
    rows.set_unit(empty, job_id, "resting", "cpu", state="ready", ready_at=at + 1000)
    told = empty.client.get("/v1/queue").json()
    assert told["object"] == "queue"
    assert told["ready"] == {"cpu": 2, "gpu": 1}
    assert told["running"] == {"cpu": 0, "gpu": 1}
    assert 500 <= told["oldest_ready_seconds"] < 560
    assert [unit["unit"] for unit in told["units"]] == ["runs", "early", "late", "resting"]
    assert told["units"][0] == {
        "job_id": job_id,
        "unit": "runs",
        "kind": "gpu",
        "state": "running",
        "since": int(at - 20),
        "worker": "a:1:0",
    }
    assert told["units"][1]["since"] == int(at - 500)
    assert told["units"][1]["worker"] is None


def test_an_empty_queue_has_no_age(empty: Service) -> None:
    told = empty.client.get("/v1/queue").json()
    none = {"cpu": 0, "gpu": 0}
    assert told == {"object": "queue", "ready": none, "running": none, "oldest_ready_seconds": None, "units": []}


def test_ready_units_of_paused_jobs_wait_for_a_person(empty: Service) -> None:
    job_id = rows.create(empty)
    rows.set_unit(empty, job_id, "stops", state="running", started_at=1.0)
    assert empty.client.post(f"{JOBS}/{job_id}/pause").status_code == 200
    told = empty.client.get("/v1/queue").json()
    assert (told["ready"]["cpu"], told["running"]["gpu"]) == (0, 1)
    assert [unit["unit"] for unit in told["units"]] == ["stops"]


def test_the_queue_of_all_projects_is_the_admins(empty: Service) -> None:
    job_id = rows.create(empty)
    with empty.database.write() as session:
        session.merge(Project(id="third"))
        session.flush()
        session.get_one(Job, job_id).project_id = "third"
    mine = rows.create(empty)
    assert {unit["job_id"] for unit in empty.other.get("/v1/queue").json()["units"]} == {job_id, mine}
    told = empty.user.get("/v1/queue").json()
    assert [unit["job_id"] for unit in told["units"]] == [mine]
    assert told["ready"] == {"cpu": 1, "gpu": 0}


def test_the_queue_shows_a_hundred_units_and_counts_all(empty: Service) -> None:
    job_id = rows.create(empty)
    with empty.database.write() as session:
        for number in range(150):
            unit = Unit(
                id=f"u{number}", job_id=job_id, name=f"round-1/generate-{number:05d}", kind="gpu", state="ready"
            )
            session.add(unit)
    told = empty.client.get("/v1/queue").json()
    assert (len(told["units"]), told["ready"]["gpu"]) == (100, 150)


# --- usage ------------------------------------------------------------------------------------------------------------


def test_usage_is_what_the_limits_count(tmp_path: Path) -> None:
    with open_service(make_settings(tmp_path, max_active_jobs=7, requests_per_minute=90)) as service:
        before = service.user.get("/v1/usage").json()
        assert before == {
            "object": "usage",
            "project": PROJECT,
            "active_jobs": {"used": 0, "limit": 7},
            "bytes": {"used": 0, "limit": service.settings.max_project_bytes},
            "requests_per_minute": 90,
        }
        rows.create(service)
        over = rows.create(service)
        rows.finish_job(service, over, "cancelled")
        with service.database.write() as session:
            session.get_one(Project, PROJECT).max_bytes = 5000
        told = service.user.get("/v1/usage").json()
        assert told["active_jobs"] == {"used": 1, "limit": 7}
        assert told["bytes"] == {"used": 2 * len(rows.LABELED) + 2 * len(rows.UNLABELED), "limit": 5000}
        assert service.other.get("/v1/usage").json()["bytes"]["used"] == 0


def test_any_number_of_requests_is_no_limit(service: Service) -> None:
    assert service.user.get("/v1/usage").json()["requests_per_minute"] is None


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_the_recipe_tells_every_setting_with_meaning_and_default(tmp_path: Path) -> None:
    with open_service(make_settings(tmp_path)) as service:
        told = service.user.get("/v1/recipe").json()
    assert (told["object"], told["presets"]) == ("recipe", ["default", "paper"])
    assert PAPER["preset"] in told["presets"]
    schema = told["schema"]
    found = dict(settings_of(schema, schema))
    assert found.keys() == Recipe().flat().keys()
    for name, setting in found.items():
        assert setting["description"], name
        wanted = Recipe().flat()[name]
        assert setting["default"] == (list(wanted) if isinstance(wanted, tuple) else wanted), name
    assert found["selection.theta"]["exclusiveMinimum"] == 0
    assert found["generation.answers"]["enum"] == ["auto", "sampled", "scored"]


def settings_of(schema: dict[str, Any], part: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every setting under its dotted name."""
    for name, setting in part["properties"].items():
        if "$ref" in setting:
            group = schema["$defs"][setting["$ref"].rpartition("/")[2]]
            yield from settings_of(schema, group, f"{prefix}{name}.")
        else:
            yield prefix + name, setting


# --- jobs, found ------------------------------------------------------------------------------------------------------


def found(service: Service, **query: Any) -> list[str]:
    answer = service.user.get(JOBS, params=query)
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["data"]]


def test_jobs_are_found_by_status(service: Service) -> None:
    waits, runs, over = (rows.create(service) for _ in range(3))
    rows.start_job(service, runs)
    rows.finish_job(service, over, "cancelled")
    mine = {waits, runs, over}
    assert mine & set(found(service, status="running")) == {runs}
    assert mine & set(found(service, status=["running", "cancelled"])) == {runs, over}
    both = found(service, status=["running", "cancelled"], limit=100)
    assert both.index(over) < both.index(runs)
    assert found(service, status=["running", "cancelled"], after=over, limit=1) == [runs]
    assert error_of(service.user.get(JOBS, params={"status": "done"}), 422)["param"] == "status.0"


def test_jobs_are_found_by_part_of_a_text(service: Service) -> None:
    plain = rows.create(service)
    named = rows.create(service, suffix="Tickets_2026", metadata={"team": "100% Search", "n": "7"})
    rows.set_job(service, plain, model="Qwen3-8B")
    mine = {plain, named}

    def matches(part: str, **query: Any) -> set[str]:
        return mine & set(found(service, q=part, **query))

    assert matches(named[10:20]) == {named}
    assert matches("tickets_") == {named}
    assert matches("qwen3") == {plain}
    assert matches("0% sea") == {named}
    assert matches("search", status="validating_files") == {named}
    assert matches("search", status="running") == set()
    assert matches("search", **{"metadata[n]": "7"}) == {named}
    assert matches("search", **{"metadata[n]": "8"}) == set()
    assert matches("") == mine
    for nothing in ("%", "_2027", "tickets%2026", "ticketsX2026", "team", "\\", "/", "'", '"'):
        assert named not in matches(nothing) or nothing == "%", nothing
    assert plain not in matches("%")
    assert named in matches("%")  # as a letter of the metadata
    assert error_of(service.user.get(JOBS, params={"q": "x" * 201}), 422)["param"] == "q"
