"""Files: streamed in with bounded memory, checked by line, listed, ranged over, deleted."""

import base64
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import openai
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from store.models import File, Job
from tests.api.service import Server, Service, make_settings, open_service


def chat(*roles: str) -> str:
    return json.dumps({"messages": [{"role": role, "content": f"a {role} speaks"} for role in roles]})


LABELED = "\n".join([chat("user", "assistant")] * 3).encode()
UNLABELED = "\n".join([chat("user")] * 4).encode()


def parquet(**columns: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


PARQUET = parquet(question=["Why?", "How?"], answer=["so", "thus"])


def upload(service: Service, content: bytes = LABELED, name: str = "rows.jsonl", **fields: str) -> Any:
    data = {"purpose": "fine-tune"} | fields
    return service.client.post("/v1/files", files={"file": (name, content)}, data=data)


def created(service: Service, content: bytes = LABELED, name: str = "rows.jsonl", **fields: str) -> dict[str, Any]:
    answer = upload(service, content, name, **fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return body


def test_a_labeled_file_is_checked_and_described(service: Service) -> None:
    file = created(service)
    assert file["object"] == "file"
    assert (file["bytes"], file["filename"], file["purpose"]) == (len(LABELED), "rows.jsonl", "fine-tune")
    assert (file["status"], file["status_details"], file["expires_at"]) == ("processed", None, None)
    sha256 = hashlib.sha256(LABELED).hexdigest()
    assert file["semievol"] == {"kind": "labeled", "rows": 3, "problems": [], "sha256": sha256}
    assert service.client.get(f"/v1/files/{file['id']}").json() == file


@pytest.mark.parametrize(
    ("name", "content", "kind", "rows"),
    [
        ("pool.jsonl", UNLABELED, "unlabeled", 4),
        ("pool.csv", b"question\nWhy?\nHow?\n", "unlabeled", 2),
        ("some.csv", b"question,answer\nWhy?,so\n", "labeled", 1),
        ("partly.csv", b"question,answer\nWhy?,so\nHow?,\n", "unlabeled", 2),
        ("rows.dat", LABELED, "labeled", 3),
        ("rows.jsonl.gz", gzip.compress(LABELED, mtime=0), "labeled", 3),
        ("rows.dat", gzip.compress(LABELED, mtime=0), "labeled", 3),
        ("rows.csv.zst", zstandard.compress(b"question\nWhy?\n"), "unlabeled", 1),
        ("rows.parquet", PARQUET, "labeled", 2),
        ("rows", PARQUET, "labeled", 2),
        ("pairs.jsonl", b'{"prompt": "Why?", "completion": "so"}', "labeled", 1),
        ("tasks.jsonl", b'{"instruction": "Why?"}', "unlabeled", 1),
        ("rows", b"question,answer\nWhy?,so\n", "labeled", 1),
    ],
)
def test_the_kind_comes_from_the_rows(service: Service, name: str, content: bytes, kind: str, rows: int) -> None:
    facts = created(service, content, name)["semievol"]
    assert (facts["kind"], facts["rows"]) == (kind, rows)


def test_a_file_with_problems_is_kept_and_says_where(service: Service) -> None:
    content = b"\n".join([chat("user", "assistant").encode(), b'{"secret": 1}', chat("user").encode()])
    file = created(service, content)
    assert file["status"] == "error"
    found = [(problem["line"], problem["code"]) for problem in file["semievol"]["problems"]]
    assert found == [(2, "unknown_form"), (3, "wrong_last_turn")]
    assert "line 2" in file["status_details"]
    assert "secret" not in file["status_details"]


def test_packed_bytes_that_cannot_be_unpacked_are_kept_and_say_why(service: Service) -> None:
    file = created(service, gzip.compress(LABELED)[:-9], "rows.jsonl.gz")
    assert (file["status"], file["semievol"]["kind"]) == ("error", None)
    assert [problem["code"] for problem in file["semievol"]["problems"]] == ["truncated"]
    assert file["status_details"].startswith("rows.jsonl.gz cannot be used:")


def test_a_problem_has_its_field_and_its_byte(service: Service) -> None:
    file = created(service, LABELED + b'\n{"prompt": 7, "completion": "a"}')
    [problem] = file["semievol"]["problems"]
    message = "prompt must be a string"
    assert problem == {
        "line": 4,
        "code": "not_text",
        "message": message,
        "field": "prompt",
        "byte_offset": len(LABELED) + 1,
    }


def test_other_purposes_are_stored_as_they_are(service: Service) -> None:
    file = created(service, b"\0anything", "x.bin", purpose="user_data")
    assert (file["status"], file["semievol"]["kind"]) == ("processed", None)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\rows.jsonl", "rows.jsonl"),
        ("ab\u202ec.jsonl", "abc.jsonl"),
        ("é" * 300 + ".csv", "é" * 127),
        ("..", "file"),
    ],
)
def test_the_name_is_for_display_only(service: Service, given: str, shown: str) -> None:
    assert created(service, LABELED, given, purpose="user_data")["filename"] == shown


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"purpose": "theft"}, "invalid_purpose"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "invalid_expires_after"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}, "invalid_expires_after"),
        ({"expires_after[anchor]": "created_at"}, "invalid_expires_after"),
    ],
)
def test_bad_fields_are_named(service: Service, fields: dict[str, str], code: str) -> None:
    assert error_of(upload(service, LABELED, "rows.jsonl", **fields), 400)["code"] == code
    assert nothing_left(service)


def nothing_left(service: Service) -> bool:
    folder = service.settings.data / "staging"
    return not any(folder.iterdir())


@pytest.mark.parametrize(
    ("kind", "body", "code"),
    [
        ("text/plain", b"x", "invalid_form"),
        ("multipart/form-data", b"x", "invalid_form"),
        ("multipart/form-data; boundary=b", b"", "invalid_form"),
        ("multipart/form-data; boundary=b", b"nonsense", "invalid_form"),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\nx",
            "invalid_form",
        ),
        ("multipart/form-data; boundary=b", b"--b\r\nno header\r\n\r\nx\r\n--b--\r\n", "invalid_form"),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Disposition: form-data; name=purpose\r\n\r\nfine-tune\r\n--b--\r\n",
            "missing_file",
        ),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\n" + b"y" * 5000 + b"\r\n--b--\r\n",
            "invalid_form",
        ),
    ],
)
def test_broken_forms_are_refused(service: Service, kind: str, body: bytes, code: str) -> None:
    answer = service.client.post("/v1/files", content=body, headers={"Content-Type": kind})
    assert error_of(answer, 400)["code"] == code
    assert nothing_left(service)


def test_an_empty_file_is_refused(service: Service) -> None:
    assert error_of(upload(service, b""), 400)["code"] == "empty_file"


def test_a_file_over_the_limit_is_refused_with_and_without_a_length(tmp_path: Path) -> None:
    with open_service(make_settings(tmp_path, max_file_bytes=1000)) as service:
        assert error_of(upload(service, b"x" * 1001, purpose="user_data"), 413)["code"] == "file_too_large"
        form = b"--b\r\nContent-Disposition: form-data; name=file; filename=f\r\n\r\n"

        def body() -> Any:
            yield form
            yield from (b"x" * 400 for _ in range(3))
            yield b"\r\n--b--\r\n"

        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = service.client.post("/v1/files", content=body(), headers=headers)
        assert error_of(answer, 413)["code"] == "file_too_large"
        assert created(service, b"x" * 1000, purpose="user_data")["bytes"] == 1000
        assert nothing_left(service)


def test_the_quota_of_the_project_holds(tmp_path: Path) -> None:
    with open_service(make_settings(tmp_path, max_project_bytes=100)) as service:
        first = created(service, b"x" * 60, purpose="user_data")
        assert error_of(upload(service, b"x" * 60, purpose="user_data"), 429)["code"] == "quota_exceeded"
        service.client.delete(f"/v1/files/{first['id']}")
        created(service, b"x" * 60, purpose="user_data")


def test_equal_contents_share_one_object(service: Service) -> None:
    first, second = created(service), created(service)
    assert first["id"] != second["id"]
    assert len(list(service.parts.objects.names())) == 1
    service.client.delete(f"/v1/files/{first['id']}")
    assert service.client.get(f"/v1/files/{second['id']}/content").content == LABELED


def test_lists_go_both_ways_in_pages(service: Service) -> None:
    ids = [created(service, purpose="user_data" if number == 2 else "fine-tune")["id"] for number in range(5)]

    def walk(order: str) -> list[str]:
        found: list[str] = []
        after = None
        while True:
            query: dict[str, int | str] = {"limit": 2, "order": order}
            if after:
                query["after"] = after
            page = service.client.get("/v1/files", params=query).json()
            assert page["object"] == "list"
            found += [file["id"] for file in page["data"]]
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            if not page["has_more"]:
                return found
            after = page["last_id"]

    assert walk("asc") == ids
    assert walk("desc") == ids[::-1]
    only = service.client.get("/v1/files", params={"purpose": "user_data"}).json()
    assert [file["id"] for file in only["data"]] == [ids[2]]
    unknown = service.client.get("/v1/files", params={"after": "file-x"})
    assert error_of(unknown, 400)["code"] == "invalid_after"
    assert error_of(service.client.get("/v1/files", params={"limit": 10_001}), 422)["param"] == "limit"


def test_an_empty_list_has_no_ends(service: Service) -> None:
    empty = {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
    assert service.client.get("/v1/files").json() == empty


def test_content_is_whole_with_its_digest(service: Service) -> None:
    file = created(service, LABELED, "täglich 1.jsonl")
    answer = service.client.get(f"/v1/files/{file['id']}/content")
    digest = hashlib.sha256(LABELED)
    assert answer.content == LABELED
    assert answer.headers["etag"] == f'"{digest.hexdigest()}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert answer.headers["content-length"] == str(len(LABELED))
    assert answer.headers["accept-ranges"] == "bytes"
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith("attachment; filename=")
    assert disposition.endswith("filename*=UTF-8''t%C3%A4glich%201.jsonl")


@pytest.mark.parametrize(
    ("given", "status", "start", "end"),
    [
        ("bytes=0-4", 206, 0, 5),
        ("bytes=5-", 206, 5, 100),
        ("bytes=-7", 206, 93, 100),
        ("bytes=90-1000", 206, 90, 100),
        ("bytes=-1000", 206, 0, 100),
        ("bytes=0-1,5-6", 200, 0, 100),
        ("rows=1-2", 200, 0, 100),
        ("bytes=9-2", 200, 0, 100),
        ("bytes=-", 200, 0, 100),
    ],
)
def test_ranges(service: Service, given: str, status: int, start: int, end: int) -> None:
    content = bytes(range(100))
    file = created(service, content, "x.bin", purpose="user_data")
    answer = service.client.get(f"/v1/files/{file['id']}/content", headers={"Range": given})
    assert (answer.status_code, answer.content) == (status, content[start:end])
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/100"


def test_a_range_outside_is_416_and_conditions_hold(service: Service) -> None:
    file = created(service, bytes(range(100)), "x.bin", purpose="user_data")
    url, etag = f"/v1/files/{file['id']}/content", f'"{file["semievol"]["sha256"]}"'
    for given in ("bytes=100-", "bytes=-0"):
        answer = service.client.get(url, headers={"Range": given})
        assert error_of(answer, 416)["code"] == "invalid_range"
        assert answer.headers["content-range"] == "bytes */100"
    unchanged = service.client.get(url, headers={"If-None-Match": f'"other", W/{etag}'})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert service.client.get(url, headers={"If-Range": etag, "Range": "bytes=0-0"}).status_code == 206
    assert service.client.get(url, headers={"If-Range": '"old"', "Range": "bytes=0-0"}).status_code == 200


def test_head_tells_what_get_would_send(service: Service) -> None:
    file = created(service)
    answer = service.client.head(f"/v1/files/{file['id']}/content")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(LABELED))


def test_a_lost_object_is_an_error_and_no_half_answer(service: Service) -> None:
    file = created(service)
    service.parts.objects.delete(file["semievol"]["sha256"])
    answer = service.client.get(f"/v1/files/{file['id']}/content")
    assert error_of(answer, 503)["code"] == "object_missing"


def test_deleted_files_are_gone(service: Service) -> None:
    file = created(service)
    answer = service.client.delete(f"/v1/files/{file['id']}")
    assert answer.json() == {"id": file["id"], "object": "file", "deleted": True}
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        gone = service.client.request(method, f"/v1/files/{file['id']}{path}")
        assert error_of(gone, 404)["code"] == "file_not_found"


def test_a_file_of_an_unfinished_job_stays(service: Service) -> None:
    file = created(service)
    with service.database.write() as session:
        job = Job(
            id="ftjob-1",
            project_id="default",
            created_by="k",
            method="supervised",
            model="tiny",
            model_source={},
            recipe={},
            seed=0,
            inputs={"labeled": {"file": file["id"]}},
            asked={},
        )
        session.add(job)
    answer = service.client.delete(f"/v1/files/{file['id']}")
    assert error_of(answer, 409)["code"] == "file_in_use"
    assert answer.headers["x-should-retry"] == "false"
    with service.database.write() as session:
        session.get_one(Job, "ftjob-1").status = "cancelled"
    assert service.client.delete(f"/v1/files/{file['id']}").status_code == 200


def test_expired_files_are_gone(service: Service) -> None:
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = created(service, LABELED, "rows.jsonl", **fields)
    assert file["expires_at"] - file["created_at"] == 3600
    with service.database.write() as session:
        session.get_one(File, file["id"]).expires_at = 1.0
    assert service.client.get(f"/v1/files/{file['id']}").status_code == 404
    assert service.client.get("/v1/files").json()["data"] == []


def test_a_large_file_is_not_held_in_memory(service: Service) -> None:
    import tracemalloc

    boundary = b"--b\r\nContent-Disposition: form-data; name=file; filename=f\r\n\r\n"
    chunk = b"x" * 65536

    def body() -> Any:
        yield b"--b\r\nContent-Disposition: form-data; name=purpose\r\n\r\nuser_data\r\n"
        yield boundary
        yield from (chunk for _ in range(512))
        yield b"\r\n--b--\r\n"

    from api.services.intake import FormReader

    reader = FormReader(b"b", "file", 64 * 1024**2)
    tracemalloc.start()
    received = 0
    for piece in body():
        reader.feed(piece)
        received += len(reader.take())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert received == 512 * 65536
    assert reader.finish().fields == {"purpose": "user_data"}
    assert peak < 4 * 1024**2


def test_the_openai_client_works_unmodified(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LABELED)
    with server.openai() as client:
        file = client.files.create(
            file=path, purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        assert client.files.wait_for_processing(file.id).status == "processed"
        assert client.files.retrieve(file.id).filename == "rows.jsonl"
        assert [one.id for one in client.files.list(limit=1)] == [file.id]
        assert client.files.content(file.id).read() == LABELED
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError) as caught:
            client.files.retrieve(file.id)
        assert (caught.value.code, caught.value.param) == ("file_not_found", "file_id")


def test_a_client_that_leaves_leaves_nothing(server: Server) -> None:
    import socket
    import time
    from urllib.parse import urlsplit

    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = (
            "POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n"
            f"Authorization: Bearer {server.service.key}\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            "--b\r\nContent-Disposition: form-data; name=file; filename=f\r\n\r\n"
        )
        connection.sendall(head.encode() + b"x" * 2_000_000)
        folder = server.service.settings.data / "staging"
        wait = time.monotonic() + 10
        while not (folder.exists() and any(folder.iterdir())) and time.monotonic() < wait:
            time.sleep(0.01)
        assert any(folder.iterdir())
    while any(folder.iterdir()) and time.monotonic() < wait:
        time.sleep(0.01)
    assert not any(folder.iterdir())


def test_an_object_store_may_answer_itself_and_may_be_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", "id"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "eu-west-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    settings = make_settings(tmp_path, objects="s3://bucket/all", s3_endpoint="http://127.0.0.1:1", s3_presigned=True)
    sha256 = hashlib.sha256(LABELED).hexdigest()
    with open_service(settings) as service:
        file = File(
            id="file-1",
            project_id="default",
            filename="rows.jsonl",
            purpose="fine-tune",
            bytes=len(LABELED),
            sha256=sha256,
            status="processed",
        )
        with service.database.write() as session:
            session.add(file)
        answer = service.client.get("/v1/files/file-1/content")
        assert answer.status_code == 302
        assert answer.headers["location"].startswith(f"http://127.0.0.1:1/bucket/all/{sha256}?")
        assert error_of(upload(service), 503)["code"] == "storage_unavailable"
        assert nothing_left(service)
