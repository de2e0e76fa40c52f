"""Jobs, pseudo-labels, keys and files as tables and short texts for people."""

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from semievol import summary, wording
from semievol.client import Json

PIPE_WIDTH = 400
COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "dim", "running": "cyan", "paused": "yellow"}


def say(console: Console, text: str = "", style: str = "") -> None:
    """Text as it is: brackets are no markup, and long lines stay whole to be copied."""
    console.print(Text(text, style=style), soft_wrap=True)


def rows(console: Console, columns: Sequence[str], cells: Iterable[Sequence[Any]], nothing: str) -> None:
    """A table, or a word on there being nothing in it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0, overflow="fold")  # ids shall be whole, to be copied
    for row in cells:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    if not table.row_count:
        say(console, nothing)
    elif console.is_terminal:
        console.print(table)
    else:
        Console(file=console.file, width=PIPE_WIDTH, highlight=False).print(table)  # a line a row, for grep


def jobs(console: Console, found: Sequence[Json]) -> None:
    """Jobs, a line each."""
    cells = (
        (job["id"], _status(job), job["model"], _stage(job), _progress(job), moment(job["created_at"])) for job in found
    )
    rows(console, ("Job", "Status", "Model", "Stage", "Done", "Created"), cells, "There are no jobs.")


def job(console: Console, found: Json) -> None:
    """All about a job that fits a screen."""
    told = found["semievol"]
    facts = {
        "Job": found["id"],
        "Status": found["status"],
        "Model": found["model"],
        "Adapter": found["fine_tuned_model"],
        "Seed": found["seed"],
        "Created": moment(found["created_at"]),
        "Finished": moment(found["finished_at"]) if found["finished_at"] else None,
        "Expected": moment(told["estimated_finish"]) if told.get("estimated_finish") else None,
        "Progress": _progress(found),
        "Files": ", ".join(file for file in _files(found) if file),
        "Metadata": ", ".join(f"{name}={value}" for name, value in (found["metadata"] or {}).items()),
    }
    for name, fact in facts.items():
        if fact not in (None, ""):
            say(console, f"{name + ':':<10}{fact}", COLOURS.get(str(fact), "") if name == "Status" else "")
    if error := found["error"]:
        say(console, f"{'Error:':<10}{error['message']} ({error['code']})", "red")
    if (told.get("review") or {}).get("waiting"):
        say(console, f"{'Review:':<10}waiting; see semievol jobs review {found['id']}", "yellow")
    stages(console, told.get("stages") or [])


def stages(console: Console, found: Sequence[Json]) -> None:
    """The stages of a job."""
    cells = (
        (
            wording.work_label(stage["name"]),
            stage["state"],
            f"{stage['done']:,}/{stage['total']:,}" if stage["total"] else "",
            wording.duration(stage["seconds"]) if stage["seconds"] is not None else "",
        )
        for stage in found
    )
    if found:
        rows(console, ("Stage", "State", "Done", "Time"), cells, "")


def report(console: Console, found: Json) -> None:
    """What a finished job came to."""
    console.print(summary.accuracy_table(found))
    say(console, wording.headline(found), "bold")
    twice = (wording.left_out(found), wording.worth_a_look(found))
    for sentence in (wording.measured_on(found), wording.flips(found), wording.delivered(found), *twice):
        if sentence:
            say(console, sentence)
    if caution := wording.caution(found):
        say(console, f"Caution: {caution}", "yellow")
    if wording.evolves(found):
        say(console, wording.decisions(found))


def labels(console: Console, found: Sequence[Json]) -> None:
    """Pseudo-labels, a line each."""
    cells = (
        (
            label["line"],
            label["decision"],
            label["answer"] or "",
            label["reason"],
            "" if label["confidence"] is None else f"{label['confidence']:.3f}",
            _short(label["question"]),
        )
        for label in found
    )
    columns = ("Line", "Decision", "Answer", "Reason", "Confidence", "Question")
    rows(console, columns, cells, "There are no pseudo-labels that fit.")


def keys(console: Console, found: Sequence[Json]) -> None:
    """API keys, a line each."""
    cells = (
        (
            key["id"],
            key["name"],
            key["project"],
            "admin" if key["admin"] else "",
            _validity(key),
            moment(key["created_at"]),
            moment(key["last_used_at"]) if key["last_used_at"] else "never",
        )
        for key in found
    )
    rows(console, ("Key", "Name", "Project", "Rights", "Valid", "Created", "Used"), cells, "There are no keys.")


def _validity(key: Json) -> str:
    if key["revoked_at"]:
        return "revoked"
    return f"until {moment(key['expires_at'])}" if key["expires_at"] else "yes"


def files(console: Console, found: Sequence[Json]) -> None:
    """Files, a line each."""
    cells = (
        (file["id"], file["filename"], file["purpose"], size(file["bytes"]), file["status"], moment(file["created_at"]))
        for file in found
    )
    rows(console, ("File", "Name", "Purpose", "Size", "Status", "Created"), cells, "There are no files.")


def moment(seconds: float) -> str:
    """Unix seconds as local time, without the date where it is today's."""
    at = datetime.fromtimestamp(seconds, UTC).astimezone()
    today = datetime.fromtimestamp(time.time(), UTC).astimezone().date()
    return at.strftime("%H:%M:%S" if at.date() == today else "%Y-%m-%d %H:%M")


def size(number: int) -> str:
    """Bytes with a unit that suits them."""
    scaled, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if scaled < 1000:
            break
        scaled, unit = scaled / 1000, larger
    return f"{scaled:.0f} {unit}" if unit == "B" else f"{scaled:.1f} {unit}"


def _status(found: Json) -> Text:
    return Text(found["status"], style=COLOURS.get(found["status"], ""))


def _stage(found: Json) -> str:
    stage = found["semievol"].get("stage")
    return wording.work_label(stage) if stage else ""


def _progress(found: Json) -> str:
    share = found["semievol"].get("progress")
    return "" if share is None else f"{100 * share:.0f} %"


def _files(found: Json) -> tuple[str | None, ...]:
    told = found["semievol"]
    return (found["training_file"], told.get("unlabeled_file"), found["validation_file"], told.get("test_file"))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}…"
