"""Deployments of real processes, started as the guide says and used over HTTP only."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from demo.generate import draw, write
from demo.tasks import HELPDESK
from store.settings import Settings
from tests.servers import ROOT, Redis, free_port, postgres, spawn, wait_for
from worker.first_start import first_key, open_database

BASE = ROOT / "demo" / "base"
MODEL = "semievol-demo"
UNLABELED = 96
FINAL = {"succeeded", "failed", "cancelled"}
JOBS = "/v1/fine_tuning/jobs"
RECIPE: dict[str, Any] = {
    "warmup": {"learning_rate": 2e-3, "steps": 6, "batch_size": 8},
    "evolution": {"learning_rate": 2e-3, "steps": 40, "batch_size": 16},
    "generation": {"max_new_tokens": 12, "shard_size": 32},
    "evaluation": {"max_new_tokens": 12, "deliver": "evolved"},
    "propagation": {"retriever": "bm25"},
}


@dataclass
class Deployment:
    """An API and workers over one database. Without Redis the workers poll."""

    folder: Path
    environment: dict[str, str]
    redis: Redis | None = None
    port: int = field(default_factory=free_port)
    key: str = ""
    api: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    """Ids of the uploaded files by role."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # --- processes ----------------------------------------------------------------------------------------------------

    def migrate(self) -> None:
        """Make tables, and the first admin's key as `semievol serve` does."""
        done = spawn("-m", "semievol", "migrate", log=self.folder / "migrate.log", **self.environment)
        assert done.wait(120) == 0, (self.folder / "migrate.log").read_text()
        settings = Settings(data=Path(self.environment["SEMIEVOL_DATA"]), database_url=self.environment[_DATABASE])
        database = open_database(settings)
        self.key = first_key(database, settings.data).clear or ""
        database.close()

    def start_api(self) -> None:
        command = ["-m", "uvicorn", "--factory", "api.main:app", f"--port={self.port}", "--no-access-log"]
        self.api = spawn(*command, log=self.folder / "api.log", **self.environment)
        wait_for(self._answers, "the API", 120)

    def kill_api(self) -> None:
        assert self.api is not None
        self.api.kill()
        self.api.wait()

    def start_worker(self) -> None:
        command = ["-m", "worker.local"]
        if self.redis is not None:
            options = ["--concurrency=1", "--prefetch-multiplier=1", "-Q", "semievol-gpu,semievol-cpu"]
            command = ["-m", "celery", "-A", "worker.app", "worker", *options, "-n", f"w{len(self.workers)}@%h"]
        self.workers.append(spawn(*command, log=self.folder / "worker.log", **self.environment))

    def stop(self) -> None:
        """End every process, politely first."""
        running = [*self.workers, *([self.api] if self.api else [])]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _answers(self) -> bool:
        assert self.api is not None
        assert self.api.poll() is None, (self.folder / "api.log").read_text()
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def http(self, key: str | None = None) -> httpx.Client:
        """Close it, or use it as a context manager."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key or self.key}"}, timeout=60)

    def get(self, path: str, **options: Any) -> httpx.Response:
        with self.http() as client:
            answer = client.get(path, **options)
        assert answer.status_code == 200, answer.text
        return answer

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        with self.http() as client:
            answer = client.post(path, json=body, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def new_key(self, project: str, *, admin: bool = False) -> str:
        return str(self.post("/v1/api_keys", {"name": project, "project": project, "admin": admin})["key"])

    def upload(self) -> None:
        """The job's files."""
        for role, path in input_files(self.folder / "in").items():
            with path.open("rb") as file:
                form = {"files": {"file": (path.name, file)}, "data": {"purpose": "fine-tune"}}
                self.files[role] = self.post("/v1/files", **form)["id"]

    def post_job(self, name: str, *, supervised: bool = False, recipe: Mapping[str, Any] | None = None) -> str:
        """A job, always with the same seed; the name keeps it apart from jobs that ask for the same."""
        if not self.files:
            self.upload()
        block = {"unlabeled_file": self.files["unlabeled"], "test_file": self.files["test"], **RECIPE, **(recipe or {})}
        method: dict[str, Any] = {"type": "semievol", "semievol": block}
        if supervised:
            method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}}
        body = {"model": MODEL, "training_file": self.files["labeled"], "seed": 3, "method": method}
        return str(self.post(JOBS, body | {"metadata": {"test": name}})["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"{JOBS}/{job_id}").json()
        return found

    def wait_until(self, job_id: str, *statuses: str, seconds: float = 400) -> dict[str, Any]:
        """The job once it has one of the statuses. Fails if it ends with another."""

        def look() -> dict[str, Any] | None:
            job = self.job(job_id)
            assert job["status"] in statuses or job["status"] not in FINAL, (job["status"], job["error"])
            return job if job["status"] in statuses else None

        found = wait_for(look, f"{job_id} {' or '.join(statuses)}", seconds)
        assert found is not None
        return found

    def wait_for_success(self, job_id: str) -> dict[str, Any]:
        return self.wait_until(job_id, "succeeded")

    def results(self, job_id: str) -> dict[str, bytes]:
        """What two runs of the same job have in common: adapter, pseudo-labels, metrics; the report has times."""
        found = {"adapter": self.get(f"{JOBS}/{job_id}/adapter").content}
        labels = self.get(f"{JOBS}/{job_id}/pseudo_labels", headers={"Accept": "application/x-ndjson"})
        found["labels"] = labels.content
        for file_id in self.job(job_id)["result_files"]:
            name = self.get(f"/v1/files/{file_id}").json()["filename"]
            if not name.endswith(".html"):
                found[name] = self.get(f"/v1/files/{file_id}/content").content
        return found


_DATABASE = "SEMIEVOL_DATABASE_URL"


def input_files(folder: Path, unlabeled: int = UNLABELED, test: int = 24) -> dict[str, Path]:
    """Small help-desk files, the same ones each time; those that lie there already, whatever their size."""
    if not folder.exists():
        write(folder, HELPDESK, draw(HELPDESK, 91, 24, unlabeled, test))
    return {role: folder / f"{role}.jsonl" for role in ("labeled", "unlabeled", "test")}


def _environment(folder: Path, url: str, **more: str) -> dict[str, str]:
    return {
        _DATABASE: url,
        "SEMIEVOL_DATA": str(folder / "data"),
        "SEMIEVOL_MODELS": json.dumps({MODEL: {"source": str(BASE)}}),
        "SEMIEVOL_LEASE_SECONDS": "4",
        "SEMIEVOL_SWEEP_SECONDS": "1",
        "SEMIEVOL_POLL_SECONDS": "0.1",
        "SEMIEVOL_CHECKPOINT_SECONDS": "1",
        "SEMIEVOL_THREADS": "1",
        "SEMIEVOL_WEBHOOK_PRIVATE_ADDRESSES": "true",
        **more,
    }


@contextmanager
def one_machine(folder: Path, *, workers: int = 1, **settings: str) -> Iterator[Deployment]:
    """SQLite, the API, and a worker that polls."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir()
    environment = _environment(folder, f"sqlite:///{folder / 'data' / 'semievol.db'}", **settings)
    with _started(Deployment(folder, environment), workers) as deployment:
        yield deployment


@contextmanager
def three_processes(folder: Path) -> Iterator[Deployment]:
    """PostgreSQL, Redis, the API and two Celery workers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir()
    with ExitStack() as ends:
        url = ends.enter_context(postgres())
        broker = Redis(folder)
        broker.start()
        ends.callback(broker.stop)
        environment = _environment(folder, url, SEMIEVOL_BROKER_URL=broker.url)
        yield ends.enter_context(_started(Deployment(folder, environment, broker), 2))


@contextmanager
def _started(deployment: Deployment, workers: int) -> Iterator[Deployment]:
    try:
        deployment.migrate()
        deployment.start_api()
        for _ in range(workers):
            deployment.start_worker()
        yield deployment
    finally:
        deployment.stop()
