"""Models: the bases on the allow-list, and the adapters of the caller's project."""

from typing import Annotated

from fastapi import APIRouter, Path
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.auth import CallerDep
from api.deps import Caller, ServicesDep, SessionDep
from api.errors import Forbidden, NotFound
from api.schemas.common import Deleted, errors
from api.schemas.models import ModelList, ModelView
from store.database import now
from store.models import FineTunedModel, Project

router = APIRouter(prefix="/v1/models", tags=["models"])

OWNER = "semievol"
ModelId = Annotated[str, Path(max_length=300, examples=["ft:qwen3-8b:support:0123456789ab"])]


@router.get("", responses=errors())
def list_models(asking: CallerDep, session: SessionDep, parts: ServicesDep) -> ModelList:
    """Bases that jobs may name, and the project's adapters."""
    since = _bases_since(session, asking)
    bases = [ModelView(id=name, created=since, owned_by=OWNER) for name in sorted(parts.settings.models)]
    adapters = session.scalars(
        select(FineTunedModel)
        .where(FineTunedModel.project_id == asking.project_id, FineTunedModel.deleted_at.is_(None))
        .order_by(FineTunedModel.created_at.desc(), FineTunedModel.id.desc())
    )
    return ModelList(data=[*bases, *map(_view, adapters)])


@router.get("/{model:path}", responses=errors(404))
def retrieve_model(model: ModelId, asking: CallerDep, session: SessionDep, parts: ServicesDep) -> ModelView:
    """One model."""
    if model in parts.settings.models:
        return ModelView(id=model, created=_bases_since(session, asking), owned_by=OWNER)
    return _view(_adapter(session, asking, model))


@router.delete("/{model:path}", responses=errors(403, 404))
def delete_model(model: ModelId, asking: CallerDep, session: SessionDep, parts: ServicesDep) -> Deleted:
    """Delete an adapter of the project. The files that its job made stay."""
    if model in parts.settings.models:
        message = "a base model is the operator's; only adapters can be deleted"
        raise Forbidden(message, code="cannot_delete_base_model", param="model")
    _adapter(session, asking, model).deleted_at = session.execute(select(now())).scalar_one()
    session.flush()
    return Deleted(id=model, object="model")


def _adapter(session: Session, asking: Caller, model: str) -> FineTunedModel:
    found = session.scalars(
        select(FineTunedModel).where(
            FineTunedModel.id == model,
            FineTunedModel.project_id == asking.project_id,
            FineTunedModel.deleted_at.is_(None),
        )
    ).one_or_none()
    if found is None:
        message = "there is no such model in this project; GET /v1/models lists those that there are"
        raise NotFound(message, code="model_not_found", param="model")
    return found


def _view(adapter: FineTunedModel) -> ModelView:
    return ModelView(id=adapter.id, created=int(adapter.created_at), owned_by=OWNER)


def _bases_since(session: Session, asking: Caller) -> int:
    """The API wants a time; a base has been there for the project as long as the project itself."""
    return int(session.get_one(Project, asking.project_id).created_at)
