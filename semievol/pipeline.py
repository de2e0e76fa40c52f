"""The loop: its stages in order. What each stage does is in `stages.py` and `outcome.py`.

`plan` yields the stages that may run now and is sent what they left behind, so the same text drives one machine (`run`,
over a folder that remembers what is done) and many workers that each take a part.
"""

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from semievol import outcome, publication, stages
from semievol.errors import DataError, RecipeError
from semievol.estimates.estimate import Estimator
from semievol.ports import Backend, Observer
from semievol.recipe import Recipe
from semievol.tables import read_examples
from semievol.workdir import Stage, StageWork, Workdir, sha256_of


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked for: a base model, files, a recipe and a seed. Without an unlabeled file it is plain fine-tuning.

    `review`: a person looks at the pseudo-labels before they are trained on; what they changed is in `reviewed`.
    `estimator`: what says, once the files are read, what the job will take.
    """

    model: str
    labeled: Path
    unlabeled: Path | None
    recipe: Recipe
    seed: int = 0
    validation: Path | None = None
    test: Path | None = None
    review: bool = False
    reviewed: Path | None = None
    estimator: Estimator | None = None

    def files(self) -> dict[str, Path]:
        """The given files by role. Raises DataError, naming the file, if one is not there."""
        roles = {
            "labeled": self.labeled,
            "unlabeled": self.unlabeled,
            "validation": self.validation,
            "test": self.test,
        }
        return {role: stages.existing(path) for role, path in roles.items() if path is not None}

    def identity(self) -> dict[str, Any]:
        """What must be equal for an output folder to be gone on with."""
        digests = {f"{role} file (SHA-256)": sha256_of(path) for role, path in self.files().items()}
        return {"model": self.model, "seed": self.seed, **digests, **self.recipe.flat()}


@dataclass(frozen=True, slots=True)
class Step:
    """A stage that may run now.

    `unit`: steps of the same unit belong into one process, one after the other. `needs`: the stages whose files it
    reads, all that a worker has to fetch.
    """

    name: str
    unit: str
    work: StageWork
    needs: Sequence[Stage] = ()
    gpu: bool = field(default=True, kw_only=True)


def base_model_identity(model: str) -> dict[str, str]:
    """What a model folder holds, as its files may change under the same name; nothing for a hub model."""
    files = [path for path in sorted(Path(model).glob("*")) if path.suffix in {".safetensors", ".json", ".jinja"}]
    digests = "\n".join(f"{path.name} {sha256_of(path)}" for path in files)
    return {"base model (SHA-256)": hashlib.sha256(digests.encode()).hexdigest()} if files else {}


Plan = Generator[list[Step], list[Stage], Stage]
"""Yields steps that may run in any order or at once; takes their stages, in the same order; returns the last stage."""


def run(job: Job, backend: Backend, output: Path, observer: Observer) -> dict[str, Any]:
    """Run the job in `output` and return its report (what `report.json` holds).

    Raises SemiEvolError; files and settings that do not fit leave no folder behind. Beside the stages, `output` then
    holds `adapter/`, `pseudo_labels.parquet`, `report.json` and `report.html`.
    """
    work = Workdir(output, job.identity() | base_model_identity(job.model), observer)
    with closing(plan(job, backend)) as steps:  # closing gives the engine back
        ready = next(steps)
        try:
            while True:
                ready = steps.send([work.stage(step.name, step.work) for step in ready])
        except StopIteration as end:
            published: Stage = end.value
        except (DataError, RecipeError):
            work.leave_nothing()
            raise
    publication.hand_out(published, output)
    told: dict[str, Any] = json.loads((published.folder / publication.REPORT).read_text(encoding="utf-8"))
    return told


def plan(job: Job, backend: Backend) -> Plan:
    """Every stage of the job. Nothing is read or loaded before a step's work is called, so planning costs nothing."""
    done: dict[str, Stage] = {}
    with closing(_loop(job, backend, done)) as steps:
        ready = next(steps)
        while True:
            finished = yield ready
            done.update({step.name: stage for step, stage in zip(ready, finished, strict=True)})
            try:
                ready = steps.send(finished)
            except StopIteration as end:
                published: Stage = end.value
                return published


def _loop(job: Job, backend: Backend, done: Mapping[str, Stage]) -> Plan:
    [prepared] = yield [Step("prepare", "prepare", stages.prepare(job), gpu=False)]
    data = stages.Prepared.of(prepared)
    [base] = yield [Step("base", "propagate", outcome.test_model(data, backend, None, job), [prepared])]
    warm_up = stages.warm_up(data, backend, stages.Pending.of(prepared, job.recipe), job)
    [sft] = yield [Step("warm-up", "propagate", warm_up, [prepared])]
    validate = outcome.validate_model(data, backend, sft, job)
    [sft_validation] = yield [Step("warm-up-validation", "propagate", validate, [prepared, sft])]
    rounds: list[stages.Round] = []
    while stages.goes_on(rounds, job):
        rounds.append((yield from _round(prepared, backend, job, sft, rounds)))
    [sft_test] = yield [Step("sft-test", "evaluate", outcome.test_model(data, backend, sft, job), [prepared, sft])]
    verdict = outcome.Verdict(base, sft, sft_validation, sft_test)
    if rounds:
        best = stages.best_round(rounds)
        test = outcome.test_model(data, backend, best.trained, job)
        [tested] = yield [Step("semievol-test", "evaluate", test, [prepared, best.trained])]
        verdict = replace(verdict, rounds=rounds, best_round=best, evolved_test=tested)
    publish = publication.publish(job, data, backend, verdict, done)
    [published] = yield [Step("publish", "evaluate", publish, [prepared, *verdict.read()])]
    return published


def _round(
    prepared: Stage, backend: Backend, job: Job, sft: Stage, before: Sequence[stages.Round]
) -> Generator[list[Step], list[Stage], stages.Round]:
    data = stages.Prepared.of(prepared)
    number = len(before) + 1
    name = f"round-{number}"
    teacher = before[-1].trained if before else sft if job.recipe.propagation.in_weight else None
    source = before[-1].selected if before else prepared
    pending = stages.Pending.of(source, job.recipe)
    find = stages.find_neighbours(data, backend, pending, job)
    first = "propagate" if number == 1 else f"{name}/propagate"
    [neighbours] = yield [Step(f"{name}/neighbours", first, find, [prepared, source])]
    read = [stage for stage in (prepared, source, neighbours, teacher) if stage]
    labeled = cache(lambda: read_examples(data.train))
    with stages.open_lazily(backend, teacher, data.facts["rows"]["unlabeled"]) as generator:

        def shard_step(shard: int) -> Step:
            answer = stages.generate_shard(
                data, labeled, generator, pending, neighbours, job, shard=shard, round_number=number
            )
            return Step(f"{name}/generate-{shard:05d}", f"{name}/generate-{shard:05d}", answer, read)

        shards = yield [shard_step(shard) for shard in range(pending.shards)]
    select = stages.select_labels(data, shards, number, job)
    [selected] = yield [Step(f"{name}/select", f"{name}/select", select, [prepared, *shards], gpu=False)]
    if job.review:
        review = stages.apply_review(data, selected, number, job)
        [selected] = yield [Step(f"{name}/review", f"{name}/review", review, [prepared, selected], gpu=False)]
    accepted = [*(one.selected for one in before), selected]
    train = stages.train_round(data, backend, accepted, sft, number, job)
    [trained] = yield [Step(f"{name}/train", f"{name}/train", train, [prepared, sft, *accepted])]
    validate = outcome.validate_model(data, backend, trained, job)
    [validation] = yield [Step(f"{name}/validation", f"{name}/train", validate, [prepared, trained])]
    return stages.Round(number, shards, selected, trained, validation)
