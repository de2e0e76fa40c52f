"""Shards are the unit of work: who takes them changes no byte, and how rows fall into them changes no token."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol import stages
from semievol.agreement import Trial
from semievol.backends.local import LocalBackend
from semievol.fakes import FakeObserver
from semievol.pipeline import Job
from semievol.recipe import Recipe
from semievol.seeds import seed_of
from semievol.tables import answered_of, read_examples, read_rows
from semievol.workdir import Workdir, sha256_of

pytestmark = pytest.mark.slow
BASE = str(Path(__file__).parent.parent / "demo" / "base")
SHARDS = 6


def job_of(folder: Path, answers: str, shard_size: int = 16) -> Job:
    recipe = Recipe.resolve(
        {
            "model": {"device": "cpu"},
            "generation": {"shard_size": shard_size, "max_new_tokens": 12, "answers": answers, "n": 3},
            "warmup": {"steps": 4, "learning_rate": 1e-3},
        }
    )
    return Job(BASE, folder / "labeled.jsonl", folder / "unlabeled.jsonl", recipe, 3, test=folder / "test.jsonl")


def answer_shards(data: Path, output: Path, answers: str, shards: list[int], shard_size: int = 16) -> None:
    """What one worker does: open the prepared job and answer some of its shards, in its own process."""
    torch.set_num_threads(1)
    job = job_of(data, answers, shard_size)
    backend = LocalBackend(BASE, job.recipe)
    work = Workdir(output, job.identity(), FakeObserver())
    stage = work.stage("prepare", stages.prepare(job))
    prepared, pending = stages.Prepared.of(stage), stages.Pending.of(stage, job.recipe)
    sft = work.stage("warm-up", stages.warm_up(prepared, backend, pending, job))
    near = work.stage("neighbours", stages.find_neighbours(prepared, backend, pending, job))
    labeled = read_examples(prepared.train)
    with stages.open_lazily(backend, sft, prepared.facts["rows"]["unlabeled"]) as generator:
        for shard in shards:
            step = stages.generate_shard(
                prepared, lambda: labeled, generator, pending, near, job, shard=shard, round_number=1
            )
            work.stage(f"generate-{shard}", step)


@pytest.mark.long
@pytest.mark.parametrize("answers", ["sampled", "scored"])
def test_the_number_of_workers_changes_no_byte(tmp_path: Path, answers: str) -> None:
    data = tmp_path / "data"
    write(data, HELPDESK, draw(HELPDESK, 78, 16, 16 * SHARDS, 8))
    answer_shards(data, tmp_path / "one", answers, list(range(SHARDS)))
    answer_shards(data, tmp_path / "three", answers, [])  # prepared once, before workers start
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(3, mp_context=processes) as pool:
        parts = [[4, 0], [5, 3], [1, 2]]
        for done in [pool.submit(answer_shards, data, tmp_path / "three", answers, part) for part in parts]:
            done.result()
    for shard in range(SHARDS):
        one, three = (
            sha256_of(tmp_path / name / "stages" / f"generate-{shard}" / stages.ANSWERS) for name in ("one", "three")
        )
        assert one == three, f"shard {shard} differs"


@pytest.mark.long
def test_row_order_and_shard_size_change_no_sampled_token(tmp_path: Path) -> None:
    plain, shuffled = tmp_path / "plain", tmp_path / "shuffled"
    for folder in (plain, shuffled):
        write(folder, HELPDESK, draw(HELPDESK, 80, 16, 16 * SHARDS, 8))
    lines = (shuffled / "unlabeled.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    lines.sort(key=lambda line: seed_of("shuffle", line))
    (shuffled / "unlabeled.jsonl").write_text("".join(lines), encoding="utf-8")
    answer_shards(plain, tmp_path / "one", "sampled", list(range(SHARDS)))
    answer_shards(shuffled, tmp_path / "other", "sampled", [0, 1, 2], shard_size=40)
    one, other = trials_of(tmp_path / "one"), trials_of(tmp_path / "other")
    assert one.keys() == other.keys()
    for row, trials in one.items():
        assert [trial.reply for trial in trials] == [trial.reply for trial in other[row]]
        assert [trial.seed for trial in trials] == [trial.seed for trial in other[row]]
        for trial, same in zip(trials, other[row], strict=True):
            assert trial.logprobs == pytest.approx(same.logprobs, abs=1e-4)


def trials_of(output: Path) -> dict[str, tuple[Trial, ...]]:
    """Every row's trials and its justification."""
    found = {}
    for file in sorted(output.glob(f"stages/generate-*/{stages.ANSWERS}")):
        for answered in map(answered_of, read_rows(file)):
            justification = (answered.justification,) if answered.justification else ()
            found[answered.row.id] = (*answered.trials, *justification)
    return found
