"""API keys of all projects, for admins: made, listed and revoked."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from api.auth import AdminDep, KnownKeys
from api.deps import SessionDep
from api.errors import BadRequest, Conflict, NotFound
from api.schemas.api_keys import KeyCreate, KeyView, NewKeyView
from api.schemas.common import After, Deleted, Limit, Page, errors, page
from store.database import now
from store.keys import create_key, is_valid
from store.models import ApiKey

router = APIRouter(prefix="/v1/api_keys", tags=["API keys"])

KeyId = Annotated[str, Path(max_length=64, examples=["0123456789abcdef"])]


@router.post("", responses=errors(400, 403))
def create_api_key(body: KeyCreate, asking: AdminDep, session: SessionDep) -> NewKeyView:
    """A new key. The answer shows its secret, and no later one does."""
    if body.expires_at is not None and body.expires_at <= _time(session):
        raise BadRequest("expires_at: must be in the future", code="invalid_expires_at", param="expires_at")
    project = body.project or asking.project_id
    key, clear = create_key(session, project, body.name, admin=body.admin, expires_at=body.expires_at)
    session.refresh(key)
    return NewKeyView(**_facts(key), key=clear)


@router.get("", responses=errors(400, 403))
def list_api_keys(asking: AdminDep, session: SessionDep, limit: Limit = 100, after: After = None) -> Page[KeyView]:
    """All keys, newest first, without their secrets."""
    query = select(ApiKey).order_by(ApiKey.created_at.desc(), ApiKey.id.desc()).limit(limit + 1)
    if after is not None:
        last = session.get(ApiKey, after)
        if last is None:
            message = "after: give the id of the last key of the page before"
            raise BadRequest(message, code="invalid_after", param="after")
        same = and_(ApiKey.created_at == last.created_at, ApiKey.id < last.id)
        query = query.where(or_(ApiKey.created_at < last.created_at, same))
    return page([KeyView(**_facts(key)) for key in session.scalars(query)], limit)


@router.delete("/{key_id}", responses=errors(403, 404, 409))
def delete_api_key(key_id: KeyId, request: Request, asking: AdminDep, session: SessionDep) -> Deleted:
    """Revoke a key, within a second and for good. The last admin's key cannot be revoked."""
    admins = session.scalars(select(ApiKey).where(ApiKey.admin, is_valid()).order_by(ApiKey.id).with_for_update()).all()
    key = session.get(ApiKey, key_id)
    if key is None or key.revoked_at is not None:
        raise NotFound("there is no such key, or it is revoked already", code="key_not_found", param="key_id")
    if [one.id for one in admins] == [key_id]:
        message = "this is the last admin's key; make another one first"
        raise Conflict(message, code="last_admin_key", param="key_id")
    key.revoked_at = _time(session)
    session.flush()
    known: KnownKeys = request.app.state.known_keys
    known.forget()
    return Deleted(id=key_id, object="api_key")


def _time(session: Session) -> float:
    return session.execute(select(now())).scalar_one()


def _facts(key: ApiKey) -> dict[str, Any]:
    def seconds(value: float | None) -> int | None:
        return None if value is None else int(value)

    return {
        "id": key.id,
        "name": key.name,
        "project": key.project_id,
        "admin": key.admin,
        "created_at": int(key.created_at),
        "expires_at": seconds(key.expires_at),
        "revoked_at": seconds(key.revoked_at),
        "last_used_at": seconds(key.last_used_at),
    }
