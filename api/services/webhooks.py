"""Webhook endpoints of a project. Deliveries are the worker's."""

from sqlalchemy import delete, select, tuple_
from sqlalchemy.orm import Session

from api.errors import BadRequest, NotFound
from store import webhooks
from store.ids import new_id
from store.models import WebhookEndpoint


def create_endpoint(session: Session, project_id: str, url: str, events: list[str], secret: str) -> WebhookEndpoint:
    """A new endpoint. Check the address first: `check_url`."""
    endpoint = WebhookEndpoint(
        id=new_id("we_"), project_id=project_id, url=url, events=list(dict.fromkeys(events)), secret=secret
    )
    session.add(endpoint)
    session.flush()
    return endpoint


def check_url(url: str, *, private: bool) -> None:
    """Raises BadRequest unless deliveries may go there. Asks the name server, so call it outside of a transaction."""
    try:
        webhooks.check_address(url, private=private)
    except webhooks.AddressRefused as error:
        raise BadRequest(f"url: {error}", code="invalid_url", param="url") from None


def list_endpoints(session: Session, project_id: str, *, after: str | None, limit: int) -> list[WebhookEndpoint]:
    """The project's endpoints, newest first."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    if after is not None:
        last = find_endpoint(session, project_id, after)
        query = query.where(tuple_(WebhookEndpoint.created_at, WebhookEndpoint.id) < tuple_(last.created_at, last.id))
    newest = query.order_by(WebhookEndpoint.created_at.desc(), WebhookEndpoint.id.desc())
    return list(session.scalars(newest.limit(limit)))


def find_endpoint(session: Session, project_id: str, endpoint_id: str) -> WebhookEndpoint:
    """The project's endpoint. Raises NotFound."""
    found = session.scalars(
        select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.project_id == project_id)
    ).one_or_none()
    if found is None:
        message = f"there is no webhook endpoint {endpoint_id[:64]!r} in this project"
        raise NotFound(message, code="webhook_endpoint_not_found", param="id")
    return found


def delete_endpoint(session: Session, project_id: str, endpoint_id: str) -> None:
    """Remove it, and what waits to be sent there. Raises NotFound."""
    find_endpoint(session, project_id, endpoint_id)
    session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id))
