"""`GET /v1/fine_tuning/jobs/{id}` on PostgreSQL against a bare FastAPI route that returns a constant of the same size.

The table holds 100,000 jobs, each with 8 units and 12 stages; every request asks for another job. The bar is
against a route that is `async def` and returns the object that the service answers. The same as a plain `def`, which
FastAPI runs in a thread, as it does nearly all routes of the service, is there for comparison.
"""

import json
import os
import tempfile
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from sqlalchemy import Connection, text

from benchmarks.service_rig import (
    PROJECT,
    ROUNDS,
    Client,
    alternate,
    requests_per_second,
    service,
    uvicorn,
    verdict,
)
from semievol.recipe import Recipe
from store.database import Database
from tests.servers import postgres

LEAST_RATE = 0.5
CLIENTS = (1, 8)
_INPUT = {"file": "file-0123456789abcdef01234567", "filename": "rows.jsonl", "sha256": "0" * 64, "bytes": 123456}
_UNITS = (
    ("prepare", "done"),
    ("propagate", "done"),
    ("round-1/propagate", "done"),
    ("round-1/generate-00000", "done"),
    ("round-1/generate-00001", "done"),
    ("round-1/generate-00002", "done"),
    ("round-1/select", "done"),
    ("round-1/train", "running"),
)
_FACTS: dict[str, Any] = {"rows": 800, "steps": 120, "tokens": 51234, "truncated_rows": 0}
_STAGES = (
    ("prepare", "prepare", {"rows": 800, "held_out": 3, "pool": 800}),
    ("warm-up", "propagate", _FACTS),
    ("base-accuracy", "propagate", {"accuracy": {"value": 0.136, "low": 0.11, "high": 0.16}}),
    ("warm-up-accuracy", "propagate", {"accuracy": {"value": 0.575, "low": 0.54, "high": 0.61}}),
    ("index", "propagate", {"retriever": "all-MiniLM-L6-v2", "rows": 32}),
    ("round-1/propagate", "round-1/propagate", {"rows": 800}),
    ("round-1/generate-00000", "round-1/generate-00000", {"rows": 300}),
    ("round-1/generate-00001", "round-1/generate-00001", {"rows": 300}),
    ("round-1/generate-00002", "round-1/generate-00002", {"rows": 200}),
    ("round-1/vote", "round-1/select", {"outcomes": {"consistent": 512, "justified": 201, "unparsed": 87}}),
    ("round-1/select", "round-1/select", {"decisions": {"accept": 400, "reject": 400}, "reasons": {"entropy": 400}}),
    ("round-1/train", "round-1/train", _FACTS),
)
_EVENTS = 60


def bare() -> FastAPI:
    """The peer."""
    made = FastAPI()
    body = Path(os.environ["BARE_BODY"]).read_text(encoding="utf-8")
    constant: dict[str, Any] = json.loads(body)

    @made.get("/v1/fine_tuning/jobs/{job_id}")
    async def job(job_id: str) -> dict[str, Any]:
        return constant

    @made.get("/in_a_thread/{job_id}")
    def threaded(job_id: str) -> dict[str, Any]:
        return constant

    return made


def job_id(number: int) -> str:
    """Of the job of that number, as SQL makes it below."""
    return f"ftjob-{number:024x}"


def fill(connection: Connection, jobs: int, step: int) -> None:
    """Jobs with their units and stages; events only of every `step`-th, which are those that are asked for."""
    connection.execute(text("SET session_replication_role = replica"))  # no check of each foreign key
    numbered = f"'ftjob-' || lpad(to_hex(n), 24, '0') FROM generate_series(1, {jobs}) n"
    given = {
        "project": PROJECT,
        "recipe": json.dumps(Recipe().model_dump(mode="json")),
        "inputs": json.dumps(dict.fromkeys(("labeled", "unlabeled", "test"), _INPUT)),
        "asked": json.dumps({"hyperparameters": {"n_epochs": "auto"}, "method": {"type": "semievol"}}),
        "metadata": json.dumps({"team": "support", "run": "nightly"}),
    }
    connection.execute(
        text(
            "INSERT INTO jobs (project_id, created_by, method, model, model_source, recipe, seed, inputs, asked, "
            "metadata, review, status, event_count, created_at, started_at, id) SELECT :project, 'benchmark', "
            "'semievol', 'tiny', '{}', :recipe, 1, :inputs, :asked, :metadata, false, 'running', "
            f"{_EVENTS}, 1.7e9 + n, 1.7e9 + n, {numbered}"
        ),
        given,
    )
    for place, (name, state) in enumerate(_UNITS):
        connection.execute(
            text(
                "INSERT INTO units (name, kind, state, ready_at, attempts, lost, failed, done, total, started_at, "
                f"finished_at, id, job_id) SELECT :name, 'gpu', :state, {place}, 1, 0, 0, 40, 120, 1.7e9, "
                f":finished_at, 'unit_{place}_' || n, {numbered}"
            ),
            {"name": name, "state": state, "finished_at": 1.7e9 + 60 if state == "done" else None},
        )
    places = {name: place for place, (name, _) in enumerate(_UNITS)}
    for number, (name, unit, facts) in enumerate(_STAGES):
        connection.execute(
            text(
                "INSERT INTO stages (name, unit_id, number, seconds, facts, files, committed_at, job_id) SELECT :name, "
                f"'unit_{places[unit]}_' || n, {number}, 12.5, :facts, :files, 1.7e9 + 60, {numbered}"
            ),
            {
                "name": name,
                "facts": json.dumps(facts),
                "files": json.dumps({f"{name}/rows.jsonl": {"bytes": 1234, "sha256": "0" * 64}}),
            },
        )
    connection.execute(
        text(
            "INSERT INTO job_events (number, created_at, level, type, message, job_id) SELECT event, 1.7e9 + event, "
            "'info', 'message', 'Step ' || event || ' of 60: loss 0.1234', 'ftjob-' || lpad(to_hex(n), 24, '0') "
            f"FROM generate_series(1, {jobs}, {step}) n, generate_series(1, {_EVENTS}) event"
        )
    )
    connection.execute(text("SET session_replication_role = DEFAULT"))


def measure(port: int, bare_port: int, key: str, jobs: int, clients: int, asked: int, rounds: int) -> bool:
    """Requests per second of the peers with so many clients."""
    ids = [job_id(1 + place * (jobs // asked)) for place in range(asked)]
    paths, threaded_paths = ([f"{under}/{name}" for name in ids] for under in ("/v1/fine_tuning/jobs", "/in_a_thread"))
    medians = alternate(
        {
            "service": partial(requests_per_second, port, paths, key, clients),
            "bare": partial(requests_per_second, bare_port, paths, key, clients),
            "bare, in a thread": partial(requests_per_second, bare_port, threaded_paths, key, clients),
        },
        rounds,
    )
    print(f"{clients} clients, {asked} requests, medians of {rounds} alternating rounds")
    for name, found in medians.items():
        print(f"  {name:20s} {found:8.1f} requests/s")
    print(f"  service / bare, in a thread: {medians['service'] / medians['bare, in a thread']:.2f}")
    return verdict("service / bare", medians["service"] / medians["bare"], "", least=LEAST_RATE)


def main(jobs: int = 100_000, asked: int = 400, rounds: int = 2 * ROUNDS) -> bool:
    """Fill the table, and measure; whether both bars are met."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        url = stack.enter_context(postgres())
        process, key = stack.enter_context(service(folder, url))
        with closing(Database(url)) as database:
            with database.engine.begin() as connection:
                fill(connection, jobs, jobs // asked)
            with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM ANALYZE"))
        with closing(Client(process.port)) as client:
            body = client.get(f"/v1/fine_tuning/jobs/{job_id(1)}", key)
        shown = json.loads(body)["semievol"]["stages"]
        print(f"{jobs:,} jobs; an answer has {len(body)} bytes and {len(shown)} lines of stages", flush=True)
        constant = folder / "body.json"
        constant.write_bytes(body)
        peer = stack.enter_context(uvicorn("benchmarks.service_job:bare", folder, BARE_BODY=str(constant)))
        met = [measure(process.port, peer.port, key, jobs, clients, asked, rounds) for clients in CLIENTS]
        return all(met)
