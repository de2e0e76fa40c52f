"""What a finished job hands out: adapter and report."""

import hashlib
import json
from typing import Any

import pytest

from tests.api import rows
from tests.api.service import Service

JOBS = "/v1/fine_tuning/jobs"
PAGE = (
    b"<!doctype html>\n<html><head>\n"
    b"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
    b"</head></html>"
)
ZIP = bytes(range(256)) * 10


@pytest.fixture
def url(service: Service) -> str:
    job_id = rows.create(service)
    config = json.dumps({"peft_type": "LORA"}).encode()
    published = {"adapter/adapter_config.json": config, "report.json": b'{"accuracy": {}}', "report.html": PAGE}
    rows.commit_stage(service, job_id, "publish", unit="evaluate", files=published)
    rows.commit_stage(service, job_id, "export", unit="evaluate", files={"adapter.zip": ZIP})
    return f"{JOBS}/{job_id}"


def code(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["code"])


def test_the_adapter_as_a_zip(service: Service, url: str) -> None:
    answer = service.client.get(f"{url}/adapter")
    assert answer.content == ZIP
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-length"] == str(len(ZIP))
    assert answer.headers["etag"] == f'"{hashlib.sha256(ZIP).hexdigest()}"'
    assert "adapter.zip" in answer.headers["content-disposition"]
    part = service.client.get(f"{url}/adapter", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, ZIP[10:20])
    same = service.client.get(f"{url}/adapter", headers={"If-None-Match": answer.headers["etag"]})
    assert same.status_code == 304
    assert service.client.head(f"{url}/adapter").headers["content-length"] == str(len(ZIP))


def test_one_file_of_the_adapter(service: Service, url: str) -> None:
    answer = service.client.get(f"{url}/adapter/adapter_config.json")
    assert answer.json() == {"peft_type": "LORA"}
    for name in ("nothing.bin", "..%2Freport.json", "../report.json", "/etc/passwd"):
        assert service.client.get(f"{url}/adapter/{name}").status_code in {200, 404}
        assert b"accuracy" not in service.client.get(f"{url}/adapter/..%2Freport.json").content
    assert code(service.client.get(f"{url}/adapter/nothing.bin"), 404) == "result_not_found"


def test_the_report_as_json_and_as_a_page(service: Service, url: str) -> None:
    told = service.client.get(f"{url}/report")
    assert told.json() == {"accuracy": {}}
    assert told.headers["content-type"] == "application/json"
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for page in (
        service.client.get(f"{url}/report?format=html"),
        service.client.get(f"{url}/report", headers=browser),
    ):
        assert page.content == PAGE
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["content-security-policy"] == "default-src 'none'; style-src 'unsafe-inline'"
        assert page.headers["content-disposition"] == "inline"
    assert service.client.get(f"{url}/report?format=json", headers=browser).json() == {"accuracy": {}}


@pytest.mark.parametrize("path", ["/adapter", "/adapter/adapter_config.json", "/report", "/report?format=html"])
def test_nothing_is_there_before_its_stage(service: Service, path: str) -> None:
    answer = service.client.get(f"{JOBS}/{rows.create(service)}{path}")
    assert code(answer, 409) == "not_ready"
    assert answer.headers["x-should-retry"] == "false"
