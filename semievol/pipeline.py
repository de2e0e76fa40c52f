"""The loop on one machine: the stages in order, over a folder that remembers which are done.

Each stage's work is in `stages.py`. A committed stage is not done again, so a run that was stopped goes on where it
was.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semievol import outcome, page, report, stages
from semievol.ports import Backend, Observer
from semievol.recipe import Recipe
from semievol.workdir import Stage, Workdir, sha256_of


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked for: a base model, files, a recipe and a seed."""

    model: str
    labeled: Path
    unlabeled: Path
    recipe: Recipe
    seed: int = 0
    validation: Path | None = None
    test: Path | None = None

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


def run(job: Job, backend: Backend, output: Path, observer: Observer) -> dict[str, Any]:
    """Run the job in `output` and return its report (what `report.json` holds).

    Raises SemiEvolError. Beside the stages, `output` then holds `adapter/`, `pseudo_labels.parquet`, `report.json` and
    `report.html`.
    """
    work = Workdir(output, job.identity(), observer)
    data = stages.Prepared.of(work.stage("prepare", stages.prepare(job)))
    base = work.stage("base", outcome.test_model(data, backend, None, job))
    sft = work.stage("warm-up", stages.warm_up(data, backend, job))
    sft_scores = work.stage("warm-up-validation", outcome.validate_model(data, backend, sft, job))
    rounds: list[stages.Round] = []
    while stages.goes_on(rounds, job.recipe):
        rounds.append(_round(work, data, backend, job, sft, rounds))
    best = stages.best_round(rounds)
    verdict = outcome.Verdict(
        base=base,
        sft=sft,
        evolved=best.trained,
        sft_validation=sft_scores,
        evolved_validation=best.validation,
        sft_test=work.stage("sft-test", outcome.test_model(data, backend, sft, job)),
        evolved_test=work.stage("semievol-test", outcome.test_model(data, backend, best.trained, job)),
    )
    told = report.build(job, data, rounds, best, verdict, work.stages, backend.provenance())
    documents = {
        "report.html": page.render_html(told),
        "report.json": json.dumps(told, indent=2, ensure_ascii=False),
    }
    outcome.publish(output, rounds[: best.number], verdict.delivered(job.recipe), documents)
    return told


def _round(
    work: Workdir, data: stages.Prepared, backend: Backend, job: Job, sft: Stage, before: list[stages.Round]
) -> stages.Round:
    number = len(before) + 1
    name = f"round-{number}"
    teacher = before[-1].trained if before else sft if job.recipe.propagation.in_weight else None
    pending = before[-1].selected.folder / stages.PENDING if before else data.unlabeled
    neighbours = work.stage(f"{name}/neighbours", stages.find_neighbours(data, backend, pending, job))
    with stages.open_lazily(backend, teacher) as generator:
        shards = [
            work.stage(
                f"{name}/generate-{shard:05d}",
                stages.generate_shard(data, generator, pending, neighbours, shard, number, job),
            )
            for shard in range(stages.shard_count(pending))
        ]
    selected = work.stage(f"{name}/select", stages.select_labels(data, shards, number, job))
    earlier = [one.selected for one in before]
    trained = work.stage(f"{name}/train", stages.train_round(data, backend, [*earlier, selected], sft, number, job))
    validation = work.stage(f"{name}/validation", outcome.validate_model(data, backend, trained, job))
    return stages.Round(number, shards, selected, trained, validation)
