"""The application: builds the parts, puts the routes together, and translates every error to the one form."""

import asyncio
import errno
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from api.auth import KnownKeys, RateLimiter, Uses, caller
from api.deps import Bell, Services
from api.docs import docs
from api.doorbell import build_bell
from api.errors import ApiError, BadRequest, NotFound, TooLarge, Unavailable, Unprocessable
from api.logs import set_up_logs
from api.metrics import Latency, QueueCollector
from api.middleware import CheckedBody, HeadAsGet, RequestContext, answer
from api.routes import api_keys, files, health, house, job_data, jobs, models, session, uploads, webhooks
from api.services.event_stream import Hub
from api.services.label_summary import Summaries
from api.services.trials import Trials
from api.web import pages
from store.database import Database
from store.objects import ObjectMissing, open_objects
from store.settings import Settings

VERSION = "0.1.0"
DESCRIPTION = "Semi-supervised fine-tuning as a service that the unmodified `openai` client speaks to."
_PROBLEMS_SHOWN = 3
_ADVICE = {404: "see /docs for the addresses that there are", 405: "see /docs for the methods that it takes"}


class MethodNotAllowed(ApiError):
    """The address exists and does not take this method."""

    status, type = 405, "invalid_request_error"

    def __init__(self, message: str, headers: dict[str, str]) -> None:
        super().__init__(message, code="method_not_allowed")
        self._headers = headers

    def headers(self) -> dict[str, str]:
        """See `ApiError`."""
        return self._headers


def app() -> FastAPI:
    """For `uvicorn --factory api.main:app`: settings from the environment."""
    settings = Settings()
    set_up_logs(settings)
    return create_app(settings)


def create_app(settings: Settings, *, bell: Bell | None = None) -> FastAPI:
    """The application over a database that is migrated already."""
    parts = _services(settings, bell)
    latency = Latency()
    latency.registry.register(QueueCollector(parts.database))

    @asynccontextmanager
    async def lifespan(made: FastAPI) -> AsyncIterator[None]:
        yield
        made.state.hub.close()
        await asyncio.to_thread(parts.database.close)

    made = FastAPI(
        title="SemiEvol",
        version=VERSION,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
    )
    made.state.services = parts
    made.state.limiter = RateLimiter(settings.requests_per_minute)
    made.state.uses = Uses()
    made.state.known_keys = KnownKeys()
    made.state.sign_ins = RateLimiter(session.WRONG_KEYS_PER_MINUTE)
    made.state.site = pages.load_site()
    made.state.hub = Hub(parts.database)
    made.state.registry = latency.registry
    made.router.routes.extend(_routes())
    _add_errors(made, settings)
    made.add_middleware(CheckedBody, limit_bytes=settings.max_body_bytes)
    made.add_middleware(HeadAsGet)
    made.add_middleware(RequestContext, latency=latency)
    return made


def _services(settings: Settings, bell: Bell | None) -> Services:
    settings.data.mkdir(parents=True, exist_ok=True)
    objects = open_objects(settings)
    return Services(
        settings=settings,
        database=Database(settings.database_url),
        objects=objects,
        bell=bell or build_bell(settings),
        summaries=Summaries(objects),
        trials=Trials(objects),
    )


def _operation_id(route: APIRoute) -> str:
    return route.name


@cache
def _routes() -> Sequence[BaseRoute]:
    """All routes, made once for all applications of a process: that takes a sixth of a second."""
    whole = APIRouter(generate_unique_id_function=_operation_id)
    for open_to_all in (health.router, docs, pages.router, session.router):
        whole.include_router(open_to_all)
    # The key is looked at before anything else of a route, so that no transaction begins for strangers.
    for module in (files, uploads, models, api_keys, jobs, job_data, webhooks, house):
        whole.include_router(module.router, dependencies=[Depends(caller)])
    return whole.routes


# --- errors -----------------------------------------------------------------------------------------------------------


def _add_errors(made: FastAPI, settings: Settings) -> None:
    made.add_exception_handler(ApiError, _api_error)
    made.add_exception_handler(RequestValidationError, _invalid)
    made.add_exception_handler(HTTPException, _http)
    made.add_exception_handler(ObjectMissing, _object_missing)
    made.add_exception_handler(OSError, _os_error)
    for kind in (OperationalError, InterfaceError, PoolTimeout):
        made.add_exception_handler(kind, _database)
    if settings.objects.startswith("s3://"):
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  -- slow to import

        for kind in (BotoCoreError, ClientError):
            made.add_exception_handler(kind, _storage)


def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return answer(error)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    shown = [_sentence(problem) for problem in found[:_PROBLEMS_SHOWN]]
    if len(found) > _PROBLEMS_SHOWN:
        shown.append(f"and {len(found) - _PROBLEMS_SHOWN} more")
    return answer(Unprocessable("; ".join(shown), code="invalid_request", param=_place(found[0]) or None))


def _sentence(problem: dict[str, Any]) -> str:
    """What is wrong and what would be right. Never what was sent."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "json_invalid":
        return f"the body is not JSON: {context.get('error', 'it cannot be read')} at character {problem['loc'][-1]}"
    if kind == "union_tag_invalid":
        text = f"must be one of {context.get('expected_tags')}"
    elif kind == "extra_forbidden":
        text = "is not a parameter of this call; remove it"
    elif kind == "missing":
        text = "is required"
    elif kind == "model_attributes_type":
        text = "must be a JSON object; send the header 'Content-Type: application/json'"
    else:
        text = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        text = text.replace("Input should be", "must be")
    return f"{_place(problem) or 'the body'}: {text}"


def _place(problem: dict[str, Any]) -> str:
    """Dotted path without its first part, which only says body, query or path."""
    if problem["type"] == "json_invalid":
        return ""
    path: Sequence[int | str] = problem["loc"][1:]
    return ".".join(str(part)[:64] for part in path)[:256]


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    told: ApiError
    if error.status_code == 404:
        told = NotFound(f"there is nothing at this address; {_ADVICE[404]}", code="unknown_url")
    elif error.status_code == 405:
        message = f"this address does not take {request.method}; {_ADVICE[405]}"
        told = MethodNotAllowed(message, dict(error.headers or {}))
    elif error.status_code == 413:
        told = TooLarge(str(error.detail), code="body_too_large")
    else:
        told = BadRequest(f"the request cannot be read: {error.detail}", code="invalid_request")
    return answer(told)


def _database(request: Request, error: Exception) -> JSONResponse:
    if "disk is full" in str(getattr(error, "orig", "")):
        return _disk_full()
    return answer(
        Unavailable("the database cannot be reached or is busy; try again shortly", code="database_unavailable")
    )


def _storage(request: Request, error: Exception) -> JSONResponse:
    return answer(Unavailable("the object store cannot be reached; try again shortly", code="storage_unavailable"))


def _object_missing(request: Request, error: Exception) -> JSONResponse:
    return answer(Unavailable("the object store has lost these bytes; tell the operator", code="object_missing"))


def _os_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return _disk_full()
    raise error


def _disk_full() -> JSONResponse:
    message = "the service's disk is full; nothing was stored; the operator must make room"
    return answer(Unavailable(message, code="disk_full"))
