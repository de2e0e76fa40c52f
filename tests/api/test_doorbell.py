"""The bell: rings arrive on a real Redis, and a dead one costs the caller nothing."""

import json
import socket
import time
from functools import partial
from pathlib import Path

import pytest
import redis

from api.doorbell import SOCKET_SECONDS, WAITING_RINGS, SilentBell, build_bell
from store.states import QUEUES, TASK
from tests.api.service import make_settings
from tests.servers import Redis, free_port, wait_for


def test_without_a_broker_the_bell_is_silent(tmp_path: Path) -> None:
    bell = build_bell(make_settings(tmp_path))
    assert isinstance(bell, SilentBell)
    bell.ring({"cpu", "gpu"})


def test_a_ring_is_a_task_in_the_queue_of_its_kind(tmp_path: Path) -> None:
    server = Redis(tmp_path)
    server.start()
    client = redis.Redis.from_url(server.url)
    try:
        build_bell(make_settings(tmp_path, broker_url=server.url)).ring({"cpu", "gpu"})
        for queue in QUEUES.values():
            wait_for(partial(client.llen, queue), f"the ring in {queue}", 20)
            assert client.llen(queue) == 1
            [raw] = client.lrange(queue, 0, 0)
            message = json.loads(raw)
            assert message["headers"]["task"] == TASK
            assert message["headers"]["ignore_result"] is True
            assert message["headers"]["argsrepr"] == "()"
    finally:
        client.close()
        server.stop()


@pytest.mark.parametrize("half_open", [False, True])
def test_a_dead_broker_blocks_nobody(tmp_path: Path, half_open: bool) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if half_open:
            listener.listen(1)  # takes connections and says nothing
        port = listener.getsockname()[1] if half_open else free_port()
        bell = build_bell(make_settings(tmp_path, broker_url=f"redis://127.0.0.1:{port}/0"))
        started = time.monotonic()
        for _ in range(3 * WAITING_RINGS):
            bell.ring({"cpu", "gpu"})
        assert time.monotonic() - started < 10 * SOCKET_SECONDS  # of 384 rings ten at most waited for the broker


def test_the_bell_recovers_with_its_broker(tmp_path: Path) -> None:
    server = Redis(tmp_path)
    bell = build_bell(make_settings(tmp_path, broker_url=server.url))
    bell.ring({"cpu"})
    time.sleep(0.5)
    server.start()
    client = redis.Redis.from_url(server.url)
    try:

        def heard() -> bool:
            bell.ring({"cpu"})
            time.sleep(0.2)
            return client.llen(QUEUES["cpu"]) > 0

        wait_for(heard, "a ring after the broker came back", 30)
    finally:
        client.close()
        server.stop()
