"""Signing in and out of the pages: a key is exchanged for a cookie that scripts cannot read."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy.orm import Session

from api import browser
from api.auth import CallerDep, KnownKeys, RateLimited, RateLimiter, find_caller
from api.deps import Caller, ServicesDep, SessionDep
from api.errors import NotFound
from api.schemas.common import errors
from api.schemas.session import SessionCreate, SessionEnded, SessionKey, SessionView
from store import sessions
from store.models import ApiKey, SignIn

router = APIRouter(prefix="/v1/session", tags=["session"])

WRONG_KEYS_PER_MINUTE = 20
"""Of one client address."""


def _key_holder(body: SessionCreate, request: Request, parts: ServicesDep) -> Caller:
    """Whose key it is. Before the route's transaction begins. Raises CrossSite, RateLimited and Unauthorized."""
    browser.check_signing_in(request)
    limiter: RateLimiter = request.app.state.sign_ins
    address, at = request.client.host if request.client else "", time.monotonic()
    if wait := limiter.wait_seconds(address, at):
        raise RateLimited(f"too many sign-ins with a wrong key, at most {limiter.per_minute} a minute", wait)
    found = find_caller(parts, body.api_key)
    limiter.take_back(address)
    return found


@router.post("", responses=errors())
def create_session(
    request: Request,
    response: Response,
    holder: Annotated[Caller, Depends(_key_holder)],
    session: SessionDep,
) -> SessionView:
    """Sign in: the answer sets the cookie `semievol_session`, which opens what the key opens, for seven days at most.

    Requests with the cookie that change something must come from a page of this service.
    """
    if (before := request.cookies.get(browser.COOKIE)) is not None:
        sessions.end(session, sessions.digest(before))
    begun, clear = sessions.begin(session, holder.key_id)
    browser.set_cookie(request, response, clear, int(begun.expires_at - begun.created_at))
    response.headers["Cache-Control"] = "no-store"
    return _view(session, holder, begun)


@router.get("", responses=errors())
def retrieve_session(response: Response, asking: CallerDep, session: SessionDep) -> SessionView:
    """Who asks, by cookie or by key."""
    response.headers["Cache-Control"] = "no-store"
    return _view(session, asking, session.get(SignIn, asking.session) if asking.session else None)


@router.delete("", responses=errors(404))
def delete_session(request: Request, response: Response, asking: CallerDep, session: SessionDep) -> SessionEnded:
    """Sign out. The key stays as it is."""
    if asking.session is None:
        message = "this request came with a key and has no session to end; an admin can revoke the key"
        raise NotFound(message, code="session_not_found")
    sessions.end(session, asking.session)
    known: KnownKeys = request.app.state.known_keys
    known.forget()
    browser.clear_cookie(request, response)
    response.headers["Cache-Control"] = "no-store"
    return SessionEnded()


def _view(session: Session, asking: Caller, begun: SignIn | None) -> SessionView:
    key = session.get_one(ApiKey, asking.key_id)
    return SessionView(
        key=SessionKey(id=key.id, name=key.name, admin=key.admin),
        project=key.project_id,
        expires_at=int(begun.expires_at) if begun else None,
    )
