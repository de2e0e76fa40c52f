"""Uploads in parts: in any order, checked as a whole, completed once."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from store.models import Upload
from tests.api.service import Server, Service, make_settings, open_service
from tests.api.test_files import LABELED, error_of

HALF = len(LABELED) // 2


def begin(service: Service, size: int = len(LABELED), **changes: Any) -> str:
    body = {"filename": "rows.jsonl", "bytes": size, "purpose": "fine-tune", "mime_type": "application/jsonl"}
    answer = service.client.post("/v1/uploads", json=body | changes)
    assert answer.status_code == 200, answer.text
    upload = answer.json()
    assert (upload["object"], upload["status"], upload["file"]) == ("upload", "pending", None)
    assert upload["expires_at"] - upload["created_at"] == 3600
    found: str = upload["id"]
    return found


def add(service: Service, upload: str, data: bytes) -> Any:
    return service.client.post(f"/v1/uploads/{upload}/parts", files={"data": ("part", data)})


def added(service: Service, upload: str, data: bytes) -> str:
    answer = add(service, upload, data)
    assert answer.status_code == 200, answer.text
    part = answer.json()
    assert (part["object"], part["upload_id"]) == ("upload.part", upload)
    found: str = part["id"]
    return found


def complete(service: Service, upload: str, parts: list[str], **more: str) -> Any:
    return service.client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": parts} | more)


def test_parts_become_a_file_in_the_order_asked_for(service: Service) -> None:
    upload = begin(service, expires_after={"anchor": "created_at", "seconds": 3600})
    last, first = added(service, upload, LABELED[HALF:]), added(service, upload, LABELED[:HALF])
    digest = hashlib.md5(LABELED, usedforsecurity=False).hexdigest()
    body = complete(service, upload, [first, last], md5=digest).json()
    assert body["status"] == "completed"
    file = body["file"]
    assert (file["bytes"], file["status"], file["semievol"]["rows"]) == (len(LABELED), "processed", 3)
    assert file["expires_at"] - file["created_at"] == 3600
    assert service.client.get(f"/v1/files/{file['id']}/content").content == LABELED
    assert service.client.get(f"/v1/uploads/{upload}").json() == body
    assert error_of(complete(service, upload, [first, last]), 409)["code"] == "upload_completed"
    assert error_of(add(service, upload, b"more"), 409)["code"] == "upload_completed"
    assert not any((service.settings.data / "staging").iterdir())


def test_what_does_not_fit_is_refused_and_can_be_mended(service: Service) -> None:
    upload, other = begin(service), begin(service)
    first, last = added(service, upload, LABELED[:HALF]), added(service, upload, LABELED[HALF:])
    strange = added(service, other, LABELED)
    for parts, code in (
        ([first], "size_mismatch"),
        ([first, first], "duplicate_part"),
        ([first, strange], "part_not_found"),
        ([first, "part_x"], "part_not_found"),
    ):
        assert error_of(complete(service, upload, parts), 400)["code"] == code
    assert error_of(complete(service, upload, [first, last], md5="0" * 32), 400)["code"] == "md5_mismatch"
    assert error_of(complete(service, upload, [first, last], md5="zz"), 422)["param"] == "md5"
    assert complete(service, upload, [first, last]).status_code == 200


def test_limits_hold(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, max_part_bytes=100, max_file_bytes=150, max_project_bytes=120)
    with open_service(settings) as service:
        upload = begin(service, 110)
        assert error_of(add(service, upload, b"x" * 101), 413)["param"] == "data"
        assert error_of(add(service, upload, b""), 400)["code"] == "empty_part"
        assert [add(service, upload, b"x" * 100).status_code for _ in range(3)] == [200, 200, 400]
        body = {"filename": "f", "purpose": "fine-tune", "mime_type": "text/csv"}
        for size, status, code in ((151, 413, "file_too_large"), (121, 429, "quota_exceeded")):
            answer = service.client.post("/v1/uploads", json=body | {"bytes": size})
            assert error_of(answer, status)["code"] == code


def test_a_cancelled_upload_takes_nothing_more(service: Service) -> None:
    upload = begin(service)
    part = added(service, upload, LABELED)
    assert service.client.post(f"/v1/uploads/{upload}/cancel").json()["status"] == "cancelled"
    for answer in (
        add(service, upload, b"x"),
        complete(service, upload, [part]),
        service.client.post(f"/v1/uploads/{upload}/cancel"),
    ):
        assert error_of(answer, 409)["code"] == "upload_cancelled"


def test_an_expired_upload_says_so(service: Service) -> None:
    upload = begin(service)
    part = added(service, upload, LABELED)
    with service.database.write() as session:
        session.get_one(Upload, upload).expires_at = 1.0
    assert service.client.get(f"/v1/uploads/{upload}").json()["status"] == "expired"
    for answer in (add(service, upload, b"x"), complete(service, upload, [part])):
        assert error_of(answer, 409)["code"] == "upload_expired"


def test_of_two_completes_one_wins(service: Service) -> None:
    upload = begin(service)
    part = added(service, upload, LABELED)
    ready = threading.Barrier(4)

    def race(_: int) -> int:
        ready.wait()
        status: int = complete(service, upload, [part]).status_code
        return status

    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(race, range(4)))
    assert statuses == [200, 409, 409, 409]
    assert len(service.client.get("/v1/files").json()["data"]) == 1


def test_parts_may_come_at_once(service: Service) -> None:
    pieces = [bytes([65 + number]) * 1000 for number in range(8)]
    upload = begin(service, 8000, purpose="user_data")
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda piece: added(service, upload, piece), pieces))
    file = complete(service, upload, parts).json()["file"]
    assert service.client.get(f"/v1/files/{file['id']}/content").content == b"".join(pieces)


def test_the_openai_client_uploads_in_parts(server: Server) -> None:
    with server.openai() as client:
        upload = client.uploads.upload_file_chunked(
            file=LABELED,
            filename="rows.jsonl",
            bytes=len(LABELED),
            mime_type="application/jsonl",
            purpose="fine-tune",
            part_size=100,
        )
        assert upload.status == "completed"
        assert upload.file is not None
        assert client.files.content(upload.file.id).read() == LABELED
        with pytest.raises(openai.ConflictError) as caught:
            client.uploads.cancel(upload.id)
        assert caught.value.code == "upload_completed"
