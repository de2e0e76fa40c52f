"""Keys: who may make them, what they open, and when they stop."""

import time
from pathlib import Path
from typing import Any

import pytest

from api.auth import RateLimiter, Uses
from store.models import ApiKey
from tests.api.service import Service, make_settings, open_service
from tests.api.test_files import error_of


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def make(service: Service, **body: Any) -> dict[str, Any]:
    answer = service.client.post("/v1/api_keys", json={"name": "laptop"} | body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def test_a_new_key_opens_its_project_and_shows_its_secret_once(service: Service) -> None:
    made = make(service, project="third")
    secret = made.pop("key")
    assert made["project"] == "third"
    listed = service.client.get("/v1/api_keys").json()["data"]
    assert made in listed
    assert secret not in str(listed)
    assert service.anonymous.get("/v1/files", headers=bearer(secret)).status_code == 200
    revoked = service.client.delete(f"/v1/api_keys/{made['id']}").json()
    assert revoked == {"id": made["id"], "object": "api_key", "deleted": True}
    assert error_of(service.anonymous.get("/v1/files", headers=bearer(secret)), 401)["code"] == "invalid_api_key"
    assert error_of(service.client.delete(f"/v1/api_keys/{made['id']}"), 404)["code"] == "key_not_found"


def test_keys_are_listed_in_pages(service: Service) -> None:
    newest = make(service)["id"]
    page = service.client.get("/v1/api_keys", params={"limit": 1}).json()
    assert ([key["id"] for key in page["data"]], page["has_more"]) == ([newest], True)
    rest = service.client.get("/v1/api_keys", params={"after": newest}).json()
    assert (len(rest["data"]), rest["has_more"]) == (3, False)
    assert error_of(service.client.get("/v1/api_keys", params={"after": "x"}), 400)["code"] == "invalid_after"


def test_only_admins_handle_keys(service: Service) -> None:
    for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/0123456789abcdef")):
        answer = service.user.request(method, f"/v1/api_keys{path}", json={"name": "x"} if method == "POST" else None)
        assert error_of(answer, 403)["code"] == "not_admin"
    assert error_of(service.user.get("/metrics"), 403)["code"] == "not_admin"


def test_the_last_admin_key_stays(service: Service) -> None:
    own, other = service.key.split("-")[1], service.other_key.split("-")[1]
    assert service.client.delete(f"/v1/api_keys/{other}").status_code == 200
    answer = service.client.delete(f"/v1/api_keys/{own}")
    assert error_of(answer, 409)["code"] == "last_admin_key"
    make(service, admin=True)
    assert service.client.delete(f"/v1/api_keys/{own}").status_code == 200


def test_a_key_ends_when_it_was_told_to(service: Service) -> None:
    made = make(service, expires_at=int(time.time()) + 1000)
    assert service.anonymous.get("/v1/files", headers=bearer(made["key"])).status_code == 200
    with service.database.write() as session:
        session.get_one(ApiKey, made["id"]).expires_at = 1.0
    service.app.state.known_keys.forget()
    assert service.anonymous.get("/v1/files", headers=bearer(made["key"])).status_code == 401
    past = service.client.post("/v1/api_keys", json={"name": "x", "expires_at": 1})
    assert error_of(past, 400)["code"] == "invalid_expires_at"


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        ("Basic eDp5", "missing_api_key"),
        ("Bearer ", "missing_api_key"),
        ("Bearer sk-0123456789abcdef-wrong", "invalid_api_key"),
        ("Bearer sk-nonsense", "invalid_api_key"),
        ("Bearer s\xfc", "invalid_api_key"),
    ],
)
def test_wrong_keys_open_nothing(service: Service, header: str | None, code: str) -> None:
    headers = [(b"Authorization", header.encode("latin-1"))] if header else []
    answer = service.anonymous.get("/v1/files", headers=headers)
    assert error_of(answer, 401)["code"] == code
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_secret_of_another_key_does_not_fit(service: Service) -> None:
    forged = f"sk-{service.key.split('-')[1]}-{service.user_key.split('-', 2)[2]}"
    assert service.anonymous.get("/v1/files", headers=bearer(forged)).status_code == 401


def test_use_is_noted(service: Service) -> None:
    service.user.get("/v1/files")
    with service.database.read() as session:
        key = session.get_one(ApiKey, service.user_key.split("-")[1])
        assert key.last_used_at is not None


def test_use_is_noted_once_in_a_while() -> None:
    uses = Uses()
    assert [uses.due("a", at) for at in (0, 1, 59, 60, 61)] == [True, False, False, True, False]


def test_the_window_slides() -> None:
    limiter = RateLimiter(2)
    assert [limiter.wait_seconds("a", at) for at in (0, 10, 20, 59, 60, 61)] == [0, 0, 40, 1, 0, 9]
    assert limiter.wait_seconds("b", 20) == 0


def test_what_is_taken_back_does_not_count() -> None:
    limiter = RateLimiter(2)
    assert [limiter.wait_seconds("a", at) for at in (0, 1)] == [0, 0]
    limiter.take_back("a")
    limiter.take_back("b")
    assert [limiter.wait_seconds("a", at) for at in (2, 3)] == [0, 57]


def test_addresses_without_end_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.auth.MOST_KNOWN", 3)
    limiter = RateLimiter(1)
    assert [limiter.wait_seconds(name, 0) for name in ("a", "b", "c")] == [0, 0, 0]
    assert limiter.wait_seconds("d", 50) == 0
    assert limiter.wait_seconds("a", 51) == 9  # it still counts
    assert limiter.wait_seconds("e", 70) == 0
    assert set(limiter._asked) == {"d", "e"}


def test_a_key_that_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    with open_service(make_settings(tmp_path, requests_per_minute=2)) as service:
        assert [service.user.get("/v1/models").status_code for _ in range(3)] == [200, 200, 429]
        answer = service.user.get("/v1/models")
        assert error_of(answer, 429)["code"] == "rate_limit_exceeded"
        assert 0 < int(answer.headers["retry-after"]) <= 60
        assert service.client.get("/v1/models").status_code == 200
