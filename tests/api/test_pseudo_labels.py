"""Reading and exporting pseudo-labels."""

import json
from typing import Any

import pytest

from tests.api import rows
from tests.api.service import Service

JOBS = "/v1/fine_tuning/jobs"
NDJSON = {"Accept": "application/x-ndjson"}


@pytest.fixture
def url(service: Service) -> str:
    job_id = rows.create(service)
    rows.load_labels(service, job_id, [rows.label(line) for line in range(1, 251)])
    return f"{JOBS}/{job_id}/pseudo_labels"


def lines(answer: Any) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [label["line"] for label in answer.json()["data"]]


def test_pages_by_line(service: Service, url: str) -> None:
    first = service.client.get(url).json()
    assert (len(first["data"]), first["has_more"], first["first_id"], first["last_id"]) == (100, True, "1", "100")
    seen, after = [], 0
    while True:
        page = service.client.get(url, params={"after": after, "limit": 90}).json()
        seen += [label["line"] for label in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == list(range(1, 251))


def test_a_label_tells_all(service: Service, url: str) -> None:
    assert service.client.get(url, params={"limit": 1}).json()["data"] == [
        {
            "id": "1",
            "object": "fine_tuning.job.pseudo_label",
            "line": 1,
            "row_id": "r1",
            "round": 1,
            "question": "question 1",
            "answer": "A",
            "reply": "A",
            "decision": "accept",
            "reason": "selected",
            "outcome": "consistent",
            "confidence": 0.9,
            "probability": None,
            "vote_share": None,
            "entropy": 0.1,
            "answer_entropy": None,
            "review": None,
        }
    ]


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"decision": "accept"}, 125),
        ({"reason": "low_confidence"}, 125),
        ({"answer": "B"}, 0),
        ({"min_entropy": 24.95}, 1),
        ({"max_entropy": 0.35, "decision": "accept"}, 2),
        ({"round": 1}, 250),
        ({"round": 2}, 0),
        ({"consistent": "true"}, 250),
        ({"consistent": "false"}, 0),
        ({"q": "question 25"}, 2),
        ({"q": "%"}, 0),
    ],
)
def test_filters(service: Service, url: str, query: dict[str, Any], count: int) -> None:
    assert len(lines(service.client.get(url, params=query | {"limit": 1000}))) == count
    exported = service.client.get(url, params=query, headers=NDJSON)
    assert len(exported.text.splitlines()) == count


@pytest.mark.parametrize(
    "query",
    [
        {"decision": "maybe"},
        {"limit": 0},
        {"limit": 1001},
        {"after": -1},
        {"after": "x"},
        {"min_entropy": "nan"},
        {"max_entropy": "inf"},
        {"round": 0},
        {"consistent": "perhaps"},
        {"format": "xml"},
    ],
)
def test_what_is_no_query_is_refused(service: Service, url: str, query: dict[str, Any]) -> None:
    answer = service.client.get(url, params=query)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")


def test_all_rows_as_json_lines(service: Service) -> None:
    job_id = rows.create(service)
    rows.load_labels(service, job_id, [rows.label(line, question="ü\n") for line in range(1, 2301)])
    answer = service.client.get(f"{JOBS}/{job_id}/pseudo_labels", headers=NDJSON)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    labels = [json.loads(line) for line in answer.text.split("\n")[:-1]]
    assert [label["line"] for label in labels] == list(range(1, 2301))
    assert labels[0]["question"] == "ü\n"


def test_the_parquet_file_comes_with_the_last_stage(service: Service, url: str) -> None:
    job_id = url.split("/")[-2]
    early = service.client.get(url, params={"format": "parquet"})
    assert (early.status_code, early.json()["error"]["code"]) == (409, "not_ready")
    rows.commit_stage(service, job_id, "publish", unit="evaluate", files={"pseudo_labels.parquet": b"PAR1"})
    answer = service.client.get(url, params={"format": "parquet"})
    assert answer.content == b"PAR1"
    assert answer.headers["etag"]


def test_a_job_without_labels_has_an_empty_list(service: Service) -> None:
    job_id = rows.create(service)
    assert service.client.get(f"{JOBS}/{job_id}/pseudo_labels").json()["data"] == []
    assert service.client.get(f"{JOBS}/{job_id}/pseudo_labels", headers=NDJSON).content == b""
