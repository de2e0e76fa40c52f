"""Webhooks: which addresses may be told, and the delivery of the outbox, signed after Standard Webhooks.

An attempt is claimed by one fenced UPDATE that counts it; its number is the fence of what is written afterwards.
"""

import base64
import hashlib
import hmac
import ipaddress
import secrets
import socket
import time
from dataclasses import dataclass
from typing import Any

import httpx
from sqlalchemy import select, update

from store.database import Database, now
from store.models import WebhookDelivery, WebhookEndpoint
from store.settings import Settings

EVENTS = ("fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled")
BACKOFF_SECONDS = (5, 30, 120, 600, 3600, 6 * 3600, 24 * 3600)
"""Before each repetition; after the last one a delivery is given up."""
TIMEOUT_SECONDS = 10
CLAIM_SECONDS = 60
"""How long a claimed delivery is left alone: longer than an attempt takes, so that nobody sends it beside us."""
SECRET_BYTES = 32
MAX_URL_CHARACTERS = 2000
MAX_DELIVERIES = 100
"""Of one call, so that a sweep's other work gets its turn."""


class AddressRefused(Exception):
    """The address of a webhook is none, or not one that the operator allows. The message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A checked address: `ip` is what is connected to, so that no second look-up can lead elsewhere."""

    url: httpx.URL
    ip: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """A claimed delivery."""

    delivery_id: str
    number: int
    payload: str
    endpoint_id: str


def new_secret() -> str:
    """`whsec_` and 32 random bytes in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


# --- addresses --------------------------------------------------------------------------------------------------------


def check_address(url: str, *, private: bool) -> Target:
    """Resolve the address. Raises AddressRefused unless it is http(s) and, if not `private`, all public."""
    parsed = _parse(url)
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(parsed.host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise AddressRefused("the host cannot be resolved") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not private and not all(map(is_public, addresses)):
        raise AddressRefused("the host is at a private address, which the operator does not allow")
    return Target(parsed, addresses[0])


def _parse(url: str) -> httpx.URL:
    if len(url) > MAX_URL_CHARACTERS or not url.isprintable():
        raise AddressRefused(f"the url is at most {MAX_URL_CHARACTERS} printable characters")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise AddressRefused("this is no url") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise AddressRefused("the url begins with https:// or http:// and names a host")
    if parsed.port is not None and not 1 <= parsed.port <= 65535:
        raise AddressRefused("the url's port is 1 to 65535")
    if parsed.userinfo:
        raise AddressRefused("the url must not hold a name or password; the signature proves who sends")
    return parsed


def is_public(address: str) -> bool:
    """Whether anybody on the Internet would reach the same machine. IPv6 forms of IPv4 are looked through."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or _translated(ip)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _translated(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address behind NAT64's prefix, which Python calls global."""
    nat64 = ipaddress.IPv6Network("64:ff9b::/96")
    return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in nat64 else None


# --- delivery ---------------------------------------------------------------------------------------------------------


def open_client() -> httpx.Client:
    """A client that follows no redirect and asks no proxy: both would lead around the check of the address."""
    return httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=False)


def deliver_due(database: Database, settings: Settings, client: httpx.Client) -> int:
    """Try every delivery that is due, each once; returns how many were taken by their receivers."""
    delivered = 0
    for _ in range(MAX_DELIVERIES):
        attempt = _claim(database)
        if attempt is None:
            break
        with database.read() as session:
            endpoint = session.get(WebhookEndpoint, attempt.endpoint_id)
        if endpoint is None:  # deleted meanwhile, and its deliveries with it
            continue
        problem = _send(attempt, endpoint, settings, client)
        _note(database, attempt, problem)
        delivered += problem is None
    return delivered


def sign(secret: str, delivery_id: str, timestamp: int, payload: str) -> str:
    """The header `webhook-signature` (Standard Webhooks, symmetric)."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{delivery_id}.{timestamp}.{payload}".encode(), hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def _claim(database: Database) -> Attempt | None:
    due = (
        select(WebhookDelivery.id)
        .where(WebhookDelivery.next_attempt_at <= now())
        .order_by(WebhookDelivery.next_attempt_at)
        .limit(1)
        .with_for_update(skip_locked=True)  # nothing on SQLite, where writers stand in line anyway
    )
    with database.write() as session:
        row = session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.id == due.scalar_subquery(), WebhookDelivery.next_attempt_at <= now())
            .values(attempts=WebhookDelivery.attempts + 1, next_attempt_at=now() + CLAIM_SECONDS)
            .returning(
                WebhookDelivery.id, WebhookDelivery.attempts, WebhookDelivery.payload, WebhookDelivery.endpoint_id
            )
            .execution_options(synchronize_session=False)
        ).one_or_none()
    return None if row is None else Attempt(*row)


def _send(attempt: Attempt, endpoint: WebhookEndpoint, settings: Settings, client: httpx.Client) -> str | None:
    """What went wrong; None if the receiver took it."""
    try:
        target = check_address(endpoint.url, private=settings.webhook_private_addresses)
        request = _request(attempt, endpoint, target, client)
        answer = client.send(request, stream=True)  # the body is nobody's business, and may be large
        answer.close()
    except AddressRefused as error:
        return str(error)
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: the receiver did not answer within {TIMEOUT_SECONDS} s or broke off"
    return None if answer.is_success else f"the receiver answered {answer.status_code}"


def _request(attempt: Attempt, endpoint: WebhookEndpoint, target: Target, client: httpx.Client) -> httpx.Request:
    timestamp = int(time.time())
    headers = {
        "Host": target.url.netloc.decode("ascii"),
        "Content-Type": "application/json",
        "User-Agent": "semievol-webhooks",
        "webhook-id": attempt.delivery_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(endpoint.secret, attempt.delivery_id, timestamp, attempt.payload),
    }
    # Connects to the address that was checked; TLS still asks for the certificate of the name.
    extensions: dict[str, Any] = {"sni_hostname": target.url.raw_host.decode("ascii")}
    return client.build_request(
        "POST",
        target.url.copy_with(host=target.ip),
        content=attempt.payload.encode(),
        headers=headers,
        timeout=TIMEOUT_SECONDS,
        extensions=extensions,
    )


def _note(database: Database, attempt: Attempt, problem: str | None) -> None:
    values: dict[str, Any]
    if problem is None:
        values = {"delivered_at": now(), "next_attempt_at": None, "last_error": None}
    elif attempt.number > len(BACKOFF_SECONDS):
        values = {"next_attempt_at": None, "last_error": f"given up after {attempt.number} attempts: {problem}"}
    else:
        values = {"next_attempt_at": now() + BACKOFF_SECONDS[attempt.number - 1], "last_error": problem}
    with database.write() as session:
        session.execute(
            update(WebhookDelivery)
            .where(
                WebhookDelivery.id == attempt.delivery_id,
                WebhookDelivery.attempts == attempt.number,
                WebhookDelivery.delivered_at.is_(None),
            )
            .values(**values)
        )
