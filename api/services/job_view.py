"""A job as the client sees it. `read_jobs` asks one query, however many jobs; the rest is pure."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

from sqlalchemy import JSON, Double, ScalarSelect, bindparam, case, cast, func, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

from api.schemas.jobs import JobError, JobView, ReviewView, SemievolView, StageView
from semievol.wording import counted, work_label
from store.database import now
from store.models import File, Job, StageRow, Unit
from store.states import FINAL

REVIEW = "/review"
_UNITS_OF_COUNT: dict[str, Literal["rows", "steps", "shards"]] = {"row": "rows", "step": "steps", "shard": "shards"}
_SHARDS = "%/generate-%"
_LEAST_PROGRESS = 0.05
"""Before this much is done, a time of finishing would be a guess."""
_SHOWN_FACTS = frozenset(
    {
        "rows",
        "held_out",
        "overlaps",
        "pool",
        "retriever",
        "decisions",
        "reasons",
        "outcomes",
        "pending",
        "reviewed",
        "accuracy",
    }
    | {"steps", "tokens", "truncated_rows", "delivered", "accuracies", "trained_tokens"}
)
_TRUNK = {"prepare": (0.02, 1), "propagate": (0.2, 4), "evaluate": (0.06, 4)}
"""By unit: its share of a job's time, roughly, and its stages. Shares need not sum to 1."""
_ROUND = {"propagate": (0.02, 1), "generate": (0.5, 1), "select": (0.02, 1), "review": (0.0, 1), "train": (0.2, 2)}


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """Units of one name and state; all shards of a round have one name. `part`: of a unit, how much is done."""

    name: str
    state: str
    stage: str | None
    count: int
    done: int
    total: int
    part: float
    started_at: float | None
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class StageFacts:
    """A committed stage."""

    name: str
    unit: str
    seconds: float
    facts: dict[str, Any]
    committed_at: float


@dataclass(slots=True)
class JobFacts:
    """All rows that a view is made of. `at`: the database's time."""

    job: Job
    at: float
    result_files: list[str]
    units: list[UnitFacts]
    stages: list[StageFacts]


# --- reading ----------------------------------------------------------------------------------------------------------


class _lists(FunctionElement[list[Any]]):  # noqa: N801  -- reads as the SQL function it is
    """An aggregate: a JSON list of lists, one for each row."""

    type = JSON()
    inherit_cache = True


@compiles(_lists, "postgresql")
def _lists_in_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return f"coalesce(json_agg(json_build_array({compiler.process(element.clauses, **options)})), '[]')"


@compiles(_lists, "sqlite")
def _lists_in_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    def one(value: Any) -> str:
        written: str = compiler.process(value, **options)
        return f"json({written})" if isinstance(value.type, JSON) else written  # else it would be a string

    return f"json_group_array(json_array({', '.join(map(one, element.clauses))}))"


def _units() -> ScalarSelect[list[Any]]:
    # Named in a subquery: PostgreSQL takes the same expression with parameters, twice, for two different ones.
    name = case((Unit.name.like(_SHARDS), func.rtrim(Unit.name, "-0123456789")), else_=Unit.name).label("group_name")
    part = case((Unit.total > 0, cast(Unit.done, Double) / Unit.total), else_=0.0).label("part")
    named = select(Unit.__table__, name, part).where(Unit.job_id == Job.id).correlate(Job).subquery().c
    grouped = select(
        func.min(named.ready_at).label("ready_at"),
        named.group_name,
        named.state,
        func.max(named.stage).label("stage"),
        func.count().label("count"),
        func.sum(named.done).label("done"),
        func.sum(named.total).label("total"),
        func.sum(named.part).label("part"),
        func.min(named.started_at).label("started_at"),
        func.max(named.finished_at).label("finished_at"),
    ).group_by(named.group_name, named.state)
    return select(_lists(*grouped.subquery().c)).scalar_subquery()


def _stages() -> ScalarSelect[list[Any]]:
    shown = (StageRow.number, StageRow.name, Unit.name, StageRow.seconds, StageRow.facts, StageRow.committed_at)
    return (
        select(_lists(*shown))
        .join_from(StageRow, Unit, Unit.id == StageRow.unit_id)
        .where(StageRow.job_id == Job.id, StageRow.name.not_like(_SHARDS))
        .correlate(Job)
        .scalar_subquery()
    )


def _files() -> ScalarSelect[list[Any]]:
    return select(_lists(File.created_at, File.id)).where(File.job_id == Job.id).correlate(Job).scalar_subquery()


_JOBS = (
    select(Job, now(), _files(), _units(), _stages())
    .where(Job.id.in_(bindparam("ids", expanding=True)), Job.project_id == bindparam("project"))
    .execution_options(populate_existing=True)  # a move of this transaction went past the ORM
)
"""Made once, and one trip: a fifth of the time of a statement for each table, made for each request."""


def read_jobs(session: Session, project_id: str, job_ids: Sequence[str]) -> list[JobFacts]:
    """The project's jobs of these ids, in their order; what is not there is left out."""
    if not job_ids:
        return []
    found: dict[str, JobFacts] = {}
    for job, at, files, units, stages in session.execute(_JOBS, {"ids": job_ids, "project": project_id}):
        found[job.id] = JobFacts(
            job,
            at,
            [file_id for _, file_id in sorted(files)],
            [UnitFacts(*values) for _, *values in sorted(units, key=itemgetter(0, 1))],
            [StageFacts(*values) for _, *values in sorted(stages, key=itemgetter(0))],
        )
    return [found[job_id] for job_id in job_ids if job_id in found]


# --- the view ---------------------------------------------------------------------------------------------------------


def job_view(facts: JobFacts) -> JobView:
    """The job object: OpenAI's keys, and `semievol`."""
    job = facts.job
    semievol = semievol_view(facts)
    return JobView(
        id=job.id,
        created_at=int(job.created_at),
        error=JobError(code=job.error["code"], message=job.error["message"], param=job.error.get("param"))
        if job.error
        else None,
        fine_tuned_model=job.fine_tuned_model,
        finished_at=_whole(job.finished_at),
        estimated_finish=semievol.estimated_finish,
        hyperparameters=job.asked.get("hyperparameters") or {},
        model=job.model,
        organization_id=job.project_id,
        result_files=facts.result_files,
        seed=job.seed,
        status=job.status,
        trained_tokens=job.trained_tokens,
        training_file=_input(job, "labeled") or "",
        user_provided_suffix=job.suffix,
        validation_file=_input(job, "validation"),
        integrations=job.asked.get("integrations") or [],
        metadata=job.metadata_,
        method=job.asked.get("method") or {"type": job.method},
        semievol=semievol,
    )


def semievol_view(facts: JobFacts) -> SemievolView:
    """How far the job is."""
    job = facts.job
    stages = _stage_views(facts)
    waiting = any(unit.state == "waiting" and unit.name.endswith(REVIEW) for unit in facts.units)
    done = progress(facts)
    return SemievolView(
        stage=next((stage.name for stage in stages if stage.state not in {"done", "cancelled"}), job.stage),
        round=max((_round_of(unit.name) for unit in facts.units), default=0),
        progress=round(done, 4),
        stages=stages,
        estimated_finish=None if waiting else _finish(job, done, facts.at),
        metrics={stage.name: stage.facts["accuracy"] for stage in facts.stages if "accuracy" in stage.facts},
        unlabeled_file=_input(job, "unlabeled"),
        test_file=_input(job, "test"),
        review=ReviewView(needed=job.review, waiting=waiting),
        recipe=job.recipe,
    )


def progress(facts: JobFacts) -> float:
    """0 to 1, roughly by time: shares of the units, each as far as its stages and rows are. 1 only when it is done."""
    if facts.job.status == "succeeded":
        return 1.0
    committed: dict[str, int] = defaultdict(int)
    for stage in facts.stages:
        committed[stage.unit] += 1
    groups: dict[str, list[UnitFacts]] = defaultdict(list)
    for unit in facts.units:
        groups[unit.name].append(unit)
    shares = _shares(facts.job)
    whole = sum(share for share, _ in shares.values())
    parts = (share * _part(groups[name], committed[name], stages) for name, (share, stages) in shares.items())
    return min(0.99, sum(parts) / whole)


def _shares(job: Job) -> dict[str, tuple[float, int]]:
    rounds = range(1, int(job.recipe.get("rounds", 1)) + 1) if job.method == "semievol" else range(0)
    inner = {f"round-{number}/{name}": share for number in rounds for name, share in _ROUND.items()}
    return _TRUNK | inner


def _part(units: list[UnitFacts], committed: int, stages: int) -> float:
    count = sum(unit.count for unit in units)
    if not count:
        return 0.0
    done = sum(unit.count for unit in units if unit.state == "done")
    running = sum(unit.part for unit in units if unit.state == "running")
    begun = count - done
    return min(1.0, (done + begun * min(1.0, committed / stages) + running / stages) / count)


def _stage_views(facts: JobFacts) -> list[StageView]:
    """Committed stages, a round's generation in one line, and what is being done or waits."""
    units: dict[str, list[UnitFacts]] = defaultdict(list)
    for unit in facts.units:
        units[unit.name].append(unit)
    views: list[StageView] = []
    committed: dict[str, list[StageFacts]] = defaultdict(list)
    for stage in facts.stages:
        committed[stage.unit].append(stage)
    for name, group in units.items():
        if name.endswith("/generate"):
            views.append(_shards_view(name, group))
            continue
        views += [_done_view(stage) for stage in committed[name]]
        if group[0].state != "done":
            views.append(_open_view(name, group[0], {stage.name for stage in committed[name]}))
    return views


def _done_view(stage: StageFacts) -> StageView:
    return StageView(
        name=stage.name,
        label=work_label(stage.name),
        unit=stage.unit,
        state="done",
        done=1,
        total=1,
        unit_of_count=None,
        started_at=int(stage.committed_at - stage.seconds),
        finished_at=int(stage.committed_at),
        seconds=stage.seconds,
        facts={key: value for key, value in stage.facts.items() if key in _SHOWN_FACTS},
    )


def _open_view(name: str, unit: UnitFacts, committed: set[str]) -> StageView:
    stage = unit.stage if unit.stage and unit.stage not in committed else name
    return StageView(
        name=stage,
        label=work_label(stage),
        unit=name,
        state=unit.state,
        done=unit.done,
        total=unit.total,
        unit_of_count=_UNITS_OF_COUNT[counted(stage)],
        started_at=_whole(unit.started_at),
        finished_at=_whole(unit.finished_at),
        seconds=None,
        facts={},
    )


def _shards_view(name: str, group: list[UnitFacts]) -> StageView:
    """`done` and `total` count shards, as those that have not begun do not know their rows."""
    states = {unit.state for unit in group}
    open_states = [state for state in ("failed", "running", "ready", "waiting", "cancelled") if state in states]
    state = open_states[0] if open_states else "done"
    if state == "ready" and "done" in states:
        state = "running"
    started = [unit.started_at for unit in group if unit.started_at is not None]
    finished = [unit.finished_at for unit in group if unit.finished_at is not None]
    over = state == "done" and started and finished
    return StageView(
        name=name,
        label=work_label(name),
        unit=name,
        state=state,
        done=sum(unit.count for unit in group if unit.state == "done"),
        total=sum(unit.count for unit in group),
        unit_of_count=_UNITS_OF_COUNT[counted(name)],
        started_at=_whole(min(started, default=None)),
        finished_at=_whole(max(finished)) if over else None,
        seconds=round(max(finished) - min(started), 3) if over else None,
        facts={},
    )


def _finish(job: Job, done: float, at: float) -> int | None:
    """When the job would finish if it went on as it did."""
    if job.status != "running" or job.started_at is None or not _LEAST_PROGRESS <= done < 1 or job.status in FINAL:
        return None
    return int(at + (at - job.started_at) * (1 - done) / done)


def _round_of(name: str) -> int:
    """The round of a unit's or stage's name; 0 outside of rounds."""
    number = name.partition("/")[0].removeprefix("round-")
    return int(number) if name.startswith("round-") and number.isdigit() else 0


def _input(job: Job, role: str) -> str | None:
    entry = job.inputs.get(role)
    return str(entry["file"]) if entry else None


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
