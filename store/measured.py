"""What finished jobs did and took, so that the next one can be estimated."""

from typing import Any

from pydantic import ValidationError
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from semievol.estimates.costs import JOBS_LEARNED_FROM
from semievol.estimates.work import Done, observed
from semievol.recipe import Recipe
from store.models import Job, StageRow, Unit

_SHARDS, _FIRST_SHARDS = "%/generate-%", "%/generate-0000_"
"""Of a round's shards the first ten stand for all."""


def finished_jobs(session: Session, model: str) -> list[list[Done]]:
    """The stages of the last succeeded jobs of a base model, of all projects, the newest first.

    One query of a bounded size. Stages that took more than one attempt are left out: their time is that of the last.
    """
    last = (
        select(Job.id, Job.recipe, Job.finished_at)
        .where(Job.model == model, Job.status == "succeeded")
        .order_by(Job.finished_at.desc())
        .limit(JOBS_LEARNED_FROM)
        .subquery()
    )
    query = (
        select(last.c.id, last.c.recipe, StageRow.name, StageRow.facts, StageRow.seconds)
        .join(StageRow, StageRow.job_id == last.c.id)
        .join(Unit, Unit.id == StageRow.unit_id)
        .where(Unit.attempts <= 1, or_(StageRow.name.not_like(_SHARDS), StageRow.name.like(_FIRST_SHARDS)))
        .order_by(last.c.finished_at.desc(), StageRow.number)
    )
    recipes: dict[str, dict[str, Any]] = {}
    stages: dict[str, dict[str, tuple[dict[str, Any], float]]] = {}
    for job_id, recipe, name, facts, seconds in session.execute(query):
        recipes[job_id] = recipe
        stages.setdefault(job_id, {})[name] = facts, seconds
    return [_job(recipes[job_id], found) for job_id, found in stages.items()]


def _job(recipe: dict[str, Any], stages: dict[str, tuple[dict[str, Any], float]]) -> list[Done]:
    try:
        return observed(stages, Recipe.model_validate(recipe))
    except ValidationError:  # an earlier version had settings that this one has not
        return []
