"""`/v1/webhook_endpoints`: who is told of finished jobs. For admins."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from api.auth import AdminDep
from api.deps import ServicesDep, SessionDep
from api.schemas.common import After, Body, Deleted, Page, errors, page
from api.services import webhooks
from store.models import WebhookEndpoint
from store.webhooks import MAX_URL_CHARACTERS, new_secret

router = APIRouter(prefix="/v1/webhook_endpoints", tags=["webhooks"])

Event = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]


class EndpointCreate(Body):
    """Where to tell, and what."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"url": "https://example.com/hooks/semievol", "events": ["fine_tuning.job.succeeded"]}]
        }
    )

    url: str = Field(max_length=MAX_URL_CHARACTERS)
    events: list[Event] = Field(min_length=1, max_length=16)


class EndpointView(BaseModel):
    """An endpoint, without its secret."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    url: str
    events: list[str]


class EndpointWithSecret(EndpointView):
    """A new endpoint. The secret is shown this once."""

    secret: str


def _allowed(body: EndpointCreate, asking: AdminDep, parts: ServicesDep) -> EndpointCreate:
    """Looks the address up before the transaction begins: a slow name server must not hold SQLite's one writer."""
    webhooks.check_url(body.url, private=parts.settings.webhook_private_addresses)
    return body


@router.post("", responses=errors(400, 403, 413))
def create_webhook_endpoint(
    body: Annotated[EndpointCreate, Depends(_allowed)], asking: AdminDep, session: SessionDep
) -> EndpointWithSecret:
    """A new endpoint with its secret, for `client.webhooks.unwrap`."""
    made = webhooks.create_endpoint(session, asking.project_id, body.url, list(body.events), new_secret())
    return EndpointWithSecret(**_view(made).model_dump(), secret=made.secret)


@router.get("", responses=errors(403, 404))
def list_webhook_endpoints(
    asking: AdminDep,
    session: SessionDep,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most items of the page.")] = 20,
) -> Page[EndpointView]:
    """The project's endpoints, newest first."""
    found = webhooks.list_endpoints(session, asking.project_id, after=after, limit=limit + 1)
    return page([_view(endpoint) for endpoint in found], limit)


@router.delete("/{endpoint_id}", responses=errors(403, 404))
def delete_webhook_endpoint(endpoint_id: str, asking: AdminDep, session: SessionDep) -> Deleted:
    """Tell it nothing more."""
    webhooks.delete_endpoint(session, asking.project_id, endpoint_id)
    return Deleted(id=endpoint_id, object="webhook_endpoint.deleted")


def _view(endpoint: WebhookEndpoint) -> EndpointView:
    return EndpointView(
        id=endpoint.id, created_at=int(endpoint.created_at), url=endpoint.url, events=list(endpoint.events)
    )
