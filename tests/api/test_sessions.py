"""Signing in and out of the pages: the cookie, what ends it, and whose requests it opens."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookies import SimpleCookie
from typing import Any

import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient

from api.browser import COOKIE
from api.routes.session import WRONG_KEYS_PER_MINUTE
from store import sessions, webhooks
from store.models import ApiKey, SignIn
from tests.api.service import PROJECT, Server, Service
from tests.api.test_files import error_of
from tests.api.test_keys import bearer
from worker.sweep import Sweep

HOST = "pages.test"
OWN = {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}
FILE: dict[str, Any] = {"files": {"file": ("x.txt", b"abc")}, "data": {"purpose": "user_data"}}


@contextmanager
def browsing(service: Service, scheme: str = "http") -> Iterator[TestClient]:
    """A browser that has not signed in."""
    with_cookies = TestClient(service.app, base_url=f"{scheme}://{HOST}", follow_redirects=False)
    try:
        yield with_cookies
    finally:
        with_cookies.close()


@pytest.fixture
def browser(service: Service) -> Iterator[TestClient]:
    """A browser that has signed in with the key of the user who is no admin."""
    with browsing(service) as opened:
        sign_in(opened, service.user_key)
        yield opened


def sign_in(browser: TestClient, key: str, **headers: str) -> dict[str, Any]:
    answer = browser.post("/v1/session", json={"api_key": key}, headers=OWN | headers)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def rows(service: Service) -> list[SignIn]:
    with service.database.read() as session:
        return list(session.scalars(select(SignIn)))


# --- in and out -------------------------------------------------------------------------------------------------------


def test_a_key_becomes_a_session_that_opens_the_same(service: Service) -> None:
    with browsing(service) as browser:
        assert error_of(browser.get("/v1/session"), 401)["code"] == "missing_api_key"
        told = sign_in(browser, service.user_key)
        assert told == browser.get("/v1/session").json()
        assert browser.get("/v1/files").status_code == 200
        assert error_of(browser.get("/v1/api_keys"), 403)["code"] == "not_admin"
    expires_at = told.pop("expires_at")
    assert abs(expires_at - time.time() - sessions.LIFETIME_SECONDS) < 60
    key = {"id": service.user_key.split("-")[1], "name": "user", "admin": False}
    assert told == {"object": "session", "key": key, "project": PROJECT}


def test_who_sends_a_key_is_told_without_a_session(service: Service) -> None:
    told = service.client.get("/v1/session").json()
    assert (told["key"]["admin"], told["project"], told["expires_at"]) == (True, PROJECT, None)
    assert error_of(service.client.delete("/v1/session"), 404)["code"] == "session_not_found"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_scripts_cannot_read_the_cookie_and_other_sites_do_not_send_it(service: Service, scheme: str) -> None:
    with browsing(service, scheme) as browser:
        own = {"Origin": f"{scheme}://{HOST}"}
        answer = browser.post("/v1/session", json={"api_key": service.user_key}, headers=own)
    cookie = SimpleCookie(answer.headers["set-cookie"])[COOKIE]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "strict", "/")
    assert cookie["domain"] == ""
    assert bool(cookie["secure"]) == (scheme == "https")
    assert sessions.LIFETIME_SECONDS - 5 <= int(cookie["max-age"]) <= sessions.LIFETIME_SECONDS
    assert answer.headers["cache-control"] == "no-store"
    assert cookie.value not in answer.text


def test_a_proxy_that_is_not_trusted_does_not_take_the_cookies_protection(service: Service) -> None:
    with browsing(service) as browser:  # plain to us, HTTPS to the browser
        own = {"Origin": f"https://{HOST}"}
        answer = browser.post("/v1/session", json={"api_key": service.user_key}, headers=own)
    assert "Secure" in answer.headers["set-cookie"]


def test_the_database_does_not_hold_the_secret(service: Service, browser: TestClient) -> None:
    secret = browser.cookies[COOKIE]
    assert [row.secret_sha256 for row in rows(service)] == [sessions.digest(secret)]
    path = service.settings.data / "semievol.db"
    stored = b"".join(file.read_bytes() for file in path.parent.glob("semievol.db*"))
    assert sessions.digest(secret).encode() in stored
    assert secret.encode() not in stored


def test_signing_out_ends_the_session_at_once(service: Service, browser: TestClient) -> None:
    secret = browser.cookies[COOKIE]
    assert browser.get("/v1/files").status_code == 200
    answer = browser.delete("/v1/session", headers=OWN)
    assert answer.json() == {"object": "session", "deleted": True}
    assert COOKIE not in browser.cookies
    again = service.anonymous.get("/v1/files", headers={"Cookie": f"{COOKIE}={secret}"})
    assert error_of(again, 401)["code"] == "invalid_session"
    assert rows(service) == []


def test_signing_in_again_ends_the_session_before(service: Service, browser: TestClient) -> None:
    before = browser.cookies[COOKIE]
    sign_in(browser, service.key)
    assert browser.cookies[COOKIE] != before
    assert browser.get("/v1/session").json()["key"]["admin"] is True
    assert len(rows(service)) == 1


# --- what ends it -----------------------------------------------------------------------------------------------------


def test_a_revoked_key_ends_its_sessions_at_once(service: Service, browser: TestClient) -> None:
    assert browser.get("/v1/files").status_code == 200
    assert service.client.delete(f"/v1/api_keys/{service.user_key.split('-')[1]}").status_code == 200
    assert error_of(browser.get("/v1/files"), 401)["code"] == "invalid_session"


def test_an_expired_key_ends_its_sessions(service: Service, browser: TestClient) -> None:
    with service.database.write() as session:
        session.get_one(ApiKey, service.user_key.split("-")[1]).expires_at = 1.0
    service.app.state.known_keys.forget()
    assert error_of(browser.get("/v1/files"), 401)["code"] == "invalid_session"


def test_a_session_does_not_outlive_its_key(service: Service) -> None:
    ends = int(time.time()) + 1000
    key = service.client.post("/v1/api_keys", json={"name": "short", "expires_at": ends}).json()["key"]
    with browsing(service) as browser:
        assert sign_in(browser, key)["expires_at"] == ends


def test_a_session_ends_by_itself(service: Service, browser: TestClient) -> None:
    with service.database.write() as session:
        session.execute(update(SignIn).values(expires_at=1.0))
    service.app.state.known_keys.forget()
    assert error_of(browser.get("/v1/files"), 401)["code"] == "invalid_session"


@pytest.mark.parametrize("cookie", ["x", "session-x", "s\xfc"])
def test_wrong_cookies_open_nothing(service: Service, cookie: str) -> None:
    headers = [(b"Cookie", f"{COOKIE}={cookie}".encode("latin-1"))]
    assert error_of(service.anonymous.get("/v1/files", headers=headers), 401)["code"] == "invalid_session"


def test_a_session_is_no_key_and_a_key_no_session(service: Service, browser: TestClient) -> None:
    secret = browser.cookies[COOKIE]
    assert browser.get("/v1/files").status_code == 200  # both are known by now
    assert service.user.get("/v1/files").status_code == 200
    answer = service.anonymous.get("/v1/files", headers=bearer(secret))
    assert error_of(answer, 401)["code"] == "invalid_api_key"
    answer = service.anonymous.get("/v1/files", headers={"Cookie": f"{COOKIE}={service.user_key}"})
    assert error_of(answer, 401)["code"] == "invalid_session"


def test_the_key_that_is_sent_counts_and_not_the_cookie(service: Service, browser: TestClient) -> None:
    assert browser.get("/v1/session", headers=bearer(service.key)).json()["key"]["admin"] is True
    assert error_of(browser.get("/v1/files", headers=bearer("sk-wrong")), 401)["code"] == "invalid_api_key"
    assert browser.post("/v1/files", headers=bearer(service.key), **FILE).status_code == 200  # and needs no page


# --- whose requests it opens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        OWN,
        {"Origin": f"http://{HOST}"},
        {"Origin": f"https://{HOST.upper()}"},
        {"Sec-Fetch-Site": "same-origin"},
    ],
)
def test_pages_of_the_service_may_change_things(browser: TestClient, headers: dict[str, str]) -> None:
    made = browser.post("/v1/files", headers=headers, **FILE)
    assert made.status_code == 200, made.text
    assert browser.delete(f"/v1/files/{made.json()['id']}", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.test"},
        {"Sec-Fetch-Site": "cross-site", "Origin": f"http://{HOST}"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://evil.test"},
        {"Origin": f"http://{HOST}:8080"},
        {"Origin": f"http://{HOST}.evil.test"},
        {"Origin": f"http://evil.test/{HOST}"},
    ],
)
def test_others_may_read_at_most(service: Service, browser: TestClient, headers: dict[str, str]) -> None:
    refused = error_of(browser.post("/v1/files", headers=headers, **FILE), 403)
    assert refused["code"] == "cross_site_request"
    assert "Authorization: Bearer" in refused["message"]
    assert error_of(browser.delete("/v1/session", headers=headers), 403)["code"] == "cross_site_request"
    assert browser.get("/v1/files", headers=headers).json()["data"] == []
    assert browser.head("/v1/files", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.test"}, {"Origin": "null"}]
)
def test_no_other_site_signs_its_visitors_in(service: Service, headers: dict[str, str]) -> None:
    with browsing(service) as browser:
        answer = browser.post("/v1/session", json={"api_key": service.user_key}, headers=headers)
    assert error_of(answer, 403)["code"] == "cross_site_request"
    assert "set-cookie" not in answer.headers


def test_programs_may_sign_in(service: Service) -> None:
    with browsing(service) as program:
        assert program.post("/v1/session", json={"api_key": service.user_key}).status_code == 200


# --- wrong keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "sk-nonsense", "sk-0123456789abcdef-wrong", "s\xfc"])
def test_a_wrong_key_signs_nobody_in(service: Service, key: str) -> None:
    with browsing(service) as browser:
        answer = browser.post("/v1/session", json={"api_key": key}, headers=OWN)
    assert error_of(answer, 401)["code"] == "invalid_api_key"
    assert "set-cookie" not in answer.headers
    assert rows(service) == []


def test_guessing_is_slowed_down_and_signing_in_is_not(service: Service) -> None:
    with browsing(service) as browser:
        for _ in range(WRONG_KEYS_PER_MINUTE + 1):
            sign_in(browser, service.user_key)
        for _ in range(WRONG_KEYS_PER_MINUTE):
            assert browser.post("/v1/session", json={"api_key": "sk-wrong"}, headers=OWN).status_code == 401
        for key in ("sk-wrong", service.user_key):
            answer = browser.post("/v1/session", json={"api_key": key}, headers=OWN)
            assert error_of(answer, 429)["code"] == "rate_limit_exceeded"
            assert 0 < int(answer.headers["retry-after"]) <= 60
        assert browser.get("/v1/files").status_code == 200  # who is in stays in


def test_behind_a_real_server_a_program_signs_in_and_asks(server: Server) -> None:
    import httpx

    with httpx.Client(base_url=server.url) as program:
        program.post("/v1/session", json={"api_key": server.service.user_key}).raise_for_status()
        assert program.get("/v1/session").json()["key"]["name"] == "user"
        assert program.delete("/v1/session").status_code == 403
        assert program.delete("/v1/session", headers={"Origin": server.url}).status_code == 200
        assert program.get("/v1/session").status_code == 401


def test_a_proxy_on_this_machine_is_believed_that_the_browser_came_by_https(server: Server) -> None:
    import httpx

    body = {"api_key": server.service.user_key}
    for proto in ("http", "https"):
        answer = httpx.post(f"{server.url}/v1/session", json=body, headers={"X-Forwarded-Proto": proto})
        assert ("Secure" in answer.headers["set-cookie"]) == (proto == "https")


def test_sessions_of_the_past_are_swept(service: Service, browser: TestClient) -> None:
    sign_in(browser, service.user_key)
    with browsing(service) as other:
        sign_in(other, service.key)
        with service.database.write() as session:
            old = sessions.digest(browser.cookies[COOKIE])
            session.execute(update(SignIn).where(SignIn.secret_sha256 == old).values(expires_at=1.0))
        with webhooks.open_client() as client:
            sweeping = Sweep(service.settings, service.database, service.parts.objects, lambda kinds: None, client)
            sweeping.collect_garbage()
        assert [row.secret_sha256 for row in rows(service)] == [sessions.digest(other.cookies[COOKIE])]
