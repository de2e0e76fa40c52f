"""What a job makes: pseudo-labels and their review, the adapter, the report."""

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Depends, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from api.auth import CallerDep
from api.deps import ServicesDep, SessionDep
from api.schemas.common import Page, errors, page
from api.schemas.jobs import JobView, LabelEdit
from api.schemas.labels import LabelDetail, LabelSummary, LabelView
from api.services import pseudo_labels
from api.services.content import object_response
from api.services.job_view import job_view, read_jobs
from api.services.jobs import find_job
from api.services.label_detail import label_detail
from api.services.label_summary import label_summary
from api.services.results import published_file
from store.pseudo_labels import LabelFilter, Order

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}", tags=["results of jobs"])

NDJSON = "application/x-ndjson"
PARQUET = "application/vnd.apache.parquet"
BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_CSP = re.compile(rb'<meta http-equiv="Content-Security-Policy" content="([^"]{1,1000})">')
_NO_SCRIPTS = "default-src 'none'; style-src 'unsafe-inline'"
_LINES = 2**53


def _filter(
    *,
    decision: Literal["accept", "reject"] | None = None,
    reason: Annotated[str | None, Query(max_length=100)] = None,
    answer: Annotated[str | None, Query(max_length=1000)] = None,
    min_entropy: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    max_entropy: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    round_number: Annotated[int | None, Query(alias="round", ge=1, le=1000)] = None,
    consistent: Annotated[bool | None, Query(description="Whether all collaborators gave this answer.")] = None,
    q: Annotated[str | None, Query(max_length=200, description="Part of the question.")] = None,
    outcome: Annotated[str | None, Query(max_length=100, description="How collaborators came to an answer.")] = None,
    reviewed: Annotated[bool | None, Query(description="Whether a person has decided the row.")] = None,
) -> LabelFilter:
    return LabelFilter(
        decision, reason, answer, min_entropy, max_entropy, round_number, consistent, q, outcome, reviewed
    )


@router.get(
    "/pseudo_labels",
    response_model=Page[LabelView],
    responses=errors(400, 404, 409, 416)
    | {
        200: {
            "description": "A page, or all rows as JSON lines (`Accept: application/x-ndjson`), or the Parquet file.",
            "model": Page[LabelView],
            "content": {NDJSON: {"schema": {"type": "string"}}, PARQUET: BINARY},
        }
    },
)
def list_pseudo_labels(
    job_id: str,
    *,
    request: Request,
    caller: CallerDep,
    session: SessionDep,
    parts: ServicesDep,
    wanted: Annotated[LabelFilter, Depends(_filter)],
    order: Annotated[
        Order, Query(description="With a minus the highest first. Rows without a value come last, equal ones by line.")
    ] = "line",
    after: Annotated[
        int, Query(ge=0, le=_LINES, description="Line of the last row of the page before, whatever the order.")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most rows of the page.")] = 100,
    form: Annotated[
        Literal["json", "ndjson", "parquet"] | None,
        Query(alias="format", description="`parquet` is the published file, all rows whatever the filters."),
    ] = None,
) -> Any:
    """Decided rows. `decision` and `answer` are as a person left them."""
    job = find_job(session, caller.project_id, job_id)
    if form == "parquet":
        sha256, size = published_file(session, job, "publish", "pseudo_labels.parquet")
        name = f"{job.id}-pseudo_labels.parquet"
        return object_response(request, parts.objects, sha256, size, name, PARQUET, parts.settings)
    if form == "ndjson" or (form is None and _prefers(request, NDJSON)):
        lines = pseudo_labels.label_lines(parts.database, job.id, wanted, order)
        return StreamingResponse(lines, media_type=NDJSON, headers={"Cache-Control": "no-store"})
    found = pseudo_labels.list_labels(session, job.id, wanted, after=after, limit=limit + 1, order=order)
    return page(found, limit)


@router.get("/pseudo_labels/summary", responses=errors(404))
def summarize_pseudo_labels(job_id: str, caller: CallerDep, session: SessionDep, parts: ServicesDep) -> LabelSummary:
    """All pseudo-labels in a fixed size: counts, histograms and what people made of them."""
    return label_summary(session, parts.summaries, find_job(session, caller.project_id, job_id))


@router.get("/pseudo_labels/{row}", responses=errors(404))
def read_pseudo_label(
    job_id: str,
    row: Annotated[int, Path(ge=1, le=_LINES, description="Line of the unlabeled file.")],
    caller: CallerDep,
    session: SessionDep,
    parts: ServicesDep,
) -> LabelDetail:
    """A row with its chat, and each collaborator's reply, log-probabilities and worked examples."""
    return label_detail(session, parts.trials, find_job(session, caller.project_id, job_id), row)


@router.patch("/pseudo_labels/{row}", responses=errors(400, 404, 409))
def edit_pseudo_label(
    job_id: str,
    row: Annotated[int, Path(ge=1, le=_LINES, description="Line of the unlabeled file.")],
    edit: LabelEdit,
    caller: CallerDep,
    session: SessionDep,
) -> LabelView:
    """A person's decision or corrected answer, while the job waits for review."""
    return pseudo_labels.edit_label(session, caller.project_id, caller.key_id, job_id, row, edit)


@router.post("/review/complete", responses=errors(404, 409))
def complete_review(
    job_id: str, caller: CallerDep, session: SessionDep, parts: ServicesDep, background: BackgroundTasks
) -> JobView:
    """Let a job go on that waits for review."""
    pseudo_labels.complete_review(session, parts, caller.project_id, caller.key_id, job_id)
    background.add_task(parts.bell.ring, {"cpu"})  # after the answer, so after the commit
    return job_view(read_jobs(session, caller.project_id, [job_id])[0])


@router.get(
    "/adapter",
    response_class=Response,
    responses=errors(404, 409, 416)
    | {200: {"description": "The adapter as a zip.", "content": {"application/zip": BINARY}}},
)
def download_adapter(
    job_id: str, request: Request, caller: CallerDep, session: SessionDep, parts: ServicesDep
) -> Response:
    """The LoRA adapter in PEFT's layout, as one zip."""
    job = find_job(session, caller.project_id, job_id)
    sha256, size = published_file(session, job, "export", "adapter.zip")
    name = f"{job.id}-adapter.zip"
    return object_response(request, parts.objects, sha256, size, name, "application/zip", parts.settings)


@router.get(
    "/adapter/{name:path}",
    response_class=Response,
    responses=errors(404, 409, 416)
    | {200: {"description": "The file.", "content": {"application/octet-stream": BINARY, "application/json": {}}}},
)
def download_adapter_file(
    job_id: str,
    name: Annotated[str, Path(description="Such as adapter_config.json.")],
    request: Request,
    caller: CallerDep,
    session: SessionDep,
    parts: ServicesDep,
) -> Response:
    """One file of the adapter."""
    job = find_job(session, caller.project_id, job_id)
    sha256, size = published_file(session, job, "publish", f"adapter/{name}")
    kind = "application/json" if name.endswith(".json") else "application/octet-stream"
    shown = name.rpartition("/")[2]
    return object_response(request, parts.objects, sha256, size, shown, kind, parts.settings)


@router.get(
    "/report",
    response_class=Response,
    responses=errors(404, 409, 416)
    | {
        200: {
            "description": "The report.",
            "content": {
                "application/json": {"schema": {"type": "object"}},
                "text/html": {"schema": {"type": "string"}},
            },
        }
    },
)
def read_report(
    job_id: str,
    request: Request,
    caller: CallerDep,
    session: SessionDep,
    parts: ServicesDep,
    form: Annotated[Literal["json", "html"] | None, Query(alias="format")] = None,
) -> Response:
    """Accuracies, selection, losses and provenance; a page with `Accept: text/html` or `format=html`."""
    job = find_job(session, caller.project_id, job_id)
    as_page = form == "html" or (form is None and _prefers(request, "text/html"))
    name, kind = ("report.html", "text/html") if as_page else ("report.json", "application/json")
    sha256, size = published_file(session, job, "publish", name)
    answer = object_response(request, parts.objects, sha256, size, f"{job.id}-{name}", kind, parts.settings)
    answer.headers["Vary"] = "Accept"
    if as_page and answer.status_code in {200, 206}:
        answer.headers["Content-Disposition"] = "inline"
        head = b"".join(parts.objects.read(sha256, 0, min(size, 4096)))
        found = _CSP.search(head)
        answer.headers["Content-Security-Policy"] = found[1].decode("latin-1") if found else _NO_SCRIPTS
    return answer


def _prefers(request: Request, kind: str) -> bool:
    """Whether `kind` comes before JSON in `Accept`; weights are rare there and play no part."""
    accepted = [one.partition(";")[0].strip() for one in request.headers.get("accept", "").lower().split(",")]
    return kind in accepted and "application/json" not in accepted[: accepted.index(kind)]
