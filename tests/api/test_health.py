"""Liveness, readiness, figures, the description, and what the process does not load."""

import logging
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.logs import JsonLines, PlainLines
from api.metrics import stage_kind
from store.models import Job, StageRow, Unit, Worker
from tests.api.service import Service, make_settings, open_service
from tests.api.test_files import error_of


def test_the_process_lives(service: Service) -> None:
    answer = service.anonymous.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_a_whole_service_is_ready(service: Service) -> None:
    with service.database.write() as session:
        session.add_all([Worker(id="a:1", kinds=["cpu"]), Worker(id="b:1", kinds=["cpu"], seen_at=1.0)])
    answer = service.anonymous.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "database": "ok", "storage": "ok", "broker": "ok", "workers": 1}


def test_a_broken_storage_is_told(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("a file where a folder should be")
    with open_service(make_settings(tmp_path, objects=str(tmp_path / "objects"))) as service:
        answer = service.anonymous.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["status"] == "unavailable"
    assert "objects" in answer.json()["storage"]


def test_an_absent_broker_is_told_without_its_address(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = make_settings(tmp_path, broker_url=f"redis://:secret@127.0.0.1:{port}/0")
    with open_service(settings, bell=_Silent()) as service:
        answer = service.anonymous.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["broker"].startswith("Redis does not answer")
    assert "secret" not in answer.text


class _Silent:
    def ring(self, kinds: set[str]) -> None:
        """Nobody is woken."""


def test_an_absent_database_is_told_and_answered(service: Service) -> None:
    service.database.close()
    path = service.settings.data / "semievol.db"
    for name in ("semievol.db", "semievol.db-wal", "semievol.db-shm"):
        (service.settings.data / name).unlink(missing_ok=True)
    path.mkdir()
    ready = service.anonymous.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
    assert error_of(service.client.get("/v1/files"), 503)["code"] == "database_unavailable"
    assert service.anonymous.get("/healthz").status_code == 200


def test_figures_tell_of_requests_units_and_stages(service: Service) -> None:
    with service.database.write() as session:
        job = {"project_id": "default", "created_by": "k", "method": "semievol", "model": "tiny", "seed": 0}
        session.add(Job(id="ftjob-1", **job, model_source={}, recipe={}, inputs={}, asked={}))
        session.flush()
        session.add(Unit(id="u1", job_id="ftjob-1", name="a", kind="gpu", state="ready", ready_at=1.0))
        session.add(Unit(id="u2", job_id="ftjob-1", name="b", kind="gpu", state="running", started_at=1.0))
        session.flush()
        for number, name in enumerate(("round-1/generate-00000", "round-1/generate-00001", "round-1/select")):
            facts = {"tokens": 50} if "generate" in name else {}
            stage = StageRow(job_id="ftjob-1", name=name, unit_id="u1", number=number, seconds=2, facts=facts, files={})
            session.add(stage)
    service.client.get("/v1/files/file-x")
    answer = service.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["semievol_request_seconds_count", "/v1/files/{file_id}", "404", "GET"] == 1
    assert samples["semievol_units", "gpu", "ready"] == 1
    assert samples["semievol_jobs", "validating_files"] == 1
    assert samples["semievol_queue_age_seconds",] > 1e9
    assert samples["semievol_lease_age_seconds",] > 1e9
    assert samples["semievol_stage_seconds_count", "generate"] == 2
    assert samples["semievol_stage_seconds_sum", "generate"] == 4
    assert samples["semievol_generated_tokens_total",] == 100
    assert samples["semievol_workers",] == 0


@pytest.mark.parametrize(
    ("name", "kind"), [("round-2/generate-00003", "generate"), ("warm-up", "warm-up"), ("prepare", "prepare")]
)
def test_stage_kinds(name: str, kind: str) -> None:
    assert stage_kind(name) == kind


def test_the_page_of_the_api_needs_no_network(service: Service) -> None:
    answer = service.anonymous.get("/docs")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    assert service.anonymous.get("/redoc").status_code == 404


def test_logs_are_json_lines_or_plain(caplog: pytest.LogCaptureFixture, service: Service) -> None:
    import json

    with caplog.at_level(logging.INFO, "semievol.requests"):
        service.client.get("/v1/files", headers={"x-request-id": "mine"})
    record = next(record for record in caplog.records if record.getMessage() == "request")
    line = json.loads(JsonLines().format(record))
    assert (line["method"], line["route"], line["status"], line["project"]) == ("GET", "/v1/files", 200, "default")
    assert line["ms"] > 0
    assert service.key not in json.dumps(line)
    assert "status=200" in PlainLines("%(message)s").format(record)


def test_the_api_loads_no_engine_and_stays_small() -> None:
    code = (
        "import resource, sys, api.main\n"
        "from pathlib import Path\n"
        "found = {'torch', 'numpy', 'pyarrow', 'transformers'} & set(sys.modules)\n"
        "assert not found, found\n"
        "status = Path('/proc/self/status')\n"
        "if status.exists():\n"
        "    resident = next(line for line in status.read_text().splitlines() if line.startswith('VmRSS'))\n"
        "    assert int(resident.split()[1]) < 200 * 1024, resident\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
