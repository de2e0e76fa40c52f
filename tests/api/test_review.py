"""The review of pseudo-labels by a person."""

import json
from typing import Any

import pytest
from sqlalchemy import select

from store.models import Unit
from tests.api import rows
from tests.api.service import Service

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def job_id(service: Service) -> str:
    """A job that waits for the review of its first round."""
    made = rows.create(service, semievol={"review": True})
    rows.start_job(service, made)
    rows.load_labels(service, made, [*(rows.label(line) for line in range(1, 6)), rows.label(6, answer=None)])
    rows.set_unit(service, made, "round-1/review", "cpu", state="waiting")
    return made


def edit(service: Service, job_id: str, line: int, **values: Any) -> Any:
    return service.client.patch(f"{JOBS}/{job_id}/pseudo_labels/{line}", json=values)


def complete(service: Service, job_id: str) -> Any:
    return service.client.post(f"{JOBS}/{job_id}/review/complete")


def code(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["code"])


def written(service: Service, job_id: str) -> list[dict[str, Any]]:
    sha256 = rows.job_row(service, job_id).reviewed_sha256
    assert sha256 is not None
    return [json.loads(line) for line in b"".join(service.parts.objects.read(sha256)).splitlines()]


def test_an_edit_is_kept_with_who_and_when(service: Service, job_id: str) -> None:
    told = edit(service, job_id, 2, decision="accept").json()
    assert (told["decision"], told["answer"]) == ("accept", "A")
    assert told["review"]["by"] == service.key.split("-")[1]
    assert told["review"]["at"] > 1_700_000_000
    assert edit(service, job_id, 1, decision="reject").json()["decision"] == "reject"
    told = edit(service, job_id, 3, answer="B").json()
    assert (told["answer"], told["decision"]) == ("B", "accept")
    url = f"{JOBS}/{job_id}/pseudo_labels"
    accepted = service.client.get(url, params={"decision": "accept"}).json()["data"]
    assert [label["line"] for label in accepted] == [2, 3, 5]


def test_a_rejected_row_stays_rejected_when_its_answer_is_corrected(service: Service, job_id: str) -> None:
    edit(service, job_id, 1, decision="reject")
    assert edit(service, job_id, 1, answer="C").json()["decision"] == "reject"


@pytest.mark.parametrize(
    ("line", "values", "status", "expected"),
    [
        (99, {"decision": "accept"}, 404, "pseudo_label_not_found"),
        (1, {}, 400, "missing_required_parameter"),
        (6, {"decision": "accept"}, 400, "missing_required_parameter"),
        (1, {"decision": "maybe"}, 422, "invalid_request"),
        (1, {"answer": ""}, 422, "invalid_request"),
        (1, {"answer": "a\0b"}, 400, "invalid_request"),
        (1, {"verdict": "accept"}, 422, "invalid_request"),
        (0, {"decision": "accept"}, 422, "invalid_request"),
    ],
)
def test_edits_that_make_no_sense(
    service: Service, job_id: str, line: int, values: dict[str, Any], status: int, expected: str
) -> None:
    assert code(edit(service, job_id, line, **values), status) == expected
    labels = service.client.get(f"{JOBS}/{job_id}/pseudo_labels").json()["data"]
    assert all(label["review"] is None for label in labels)


def test_completing_freezes_the_edits_and_lets_the_job_go_on(service: Service, job_id: str) -> None:
    edit(service, job_id, 3, answer="ü\n")
    edit(service, job_id, 1, decision="reject")
    told = complete(service, job_id)
    assert told.status_code == 200
    assert told.json()["semievol"]["review"] == {"needed": True, "waiting": False}
    assert written(service, job_id) == [
        {"round": 1, "id": "r1", "decision": "reject"},
        {"round": 1, "id": "r3", "decision": "accept", "answer": "ü\n"},
    ]
    with service.database.read() as session:
        states = session.scalars(select(Unit.state).where(Unit.job_id == job_id, Unit.name == "round-1/review"))
        assert states.all() == ["ready"]
    events = service.client.get(f"{JOBS}/{job_id}/events").json()["data"]
    assert events[0]["message"] == "Review completed: 2 rows changed"
    assert code(complete(service, job_id), 409) == "not_reviewable"
    assert code(edit(service, job_id, 1, decision="accept"), 409) == "not_reviewable"
    assert not list((service.settings.data / "staging").iterdir())


def test_a_review_without_changes(service: Service, job_id: str) -> None:
    assert complete(service, job_id).status_code == 200
    assert written(service, job_id) == []


def test_later_rounds_keep_the_edits_of_earlier_ones(service: Service, job_id: str) -> None:
    edit(service, job_id, 1, decision="reject")
    complete(service, job_id)
    rows.set_unit(service, job_id, "round-1/review", state="done")
    rows.load_labels(service, job_id, [rows.label(2, answer="D")], round_number=2)
    rows.set_unit(service, job_id, "round-2/review", "cpu", state="waiting")
    assert code(edit(service, job_id, 3, decision="reject"), 409) == "not_reviewable"
    assert edit(service, job_id, 2, decision="accept").status_code == 200
    assert complete(service, job_id).status_code == 200
    assert [(one["round"], one["id"]) for one in written(service, job_id)] == [(1, "r1"), (2, "r2")]


def test_a_job_that_waits_for_nobody_cannot_be_reviewed(service: Service) -> None:
    made = rows.create(service)
    rows.load_labels(service, made, [rows.label(1)])
    answer = edit(service, made, 1, decision="reject")
    assert "without review" in answer.json()["error"]["message"]
    assert code(answer, 409) == "not_reviewable"
    assert code(complete(service, made), 409) == "not_reviewable"


def test_a_cancelled_job_is_not_reviewed(service: Service, job_id: str) -> None:
    service.client.post(f"{JOBS}/{job_id}/cancel")
    assert code(complete(service, job_id), 409) == "not_reviewable"


def test_another_project_sees_no_rows(service: Service, job_id: str) -> None:
    assert code(service.other.patch(f"{JOBS}/{job_id}/pseudo_labels/1", json={"decision": "reject"}), 404) == (
        "job_not_found"
    )
    assert code(service.other.post(f"{JOBS}/{job_id}/review/complete"), 404) == "job_not_found"
