"""Rows and objects as uploads and workers would leave them, put there directly."""

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, update

from store import jobs, pseudo_labels
from store.database import now
from store.ids import new_id
from store.models import File, Job, StageRow, Unit
from store.pseudo_labels import LabelRow
from store.states import UnitKind
from tests.api.service import PROJECT, Service

LABELED = '{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}\n'
UNLABELED = '{"messages": [{"role": "user", "content": "3+3?"}]}\n'


def put_object(service: Service, content: bytes) -> dict[str, Any]:
    """Store the bytes; their entry in a manifest."""
    sha256 = hashlib.sha256(content).hexdigest()
    path = service.settings.data / f"new-{secrets.token_hex(4)}"
    path.write_bytes(content)
    service.parts.objects.put(path, sha256)
    path.unlink(missing_ok=True)
    return {"bytes": len(content), "sha256": sha256}


def add_file(service: Service, kind: str | None = "labeled", content: str | None = None, **values: Any) -> str:
    """A checked file of that kind; returns its id."""
    text = content or (LABELED if kind == "labeled" else UNLABELED)
    entry = put_object(service, text.encode())
    columns: dict[str, Any] = {
        "id": new_id("file-"),
        "project_id": PROJECT,
        "filename": f"{kind}.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
        "facts": {"kind": kind, "rows": text.count("\n")},
    }
    with service.database.write() as session:
        file = File(**(columns | entry | values))
        session.add(file)
        session.flush()
        return file.id


def body(service: Service, **changes: Any) -> dict[str, Any]:
    """A create request for a SemiEvol job over new files."""
    block = {"unlabeled_file": add_file(service, "unlabeled")} | changes.pop("semievol", {})
    return {"model": "tiny", "training_file": add_file(service), "semievol": block} | changes


def create(service: Service, **changes: Any) -> str:
    """A new job's id."""
    answer = service.client.post("/v1/fine_tuning/jobs", json=body(service, **changes))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def set_unit(service: Service, job_id: str, name: str, kind: UnitKind = "gpu", **values: Any) -> str:
    """Make or change a unit; returns its id."""
    with service.database.write() as session:
        found = session.scalars(select(Unit).where(Unit.job_id == job_id, Unit.name == name)).one_or_none()
        unit = found or jobs.add_unit(session, job_id, name, kind)
        for key, value in values.items():
            setattr(unit, key, value)
        return unit.id


def commit_stage(
    service: Service,
    job_id: str,
    name: str,
    *,
    unit: str | None = None,
    facts: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    seconds: float = 2.0,
) -> None:
    """A stage as a worker commits it."""
    unit_id = set_unit(service, job_id, unit or name)
    entries = {path: put_object(service, content) for path, content in (files or {}).items()}
    with service.database.write() as session:
        number = len(session.scalars(select(StageRow).where(StageRow.job_id == job_id)).all()) + 1
        session.add(
            StageRow(
                job_id=job_id,
                name=name,
                unit_id=unit_id,
                number=number,
                seconds=seconds,
                facts=dict(facts or {}),
                files=entries,
            )
        )


def set_job(service: Service, job_id: str, **values: Any) -> None:
    """Change the job's row."""
    with service.database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))


def start_job(service: Service, job_id: str) -> None:
    """As if the files were checked and a worker had begun."""
    with service.database.write() as session:
        jobs.move(session, job_id, "queued", "Files validated")
        jobs.move(session, job_id, "running", "Training started", started_at=now())
    set_unit(service, job_id, "prepare", "cpu", state="done")


def finish_job(service: Service, job_id: str, status: Any = "succeeded", **values: Any) -> None:
    """End the job."""
    with service.database.write() as session:
        assert jobs.move(session, job_id, status, f"The job {status}", **values)


def load_labels(service: Service, job_id: str, rows: list[LabelRow], round_number: int = 1) -> None:
    """Pseudo-labels of a round."""
    with service.database.write() as session:
        pseudo_labels.load(session, job_id, round_number, rows)


def label(line: int, **values: Any) -> LabelRow:
    """A decided row."""
    base: dict[str, Any] = {
        "row_id": f"r{line}",
        "question": f"question {line}",
        "answer": "A",
        "reply": "A",
        "decision": "accept" if line % 2 else "reject",
        "reason": "selected" if line % 2 else "low_confidence",
        "outcome": "consistent",
        "confidence": 0.9,
        "entropy": line / 10,
    }
    return LabelRow(line=line, **(base | values))


def job_row(service: Service, job_id: str) -> Job:
    """The row as it is now."""
    with service.database.read() as session:
        return session.get_one(Job, job_id)
