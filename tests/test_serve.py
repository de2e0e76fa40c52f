"""`semievol serve`: one tree of processes that starts fast, keeps its key to itself, and dies together."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import httpx
import pytest

from semievol import cli
from store import jobs as job_moves
from store.database import Database
from store.models import Job
from store.settings import Settings
from tests.servers import wait_for as wait_until
from worker import first_start
from worker.first_start import SetupError

pytestmark = pytest.mark.slow

START_SECONDS = 60
"""Far more than it takes: the machine may be busy."""
API_BYTES = 200 * 1024**2


@dataclass
class Running:
    """A service that answers."""

    process: subprocess.Popen[str]
    data: Path
    url: str
    log: Path
    seconds: float

    def key(self) -> str:
        return (self.data / "admin.key").read_text().strip()

    def said(self) -> str:
        return self.log.read_text()

    def tree(self) -> list[int]:
        """Its processes, itself first."""
        return [self.process.pid, *descendants(self.process.pid)]

    def whole_tree(self) -> list[int]:
        """Parent, API, worker and the worker's fork server, which starts a moment after the API answers."""
        wait_until(lambda: len(self.tree()) == 4, "parent, API, worker and its fork server", 20)
        return self.tree()


def children(parent: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has ended meanwhile


def descendants(parent: int) -> list[int]:
    return [found for child in children(parent) for found in (child, *descendants(child))]


def names_api(pid: int) -> bool:
    return b"api-process" in Path(f"/proc/{pid}/cmdline").read_bytes()


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status != "Z"


def wait_until_gone(pids: list[int], seconds: float) -> list[int]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(alive(pid) for pid in pids):
        time.sleep(0.1)
    return [pid for pid in pids if alive(pid)]


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SEMIEVOL_")}


@contextmanager
def serving(data: Path, *arguments: str, **settings: str) -> Iterator[Running]:
    """`semievol serve` on a free port; ended with all its children."""
    data.parent.mkdir(parents=True, exist_ok=True)
    log = data.parent / f"{data.name}.log"
    command = [sys.executable, "-m", "semievol", "serve", "--port=0", f"--data={data}", *arguments]
    with log.open("w") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, env=clean_environment() | settings, text=True
        )
    started = time.monotonic()
    try:
        url = wait_for(log, process)
        wait_ready(url)
        yield Running(process, data, url, log, time.monotonic() - started)
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()


def wait_for(log: Path, process: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if found := re.search(r"ready at (http://\S+)", log.read_text()):
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def wait_ready(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
                assert answer.status == 200
                return
        except HTTPError as error:
            error.close()
        except URLError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{url} is not ready")


def run_serve(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "semievol", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
        env=clean_environment() | settings,
    )


# --- the service ------------------------------------------------------------------------------------------------------


def test_first_start_makes_key_and_ends_in_order(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as first:
        key = first.key()
        assert stat.S_IMODE((data / "admin.key").stat().st_mode) == 0o600
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        assert first.said().count(key) == 1
        assert "from openai import OpenAI" in first.said()
        request = urllib.request.Request(f"{first.url}/v1/models", headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert "semievol-demo" in {model["id"] for model in json.load(answer)["data"]}
        tree = first.whole_tree()
        check_size_and_torch(tree[1:])
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(20) == 0
        assert wait_until_gone(tree, 5) == []
    with serving(data, "--no-worker") as second:
        assert second.key() == key
        assert key not in second.said()
        assert str(data / "admin.key") in second.said()


def check_size_and_torch(processes: list[int]) -> None:
    api = next(pid for pid in processes if names_api(pid))
    resident = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{api}/status").read_text())
    assert resident is not None
    assert int(resident[1]) * 1024 < API_BYTES
    for pid in processes:
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


def test_nothing_survives_a_killed_parent(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as running:
        tree = running.whole_tree()
        running.process.kill()
        running.process.wait()
        assert wait_until_gone(tree, 20) == []


@pytest.mark.long
@pytest.mark.parametrize("reading", [True, False], ids=["that read", "of which one does not read"])
def test_fifty_open_streams_do_not_hold_up_the_end(reading: bool, tmp_path: Path) -> None:
    """They end in order; a reader that does not read is cut off after the grace."""
    with serving(tmp_path / "data", "--no-worker") as running, ExitStack() as opened:
        job_id = watched_job(running.data, b"x" * 20_000 if not reading else b"")
        client = opened.enter_context(httpx.Client(timeout=20, limits=httpx.Limits(max_connections=None)))
        url, headers = (
            f"{running.url}/v1/fine_tuning/jobs/{job_id}/events",
            {"Authorization": f"Bearer {running.key()}"},
        )
        streams = [
            opened.enter_context(client.stream("GET", url, params={"stream": "true"}, headers=headers)).iter_raw()
            for _ in range(50)
        ]
        for stream in streams:
            assert next(stream).startswith(b"id: ")
        running.process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        for stream in streams if reading else streams[1:]:
            for _ in stream:  # to its end, which a broken connection would not be
                pass
        assert running.process.wait(20) == 0
        assert time.monotonic() - asked < (3 if reading else 8)
        if reading:
            assert "Traceback" not in running.said()


def watched_job(data: Path, text: bytes) -> str:
    """A job that nobody does, with a thousand events of this text."""
    database = Database(Settings(data=data).database_url)
    empty: dict[str, Any] = {"model_source": {}, "recipe": {}, "inputs": {}, "asked": {}}
    with database.write() as session:
        session.add(
            Job(id="ftjob-1", project_id="default", created_by="k", method="semievol", model="m", seed=0, **empty)
        )
        session.flush()
        for _ in range(1000):
            job_moves.add_event(session, "ftjob-1", "something", data={"text": text.decode()})
    database.close()
    return "ftjob-1"


def test_worker_is_started_again_and_the_api_is_not(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as running:
        tree = running.whole_tree()
        api, worker = sorted(children(running.process.pid), key=names_api, reverse=True)
        os.kill(worker, signal.SIGKILL)
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and not set(running.tree()) - set(tree):
            time.sleep(0.1)
        assert set(running.tree()) - set(tree), "a new worker"
        assert "starts again" in running.said()
        tree = running.tree()
        os.kill(api, signal.SIGKILL)
        assert running.process.wait(20) == 1
        assert "The API has ended (signal SIGKILL)" in running.said()
        assert wait_until_gone(tree, 5) == []


def test_taken_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run_serve(f"--port={port}", f"--data={tmp_path / 'data'}")
    assert result.returncode == 2
    assert result.stderr.startswith(f"semievol: port {port} on 127.0.0.1 is taken")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SEMIEVOL_LEASE_SECONDS", "soon", "SEMIEVOL_LEASE_SECONDS: Input should be a valid number"),
        ("SEMIEVOL_MODELS", "{", "SEMIEVOL_MODELS: this is not JSON"),
        ("SEMIEVOL_MODELS", '{"a": {}}', "SEMIEVOL_MODELS__A__SOURCE: Field required"),
        ("SEMIEVOL_DATABASE_URL", "nonsense", "SEMIEVOL_DATABASE_URL: this address cannot be used"),
        ("SEMIEVOL_HOST", "no.such.host.invalid", "the host no.such.host.invalid is not known"),
        ("SEMIEVOL_DATA", "/proc/none", "the data folder /proc/none cannot be made"),
    ],
)
def test_bad_settings_are_told_in_a_line(name: str, value: str, message: str, tmp_path: Path) -> None:
    result = run_serve("--port=0", **{"SEMIEVOL_DATA": str(tmp_path / "data"), name: value})
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_unreachable_database(tmp_path: Path) -> None:
    url = "postgresql://nobody:secret@127.0.0.1:9/none"
    result = run_serve("--port=0", SEMIEVOL_DATA=str(tmp_path / "data"), SEMIEVOL_DATABASE_URL=url)
    assert result.returncode == 2
    assert "cannot be reached" in result.stderr
    assert "secret" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


# --- migrate ----------------------------------------------------------------------------------------------------------


def test_migrate_says_from_where_to_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEMIEVOL_DATA", str(tmp_path))
    assert cli.main(["migrate"]) == 0
    assert "migrated from nothing to version" in capsys.readouterr().out
    assert cli.main(["migrate"]) == 0
    assert "already" in capsys.readouterr().out


def test_migrate_without_a_database(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SEMIEVOL_DATABASE_URL", "postgresql://nobody:secret@127.0.0.1:9/none")
    assert cli.main(["migrate"]) == 2
    told = capsys.readouterr().err
    assert "cannot be reached" in told
    assert "secret" not in told
    assert len(told.splitlines()) == 1


# --- settings ---------------------------------------------------------------------------------------------------------


def test_children_read_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMIEVOL_MODELS__OLD__SOURCE", "gone")
    monkeypatch.setenv("SEMIEVOL_RETRIEVERS", '["a"]')
    monkeypatch.setenv("SEMIEVOL_URL", "http://elsewhere.example")
    settings = first_start.read_settings(data=tmp_path, port=0, host=None, s3_presigned=True)
    given = first_start.environment(first_start.with_demo_model(settings))
    for name in [name for name in os.environ if name.startswith("SEMIEVOL_")]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert Settings() == first_start.with_demo_model(settings)
    assert os.environ["SEMIEVOL_URL"] == "http://elsewhere.example"


def test_own_entry_for_the_demo_model_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMIEVOL_MODELS", '{"semievol-demo": {"source": "mine"}}')
    assert first_start.with_demo_model(first_start.read_settings()).models["semievol-demo"].source == "mine"


def test_every_problem_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMIEVOL_PORT", "70000")
    monkeypatch.setenv("SEMIEVOL_LOG_FORMAT", "xml")
    with pytest.raises(SetupError) as caught:
        first_start.read_settings()
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["SEMIEVOL_LOG_FORMAT", "SEMIEVOL_PORT"]


# --- worker -----------------------------------------------------------------------------------------------------------


def test_worker_runs_celery_where_there_is_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append(command))
    cli.main(["worker"])
    monkeypatch.setenv("SEMIEVOL_BROKER_URL", "redis://127.0.0.1:9")
    cli.main(["worker", "--queues=gpu"])
    cli.main(["worker", "--poll"])
    assert [command[2:4] for command in started] == [["-m", "worker.local"], ["-m", "celery"], ["-m", "worker.local"]]
    assert started[1][-2:] == ["-Q", "semievol-gpu"]
    assert "--concurrency=1" in started[1]


@pytest.mark.parametrize("queues", ["", "tpu", "gpu,tpu", "gpu"])
def test_worker_refuses_queues_that_it_cannot_serve(queues: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "execv", lambda program, command: pytest.fail("started"))
    assert cli.main(["worker", f"--queues={queues}"]) == 2
