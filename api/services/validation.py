"""What a create would do, without doing it: its files, its recipe, and a look at the rows.

The beginning of each file is read and checked as a worker would, by the code of `semievol validate`. Token lengths come
from the base model's own tokenizer.json where that is at hand; the chat template needs an engine, so it is left to
`semievol validate`. What the job would take is told by the worker's own estimator.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import Services
from api.errors import BadRequest
from api.schemas.jobs import (
    AnswersView,
    CheckedFile,
    Estimate,
    FileProblem,
    JobCreate,
    Overlaps,
    Quantiles,
    Segment,
    ValidationView,
)
from api.services.jobs import check_order, wanted_files
from api.services.recipes import Asked, understand
from semievol import wording
from semievol.errors import DataError
from semievol.estimates.estimate import Estimator, counting
from semievol.examples import Example
from semievol.formats.naming import HEAD_BYTES, guessed_format
from semievol.model_files import TOKENIZER, config_of, text_counter, tokenizer_of
from semievol.prompts import Message
from semievol.recipe import Recipe
from semievol.validation.checking import Checked, Fault, check
from semievol.validation.lengths import lengths_of
from store.measured import finished_jobs
from store.models import File
from store.objects import ObjectStore
from store.settings import BaseModelEntry

SAMPLE_ROWS = 1000
SAMPLE_BYTES = 8 * 1024**2
"""Of each file; reading so much takes about a second."""
PREVIEW_ROWS = 3


def validate_order(session: Session, parts: Services, project_id: str, body: JobCreate) -> ValidationView:
    """Check the request as a create does, and report instead of refusing."""
    view = ValidationView(
        valid=False,
        errors=[],
        model=body.model,
        method=None,
        recipe=None,
        files={},
        answers=None,
        overlaps=None,
        token_lengths=None,
        loss_mask=None,
        estimate=None,
        notes=[],
    )
    try:
        asked = understand(body)
        view.method = asked.method
        files = _files(session, project_id, body, asked)
        view.files = {role: _checked(file) for role, file in files.items()}
        order = check_order(session, parts.settings, project_id, body)
    except BadRequest as error:
        view.errors = [FileProblem(message=error.message, param=error.param, code=error.code)]
        return view
    view.recipe = order.recipe.model_dump(mode="json")
    places = {role: place for role, (_, place) in wanted_files(body, asked).items()}
    with ExitStack() as staged:
        heads = {role: staged.enter_context(head_of(parts, file)) for role, file in files.items()}
        checked = check(heads, order.recipe, body.seed or 0)
    _tell_faults(view, checked, files, places)
    entry = BaseModelEntry(**order.source)
    tokenizer = tokenizer_of(entry.source, entry.revision)
    _tell_rows(view, checked, tokenizer)
    _tell_estimate(session, view, checked, order.recipe, entry, tokenizer)
    view.valid = not view.errors
    return view


def _files(session: Session, project_id: str, body: JobCreate, asked: Asked) -> dict[str, File]:
    """The files that are there, fit or not."""
    files = {}
    for role, (file_id, _) in wanted_files(body, asked).items():
        found = session.scalars(select(File).where(File.id == file_id, File.project_id == project_id)).one_or_none()
        if found is not None:
            files[role] = found
    return files


def _checked(file: File) -> CheckedFile:
    facts = file.facts or {}
    return CheckedFile(
        id=file.id,
        filename=file.filename,
        kind=facts.get("kind"),
        rows=facts.get("rows"),
        problems=facts.get("problems") or [],
    )


@contextmanager
def head_of(parts: Services, file: File) -> Iterator[Path]:
    """The first whole lines of a file, at most `SAMPLE_BYTES`, as a staged file that is gone on leaving."""
    folder = parts.settings.data / "staging"
    folder.mkdir(parents=True, exist_ok=True)
    head = _head(parts.objects, file)
    path = folder / f"{secrets.token_hex(16)}.partial{guessed_format(file.filename, head[:HEAD_BYTES]).ending}"
    try:
        path.write_bytes(head)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _head(objects: ObjectStore, file: File) -> bytes:
    head = b"".join(objects.read(file.sha256, 0, min(file.bytes, SAMPLE_BYTES)))
    return head if file.bytes <= SAMPLE_BYTES else head[: head.rfind(b"\n") + 1]


def _tell_faults(view: ValidationView, checked: Checked, files: Mapping[str, File], places: Mapping[str, str]) -> None:
    """What would end the job; only noted where a file was not read to its end, as the rest may mend it."""
    cut = sorted(file.filename for file in files.values() if file.bytes > SAMPLE_BYTES)
    if cut:
        view.notes.append(f"only the first {SAMPLE_BYTES // 1024**2} MiB were looked at of {wording.listed(cut)}")
    roles = {str(path): role for role, path in checked.files.items()}
    for fault in checked.faults:
        told = _problem(fault, files.get(roles.get(fault.where, "")), places.get(roles.get(fault.where, "")))
        if cut:
            view.notes.append(told.message)
        else:
            view.errors.append(told)


def _problem(fault: Fault, file: File | None, place: str | None) -> FileProblem:
    if file is None or place is None:
        return FileProblem(message=fault.problems[0].message, param=None, code=fault.problems[0].code)
    message = str(DataError(file.filename, fault.problems, fault.total))
    return FileProblem(message=f"{place}: {message}", param=place, code=f"invalid_{place.rpartition('.')[2]}")


def _tell_rows(view: ValidationView, checked: Checked, tokenizer: Any) -> None:
    if checked.rules is not None:
        view.answers = AnswersView(kind=checked.rules.kind, options=checked.rules.options, mix=checked.mix)
    if checked.overlaps is not None:
        view.overlaps = Overlaps.model_validate(checked.overlaps)
        said = {"overlaps": checked.overlaps}
        view.notes += filter(None, (wording.left_out(said), wording.worth_a_look(said)))
    labeled = sorted(checked.train + ([] if "validation" in checked.files else checked.validation), key=_line)
    rows = {"labeled": labeled, "unlabeled": checked.pool, "test": checked.test}
    rows |= {"validation": checked.validation} if "validation" in checked.files else {}
    samples = {role: [turns_of(row) for row in found[:SAMPLE_ROWS]] for role, found in rows.items() if found}
    if labeled:
        view.loss_mask = [segments(turns, tokenizer) for turns in samples["labeled"][:PREVIEW_ROWS]]
    if tokenizer is None:
        view.notes.append(f"token lengths need the {TOKENIZER} of the base model on this machine")
    elif samples:
        lengths = {role: lengths_of(_lengths(tokenizer, found)) for role, found in samples.items()}
        view.token_lengths = {role: Quantiles(**asdict(found)) for role, found in lengths.items()}
        view.notes.append(
            f"token lengths are of the text of the first {SAMPLE_ROWS:,} rows at most, without the chat template's "
            "tokens"
        )


def _tell_estimate(
    session: Session, view: ValidationView, checked: Checked, recipe: Recipe, entry: BaseModelEntry, tokenizer: Any
) -> None:
    """What the job would take; as its worker will expect it, but for files that were not read to their end."""
    if checked.rules is None or not checked.train:
        return
    samples = {
        "labeled": checked.train,
        "unlabeled": checked.pool,
        "validation": checked.validation,
        "test": checked.test,
    }
    rows = {role: _rows_of(role, view, checked) for role in samples}
    estimator = Estimator.of(
        config_of(entry.source, entry.revision),
        finished_jobs(session, view.model),
        counting(text_counter(tokenizer)),
    )
    view.estimate = Estimate.model_validate(estimator.estimate(recipe, checked.rules, rows, samples))


def _rows_of(role: str, view: ValidationView, checked: Checked) -> int:
    """Rows that are used: of a file that was not read to its end as large a share as of its beginning."""
    used, given = checked.used.get(role, 0), role if role in checked.files else "labeled"
    told = view.files[given].rows
    return round(used * told / checked.rows[given]) if told else used


def turns_of(row: Example) -> list[Message]:
    """The whole chat of a row, its reply last where it has one."""
    return [*row.prompt, *([Message("assistant", row.reply)] if row.reply is not None else [])]


def _line(row: Example) -> int:
    return row.line


def segments(turns: Sequence[Message], tokenizer: Any) -> list[Segment]:
    """Which turns the loss counts: the assistant's, unless their weight is 0. With a `tokenizer` they are cut."""
    return [
        Segment(
            role=turn.role,
            text=turn.content,
            trained=turn.role == "assistant" and turn.weight != 0,
            tokens=None if tokenizer is None else _tokens(tokenizer, turn.content),
        )
        for turn in turns
    ]


def _tokens(tokenizer: Any, text: str) -> list[str]:
    return pieces(text, [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets])


def pieces(text: str, ends: Iterable[int]) -> list[str]:
    """The text, cut where tokens end (in characters). Nothing is lost and no piece is empty.

    What no token covers, such as a space that the tokenizer drops, goes with the next piece, at the end with the last.
    """
    found, start = [], 0
    for end in ends:
        if end > start:  # else it is one more token of the same character
            found.append(text[start:end])
            start = end
    if start < len(text):
        found[-1:] = ["".join(found[-1:]) + text[start:]]
    return found


def _lengths(tokenizer: Any, rows: Sequence[Sequence[Message]]) -> list[int]:
    texts = ["\n".join(turn.content for turn in turns) for turns in rows]
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
