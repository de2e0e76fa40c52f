"""Shards are the unit of work: who takes them, and how many there are to take them, changes no byte."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol import stages
from semievol.backends.local import LocalBackend
from semievol.fakes import FakeObserver
from semievol.pipeline import Job
from semievol.recipe import Recipe
from semievol.workdir import Workdir, sha256_of

BASE = str(Path(__file__).parent.parent / "demo" / "base")
SHARDS = 6


def job_of(folder: Path, answers: str) -> Job:
    recipe = Recipe.resolve(
        {
            "model": {"device": "cpu"},
            "generation": {"shard_size": 16, "max_new_tokens": 12, "answers": answers, "n": 3},
            "warmup": {"steps": 4, "learning_rate": 1e-3},
        }
    )
    return Job(BASE, folder / "labeled.jsonl", folder / "unlabeled.jsonl", recipe, 3, test=folder / "test.jsonl")


def answer_shards(data: Path, output: Path, answers: str, shards: list[int]) -> None:
    """What one worker does: open the prepared job and answer some of its shards, in its own process."""
    torch.set_num_threads(1)
    job = job_of(data, answers)
    backend = LocalBackend(BASE, job.recipe)
    work = Workdir(output, job.identity(), FakeObserver())
    prepared = stages.Prepared.of(work.stage("prepare", stages.prepare(job)))
    sft = work.stage("warm-up", stages.warm_up(prepared, backend, job))
    near = work.stage("neighbours", stages.find_neighbours(prepared, backend, prepared.unlabeled, job))
    with stages.open_lazily(backend, sft) as generator:
        for shard in shards:
            step = stages.generate_shard(prepared, generator, prepared.unlabeled, near, shard, 1, job)
            work.stage(f"generate-{shard}", step)


@pytest.mark.parametrize("answers", ["sampled", "scored"])
def test_the_number_of_workers_changes_no_byte(tmp_path: Path, answers: str) -> None:
    data = tmp_path / "data"
    write(data, HELPDESK, draw(HELPDESK, 78, 16, 16 * SHARDS, 8))
    answer_shards(data, tmp_path / "one", answers, list(range(SHARDS)))
    answer_shards(data, tmp_path / "three", answers, [])  # prepared once, before workers start
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = [[4, 0], [5, 3], [1, 2]]
        for done in [pool.submit(answer_shards, data, tmp_path / "three", answers, part) for part in parts]:
            done.result()
    for shard in range(SHARDS):
        one, three = (
            sha256_of(tmp_path / name / "stages" / f"generate-{shard}" / stages.ANSWERS) for name in ("one", "three")
        )
        assert one == three, f"shard {shard} differs"
