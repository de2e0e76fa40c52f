"""Reports of runs over doubles, one for each kind of run that a page has to cope with."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from semievol.examples import stream_unlabeled
from semievol.fakes import FakeBackend, FakeObserver
from semievol.pipeline import Job, run
from semievol.recipe import Recipe
from tests.test_cli import LABELS, write_chats

Pairs = list[tuple[str, str]]

HOSTILE = "<script>alert('labels')</script>"
UNBROKEN = "x" * 400
"""A word that no line has room for."""


def job_over(folder: Path, taught: Pairs, *, rows: int = 5, tested: bool = True, **layer: Any) -> Job:
    """A job over `taught`, each pair in `rows` labeled rows and 9 unlabeled ones."""
    folder.mkdir(parents=True, exist_ok=True)
    labeled = [(f"{question} {number}", reply) for number in range(rows) for question, reply in taught]
    waiting: list[tuple[str, str | None]] = [(f"{question} item {n}", None) for n in range(9) for question, _ in taught]
    return Job(
        "model",
        write_chats(folder / "labeled.jsonl", [*labeled]),
        write_chats(folder / "unlabeled.jsonl", waiting),
        Recipe.resolve(layer),
        test=write_chats(folder / "test.jsonl", [(f"{q} now", reply) for q, reply in taught]) if tested else None,
    )


def report_of(job: Job, output: Path, max_words: int = 1_000_000) -> dict[str, Any]:
    """What `report.json` holds."""
    run(job, FakeBackend(max_words=max_words), output, FakeObserver())
    told: dict[str, Any] = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return told


def hostile(folder: Path) -> dict[str, Any]:
    """One of the classes is a script."""
    return report_of(job_over(folder, [*LABELS, ("run this for me", HOSTILE)]), folder / "out")


def supervised(folder: Path) -> dict[str, Any]:
    """No unlabeled file."""
    return report_of(replace(job_over(folder, LABELS), unlabeled=None), folder / "out")


def untested(folder: Path) -> dict[str, Any]:
    """No test file."""
    return report_of(job_over(folder, LABELS, tested=False), folder / "out")


def free_text(folder: Path) -> dict[str, Any]:
    """Long replies, no two alike, and questions that have to be shortened."""
    taught = [
        (f"tell me of {word} {UNBROKEN * 3}", f"{word} is {'quite ' * 60}good <b>{word}</b>") for word in "abcdef"
    ]
    return report_of(job_over(folder, taught, rows=1, answers={"kind": "text"}), folder / "out")


def numbers(folder: Path) -> dict[str, Any]:
    """Numeric answers."""
    return report_of(job_over(folder, [(f"how much is item {n}", f"{n * 37}.50") for n in range(1, 9)]), folder / "out")


def many_classes(folder: Path) -> dict[str, Any]:
    """26 classes with long names."""
    taught = [(f"about {chr(97 + n) * 3}", f"department of {chr(97 + n) * 9} and others") for n in range(26)]
    return report_of(job_over(folder, taught), folder / "out")


def several_rounds(folder: Path) -> dict[str, Any]:
    """Three rounds at most."""
    return report_of(job_over(folder, LABELS, rounds=3, selection={"theta": 0.3}), folder / "out")


def all_thrown_out(folder: Path) -> dict[str, Any]:
    """A person rejected every pseudo-label."""
    job = job_over(folder, LABELS)
    assert job.unlabeled
    edits = [{"round": 1, "id": row.id, "decision": "reject"} for row in stream_unlabeled(job.unlabeled)]
    reviewed = folder / "reviewed.jsonl"
    reviewed.write_text("".join(json.dumps(edit) + "\n" for edit in edits), encoding="utf-8")
    return report_of(replace(job, review=True, reviewed=reviewed), folder / "out")


def too_long(folder: Path) -> dict[str, Any]:
    """No unlabeled row fits the model, so none has an answer."""
    job = job_over(folder, [(q, r) for q, r in LABELS])
    assert job.unlabeled
    long = [(f"{question} {'and so on ' * 300}", None) for question, _ in LABELS]
    return report_of(replace(job, unlabeled=write_chats(folder / "long.jsonl", [*long])), folder / "out", max_words=400)


def sft_delivered(folder: Path) -> dict[str, Any]:
    """SemiEvol validated worse."""
    told = report_of(job_over(folder, LABELS), folder / "out")
    told["validation"]["semievol"] |= {"value": 0.0, "low": 0.0}
    return told | {"best": "sft", "delivered": "sft"}


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    case.__name__: case
    for case in (
        hostile,
        supervised,
        untested,
        free_text,
        numbers,
        many_classes,
        several_rounds,
        all_thrown_out,
        too_long,
        sft_delivered,
    )
}
