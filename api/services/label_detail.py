"""One pseudo-label with all that led to it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from api.errors import NotFound
from api.schemas.labels import LabelDetail, OptionView, TokenView, TrialView, TurnView, WorkedExample
from api.services.pseudo_labels import find_label, label_view
from api.services.trials import Trials
from store.models import Job, PseudoLabel, StageRow

Record = Mapping[str, Any]


def label_detail(session: Session, trials: Trials, job: Job, line: int) -> LabelDetail:
    """The row of that line. Raises NotFound."""
    label = find_label(session, job, line)
    prepared = session.get(StageRow, (job.id, "prepare"))
    shard = _shard_of(session, label)
    if prepared is None or shard is None:
        raise _nothing_kept(line)
    answered = shard.files["answered.parquet"]
    record = trials.row(answered["sha256"], answered["bytes"], line)
    if record is None:
        raise _nothing_kept(line)
    asked = [*record["trials"], *([record["justification"]] if record["justification"] else [])]
    ids = {name for trial in asked for name in trial["worked_examples"]}
    labeled = prepared.files["train.parquet"]
    examples = trials.examples(labeled["sha256"], labeled["bytes"], ids)
    options = prepared.facts["answers"]["options"] or record["options"]
    views = [_trial(trial, options or (), examples) for trial in asked]
    return LabelDetail(
        **label_view(label).model_dump(),
        messages=[TurnView(role=turn["role"], content=turn["content"]) for turn in record["messages"]],
        options=options,
        trials=views[: len(record["trials"])],
        justification=views[-1] if record["justification"] else None,
    )


def _shard_of(session: Session, label: PseudoLabel) -> StageRow | None:
    if label.shard is None:
        return None
    return session.get(StageRow, (label.job_id, f"round-{label.round}/generate-{label.shard:05d}"))


def _nothing_kept(line: int) -> NotFound:
    message = f"nothing is kept of how line {line} was decided; earlier versions did not tell where that is"
    return NotFound(message, code="trials_not_found", param="row")


def _trial(trial: Record, options: Sequence[str], examples: Mapping[str, Record]) -> TrialView:
    logprobs, scores = trial["logprobs"], trial["option_logprobs"]
    texts = trial.get("tokens") or [None] * len(logprobs)
    return TrialView(
        collaborator=trial["collaborator"],
        seed=str(trial["seed"]),
        reply=trial["reply"],
        answer=trial["answer"],
        entropy=_finite(-math.fsum(logprobs) / len(logprobs)) if logprobs else None,
        tokens=[TokenView(text=text, logprob=_finite(value)) for text, value in zip(texts, logprobs, strict=True)],
        options=None
        if scores is None
        else [OptionView(option=name, logprob=_finite(value)) for name, value in zip(options, scores, strict=True)],
        worked_examples=[
            _example(name, similarity, examples.get(name))
            for name, similarity in zip(trial["worked_examples"], trial["similarities"], strict=True)
        ],
    )


def _example(name: str, similarity: float, row: Record | None) -> WorkedExample:
    return WorkedExample(
        id=name,
        similarity=similarity,
        question=row["messages"][-1]["content"] if row else None,
        answer=row["reply"] if row else None,
    )


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
