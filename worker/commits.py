"""What a supervisor writes: the start of a unit, its stages, its end, and the units that may come next.

Each function is part of one transaction of the caller.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from semievol.estimates.work import as_plain
from semievol.prompts import question_of
from semievol.stages import DECIDED
from semievol.tables import example_of, read_rows
from semievol.wording import foretold, left_out, stage_label, worth_a_look
from store import jobs, pseudo_labels, units
from store.database import now
from store.ids import new_id
from store.measured import finished_jobs
from store.models import File, FineTunedModel, Job, JobEvent, StageRow, Unit
from store.objects import ObjectStore
from store.pseudo_labels import LabelRow
from store.states import FINAL, UnitKind
from store.units import Claim
from worker import artifacts
from worker.plan import EXPORT, PREPARE, REVIEW, SELECT, SHARD, Committed, JobSpec, next_steps

MAX_LOSS_EVENTS = 80
"""Of one training; the trainer logs fewer."""
IO_ERROR = "io_error"
"""What a runner calls trouble with disks and object stores, which is nobody's fault."""
IO_PAUSE_SECONDS = 5.0
"""Before the second attempt where storage failed; five attempts then span seven minutes."""
MAX_OWN_FAILURES = 2
"""Attempts that may end in an error nobody foresaw before the job fails with it."""


def spec_of(session: Session, job: Job) -> JobSpec:
    """The job as plan and runner see it."""
    rows = session.scalars(select(StageRow).where(StageRow.job_id == job.id).order_by(StageRow.number))
    return JobSpec(
        job_id=job.id,
        model=job.model_source["source"],
        revision=job.model_source.get("revision"),
        recipe=job.recipe,
        seed=job.seed,
        inputs=job.inputs,
        review=job.review,
        reviewed=job.reviewed_sha256,
        stages={row.name: Committed(row.facts, row.files, row.seconds) for row in rows},
    )


def begin(session: Session, claim: Claim) -> JobSpec:
    """A unit was claimed: the job runs."""
    job = session.get_one(Job, claim.job_id)
    if claim.name != PREPARE:
        started_at = func.coalesce(Job.started_at, now())
        jobs.move(session, job.id, "running", "Fine-tuning job started", only_from="queued", started_at=started_at)
    if claim.attempt > 1:
        jobs.add_event(session, job.id, f"{claim.name}: attempt {claim.attempt}", data={"unit": claim.name})
    spec = spec_of(session, job)
    if claim.name == PREPARE:
        spec = replace(spec, measured=[as_plain(done) for done in finished_jobs(session, job.model)])
    return spec


def commit_stage(
    session: Session,
    claim: Claim,
    objects: ObjectStore,
    *,
    stage: str,
    facts: dict[str, Any],
    seconds: float,
    files: dict[str, Any],
) -> None:
    """A stage is done; its objects are safe. Again is a no-op. The caller holds the unit."""
    if session.get(StageRow, (claim.job_id, stage)) is not None:
        return
    number = session.scalar(select(func.count()).where(StageRow.job_id == claim.job_id)) or 0
    session.add(
        StageRow(
            job_id=claim.job_id,
            name=stage,
            unit_id=claim.unit_id,
            number=number + 1,
            seconds=seconds,
            facts=facts,
            files=files,
        )
    )
    session.execute(update(Unit).where(Unit.id == claim.unit_id).values(checkpoint=None))
    session.flush()
    if stage.endswith(SELECT):
        _load_labels(session, claim, objects, stage, files[DECIDED]["sha256"])
    tell_losses(session, claim.job_id, stage, facts.get("losses") or [], facts.get("steps", 0))
    short = {key: value for key, value in facts.items() if key in ("rows", "steps", "tokens", "accuracy", "decisions")}
    jobs.add_event(
        session, claim.job_id, f"{stage_label(stage)}: done in {seconds:.1f} s", data={"stage": stage, **short}
    )
    if estimate := facts.get("estimate"):
        jobs.add_event(session, claim.job_id, foretold(estimate), data={"stage": stage, "estimate": estimate})
    for note in filter(None, (left_out(facts), worth_a_look(facts))):
        jobs.add_event(session, claim.job_id, note, level="warn", data={"stage": stage})


def tell_losses(session: Session, job_id: str, stage: str, losses: Sequence[tuple[int, float]], steps: int) -> None:
    """Put losses of a training of so many `steps` into the job's log. The caller holds the unit.

    `losses`: (step, nats per token). Each step is told once, in order: what the log has already, of an attempt before
    or from while training ran, is left out, and so is what lies closer than MAX_LOSS_EVENTS allow. After the end of the
    job nothing is told.
    """
    if not losses or session.scalar(select(Job.status).where(Job.id == job_id).with_for_update()) in FINAL:
        return
    step_told = JobEvent.data["step"].as_integer()
    of_stage = (JobEvent.job_id == job_id, JobEvent.type == "metrics", JobEvent.data["stage"].as_string() == stage)
    told = session.scalar(select(step_told).where(*of_stage).order_by(JobEvent.number.desc()).limit(1))
    for step, loss in losses:
        if told is None or step * MAX_LOSS_EVENTS // steps > told * MAX_LOSS_EVENTS // steps:
            data = {"stage": stage, "step": step, "total_steps": steps, "train_loss": loss}
            message = f"{stage_label(stage)}: step {step}/{steps}, loss {loss:.4f}"
            jobs.add_event(session, job_id, message, kind="metrics", data=data)
            told = step


def note_checkpoint(session: Session, claim: Claim, checkpoint: dict[str, Any]) -> None:
    """A training can go on from here. The caller holds the unit."""
    session.execute(update(Unit).where(Unit.id == claim.unit_id).values(checkpoint=checkpoint))


def finish_unit(session: Session, claim: Claim) -> set[str]:
    """The unit is done: what may run next becomes units. Returns their kinds.

    Takes the job's row first, so that of two units that end together the second sees the first.
    """
    job = session.scalars(select(Job).where(Job.id == claim.job_id).with_for_update()).one()
    if not units.finish(session, claim) or job.status in FINAL:
        return set()
    if claim.name == PREPARE and job.status == "paused":
        job.resume_to = "queued"
    elif claim.name == PREPARE:
        told = "Files validated, the job waits for a worker"
        jobs.move(session, job.id, "queued", told, only_from="validating_files")
    steps = next_steps(spec_of(session, job))
    if not steps:
        _succeed(session, job)
        return set()
    known = set(session.scalars(select(Unit.name).where(Unit.job_id == job.id)))
    kinds: set[str] = set()
    for name in dict.fromkeys(step.unit for step in steps if step.unit not in known):
        kind: UnitKind = "gpu" if any(step.gpu for step in steps if step.unit == name) else "cpu"
        waiting = name.endswith(REVIEW)
        jobs.add_unit(session, job.id, name, kind, waiting=waiting)
        if waiting:
            jobs.add_event(session, job.id, "Waiting for review of the pseudo-labels", data={"review": "waiting"})
        else:
            kinds.add(kind)
    return kinds


def another_shard(
    session: Session, claim: Claim, worker_id: str, kinds: Sequence[str], lease_seconds: float
) -> Claim | None:
    """After a shard: one more of its round, for the process that has the engine loaded.

    None where another job's unit is first in line. A shard that was tried before gets a process of its own.
    """
    round_name, shard, _ = claim.name.partition(SHARD)
    if not shard:
        return None
    like = (Unit.job_id == claim.job_id, Unit.name.startswith(round_name + shard), Unit.attempts == 0)
    return units.claim(session, worker_id, kinds, lease_seconds, *like)


def give_back(session: Session, claim: Claim, reason: str) -> None:
    """We were asked to stop. The attempt is charged to nobody."""
    if reason == "over":
        units.cancel(session, claim)
    else:
        units.release(session, claim)


def unit_failed(session: Session, claim: Claim, error: dict[str, Any], max_attempts: int) -> set[str]:
    """The runner told an error. The job's own fault ends the job; what nobody foresaw is tried again a few times."""
    if error["code"] == IO_ERROR:
        return runner_lost(session, claim, error["message"], max_attempts, IO_PAUSE_SECONDS)
    if error.get("smaller"):  # in the end a batch is one row, and the error says so
        return _again(session, claim, error["message"], adjustments=error["smaller"])
    failed = session.scalar(select(Unit.failed).where(Unit.id == claim.unit_id)) or 0
    if error["own"] or failed + 1 >= min(MAX_OWN_FAILURES, max_attempts):
        if units.fail(session, claim):
            _fail(session, claim.job_id, error["code"], error["message"], error.get("param"))
        return set()
    return _again(session, claim, f"{error['code']}: {error['message']}", failed=Unit.failed + 1)


def runner_lost(session: Session, claim: Claim, cause: str, max_attempts: int, pause_seconds: float = 0.0) -> set[str]:
    """Infrastructure ended the attempt: the runner was killed, its engine died, the object store is away.

    `pause_seconds`: how long the unit waits the first time it is lost; four times as long each time after that.
    """
    lost = session.scalar(select(Unit.lost).where(Unit.id == claim.unit_id)) or 0
    if lost + 1 >= max_attempts:
        if units.fail(session, claim):
            _fail(
                session, claim.job_id, "worker_lost", f"{claim.name} was lost {lost + 1} times; the last time: {cause}"
            )
        return set()
    return _again(session, claim, cause, pause_seconds * 4**lost, lost=Unit.lost + 1)


def fail_worn_out(session: Session, unit_id: str, job_id: str, lost: int, max_attempts: int) -> bool:
    """Fail the job of a unit whose lease was lost too often; tells whether it was."""
    if lost < max_attempts:
        return False
    session.execute(update(Unit).where(Unit.id == unit_id, Unit.state == "ready").values(state="failed"))
    _fail(session, job_id, "worker_lost", f"its worker was lost {lost} times; see the workers' logs")
    return True


def _again(session: Session, claim: Claim, why: str, pause_seconds: float = 0.0, **charged: Any) -> set[str]:
    if not units.release(session, claim, pause_seconds, **charged):
        return set()
    when = f" in {pause_seconds:.0f} s" if pause_seconds else ""
    jobs.add_event(
        session, claim.job_id, f"{claim.name} will be tried again{when}: {why}", level="warn", data={"unit": claim.name}
    )
    return {claim.kind}


def _fail(session: Session, job_id: str, code: str, message: str, param: str | None = None) -> None:
    error = {"code": code, "message": message.replace("\0", ""), "param": param}
    jobs.move(session, job_id, "failed", f"The job failed: {error['message']}", error=error)


def _succeed(session: Session, job: Job) -> None:
    """The last unit ended: the adapter gets a name, the results become files."""
    exported = session.get_one(StageRow, (job.id, EXPORT))
    for name in artifacts.RESULTS:
        entry = exported.files.get(name)
        if entry is not None:
            result = File(
                id=new_id("file-"),
                project_id=job.project_id,
                job_id=job.id,
                filename=name,
                purpose="fine-tune-results",
                bytes=entry["bytes"],
                sha256=entry["sha256"],
                status="processed",
            )
            session.add(result)
            session.flush()
    model = model_id(job)
    session.add(FineTunedModel(id=model, project_id=job.project_id, job_id=job.id, base=job.model))
    session.flush()
    jobs.move(
        session,
        job.id,
        "succeeded",
        "The job has successfully completed",
        fine_tuned_model=model,
        trained_tokens=exported.facts["trained_tokens"],
    )


def model_id(job: Job) -> str:
    """ft:<base>:<suffix>:<id>, without a slash."""
    base = re.sub(r"[^\w.-]+", "-", job.model)
    suffix = re.sub(r"[^\w.-]+", "-", job.suffix or "semievol")
    return f"ft:{base}:{suffix}:{job.id.removeprefix('ftjob-')[:8]}"


def _load_labels(session: Session, claim: Claim, objects: ObjectStore, stage: str, sha256: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, DECIDED)
        objects.fetch(sha256, path)
        round_number = int(stage.removeprefix("round-").partition("/")[0])
        pseudo_labels.load(session, claim.job_id, round_number, _labels(path))


def _labels(path: Path) -> Iterator[LabelRow]:
    for record in read_rows(path):
        yield LabelRow(
            line=record["line"],
            row_id=record["id"],
            question=question_of(example_of({**record, "reply": None}).prompt),
            answer=record["answer"],
            reply=record["reply"],
            decision=record["decision"],
            reason=record["reason"],
            outcome=record["outcome"],
            confidence=record["confidence"],
            probability=record["probability"],
            vote_share=record["vote_share"],
            entropy=record["entropy"],
            answer_entropy=record["answer_entropy"],
            shard=record["shard"],
        )
