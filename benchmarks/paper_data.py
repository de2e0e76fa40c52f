"""Splits of the paper's CSV files for the tiny models: `--csv FOLDER` of `benchmarks.accuracy`.

The three files of a task are joined and split anew for each seed. Questions become chats whose answers are the options'
own words, because a model of a million parameters has no use for letters.
"""

import csv
import json
import random
from collections.abc import Iterable
from pathlib import Path

Row = tuple[str, str]
"""Text and the words of its answer."""


def read(folder: Path) -> list[Row]:
    """All rows of a task with a fixed set of options, in a fixed order, each text once."""
    rows: dict[str, str] = {}
    for name in ("labeled", "unlabeled", "test"):
        with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            for record in csv.DictReader(file):
                options = json.loads(record["options"])
                rows[record["question"].strip().split("\n")[-1]] = options["ABCDEFGHIJ".index(record["answer"])]
    return sorted(rows.items())


def split(folder: Path, seed: int, output: Path, labeled: int, unlabeled: int, test: int) -> None:
    """Write `labeled.jsonl`, `unlabeled.jsonl`, `unlabeled_answers.jsonl` and `test.jsonl` of one split."""
    rows = read(folder)
    random.Random(seed).shuffle(rows)
    parts = rows[:labeled], rows[labeled : labeled + unlabeled], rows[-test:]
    system = f"Choose one of these names for the sentence below: {', '.join(sorted({answer for _, answer in rows}))}."
    output.mkdir(parents=True, exist_ok=True)
    _write(output / "labeled.jsonl", (_chat(system, text, answer) for text, answer in parts[0]))
    _write(output / "unlabeled.jsonl", (_chat(system, text) for text, _ in parts[1]))
    _write(output / "unlabeled_answers.jsonl", ({"answer": answer} for _, answer in parts[1]))
    _write(output / "test.jsonl", (_chat(system, text, answer) for text, answer in parts[2]))


def _chat(system: str, text: str, answer: str | None = None) -> dict[str, object]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return {"messages": messages + ([{"role": "assistant", "content": answer}] if answer else [])}


def _write(path: Path, rows: Iterable[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
