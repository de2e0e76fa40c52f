"""How long a job takes from its posting to the first token that a model writes for it, with warm caches.

    python -m benchmarks.first_token [--rounds N]

API, worker and SQLite as real processes, the demo's model. The first to write is the base model, whose accuracy is
measured before anything is trained; few rows are always answered by transformers. With vLLM, also the time from the
moment that the generation is taken to its first rows, beside a bare start of the same engine. All of it is seen from
outside, by what the worker reports, at most a second and a half after it happened.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import select

from benchmarks.service_rig import seconds_of, verdict
from semievol.backends.chat import Chat
from semievol.backends.vllm import is_installed, open_vllm
from semievol.recipe import Recipe
from store.database import Database
from store.models import Unit
from tests.deployments import BASE, JOBS, Deployment, input_files, one_machine
from tests.servers import wait_for

MOST_SECONDS, MOST_BESIDE_START = 15.0, 5.0
ROWS = 800
"""Unlabeled ones and as many to test on, as in the demo."""


def first_of(database: Database, job_id: str, unit: str) -> Unit:
    """The unit once it has answered a row."""

    def look() -> Unit | None:
        with database.read() as session:
            query = select(Unit).where(Unit.job_id == job_id, Unit.name == unit, Unit.done > 0)
            return session.scalars(query).first()

    found = wait_for(look, f"rows of {unit}")
    assert found is not None
    return found


def posted(deployment: Deployment, database: Database, name: str, engine: str) -> tuple[float, float]:
    """Seconds from a job's posting to the base model's first tokens, and from the generation's start to its own."""
    begun = time.monotonic()
    recipe: dict[str, Any] = {"engine": {"name": engine}, "generation": {"shard_size": ROWS, "answers": "sampled"}}
    job_id = deployment.post_job(name, recipe=recipe)
    first_of(database, job_id, "propagate")
    first = time.monotonic() - begun
    shard = first_of(database, job_id, "round-1/generate-00000")
    generating = time.time() - (shard.started_at or 0.0)
    deployment.post(f"{JOBS}/{job_id}/cancel")
    wait_for(lambda: not _working(database), "an idle worker")
    return first, generating


def _working(database: Database) -> bool:
    with database.read() as session:
        return session.scalars(select(Unit.id).where(Unit.state == "running")).first() is not None


def bare_start() -> float:
    """Seconds that vLLM takes to load the demo's model."""
    recipe, model = Recipe(), str(BASE)

    def load() -> None:
        with open_vllm(model, recipe.model, recipe.engine, Chat.load(model, None), None) as engine:
            engine.load()

    return seconds_of(load)


def median_of(rounds: int, ask: Callable[[int], tuple[float, ...]]) -> list[float]:
    """The median of each of the figures."""
    return [statistics.median(values) for values in zip(*(ask(number) for number in range(rounds)), strict=True)]


def main(rounds: int) -> bool:
    """Measure both engines; whether the bars are met."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        input_files(folder / "in", ROWS, ROWS)
        with (
            one_machine(folder) as deployment,
            closing(Database(deployment.environment["SEMIEVOL_DATABASE_URL"])) as seen,
        ):
            posted(deployment, seen, "warm", "huggingface")
            [first, generating] = median_of(
                rounds, lambda number: posted(deployment, seen, f"h{number}", "huggingface")
            )
            print(f"transformers, medians of {rounds}: generation taken to its first rows {generating:.1f} s")
            met = verdict("job posted to first token, transformers", first, "s", most=MOST_SECONDS)
            if not is_installed():
                print("  vLLM is not installed here, so it was not measured")
                return met
            [first, generating, start] = median_of(
                rounds, lambda number: (*posted(deployment, seen, f"v{number}", "vllm"), bare_start())
            )
        print(f"vLLM, medians of {rounds} alternating rounds: a bare start {start:.1f} s")
        met = verdict("job posted to first token, vLLM", first, "s", most=start + MOST_BESIDE_START) and met
        return (
            verdict("generation taken to its first rows, vLLM", generating, "s", most=start + MOST_BESIDE_START) and met
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    sys.exit(not main(parser.parse_args().rounds))
