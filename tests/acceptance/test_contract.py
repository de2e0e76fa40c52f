"""The application keeps to its own /openapi.json, and every route asks who is asking."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from api.web.pages import PAGES
from store.models import FineTunedModel
from tests.api import rows
from tests.api.service import PROJECT, Service, make_settings, open_server, open_service
from tests.servers import ROOT

SITE = {*PAGES, "/assets/{path:path}"}
PUBLIC = {"/healthz", "/readyz", "/openapi.json", "/docs"} | SITE
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "use_after_free",
    "ignored_auth",
)
EXAMPLES = 14
"""Fuzzed requests of each operation; the coverage of parameters and the chains of calls come on top."""
SEED = 20261121
REQUESTS = 2000
"""Fewer would mean that something was left out."""
MOST_SECONDS = 480
"""Two minutes are usual; a run that takes longer than this is stopped, and has failed."""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with open_service(make_settings(tmp_path, max_active_jobs=1_000_000, webhook_private_addresses=True)) as opened:
        yield opened


def things(service: Service) -> dict[str, str]:
    """One of each thing of the first project, by the name that paths have for it: a finished job and all around it."""
    job_id = rows.create(service)
    rows.start_job(service, job_id)
    rows.load_labels(service, job_id, [rows.label(line) for line in range(1, 8)])
    published = {
        "adapter/adapter_config.json": b"{}",
        "report.json": b"{}",
        "report.html": b"<p>",
        "pseudo_labels.parquet": b"PAR1",
    }
    rows.commit_stage(service, job_id, "publish", unit="evaluate", files=published)
    rows.commit_stage(service, job_id, "export", unit="evaluate", files={"adapter.zip": b"PK"})
    rows.finish_job(service, job_id)
    model = "ft:tiny:x:0123456789ab"
    with service.database.write() as session:
        session.add(FineTunedModel(id=model, project_id=PROJECT, job_id=job_id, base="tiny"))
    upload = {"filename": "x", "bytes": 3, "purpose": "user_data", "mime_type": "text/plain"}
    hook = {"url": "https://127.0.0.1/x", "events": ["fine_tuning.job.failed"]}
    return {
        "job_id": job_id,
        "file_id": rows.add_file(service),
        "upload_id": posted(service, "/v1/uploads", upload),
        "key_id": posted(service, "/v1/api_keys", {"name": "spare"}),
        "endpoint_id": posted(service, "/v1/webhook_endpoints", hook),
        "model": model,
        "row": "1",
        "name": "adapter_config.json",
        "path": "app.js",
    }


def posted(service: Service, path: str, body: dict[str, Any]) -> str:
    answer = service.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


# --- the description --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_answers_are_as_described(service: Service, tmp_path: Path) -> None:
    found = things(service)
    waiting = rows.create(service)
    ids: dict[str, list[Any]] = {name: [value] for name, value in found.items()}
    ids["job_id"] += [waiting, rows.create(service)]
    ids |= {"row": [1, 2], "model": ["tiny", *ids["model"]], "file_id": [rows.add_file(service) for _ in range(9)]}
    ids |= {"training_file": [rows.add_file(service)], "unlabeled_file": [rows.add_file(service, "unlabeled")]}
    with open_server(service) as server:
        command = [
            *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json"),
            f"--header=Authorization: Bearer {service.key}",
            f"--checks={','.join(CHECKS)}",
            *(f"--max-examples={EXAMPLES}", f"--seed={SEED}", "--generation-database=none"),
            *("--suppress-health-check=all", "--continue-on-failure", "--no-color", "--warnings=off"),
            "--request-timeout=20",
        ]
        environment = os.environ | {
            "SCHEMATHESIS_HOOKS": "tests.acceptance.contract_hooks",
            "CONTRACT_IDS": json.dumps(ids),
            "PYTHONPATH": str(ROOT),
        }
        started = time.monotonic()
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=MOST_SECONDS
        )
        seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    generated = re.search(r"([\d,]+) generated", done.stdout)
    assert generated is not None, done.stdout
    print(f"{generated[1]} requests in {seconds:.0f} s")
    assert int(generated[1].replace(",", "")) >= REQUESTS


# --- who may ask ------------------------------------------------------------------------------------------------------


def routes(service: Service) -> list[tuple[str, str]]:
    """Method and path of everything that the application answers."""
    found = []
    for route in service.app.routes:
        path = str(getattr(route, "path"))  # noqa: B009  -- each kind of route has one
        found += [(method, path) for method in sorted(getattr(route, "methods", None) or {"GET"})]
    return found


def filled(path: str, values: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)(?::path)?\}", lambda match: values[match[1]], path)


def ask(client: TestClient, method: str, path: str) -> Any:
    """A request that would do, so that nothing but the key can be wrong."""
    bodies: dict[str, dict[str, Any]] = {
        "PATCH": {"json": {"decision": "reject"}},
        "/parts": {"files": {"data": ("x", b"abc")}},
        "/complete": {"json": {"part_ids": ["part_1"]}},
        "/session": {"json": {"api_key": "sk-wrong"}},
    }
    ending = next((name for name in bodies if name == method or path.endswith(name)), "")
    return client.request(method, path, **bodies.get(ending, {}))


def test_nothing_is_told_without_a_key(service: Service) -> None:
    values = things(service)
    open_to_all = set()
    for method, path in routes(service):
        answer = ask(service.anonymous, method, filled(path, values))
        if answer.status_code == 401:
            signs_in = (method, path) == ("POST", "/v1/session")
            assert answer.json()["error"]["code"] == ("invalid_api_key" if signs_in else "missing_api_key")
            continue
        assert answer.status_code == 200, (method, path, answer.text)
        open_to_all.add(path)
    assert open_to_all == PUBLIC


def test_another_project_finds_nothing(service: Service) -> None:
    values = things(service)
    shared = {"/v1/api_keys/{key_id}"} | SITE  # admins see the keys of all projects, and anybody the pages
    asked = 0
    for method, path in routes(service):
        if "{" not in path or path in shared:
            continue
        answer = ask(service.other, method, filled(path, values))
        assert answer.status_code == 404, (method, path, answer.text)
        assert answer.json()["error"]["code"].endswith("_not_found"), (method, path)
        asked += 1
    assert asked >= 20
    for path in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/webhook_endpoints"):
        assert service.other.get(path).json()["data"] == []
    assert [model["id"] for model in service.other.get("/v1/models").json()["data"]] == ["tiny"]


def test_another_projects_files_cannot_be_trained_on(service: Service) -> None:
    answer = service.other.post("/v1/fine_tuning/jobs", json=rows.body(service))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_training_file"


def test_every_route_is_described(service: Service) -> None:
    described = set(service.client.get("/openapi.json").json()["paths"])
    served = {route.path.replace(":path}", "}") for route in service.app.routes if isinstance(route, APIRoute)}
    assert served - described == {"/docs"} | {path.replace(":path}", "}") for path in SITE}
