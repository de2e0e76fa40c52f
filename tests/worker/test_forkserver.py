"""Forked runners: their handles, their status, and that nothing of them lives on, whoever dies."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import ROOT, alive, wait_for
from worker.forkserver import LOST, Forked, ForkServer

TARGET = "tests.worker.acting_runner"
PRELOADED = "colorsys"


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer({**os.environ, "PYTHONPATH": str(ROOT)}, preload=[PRELOADED], target=TARGET)
    yield server
    server.close()


def start(server: ForkServer, folder: Path, **act: Any) -> Forked:
    spec = folder / "spec.json"
    spec.write_text(json.dumps(act), encoding="utf-8")
    with (folder / "log").open("wb") as log:
        return server.start(spec, log)


def tell(forked: Forked, lines: int) -> dict[str, Any]:
    """The first lines of its output, as one dictionary. Afterwards the process id is known."""
    forked.hear()
    text = b""
    while text.count(b"\n") < lines:
        text += os.read(forked.output, 4096)
    told: dict[str, Any] = {}
    for line in text.splitlines():
        told |= json.loads(line)
    return told


def test_runner_leads_nobody_hears_its_orders_and_ends_with_its_status(server: ForkServer, tmp_path: Path) -> None:
    forked = start(server, tmp_path, ordered=True, status=75)
    forked.tell(b"go on\n")
    told = tell(forked, 2)
    assert told["group"] == forked.pid != told["pid"]
    assert (told["cwd"], told["ordered"]) == (str(tmp_path), "go on\n")
    assert forked.wait() == 75
    assert (tmp_path / "log").read_text(encoding="utf-8") == "an error\n"
    forked.close()


def test_second_runner_finds_the_heavy_modules_loaded(server: ForkServer, tmp_path: Path) -> None:
    start(server, tmp_path).close()
    forked = start(server, tmp_path, module=PRELOADED)
    assert tell(forked, 2)["loaded"]
    assert forked.wait() == 0
    forked.close()


def test_what_a_runner_leaves_behind_ends_with_it(server: ForkServer, tmp_path: Path) -> None:
    forked = start(server, tmp_path, child=True)
    told = tell(forked, 3)
    assert forked.wait() == 0
    wait_for(lambda: not alive(told["child"]), "the end of the child")
    forked.close()


@pytest.mark.parametrize("victim", ["runner", "guardian"])
def test_a_killed_runner_or_guardian_takes_all_along(server: ForkServer, tmp_path: Path, victim: str) -> None:
    forked = start(server, tmp_path, child=True, sleep=600)
    told = tell(forked, 3)
    assert forked.pid is not None
    os.kill(told["pid"] if victim == "runner" else forked.pid, signal.SIGKILL)
    assert forked.wait() == 128 + signal.SIGKILL
    forked.close()
    wait_for(lambda: not any(map(alive, (told["pid"], told["child"], forked.pid))), "the end of the group")


def test_sigterm_reaches_the_runner(server: ForkServer, tmp_path: Path) -> None:
    forked = start(server, tmp_path, sleep=600)
    tell(forked, 2)
    forked.ask_to_stop()
    assert forked.wait() == 128 + signal.SIGTERM
    forked.close()


def test_closing_kills_the_group(server: ForkServer, tmp_path: Path) -> None:
    forked = start(server, tmp_path, child=True, sleep=600)
    told = tell(forked, 3)
    forked.close()
    assert forked.status == LOST
    wait_for(lambda: not any(map(alive, (told["pid"], told["child"], forked.pid))), "the end of the group")


def test_a_killed_server_leaves_its_runner_alone_and_is_replaced(server: ForkServer, tmp_path: Path) -> None:
    forked = start(server, tmp_path, sleep=1, status=4)
    tell(forked, 2)
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    again = start(server, tmp_path, status=3)
    assert (again.wait(), forked.wait()) == (3, 4)
    forked.close()
    again.close()


def test_runners_may_run_at_once(server: ForkServer, tmp_path: Path) -> None:
    long = start(server, tmp_path, sleep=600)
    tell(long, 2)
    short = start(server, tmp_path, status=5)
    assert short.wait() == 5
    assert long.status is None
    short.close()
    long.close()


def test_a_runner_that_is_stopped_before_it_starts_never_acts(server: ForkServer, tmp_path: Path) -> None:
    forked = start(server, tmp_path, sleep=600)
    forked.ask_to_stop()
    assert forked.wait() == LOST
    forked.close()


def test_a_dead_supervisor_takes_server_and_runner_along(tmp_path: Path) -> None:
    supervisor = os.fork()
    if supervisor == 0:
        os.setsid()
        server = ForkServer({**os.environ, "PYTHONPATH": str(ROOT)}, preload=[], target=TARGET)
        forked = start(server, tmp_path, child=True, sleep=600)
        assert server.process is not None
        (tmp_path / "told").write_text(json.dumps({**tell(forked, 3), "server": server.process.pid}), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(supervisor, 0)
    told = json.loads((tmp_path / "told").read_text(encoding="utf-8"))
    wait_for(lambda: not any(alive(told[name]) for name in ("pid", "child", "server")), "the end of all")
