"""Makes a job out of local files and settings, and brings home what it made."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from semievol.client import JOBS, TRIES, Client, Json, Refused, Unreachable
from semievol.jobs.transfer import check_readable, download, save, unpack, upload
from semievol.recipe import Recipe, parse_setting, read_recipe

ADAPTER, ARCHIVE = "adapter", "adapter.zip"


@dataclass(frozen=True, slots=True)
class Order:
    """What a new job is to be."""

    model: str
    files: Mapping[str, Path]
    """By role: labeled, unlabeled, validation, test."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    suffix: str | None = None
    metadata: Mapping[str, str] | None = None
    review: bool = False


def read_settings(recipe: Path | None, settings: Sequence[str]) -> dict[str, Any]:
    """The recipe file's values with single settings over them. Raises RecipeError, before anything is sent."""
    layers = [read_recipe(recipe)] if recipe is not None else []
    layers += [parse_setting(setting) for setting in settings]
    Recipe.resolve(*layers)
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer)
    return merged


def read_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """`name=value` texts as a mapping. Raises Refused."""
    found = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise Refused(f"metadata is written name=value; got {pair!r}")
        found[name] = value
    return found


def submit(client: Client, order: Order, console: Console, *, quiet: bool) -> Json:
    """Upload the files and make the job. Raises DataError and ServiceError."""
    check_readable(order.files.values())
    ids = {}
    with transfers(console, quiet=quiet) as bars:
        for role, path in order.files.items():
            bar = bars.add_task(f"Upload {path.name}", total=path.stat().st_size)
            ids[role] = upload(client, path, lambda passed, bar=bar: bars.advance(bar, passed))  # type: ignore[misc]
    return create(client, body_of(order, ids))


def create(client: Client, body: Json) -> Json:
    """Make the job, once, however often the request has to be sent. Raises ServiceError."""
    headers = {"Idempotency-Key": secrets.token_hex(16)}
    for attempt in range(1, TRIES + 1):
        try:
            return client.post(JOBS, body, headers=headers)
        except Unreachable:
            if attempt == TRIES:
                raise
    raise AssertionError("the last try returns or raises")


def body_of(order: Order, ids: Mapping[str, str]) -> Json:
    """The request of a create. Pure."""
    ours = {
        **order.recipe,
        "unlabeled_file": ids["unlabeled"],
        "test_file": ids.get("test"),
        "review": order.review or None,
    }
    body = {
        "model": order.model,
        "training_file": ids["labeled"],
        "validation_file": ids.get("validation"),
        "seed": order.seed,
        "suffix": order.suffix,
        "metadata": dict(order.metadata) if order.metadata else None,
        "method": {"type": "semievol", "semievol": {key: value for key, value in ours.items() if value is not None}},
    }
    return {key: value for key, value in body.items() if value is not None}


def fetch(client: Client, job_id: str, output: Path, console: Console, *, quiet: bool) -> Json:
    """Bring a finished job's adapter and report into `output`; returns where they are. Raises ServiceError."""
    folder, archive = output / ADAPTER, output / ARCHIVE
    if folder.exists() and not (folder / "adapter_config.json").is_file():
        raise Refused(f"{folder} is there already and is no adapter; choose another folder with --output")
    with transfers(console, quiet=quiet) as bars:
        bar = bars.add_task("Download the adapter", total=None)
        download(
            client,
            f"{JOBS}/{job_id}/adapter",
            archive,
            lambda done, total: bars.update(bar, completed=done, total=total),
        )
    unpack(archive, folder)
    archive.unlink()
    report, page = output / "report.json", output / "report.html"
    save_report(client, job_id, report, html=False)
    save_report(client, job_id, page, html=True)
    return {"adapter": str(folder), "report": str(report), "report_html": str(page)}


def save_report(client: Client, job_id: str, target: Path, *, html: bool) -> None:
    """Write the report, as JSON or as a page. Raises ServiceError."""
    headers = {"Accept": "text/html" if html else "application/json"}
    save(client, f"{JOBS}/{job_id}/report", target, headers, format="html" if html else "json")


@contextmanager
def transfers(console: Console, *, quiet: bool) -> Iterator[Progress]:
    """Bars of bytes on a terminal; elsewhere a line for each file that has gone."""
    columns = (TextColumn("{task.description}"), BarColumn(24), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bars:
        yield bars
    if not quiet and not console.is_terminal:
        for task in bars.tasks:
            console.print(f"{task.description}: {task.completed:,.0f} bytes", markup=False, soft_wrap=True)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
