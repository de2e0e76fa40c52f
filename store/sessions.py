"""Sessions of browsers: a key, exchanged for a random secret of which only the SHA-256 is kept.

A session opens what its key opens, and ends with it: the key's row is asked with every use.
"""

import hashlib
import re
import secrets

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from store.database import now
from store.keys import is_valid
from store.models import ApiKey, SignIn

LIFETIME_SECONDS = 7 * 24 * 3600
FORM = re.compile(r"session-[A-Za-z0-9_-]{43}")
"""Of the secret. No API key has it, so that one is never taken for the other."""


def begin(session: Session, key_id: str) -> tuple[SignIn, str]:
    """A new session of a valid key, and its one showing in clear. It does not outlive the key."""
    clear = f"session-{secrets.token_urlsafe(32)}"
    at = session.execute(select(now())).scalar_one()
    ends = session.get_one(ApiKey, key_id).expires_at
    expires_at = at + LIFETIME_SECONDS if ends is None else min(ends, at + LIFETIME_SECONDS)
    begun = SignIn(secret_sha256=digest(clear), key_id=key_id, created_at=at, expires_at=expires_at)
    session.add(begun)
    session.flush()
    return begun, clear


def find(session: Session, clear: str) -> tuple[ApiKey, str] | None:
    """The valid key behind a session and the session's id; None if it has ended or never was."""
    query = (
        select(ApiKey)
        .join(SignIn, SignIn.key_id == ApiKey.id)
        .where(SignIn.secret_sha256 == digest(clear), SignIn.expires_at > now(), is_valid())
    )
    key = session.scalars(query).one_or_none()
    return None if key is None else (key, digest(clear))


def end(session: Session, secret_sha256: str) -> None:
    """Sign out; again is a no-op."""
    session.execute(delete(SignIn).where(SignIn.secret_sha256 == secret_sha256))


def forget_expired(session: Session) -> None:
    """Remove the rows of sessions whose time is over."""
    session.execute(delete(SignIn).where(SignIn.expires_at < now()))


def digest(clear: str) -> str:
    """What is kept of a secret, and the session's id."""
    return hashlib.sha256(clear.encode()).hexdigest()
