"""What there is besides jobs and files: workers, the queue, what the project uses, and the recipe's settings."""

from typing import get_args

from fastapi import APIRouter

from api.auth import AdminDep, CallerDep
from api.deps import ServicesDep, SessionDep
from api.schemas.common import Page, errors, page
from api.schemas.house import QueueView, RecipeView, UsageView, WorkerView
from api.services import house
from semievol.recipe import Recipe

router = APIRouter(prefix="/v1", tags=["operation"])


@router.get("/workers", responses=errors(403))
def list_workers(asking: AdminDep, session: SessionDep) -> Page[WorkerView]:
    """All workers of the last hour on one page, newest first, and what each is at. Needs an admin's key."""
    found = house.workers(session)
    return page(found, len(found))


@router.get("/queue", responses=errors())
def retrieve_queue(asking: CallerDep, session: SessionDep) -> QueueView:
    """What runs and what waits for a worker: the project's units, for an admin those of all projects."""
    return house.queue(session, None if asking.admin else asking.project_id)


@router.get("/usage", responses=errors())
def retrieve_usage(asking: CallerDep, session: SessionDep, parts: ServicesDep) -> UsageView:
    """What the project uses of what it may."""
    return house.usage(session, parts.settings, asking.project_id)


@router.get("/recipe", responses=errors())
def retrieve_recipe(asking: CallerDep) -> RecipeView:
    """The settings that a job's block `semievol` may hold besides its files, before the base model's own defaults."""
    presets = get_args(Recipe.model_fields["preset"].annotation)
    return RecipeView(settings=Recipe.model_json_schema(), presets=list(presets))
