"""What a create would do, without doing it: its files, its recipe, and a look at the rows.

Token lengths come from the base model's own tokenizer.json where its source is a folder. Rows are looked at where they
are plain chat JSONL; other formats are read by workers only, in a process of their own.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import Services
from api.errors import BadRequest
from api.schemas.jobs import CheckedFile, Estimate, FileProblem, JobCreate, Quantiles, Segment, ValidationView
from api.services.jobs import check_order, wanted_files
from api.services.recipes import Asked, understand
from semievol.recipe import Recipe
from store.models import File
from store.objects import ObjectStore
from store.settings import Settings

SAMPLE_ROWS = 1000
SAMPLE_BYTES = 16 * 1024**2
PREVIEW_ROWS = 3
TOKENIZER = "tokenizer.json"

Turns = list[dict[str, Any]]


def validate_order(session: Session, parts: Services, project_id: str, body: JobCreate) -> ValidationView:
    """Check the request as a create does, and report instead of refusing."""
    view = ValidationView(
        valid=False,
        errors=[],
        model=body.model,
        method=None,
        recipe=None,
        files={},
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
    view.valid, view.recipe = True, order.recipe.model_dump(mode="json")
    _look_at_rows(view, parts, files, order.recipe)
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


def _look_at_rows(view: ValidationView, parts: Services, files: Mapping[str, File], recipe: Recipe) -> None:
    samples = {role: list(sample_rows(parts.objects, file)) for role, file in files.items()}
    samples = {role: rows for role, rows in samples.items() if rows}
    if skipped := sorted(files.keys() - samples.keys()):
        view.notes.append(f"token lengths and loss mask are shown for plain chat JSONL only, not for: {skipped}")
    if "labeled" in samples:
        view.loss_mask = [segments(row) for row in samples["labeled"][:PREVIEW_ROWS]]
    tokenizer = _tokenizer(parts.settings, view.model)
    if tokenizer is None:
        view.notes.append(f"token lengths need a base model that is a folder with {TOKENIZER} on this machine")
        return
    view.token_lengths = {role: quantiles(_lengths(tokenizer, rows)) for role, rows in samples.items()}
    view.notes.append(
        f"token lengths are of the text of the first {SAMPLE_ROWS:,} rows at most, without the chat template's tokens; "
        "memory and time depend on the workers' machines and are not estimated"
    )
    lengths = view.token_lengths.get("labeled")
    rows = view.files["labeled"].rows
    if lengths is not None and rows is not None and recipe.warmup.steps is None:
        view.estimate = Estimate(warmup_tokens=round(lengths.mean * rows * recipe.warmup.epochs))


def sample_rows(objects: ObjectStore, file: File) -> Iterator[Turns]:
    """The turns of the first rows of a chat JSONL file; nothing for other formats."""
    if not file.filename.lower().endswith((".jsonl", ".ndjson")):
        return
    head = b"".join(objects.read(file.sha256, 0, min(file.bytes, SAMPLE_BYTES)))
    lines = head.splitlines()
    if file.bytes > SAMPLE_BYTES:
        lines = lines[:-1]  # the last one may be cut off
    for line in [line for line in lines if line.strip()][:SAMPLE_ROWS]:
        row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
        turns = row.get("messages") if isinstance(row, dict) else None
        if turns is None:
            return
        yield turns


def segments(turns: Turns) -> list[Segment]:
    """Which turns the loss counts: the assistant's, unless their weight is 0."""
    return [
        Segment(
            role=turn["role"],
            text=turn["content"],
            trained=turn["role"] == "assistant" and turn.get("weight", 1) != 0,
        )
        for turn in turns
    ]


def _tokenizer(settings: Settings, model: str) -> Any:
    path = Path(settings.models[model].source) / TOKENIZER
    if not path.is_file():
        return None
    from tokenizers import Tokenizer  # noqa: PLC0415  -- a binary library that only this call needs

    return Tokenizer.from_file(str(path))


def _lengths(tokenizer: Any, rows: list[Turns]) -> list[int]:
    texts = ["\n".join(turn["content"] for turn in turns) for turns in rows]
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def quantiles(lengths: list[int]) -> Quantiles:
    """Of at least one length; each quantile is a length that occurs."""
    ordered = sorted(lengths)

    def at(share: float) -> int:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Quantiles(
        rows=len(ordered),
        p50=at(0.5),
        p90=at(0.9),
        p99=at(0.99),
        max=ordered[-1],
        mean=round(sum(ordered) / len(ordered), 2),
    )
