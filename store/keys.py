"""API keys `sk-<id>-<secret>`: the id finds the row, the secret's SHA-256 is compared in constant time."""

import hashlib
import hmac
import secrets

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from store.database import now
from store.models import ApiKey, Project

ID_DIGITS = 16
USED_EVERY_SECONDS = 60
"""How exact `last_used_at` is; a write per request would cost more than it tells."""


def create_key(
    session: Session, project_id: str, name: str, *, admin: bool = False, expires_at: float | None = None
) -> tuple[ApiKey, str]:
    """A new key and its one showing in clear. Makes the project if there is none of that id."""
    if session.get(Project, project_id) is None:
        session.add(Project(id=project_id))
        session.flush()
    key_id, secret = secrets.token_hex(ID_DIGITS // 2), secrets.token_urlsafe(32)
    key = ApiKey(
        id=key_id,
        project_id=project_id,
        name=name,
        secret_sha256=_digest(secret),
        admin=admin,
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, f"sk-{key_id}-{secret}"


def find_key(session: Session, clear: str) -> ApiKey | None:
    """The valid key that this is; None if it is unknown, wrong, expired or revoked."""
    prefix, key_id, secret = clear[:3], clear[3 : 3 + ID_DIGITS], clear[4 + ID_DIGITS :]
    if prefix != "sk-" or not secret or not clear.isascii():
        return None
    key = session.scalars(select(ApiKey).where(ApiKey.id == key_id, is_valid())).one_or_none()
    if key is None or not hmac.compare_digest(key.secret_sha256, _digest(secret)):
        return None
    return key


def is_valid() -> ColumnElement[bool]:
    """Of a key's row: neither revoked nor expired."""
    return and_(ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now()))


def note_use(session: Session, key_id: str) -> None:
    """Remember that the key was used."""
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=now()))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
