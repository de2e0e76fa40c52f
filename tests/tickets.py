"""A small closed task for tests of the loop: each answer has its words, and words of one answer occur together."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORDS = {
    "billing": ("invoice", "refund", "charge", "receipt", "payment", "tax"),
    "access": ("password", "login", "token", "locked", "account", "reset"),
    "shipping": ("parcel", "courier", "delivery", "tracking", "address", "late"),
}

Row = tuple[str, str]


def tickets(count: int, seed: int, words: int = 3, known: int = 6) -> list[Row]:
    """(question, answer) pairs; `known` limits how many words of each answer occur."""
    draw = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        answer = list(WORDS)[index % len(WORDS)]
        chosen = draw.choice(WORDS[answer][:known], size=min(words, known), replace=False)
        rows.append((f"ticket {seed}-{index}: {' '.join(chosen)}", answer))
    return rows


def write_labeled(path: Path, rows: Iterable[Row]) -> Path:
    """Chat JSONL with replies."""
    return _write(path, ([{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in rows))


def write_unlabeled(path: Path, questions: Iterable[str]) -> Path:
    """Chat JSONL without replies."""
    return _write(path, ([{"role": "user", "content": question}] for question in questions))


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Path:
    """CSV as the paper's: lists as JSON."""
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            cells = [row[column] for column in columns]
            writer.writerow([json.dumps(cell) if isinstance(cell, list) else cell for cell in cells])
    return path


def _write(path: Path, chats: Iterable[list[dict[str, str]]]) -> Path:
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    return path
