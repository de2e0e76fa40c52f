"""Shapes that all routes share: lists, deletions, errors, and how routes declare the errors that they give."""

from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict

Item = TypeVar("Item", bound=BaseModel)

DEFAULT_ERRORS = (400, 401, 403, 413, 422, 429, 500, 503)
"""What any route with a key may answer; 403 also to a cookie that another site's page made a browser send."""

_EXAMPLES: dict[int, tuple[str, str, str]] = {
    400: ("invalid_request_error", "invalid_request", "the request makes no sense as it is; the message says why"),
    401: ("authentication_error", "invalid_api_key", "the API key is wrong, expired or revoked"),
    403: ("permission_error", "not_admin", "this needs an admin's key"),
    404: ("invalid_request_error", "not_found", "there is no such thing in this project"),
    405: ("invalid_request_error", "method_not_allowed", "this address does not take POST"),
    409: ("invalid_request_error", "conflict", "the thing is not in a state that allows this"),
    413: ("invalid_request_error", "body_too_large", "the body is larger than 1,048,576 bytes"),
    416: ("invalid_request_error", "invalid_range", "the range lies outside of the 120 bytes"),
    422: ("invalid_request_error", "invalid_request", "limit: Input should be less than or equal to 10000"),
    429: ("rate_limit_error", "rate_limit_exceeded", "this key may make 60 requests a minute; try again in 3 s"),
    500: ("server_error", "internal_error", "the service made a mistake; its log has more under the request id"),
    503: ("server_error", "database_unavailable", "the database cannot be reached; try again shortly"),
}


class Body(BaseModel):
    """Base of request bodies: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class ErrorFacts(BaseModel):
    """What is wrong, where, and what would be right. All four keys are always there."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """Every answer other than success."""

    error: ErrorFacts


class Deleted(BaseModel):
    """Something is gone."""

    id: str
    object: str
    deleted: Literal[True] = True


class Page(BaseModel, Generic[Item]):
    """A page of a list. The next one begins after `last_id`."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    first_id: str | None
    last_id: str | None


Limit = Annotated[int, Query(ge=1, le=10_000, description="Most items of the page.")]
Order = Annotated[Literal["asc", "desc"], Query(description="By time of creation.")]
After = Annotated[str | None, Query(max_length=200, description="Id of the last item of the page before.")]


def page(items: list[Item], limit: int) -> Page[Item]:
    """The first `limit` of items that were asked for with one more than that, to know whether there are more."""
    shown = items[:limit]
    ids = [str(getattr(item, "id")) for item in shown]  # noqa: B009  -- all items have one
    return Page[Item](
        data=shown,
        has_more=len(items) > limit,
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
    )


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that gives these errors, besides those that any route gives."""
    return {status: _response(status) for status in sorted({*statuses, *DEFAULT_ERRORS})}


def public_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that takes no key."""
    return {status: _response(status) for status in sorted({*statuses, 500})}


def _response(status: int) -> dict[str, Any]:
    kind, code, message = _EXAMPLES[status]
    example = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return {"model": ErrorBody, "description": message, "content": {"application/json": {"example": example}}}
