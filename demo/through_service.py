"""The demo through the service: `semievol serve` on a free port, and the `openai` client as any user has it.

Files go up, a job starts, its progress is shown, and adapter and report come down. The service is ended at the end,
since the demo started it.
"""

import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI, OpenAIError
from rich.console import Console

from semievol import summary, wording
from semievol.client import Client
from semievol.jobs.following import follow
from worker.serve import tied_to

MODEL = "semievol-demo"
START_SECONDS = 60.0
STOP_SECONDS = 30.0
_READY = re.compile(r"ready at (http://\S+)")
_OWN_SETTINGS = "SEMIEVOL_"


class ServiceFailed(Exception):
    """The service did not start, or the job did not succeed; the message says why."""


@dataclass(frozen=True, slots=True)
class Service:
    """A running service and an admin's key of it."""

    url: str
    key: str
    log: Path


@contextmanager
def service(data: Path) -> Iterator[Service]:
    """`semievol serve` over the folder `data`, for as long as the context lasts. Raises ServiceFailed."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = data / "service.log"
    # Settings of the user's own service would bring other databases and models into the demo.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_SETTINGS)}
    environment = clean | {"SEMIEVOL_THREADS": "1", "SEMIEVOL_POLL_SECONDS": "0.1", "SEMIEVOL_LOG_FORMAT": "text"}
    command = [sys.executable, "-m", "semievol", "serve", "--port=0", f"--data={data}"]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,  # Ctrl-C is the demo's to hear; it ends the service in order
            preexec_fn=tied_to(os.getpid()),  # noqa: PLW1509  -- nothing else runs yet
        )
        try:
            url = _address(process, log)
            yield Service(url, (data / "admin.key").read_text(encoding="ascii").strip(), log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where the service answers, as it says itself. Raises ServiceFailed."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := _READY.search(log.read_text(encoding="utf-8", errors="replace")):
            return found[1]
        time.sleep(0.1)
    raise ServiceFailed(f"the service did not start; {log} says why")


def run(at: Service, files: Mapping[str, Path], seed: int, output: Path, console: Console) -> dict[str, Any]:
    """Upload, start, follow, download; returns the report. Raises ServiceFailed."""
    try:
        with OpenAI(base_url=f"{at.url}/v1", api_key=at.key) as client:
            job_id = _start(client, files, seed, console)
            ended = _follow(at, job_id, console)
            if ended["status"] != "succeeded":
                raise ServiceFailed(f"the job {job_id} has {ended['status']}: {ended['error']}; see {at.log}")
            return _fetch(client, job_id, output)
    except OpenAIError as error:
        raise ServiceFailed(f"the service said: {error}; see {at.log}") from None


def _start(client: OpenAI, files: Mapping[str, Path], seed: int, console: Console) -> str:
    ids = {role: _upload(client, path) for role, path in files.items()}
    console.print(f"Uploaded {', '.join(path.name for path in files.values())}", markup=False)
    method: Any = {"type": "semievol", "semievol": {"unlabeled_file": ids["unlabeled"], "test_file": ids["test"]}}
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=ids["labeled"], seed=seed, method=method)
    console.print(f"Started the job {job.id}\n", markup=False)
    return job.id


def _upload(client: OpenAI, path: Path) -> str:
    with path.open("rb") as file:
        return client.files.create(file=file, purpose="fine-tune").id


def _follow(at: Service, job_id: str, console: Console) -> dict[str, Any]:
    with Client(at.url, at.key) as client:
        return follow(client, at.key, job_id, console)


def _fetch(client: OpenAI, job_id: str, output: Path) -> dict[str, Any]:
    """Adapter, pages and labels into `output`, through the client's own connection."""
    output.mkdir(parents=True)
    archive = output / "adapter.zip"
    base = f"/fine_tuning/jobs/{job_id}"
    archive.write_bytes(client.get(f"{base}/adapter", cast_to=httpx.Response).content)
    with zipfile.ZipFile(archive) as content:
        content.extractall(output / "adapter")
    archive.unlink()
    for file_id in client.fine_tuning.jobs.retrieve(job_id).result_files:
        name = client.files.retrieve(file_id).filename
        if name in {"report.html", "pseudo_labels.jsonl"}:
            (output / name).write_bytes(client.files.content(file_id).content)
    answer = client.get(f"{base}/report", cast_to=httpx.Response, options={"headers": {"Accept": "application/json"}})
    (output / "report.json").write_bytes(answer.content)
    report: dict[str, Any] = answer.json()
    return report


def show(report: Mapping[str, Any], output: Path, console: Console) -> None:
    """The table and where things lie."""
    console.print()
    console.print(summary.accuracy_table(report))
    for sentence in (wording.measured_on(report), wording.flips(report), wording.steps(report)):
        if sentence:
            console.print(sentence, markup=False, soft_wrap=True)
    console.print()
    console.print(wording.delivered(report), style="bold", markup=False, soft_wrap=True)
    if caution := wording.caution(report):
        console.print(f"Caution: {caution}", style="yellow", markup=False, soft_wrap=True)
    console.print()
    for label, name in (("Adapter", "adapter"), ("Report", "report.html"), ("Pseudo-labels", "pseudo_labels.jsonl")):
        console.print(f"{label + ':':<14} {output / name}", markup=False, soft_wrap=True)
