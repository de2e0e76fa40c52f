"""Whether the service lives, whether it can work, and figures for Prometheus."""

from typing import Literal

import redis
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from api.auth import AdminDep
from api.deps import Services, ServicesDep
from api.schemas.common import errors, public_errors
from api.services.house import ALIVE_SECONDS
from store.database import DatabaseError, now
from store.models import Worker

router = APIRouter(tags=["operation"])

BROKER_SECONDS = 1.0


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Each part is `ok` or says in one line why not. `workers` were seen in the last minute; none is no failure."""

    status: Literal["ok", "unavailable"]
    database: str
    storage: str
    broker: str
    workers: int


@router.get("/healthz", responses=public_errors())
def healthz() -> Health:
    """Always ok while the process answers."""
    return Health()


@router.get("/readyz", responses=public_errors() | {503: {"model": Readiness, "description": "A part is away."}})
def readyz(parts: ServicesDep, response: Response) -> Readiness:
    """Whether database, storage and broker can be used."""
    database, storage, broker = _database(parts), _storage(parts), _broker(parts.settings.broker_url)
    ready = (database, storage, broker) == ("ok", "ok", "ok")
    response.status_code = 200 if ready else 503
    return Readiness(
        status="ok" if ready else "unavailable",
        database=database,
        storage=storage,
        broker=broker,
        workers=_workers(parts) if database == "ok" else 0,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses=errors(403) | {200: {"description": "Prometheus text.", "content": {"text/plain": {}}}},
)
def metrics(asking: AdminDep, request: Request) -> Response:
    """Figures for Prometheus; needs an admin's key."""
    registry: CollectorRegistry = request.app.state.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _database(parts: Services) -> str:
    try:
        parts.database.check()
    except DatabaseError as error:
        return _one_line(error)
    return "ok"


def _storage(parts: Services) -> str:
    try:
        parts.objects.check()
    except OSError as error:
        return _one_line(error)
    return "ok"


def _broker(url: str) -> str:
    if not url.startswith(("redis://", "rediss://", "unix://")):
        return "ok"
    try:
        with redis.Redis.from_url(url, socket_timeout=BROKER_SECONDS, socket_connect_timeout=BROKER_SECONDS) as client:
            policy = client.info("memory").get("maxmemory_policy", "noeviction")
    except (redis.RedisError, OSError, ValueError) as error:
        return f"Redis does not answer: {type(error).__name__}"  # its message may hold the address with a password
    if policy != "noeviction":
        return f"Redis evicts ({policy}) and would lose the queue; set maxmemory-policy to noeviction"
    return "ok"


def _workers(parts: Services) -> int:
    try:
        with parts.database.read() as session:
            return session.execute(
                select(func.count()).select_from(Worker).where(Worker.seen_at > now() - ALIVE_SECONDS)
            ).scalar_one()
    except SQLAlchemyError:
        return 0


def _one_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
