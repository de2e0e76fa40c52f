"""Webhook endpoints and their deliveries, to a real receiver, checked by the official client."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import select, update

from store import webhooks
from store.database import now
from store.models import WebhookDelivery, WebhookEndpoint
from store.settings import Settings
from store.webhooks import BACKOFF_SECONDS, deliver_due, is_public, open_client
from tests.api import rows
from tests.api.service import Service, make_settings

ENDPOINTS = "/v1/webhook_endpoints"
SUCCEEDED = "fine_tuning.job.succeeded"
ALL = [SUCCEEDED, "fine_tuning.job.failed", "fine_tuning.job.cancelled"]


@dataclass
class Receiver:
    """Keeps what it was sent and answers as it is told."""

    url: str = ""
    status: int = 200
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            made.got.append(({key.lower(): value for key, value in self.headers.items()}, body))
            self.send_response(made.status)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        made.url = f"http://localhost:{server.server_address[1]}/hook?a=b"
        yield made
        server.shutdown()
        thread.join()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path, webhook_private_addresses=True)


def add(service: Service, url: str, *events: str) -> dict[str, Any]:
    answer = service.client.post(ENDPOINTS, json={"url": url, "events": list(events) or ALL})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def deliver(service: Service, settings: Settings | None = None) -> int:
    with open_client() as client:
        return deliver_due(service.database, settings or service.settings, client)


def finish(service: Service, status: str = "succeeded") -> str:
    job_id = rows.create(service)
    rows.finish_job(service, job_id, status)
    return job_id


def delivery(service: Service) -> WebhookDelivery:
    with service.database.read() as session:
        return session.scalars(select(WebhookDelivery)).one()


def make_due(service: Service) -> None:
    with service.database.write() as session:
        due = update(WebhookDelivery).where(WebhookDelivery.next_attempt_at.is_not(None))
        session.execute(due.values(next_attempt_at=now()))


# --- endpoints --------------------------------------------------------------------------------------------------------


def test_an_endpoints_secret_is_shown_once(service: Service) -> None:
    made = add(service, "http://localhost:1/x", SUCCEEDED, SUCCEEDED)
    assert made["secret"].startswith("whsec_")
    assert made["events"] == [SUCCEEDED]
    second = add(service, "https://localhost/y")
    listed = service.client.get(ENDPOINTS).json()
    assert [one["id"] for one in listed["data"]] == [second["id"], made["id"]]
    assert "secret" not in json.dumps(listed)
    page = service.client.get(ENDPOINTS, params={"limit": 1, "after": second["id"]}).json()
    assert [one["id"] for one in page["data"]] == [made["id"]]
    assert service.other.get(ENDPOINTS).json()["data"] == []
    assert service.other.delete(f"{ENDPOINTS}/{made['id']}").status_code == 404
    gone = service.client.delete(f"{ENDPOINTS}/{made['id']}").json()
    assert gone == {"id": made["id"], "object": "webhook_endpoint.deleted", "deleted": True}
    assert service.client.delete(f"{ENDPOINTS}/{made['id']}").status_code == 404


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_only_admins_have_endpoints(service: Service, method: str) -> None:
    body = {"url": "https://localhost/", "events": ALL} if method == "POST" else None
    assert service.user.request(method, ENDPOINTS, json=body).status_code == 403
    assert service.anonymous.request(method, ENDPOINTS, json=body).status_code == 401


@pytest.mark.parametrize(
    "url",
    [
        "ftp://localhost/",
        "localhost/x",
        "http://",
        "http:///x",
        "https://user:word@localhost/",
        "https://localhost:99999/",
        "http://no-such-host.invalid/",
        "http://[::1",
        "http://a b/",
    ],
)
def test_what_is_no_address_is_refused(service: Service, url: str) -> None:
    answer = service.client.post(ENDPOINTS, json={"url": url, "events": ALL})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_url")


@pytest.mark.parametrize("events", [[], ["batch.completed"], "all"])
def test_unknown_events_are_refused(service: Service, events: Any) -> None:
    assert service.client.post(ENDPOINTS, json={"url": "https://localhost/", "events": events}).status_code == 422


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "2130706433", "0x7f.1", "169.254.169.254"])
def test_private_addresses_are_refused_by_default(tmp_path: Path, host: str) -> None:
    with pytest.raises(webhooks.AddressRefused, match=r"private|resolved"):
        webhooks.check_address(f"http://{host}/", private=False)


# --- deliveries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_the_client_unwraps_what_is_delivered(service: Service, receiver: Receiver, status: str) -> None:
    secret = add(service, receiver.url)["secret"]
    job_id = finish(service, status)
    assert deliver(service) == 1
    [(headers, body)] = receiver.got
    with closing(openai.OpenAI(api_key="none")) as client:
        event = client.webhooks.unwrap(body, headers, secret=secret)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(body + b" ", headers, secret=secret)
    assert event.type == f"fine_tuning.job.{status}"
    data: Any = event.data
    assert data.id == job_id
    assert headers["webhook-id"] == event.id == delivery(service).id
    assert headers["host"] == receiver.url.split("/")[2]
    assert deliver(service) == 0
    assert delivery(service).delivered_at is not None


def test_only_wanted_events_of_the_own_project_are_told(service: Service, receiver: Receiver) -> None:
    add(service, receiver.url, "fine_tuning.job.failed")
    made = service.other.post(ENDPOINTS, json={"url": receiver.url, "events": ALL})
    assert made.status_code == 200
    finish(service)
    assert deliver(service) == 0
    assert receiver.got == []


@pytest.mark.parametrize("status", [500, 404, 302])
def test_a_refused_delivery_is_tried_again(service: Service, receiver: Receiver, status: int) -> None:
    receiver.status = status
    add(service, receiver.url)
    finish(service)
    assert deliver(service) == deliver(service) == 0
    row = delivery(service)
    assert row.attempts == len(receiver.got) == 1
    assert row.last_error == f"the receiver answered {status}"
    receiver.status = 204
    make_due(service)
    assert deliver(service) == 1
    assert delivery(service).last_error is None
    first, second = receiver.got
    assert first[0]["webhook-id"] == second[0]["webhook-id"]


def test_backoff_grows_and_ends(service: Service, receiver: Receiver) -> None:
    receiver.status = 503
    add(service, receiver.url)
    finish(service)
    for seconds in BACKOFF_SECONDS:
        make_due(service)
        deliver(service)
        with service.database.read() as session:
            wait = session.scalar(select(WebhookDelivery.next_attempt_at - now()))
        assert wait == pytest.approx(seconds, abs=3)
    make_due(service)
    deliver(service)
    row = delivery(service)
    assert row.next_attempt_at is None
    assert row.last_error is not None
    assert row.last_error.startswith("given up after 8 attempts")
    assert len(receiver.got) == 8


def test_a_dead_receiver_does_not_keep_others_waiting(service: Service, receiver: Receiver) -> None:
    add(service, "http://127.0.0.1:1/")
    add(service, receiver.url)
    finish(service)
    assert deliver(service) == 1
    assert len(receiver.got) == 1


def test_the_address_is_checked_again_at_delivery(service: Service, receiver: Receiver) -> None:
    add(service, receiver.url)
    finish(service)
    strict = service.settings.model_copy(update={"webhook_private_addresses": False})
    assert deliver(service, strict) == 0
    assert receiver.got == []
    assert "private address" in (delivery(service).last_error or "")


def test_two_sweeps_deliver_once(service: Service, receiver: Receiver) -> None:
    add(service, receiver.url)
    for _ in range(5):
        finish(service)
    threads = [threading.Thread(target=deliver, args=(service,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(receiver.got) == 5
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 5


def test_a_late_attempt_does_not_overwrite_a_newer_one(service: Service, receiver: Receiver) -> None:
    add(service, receiver.url)
    finish(service)
    stale = webhooks._claim(service.database)
    assert stale is not None
    make_due(service)
    assert deliver(service) == 1
    webhooks._note(service.database, stale, "too late")
    assert delivery(service).delivered_at is not None
    assert delivery(service).last_error is None


def test_a_deleted_endpoint_is_told_nothing(service: Service, receiver: Receiver) -> None:
    made = add(service, receiver.url)
    finish(service)
    assert service.client.delete(f"{ENDPOINTS}/{made['id']}").status_code == 200
    assert deliver(service) == 0
    with service.database.read() as session:
        assert not session.scalars(select(WebhookDelivery)).all()
        assert not session.scalars(select(WebhookEndpoint)).all()
