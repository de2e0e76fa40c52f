"""`semievol jobs`: requests, transfers, progress and exit codes, against the real service without a worker."""

import hashlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import update

from semievol import cli, client
from semievol.client import Client, Refused, parse_events
from semievol.jobs import following, show, submission, transfer
from store import jobs as job_moves
from store.database import Database
from store.models import File, Job, PseudoLabel, StageRow, Unit
from store.objects import LocalObjects
from tests.test_serve import Running, serving

ROWS = [("the bill is too high", "billing"), ("the parcel is late", "delivery")]


def write_rows(path: Path, number: int, *, labeled: bool) -> Path:
    lines = []
    for index in range(number):
        question, reply = ROWS[index % 2]
        turns = [{"role": "user", "content": f"{question} {index}"}]
        turns += [{"role": "assistant", "content": reply}] if labeled else []
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("service") / "data", "--no-worker") as running:
        yield running


@pytest.fixture
def database(service: Running) -> Iterator[Database]:
    opened = Database(f"sqlite:///{service.data / 'semievol.db'}")
    yield opened
    opened.close()


@pytest.fixture
def talk(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands find the service and its key by themselves, as on its own machine."""
    monkeypatch.setenv("SEMIEVOL_URL", service.url)
    monkeypatch.setenv("SEMIEVOL_DATA", str(service.data))
    monkeypatch.delenv("SEMIEVOL_API_KEY", raising=False)


@pytest.fixture
def submitted(talk: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return submit(tmp_path, capsys)


def submit(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    labeled = write_rows(folder / "labeled.jsonl", 10, labeled=True)
    unlabeled = write_rows(folder / "unlabeled.jsonl", 30, labeled=False)
    given = ["--model=semievol-demo", f"--labeled={labeled}", f"--unlabeled={unlabeled}", *more]
    assert cli.main(["jobs", "submit", *given, "--no-follow", "--json"]) == 0
    job: dict[str, Any] = json.loads(capsys.readouterr().out)
    return job


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert cli.main(["jobs", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


# --- submit, list, show ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("talk")
def test_submit_sends_files_and_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--set=selection.theta=0.5", "--seed=7", "--suffix=mine", "--metadata=team=a", "--review"]
    job = submit(tmp_path, capsys, *more)
    assert (job["model"], job["seed"], job["metadata"]) == ("semievol-demo", 7, {"team": "a"})
    assert job["semievol"]["recipe"]["selection"]["theta"] == 0.5
    assert job["semievol"]["review"]["needed"]
    assert job["semievol"]["unlabeled_file"] != job["training_file"]


def test_list_and_show(submitted: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert submitted["id"] in {job["id"] for job in run_json(capsys, "list")}
    assert run_json(capsys, "list", "--metadata=no=such") == []
    assert cli.main(["jobs", "list"]) == 0
    assert submitted["id"] in capsys.readouterr().out
    assert cli.main(["jobs", "show", submitted["id"]]) == 0
    printed = capsys.readouterr().out
    assert "semievol-demo" in printed
    assert submitted["training_file"] in printed


def test_pause_resume_cancel(submitted: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "pause", submitted["id"])["status"] == "paused"
    assert run_json(capsys, "resume", submitted["id"])["status"] == "validating_files"
    assert cli.main(["jobs", "cancel", submitted["id"]]) == 0
    assert f"{submitted['id']} is cancelled." in capsys.readouterr().out
    assert cli.main(["jobs", "follow", submitted["id"]]) == 1
    assert "The job was cancelled." in capsys.readouterr().out


# --- what may go wrong ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("talk")
def test_refusals_show_the_servers_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["jobs", "show", "ftjob-none"]) == 2
    told = capsys.readouterr().err
    assert "ftjob-none" in told
    assert "code: " in told
    assert run_json(capsys, "show", "ftjob-none", code=2)["error"]["code"]


@pytest.mark.usefixtures("talk")
def test_wrong_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["jobs", "list", "--api-key=sk-wrong"]) == 2
    assert "invalid_api_key" in capsys.readouterr().err


def test_nobody_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TRIES", 1)
    assert cli.main(["jobs", "list", "--url=http://127.0.0.1:9", "--api-key=sk-x"]) == 3
    assert "Is the service running" in capsys.readouterr().err


def test_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEMIEVOL_API_KEY", raising=False)
    monkeypatch.setenv("SEMIEVOL_DATA", str(tmp_path))
    assert cli.main(["jobs", "list", "--url=http://127.0.0.1:9"]) == 2
    assert "admin.key" in capsys.readouterr().err
    (tmp_path / "admin.key").write_text("sk-secret")
    assert cli.main(["jobs", "list", "--url=http://elsewhere.example"]) == 2, "a local key goes nowhere else"
    assert "--api-key" in capsys.readouterr().err


@pytest.mark.usefixtures("talk")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set=selection.thet=1"], "there is no such setting"),
        (["--metadata=novalue"], "name=value"),
        (["--test=nowhere.jsonl"], "nowhere.jsonl"),
        (["--output=here"], "--output needs the job to be followed"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_sent(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labeled = write_rows(tmp_path / "labeled.jsonl", 4, labeled=True)
    before = run_json(capsys, "files", "list", "--limit=1000")
    given = ["--model=semievol-demo", f"--labeled={labeled}", f"--unlabeled={labeled}", *more]
    assert cli.main(["jobs", "submit", *given, "--no-follow"]) == 2
    assert message in capsys.readouterr().err
    assert run_json(capsys, "files", "list", "--limit=1000") == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_the_job_alone(number: signal.Signals, submitted: dict[str, Any]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "semievol", "jobs", "follow", submitted["id"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert "The files wait for a worker" in process.stdout.readline()
    process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert f"semievol jobs follow {submitted['id']}" in told


# --- following --------------------------------------------------------------------------------------------------------


def test_follow_hears_what_happens(
    submitted: dict[str, Any], database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = submitted["id"]
    process = subprocess.Popen(
        [sys.executable, "-m", "semievol", "jobs", "follow", job_id],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    time.sleep(1)
    commit_prepare(database, job_id)
    with database.write() as session:
        job_moves.add_event(session, job_id, "something is odd", level="warn")
    time.sleep(2)
    with database.write() as session:
        error = {"code": "loss_diverged", "message": "the loss is not finite", "param": None}
        job_moves.move(session, job_id, "failed", "The job failed", error=error)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Check the files: 8 labeled, 30 unlabeled, 1.5 s" in printed
    assert printed.count("something is odd") == 1
    assert "The job has failed: the loss is not finite (loss_diverged)" in printed
    assert not set(printed) & set("\x1b\r\b")


def commit_prepare(database: Database, job_id: str) -> None:
    with database.write() as session:
        unit = session.query(Unit).filter_by(job_id=job_id, name="prepare").one()
        facts = {"rows": {"labeled": 8, "unlabeled": 30, "validation": 0, "test": 0}}
        session.add(
            StageRow(job_id=job_id, name="prepare", unit_id=unit.id, number=1, seconds=1.5, facts=facts, files={})
        )
        session.execute(update(Unit).where(Unit.id == unit.id).values(state="done"))


def stage(name: str, state: str, done: int = 0, total: int = 0, **more: Any) -> dict[str, Any]:
    return {"name": name, "unit": name, "state": state, "done": done, "total": total, "seconds": None, **more}


def job_with(*stages: dict[str, Any], status: str = "running", waiting: bool = False) -> dict[str, Any]:
    return {
        "id": "ftjob-1",
        "status": status,
        "semievol": {"stages": list(stages), "review": {"needed": waiting, "waiting": waiting}},
    }


@pytest.mark.parametrize("terminal", [False, True])
def test_board_says_everything_once(terminal: bool) -> None:
    text = io.StringIO()
    board = following.Board(Console(file=text, force_terminal=terminal, width=120, color_system=None))
    accuracy = {"accuracy": {"value": 0.5, "n": 40, "low": 0.4, "high": 0.6}}
    base = stage("base", "done", 1, 1, seconds=2.0, facts=accuracy)
    with board.display:
        for _ in range(2):
            board.show(job_with(base, stage("propagate", "running"), stage("warm-up", "running", 3, 20)))
        for done in (1, 2):
            board.show(job_with(base, stage("round-1/generate", "running", done, 4)))
            view = board.display.tracker.view
            assert view is not None
            assert view.figures() == f"{done}/4 shards"
        generated = stage("round-1/generate", "done", 4, 4, seconds=65.0)
        board.show(job_with(base, generated, stage("round-1/review", "waiting"), waiting=True))
        for step, loss in ((3, 0.9), (7, 0.45678)):
            data = {"stage": "round-1/train", "step": step, "total_steps": 8, "train_loss": loss}
            board.told({"type": "metrics", "level": "info", "message": "a loss", "data": data})
            board.show(job_with(base, generated, stage("round-1/train", "running", step, 8)))
        view = board.display.tracker.view
        assert view is not None
        assert view.figures().startswith("7/8 steps")
        assert view.figures().endswith("loss 0.457")
        trained = stage("round-1/train", "done", 1, 1, seconds=9.0, facts={"rows": 60, "steps": 8})
        board.show(job_with(base, generated, trained))
    printed = text.getvalue()
    separator = "  " if terminal else ": "
    assert printed.count(f"Measure the base model{separator}50.0 % of 40 rows right, 2.0 s") == 1
    assert f"Generate answers{separator}4 shards, 1:05" in printed
    assert f"Fine-tune on labels and pseudo-labels{separator}60 rows, 8 steps, loss 0.457, 9.0 s" in printed
    assert "a loss" not in printed
    assert printed.count("semievol jobs review ftjob-1 --complete") == 1
    assert "propagate" not in printed, "a unit's name is not for people"
    if not terminal:
        assert printed.count("Fine-tune on the labels (SFT) ...") == 1


def test_events_are_parsed() -> None:
    lines = [": hello", "", "id: a", "event: progress", 'data: {"x":', "data: 1}", "", "data: last", "", "data: cut"]
    found = list(parse_events(iter(lines)))
    assert [(event.id, event.name) for event in found] == [("a", "progress"), ("", "message")]
    assert client.decode(found[0]) == {"x": 1}
    assert client.decode(found[1]) == {}


# --- transfers --------------------------------------------------------------------------------------------------------


def test_large_files_go_in_parts(service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "large.jsonl", 2000, labeled=True)
    monkeypatch.setattr(transfer, "LARGE_BYTES", 1000)
    monkeypatch.setattr(transfer, "PART_BYTES", 50_000)
    passed: list[int] = []
    with Client(service.url, service.key()) as talking:
        file_id = transfer.upload(talking, path, passed.append)
        with talking.stream(f"/files/{file_id}/content") as answer:
            assert answer.read() == path.read_bytes()
    assert sum(passed) == path.stat().st_size


def finished_job(database: Database, service: Running, job_id: str, tmp_path: Path) -> bytes:
    """What a worker leaves of a job: an adapter's archive."""
    archive = tmp_path / "made.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("adapter_config.json", "{}")
        content.writestr("adapter_model.safetensors", os.urandom(300_000))
    made = archive.read_bytes()
    digest = hashlib.sha256(made).hexdigest()
    LocalObjects(service.data / "objects").put(archive, digest)
    with database.write() as session:
        job = session.get_one(Job, job_id)
        session.add(
            File(
                id=f"file-{job_id[6:]}",
                project_id=job.project_id,
                job_id=job_id,
                filename="adapter.zip",
                purpose="fine-tune-results",
                bytes=len(made),
                sha256=digest,
                status="processed",
            )
        )
        job_moves.move(session, job_id, "succeeded", "done", fine_tuned_model="ft:x:y:z")
    return made


def test_downloads_go_on_where_they_stopped(
    service: Running, talk: None, tmp_path: Path, database: Database, submitted: dict[str, Any]
) -> None:
    made = finished_job(database, service, submitted["id"], tmp_path)
    path, target = f"/files/file-{submitted['id'][6:]}/content", tmp_path / "got.zip"
    digest = hashlib.sha256(made).hexdigest()
    with Client(service.url, service.key()) as talking:
        with talking.stream(path) as answer:
            etag = answer.headers["etag"]
        assert digest in etag
        target.with_name("got.zip.partial").write_bytes(made[:100_000])
        target.with_name("got.zip.etag").write_text(etag)
        seen: list[int] = []
        transfer.download(talking, path, target, lambda done, total: seen.append(done))
        assert target.read_bytes() == made
        assert min(seen) > 100_000, "only what was missing came"
        assert sorted(left.name for left in tmp_path.glob("got.zip*")) == ["got.zip"]
        target.with_name("got.zip.partial").write_bytes(b"x" * 100_000)
        target.with_name("got.zip.etag").write_text(etag)
        with pytest.raises(client.Unreachable, match="damaged"):
            transfer.download(talking, path, target, lambda done, total: None)
        transfer.download(talking, path, target, lambda done, total: None)
    assert target.read_bytes() == made


def archive_with(path: Path, name: str, mode: int = stat.S_IFREG | 0o644) -> Path:
    with zipfile.ZipFile(path, "w") as content:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        content.writestr(entry, "content")
    return path


@pytest.mark.parametrize(
    ("name", "mode"),
    [("../out", 0), ("/out", 0), ("a/../../out", 0), ("a\\..\\out", 0), ("C:out", 0), ("link", stat.S_IFLNK | 0o777)],
)
def test_archives_stay_in_their_folder(name: str, mode: int, tmp_path: Path) -> None:
    archive = archive_with(tmp_path / "adapter.zip", name, mode)
    with pytest.raises(Refused, match="no plain file"):
        transfer.unpack(archive, tmp_path / "folder" / "adapter")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "folder").exists()


def test_archives_that_burst_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "ROOM_BYTES", 0)
    archive = tmp_path / "adapter.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("zeros", bytes(10_000_000))
    with pytest.raises(Refused, match="far more"):
        transfer.unpack(archive, tmp_path / "adapter")


def test_other_folders_are_not_replaced(tmp_path: Path) -> None:
    thesis = tmp_path / "adapter" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    with Client("http://127.0.0.1:9", "sk-x") as talking, pytest.raises(Refused, match="no adapter"):
        submission.fetch(talking, "ftjob-1", tmp_path, Console(), quiet=True)
    assert thesis.exists()


# --- pseudo-labels, keys, files ---------------------------------------------------------------------------------------


def test_pseudo_labels_are_filtered_and_exported(
    submitted: dict[str, Any], database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with database.write() as session:
        for line in range(1, 31):
            session.add(
                PseudoLabel(
                    job_id=submitted["id"],
                    line=line,
                    row_id=f"r{line}",
                    round=1,
                    question=f"question [{line}]",
                    answer="billing" if line % 2 else "delivery",
                    reply="billing",
                    decision="accept" if line > 10 else "reject",
                    reason="confident" if line > 10 else "not_confident",
                    outcome="consistent",
                    confidence=0.5,
                )
            )
    found = run_json(capsys, "pseudo-labels", submitted["id"], "--decision=accept", "--answer=billing", "--limit=5")
    assert [label["answer"] for label in found] == ["billing"] * 5
    assert cli.main(["jobs", "pseudo-labels", submitted["id"]]) == 0
    assert "question [1]" in capsys.readouterr().out
    lines, table = tmp_path / "labels.jsonl", tmp_path / "labels.parquet"
    assert run_json(capsys, "pseudo-labels", submitted["id"], f"--output={lines}", "--decision=accept")["bytes"]
    assert len(lines.read_text().splitlines()) == 20
    assert cli.main(["jobs", "pseudo-labels", submitted["id"], "--output=labels.txt"]) == 2
    assert not table.exists()


@pytest.mark.usefixtures("talk")
def test_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["jobs", "keys", "create", "for tests"]) == 0
    key = capsys.readouterr().out.strip()
    assert key.startswith("sk-")
    assert cli.main(["jobs", "list", f"--api-key={key}"]) == 0
    assert cli.main(["jobs", "keys", "list", f"--api-key={key}"]) == 2, "it is no admin's"
    capsys.readouterr()
    found = {row["name"]: row["id"] for row in run_json(capsys, "keys", "list")}
    assert cli.main(["jobs", "keys", "revoke", found["for tests"]]) == 0
    assert cli.main(["jobs", "list", f"--api-key={key}"]) == 2


def test_files(submitted: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "files", "list", "--limit=500")
    assert submitted["training_file"] in {file["id"] for file in found}
    run_json(capsys, "cancel", submitted["id"])
    assert run_json(capsys, "files", "delete", submitted["semievol"]["unlabeled_file"])["deleted"]
    assert len(run_json(capsys, "files", "list", "--limit=500")) == len(found) - 1


@pytest.mark.parametrize(("number", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2 * 10**9, "2.0 GB")])
def test_sizes(number: int, text: str) -> None:
    assert show.size(number) == text
