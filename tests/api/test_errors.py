"""Errors: one form for all of them, and no way in without a key."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from api.routes import api_keys, files, health, models, uploads
from api.schemas.api_keys import KeyCreate
from api.schemas.common import Body
from api.schemas.files import UploadComplete, UploadCreate
from api.schemas.session import SessionCreate
from tests.api.service import Server, Service, make_settings, open_service
from tests.api.test_files import LABELED, error_of
from tests.api.test_uploads import begin

OPEN = {"/healthz", "/readyz"}


def calls() -> Iterator[tuple[str, str]]:
    for module in (files, uploads, models, api_keys, health):
        router: APIRouter = module.router
        for route in router.routes:
            assert isinstance(route, APIRoute)
            if route.path not in OPEN:
                yield from ((method, route.path) for method in sorted(route.methods or ()))


def filled(path: str, value: str = "none") -> str:
    return re.sub(r"\{[^}]+\}", value, path)


@pytest.mark.parametrize(("method", "path"), list(calls()))
def test_no_key_no_answer(service: Service, method: str, path: str) -> None:
    answer = service.anonymous.request(method, filled(path))
    assert error_of(answer, 401)["code"] == "missing_api_key"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files/{file}"),
        ("GET", "/v1/files/{file}/content"),
        ("DELETE", "/v1/files/{file}"),
        ("GET", "/v1/uploads/{upload}"),
        ("POST", "/v1/uploads/{upload}/parts"),
        ("POST", "/v1/uploads/{upload}/complete"),
        ("POST", "/v1/uploads/{upload}/cancel"),
    ],
)
def test_what_is_another_projects_does_not_exist(service: Service, method: str, path: str) -> None:
    made = service.client.post("/v1/files", files={"file": ("r.jsonl", LABELED)}, data={"purpose": "fine-tune"})
    address = path.format(file=made.json()["id"], upload=begin(service))
    body: dict[str, Any] = {}
    if path.endswith("parts"):
        body = {"files": {"data": ("x", b"x")}}
    elif path.endswith("complete"):
        body = {"json": {"part_ids": ["part_x"]}}
    answer = service.other.request(method, address, **body)
    assert error_of(answer, 404)["code"] in {"file_not_found", "upload_not_found"}
    assert service.client.get(f"/v1/files/{made.json()['id']}").status_code == 200


def test_the_tables_of_routes_above_are_whole() -> None:
    with_ids = {(method, path) for method, path in calls() if "{file_id}" in path or "{upload_id}" in path}
    assert len(with_ids) == 7


def test_unknown_addresses_and_methods_have_the_same_form(service: Service) -> None:
    assert error_of(service.client.get("/v2/files"), 404)["code"] == "unknown_url"
    answer = service.client.put("/v1/files")
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert "GET" in answer.headers["allow"] or "POST" in answer.headers["allow"]


def test_every_answer_carries_its_id_and_time(service: Service) -> None:
    for path in ("/healthz", "/v1/files", "/nothing"):
        answer = service.client.get(path)
        assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
        assert int(answer.headers["openai-processing-ms"]) >= 0
    assert service.client.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for unsafe in ("x" * 65, "a b", "a;b"):
        assert service.client.get("/healthz", headers={"x-request-id": unsafe}).headers["x-request-id"] != unsafe


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 422, "invalid_request", None),
        (b"\xff", 400, "invalid_request", None),
        (b"[]", 422, "invalid_request", None),
        (b"", 422, "invalid_request", None),
        (b'{"name": 5}', 422, "invalid_request", "name"),
        (b'{"name": "x", "colour": "red"}', 422, "invalid_request", "colour"),
        (b'{"name": "x\\u0000"}', 400, "invalid_request", None),
        (b'{"name": "x\\ud800"}', 400, "invalid_request", None),
        (b'{"name": "x", "expires_at": NaN}', 400, "invalid_request", None),
        (b'{"name": "x", "expires_at": 1e999}', 400, "invalid_request", None),
        (b'{"name": "x", "expires_at": ' + b"9" * 5000 + b"}", 400, "invalid_request", None),
        (b'{"name": ' + b"[" * 100_000, 400, "invalid_request", None),
        (b'{"name": "' + b"x" * 1024**2 + b'"}', 413, "body_too_large", None),
    ],
)
def test_bad_bodies(service: Service, body: bytes, status: int, code: str, param: str | None) -> None:
    answer = service.client.post("/v1/api_keys", content=body, headers={"Content-Type": "application/json"})
    error = error_of(answer, status)
    assert (error["code"], error["param"]) == (code, param)


def test_what_was_sent_is_not_repeated(service: Service) -> None:
    answer = service.client.post("/v1/uploads", json={"filename": "f", "purpose": "TOPSECRET", "bytes": "TOPSECRET"})
    assert error_of(answer, 422)["param"] == "bytes"
    assert "TOPSECRET" not in answer.text
    assert "purpose" in answer.text


def test_a_body_without_a_length_is_counted(service: Service) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"name": "'
        yield from (b"x" * 65536 for _ in range(20))

    answer = service.client.post("/v1/api_keys", content=body(), headers={"Content-Type": "application/json"})
    assert error_of(answer, 413)["code"] == "body_too_large"


@pytest.mark.parametrize("path", ["/v1/files?after=%00", "/v1/files/file-%00", "/v1/models/%00"])
def test_nul_in_the_address_is_refused(service: Service, path: str) -> None:
    assert error_of(service.client.get(path), 400)["code"] == "invalid_request"


def test_a_crash_is_an_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_service(make_settings(tmp_path)) as service:

        @service.app.get("/crash")
        def crash() -> None:
            raise RuntimeError("the reason")

        @service.app.get("/full")
        def full() -> None:
            raise OSError(28, "No space left on device")

        answer = service.anonymous.get("/crash")
        error = error_of(answer, 500)
        assert (error["code"], error["type"]) == ("internal_error", "server_error")
        assert answer.headers["x-request-id"] in error["message"]
        assert "the reason" not in answer.text
        assert "the reason" in caplog.text
        assert error_of(service.anonymous.get("/full"), 503)["code"] == "disk_full"


def test_the_description_is_honest(service: Service) -> None:
    described = service.anonymous.get("/openapi.json").json()
    ids = [call["operationId"] for path in described["paths"].values() for call in path.values()]
    assert len(set(ids)) == len(ids)
    assert {"create_file", "list_files", "complete_upload", "delete_model"} <= set(ids)
    for method, path in calls():
        call = described["paths"][path.replace(":path", "")][method.lower()]
        assert {"401", "403", "422", "429", "500", "503"} <= set(call["responses"]), path
        assert call["security"] == [{"ApiKey": []}, {"Session": []}]
        for kind, content in call.get("requestBody", {}).get("content", {}).items():
            schema = content["schema"]
            if "$ref" in schema:
                schema = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            assert content.get("example") or schema.get("examples"), (path, kind)


@pytest.mark.parametrize("kind", [UploadCreate, UploadComplete, KeyCreate, SessionCreate])
def test_examples_of_bodies_are_valid(kind: type[Body]) -> None:
    for example in kind.model_json_schema()["examples"]:
        kind.model_validate_json(json.dumps(example))


def test_the_openai_client_tells_errors_apart(server: Server) -> None:
    with server.openai("sk-wrong", max_retries=0) as client, pytest.raises(openai.AuthenticationError) as denied:
        client.files.list()
    assert denied.value.code == "invalid_api_key"
    with server.openai(max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve("nobody")
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.PermissionDeniedError) as forbidden:
            client.models.delete("tiny")
        assert forbidden.value.code == "cannot_delete_base_model"
        with pytest.raises(openai.BadRequestError) as bad:
            client.files.create(file=b"", purpose="fine-tune")
        assert bad.value.code == "empty_file"
        assert "empty" in str(bad.value)
        with pytest.raises(openai.UnprocessableEntityError) as invalid:
            client.files.list(limit=0)
        assert invalid.value.param == "limit"
        assert invalid.value.request_id
