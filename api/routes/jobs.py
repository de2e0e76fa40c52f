"""`/v1/fine_tuning/jobs`: OpenAI's calls, and validation, pause and the event stream beside them."""

import asyncio
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Header, Query, Request
from fastapi.responses import Response

from api.auth import CallerDep
from api.deps import Caller, ServicesDep, SessionDep
from api.errors import BadRequest
from api.schemas.common import After, Page, errors, page
from api.schemas.jobs import CheckpointView, EventView, JobCreate, JobLimit, JobView, ValidationView
from api.services import events, jobs
from api.services.event_stream import EventStream, Hub
from api.services.job_view import job_view, read_jobs
from api.services.validation import validate_order
from store.states import JobStatus

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning jobs"])

_PAIR = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_METADATA: dict[str, Any] = {
    "name": "metadata",
    "in": "query",
    "description": "`metadata[k]=v` asks for jobs with that pair, `metadata=null` for jobs without metadata.",
    "style": "deepObject",
    "explode": True,
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}
_STREAM: dict[str, Any] = {
    "description": "A page of events, or with `stream=true` server-sent events `message`, `metrics` and `progress`.",
    "model": Page[EventView],
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


@router.post("", responses=errors(400, 413))
def create_fine_tuning_job(
    body: JobCreate,
    request: Request,
    caller: CallerDep,
    session: SessionDep,
    parts: ServicesDep,
    background: BackgroundTasks,
    idempotency_key: Annotated[str | None, Header(description="The same key and body get the same job.")] = None,
) -> JobView:
    """Start a job. An identical request within five minutes gets the first job, as clients retry without saying so."""
    job, new = jobs.create_job(
        session,
        parts.settings,
        caller,
        body,
        idempotency_key=idempotency_key,
        request_id=getattr(request.state, "request_id", None),
    )
    if new:
        # After the answer, so after the commit: a worker that comes sooner would find nothing.
        background.add_task(parts.bell.ring, {"cpu"})
    return _view(session, caller, job.id)


@router.post("/validate", responses=errors(400, 413))
def validate_fine_tuning_job(
    body: JobCreate, caller: CallerDep, session: SessionDep, parts: ServicesDep
) -> ValidationView:
    """What a create with this body would do. Nothing is started or stored."""
    return validate_order(session, parts, caller.project_id, body)


@router.get("", responses=errors(400), openapi_extra={"parameters": [_METADATA]})
def list_fine_tuning_jobs(
    request: Request,
    caller: CallerDep,
    session: SessionDep,
    *,
    after: After = None,
    limit: JobLimit = 20,
    status: Annotated[list[JobStatus] | None, Query(description="Jobs in this status, or in one of these.")] = None,
    q: Annotated[str, Query(max_length=200, description="Part of id, suffix, model or a value of the metadata.")] = "",
) -> Page[JobView]:
    """The project's jobs, newest first."""
    ids = jobs.list_jobs(
        session,
        caller.project_id,
        after=after,
        limit=limit + 1,
        metadata=_metadata_of(request),
        statuses=status or (),
        part=q,
    )
    return page([job_view(facts) for facts in read_jobs(session, caller.project_id, ids)], limit)


@router.get("/{job_id}", responses=errors(404), response_model=JobView)
async def retrieve_fine_tuning_job(job_id: str, caller: CallerDep, parts: ServicesDep) -> Response:
    """One job, with how far it is in `semievol`."""

    # Clients ask this most. One change of threads: FastAPI would make four for the session, the answer and its check.
    def read() -> str:
        with parts.database.glance() as session:
            return _view(session, caller, job_id).model_dump_json()

    return Response(await asyncio.to_thread(read), media_type="application/json")


@router.post("/{job_id}/cancel", responses=errors(404, 409))
def cancel_fine_tuning_job(job_id: str, caller: CallerDep, session: SessionDep) -> JobView:
    """Cancel a job that is not over. Its workers stop within seconds."""
    jobs.cancel_job(session, caller.project_id, job_id)
    return _view(session, caller, job_id)


@router.post("/{job_id}/pause", responses=errors(404, 409))
def pause_fine_tuning_job(job_id: str, caller: CallerDep, session: SessionDep) -> JobView:
    """Stop at the next safe point."""
    jobs.pause_job(session, caller.project_id, job_id)
    return _view(session, caller, job_id)


@router.post("/{job_id}/resume", responses=errors(404, 409))
def resume_fine_tuning_job(
    job_id: str, caller: CallerDep, session: SessionDep, parts: ServicesDep, background: BackgroundTasks
) -> JobView:
    """Go on where a paused job was."""
    jobs.resume_job(session, caller.project_id, job_id)
    background.add_task(parts.bell.ring, {"cpu", "gpu"})  # after the commit, as in create
    return _view(session, caller, job_id)


@router.get("/{job_id}/events", responses=errors(400, 404) | {200: _STREAM}, response_model=Page[EventView])
def list_fine_tuning_events(
    job_id: str,
    *,
    request: Request,
    caller: CallerDep,
    session: SessionDep,
    after: After = None,
    limit: JobLimit = 20,
    stream: Annotated[bool, Query(description="Send events as they come, until the job is over.")] = False,
    last_event_id: Annotated[str | None, Header(max_length=200, description="Where a stream goes on.")] = None,
) -> Any:
    """The job's log, newest first; as a stream oldest first, from `Last-Event-ID` or `after` on."""
    job = jobs.find_job(session, caller.project_id, job_id)
    if not stream:
        return page(events.list_events(session, job.id, after=after, limit=limit + 1), limit)
    start = 0
    if last_event_id is not None:
        start = events.number_of(job.id, last_event_id, "Last-Event-ID")
    elif after is not None:
        start = events.number_of(job.id, after, "after")
    hub: Hub = request.app.state.hub
    return EventStream(hub.stream(caller.project_id, job.id, start))


@router.get("/{job_id}/checkpoints", responses=errors(400, 404))
def list_fine_tuning_checkpoints(
    job_id: str, caller: CallerDep, session: SessionDep, after: After = None, limit: JobLimit = 10
) -> Page[CheckpointView]:
    """The adapters that the job's trainings left, newest first."""
    job = jobs.find_job(session, caller.project_id, job_id)
    found = events.list_checkpoints(session, job)
    if after is not None:
        ids = [checkpoint.id for checkpoint in found]
        if after not in ids:
            message = "after is not the id of a checkpoint of this job"
            raise BadRequest(message, code="invalid_after", param="after")
        found = found[ids.index(after) + 1 :]
    return page(found, limit)


def _view(session: SessionDep, caller: Caller, job_id: str) -> JobView:
    found = read_jobs(session, caller.project_id, [job_id])
    if not found:
        raise jobs.no_such_job(job_id)
    return job_view(found[0])


def _metadata_of(request: Request) -> dict[str, str] | None:
    """The pairs that jobs must have; None where jobs without metadata are asked for."""
    pairs = {found[1]: value for name, value in request.query_params.multi_items() if (found := _PAIR.fullmatch(name))}
    bare: Literal["null", ""] | str | None = request.query_params.get("metadata")
    if bare in {None, ""}:
        return pairs
    if bare != "null" or pairs:
        message = "metadata is either metadata[key]=value, any number of times, or metadata=null"
        raise BadRequest(message, code="invalid_metadata", param="metadata")
    return None
