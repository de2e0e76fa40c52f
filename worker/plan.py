"""A job of the database as the pipeline sees it: which steps may run now, and the files that a service adds.

Planning reads no file and loads no model, so a supervisor does it too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semievol import pipeline
from semievol.pipeline import Job, Plan, Step
from semievol.ports import Backend
from semievol.recipe import Recipe
from semievol.workdir import Stage
from worker import artifacts

PREPARE = "prepare"
EXPORT = "export"
REVIEW = "/review"
SHARD = "/generate-"
SELECT = "/select"


@dataclass(frozen=True, slots=True)
class Committed:
    """What the database knows of a committed stage. `files`: {path: {"bytes", "sha256"}}."""

    facts: dict[str, Any]
    files: dict[str, Any]
    seconds: float


@dataclass(frozen=True, slots=True)
class JobSpec:
    """All that a runner has to know of a job; plain values that travel as JSON.

    `inputs`: {role: {"filename", "sha256"}}; `reviewed`: digest of the edits of a review. `measured`: what finished
    jobs of the base model took, for the unit that estimates this one.
    """

    job_id: str
    model: str
    revision: str | None
    recipe: dict[str, Any]
    seed: int
    inputs: dict[str, dict[str, Any]]
    review: bool = False
    reviewed: str | None = None
    stages: dict[str, Committed] = field(default_factory=dict)
    measured: list[list[list[Any]]] = field(default_factory=list)

    def job(self, files: Mapping[str, Path]) -> Job:
        """The pipeline's job over files by role; roles that were not fetched get the path of no file."""
        known = {role: files.get(role, Path(role)) for role in self.inputs}
        recipe = Recipe.model_validate(self.recipe)
        if self.revision is not None:
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"revision": self.revision})})
        return Job(
            model=self.model,
            labeled=known["labeled"],
            unlabeled=known.get("unlabeled"),
            recipe=recipe,
            seed=self.seed,
            validation=known.get("validation"),
            test=known.get("test"),
            review=self.review,
            reviewed=files.get("reviewed"),
        )


def plan(job: Job, backend: Backend) -> Plan:
    """The pipeline's steps, then the files that are downloaded."""
    published = yield from pipeline.plan(job, backend)
    [exported] = yield [Step(EXPORT, "evaluate", artifacts.export(published), [published])]
    return exported


def ready(steps: Plan, committed: Mapping[str, Stage]) -> list[Step]:
    """The steps that may run now; none when the job is done. The plan stays open, so that their work can be called."""
    try:
        offered = next(steps)
        while all(step.name in committed for step in offered):
            offered = steps.send([committed[step.name] for step in offered])
    except StopIteration:
        return []
    return [step for step in offered if step.name not in committed]


def next_steps(spec: JobSpec) -> list[Step]:
    """The steps that may run now, for looking at only: their work has no files and no model."""
    nowhere = Path("/nonexistent")
    committed = {name: Stage(nowhere, known.facts, known.seconds) for name, known in spec.stages.items()}
    nobody: Any = None  # asked by work only
    return ready(plan(spec.job({}), nobody), committed)
