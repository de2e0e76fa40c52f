"""What the service's benchmarks share: real uvicorn processes, a plain client, alternating rounds, verdicts."""

import os
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from store.database import Database
from store.keys import create_key
from tests.servers import free_port, spawn, wait_for

PROJECT = "default"
ROUNDS = 5


@dataclass(frozen=True)
class Process:
    """A uvicorn process that listens."""

    pid: int
    port: int


@contextmanager
def uvicorn(factory: str, folder: Path, **environment: str) -> Iterator[Process]:
    """Serve the application that `factory` (module:function) makes, from a process of its own."""
    port, log = free_port(), folder / f"{factory.rpartition(':')[0]}.log"
    command = ("-m", "uvicorn", "--factory", factory, "--port", str(port), "--no-access-log")
    process = spawn(*command, log=log, **environment)
    try:
        wait_for(lambda: _listens(process, port, log), factory)
        yield Process(process.pid, port)
    finally:
        process.terminate()
        process.wait()


def _listens(process: "subprocess.Popen[bytes]", port: int, log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"uvicorn ended: {log.read_text(errors='replace')[-2000:]}")
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def service(folder: Path, database_url: str) -> Iterator[tuple[Process, str]]:
    """The API on a new database, and a key for it."""
    with closing(Database(database_url)) as database:
        database.migrate()
        with database.write() as session:
            key = create_key(session, PROJECT, "benchmark", admin=True)[1]
    models = '{"tiny": {"source": "/nowhere"}}'
    data = {"SEMIEVOL_DATA": str(folder / "data"), "SEMIEVOL_DATABASE_URL": database_url, "SEMIEVOL_MODELS": models}
    with uvicorn("api.main:app", folder, **data) as process:
        yield process, key


class Client:
    """A connection that is kept. Does little beside sending and receiving, so that the servers are what is timed."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get(self, path: str, key: str) -> bytes:
        """The body of a good answer."""
        asked = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n"
        self._socket.sendall(asked.encode())
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive()
        head, _, body = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"{path} was answered: {received[:2000]!r}")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += self._receive()
        return body

    def _receive(self) -> bytes:
        got = self._socket.recv(256 * 1024)
        if not got:
            raise RuntimeError("the server closed the connection")
        return got

    def close(self) -> None:
        """Close."""
        self._socket.close()


def requests_per_second(port: int, paths: Sequence[str], key: str, clients: int) -> float:
    """All paths asked once, shared among so many clients, each with a connection that is open already."""
    opened = [Client(port) for _ in range(clients)]
    failures: list[Exception] = []

    def ask(client: Client, mine: Sequence[str]) -> None:
        try:
            for path in mine:
                client.get(path, key)
        except (OSError, RuntimeError) as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(client, paths[i::clients])) for i, client in enumerate(opened)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    for client in opened:
        client.close()
    if failures:
        raise failures[0]
    return len(paths) / seconds


def alternate(peers: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """The median of what each peer returns; every round has all of them, each time another one first."""
    found: dict[str, list[float]] = {name: [] for name in peers}
    names = list(peers)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(peers[name]())
    return {name: statistics.median(values) for name, values in found.items()}


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes, by the wall clock."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def verdict(what: str, value: float, unit: str, *, least: float | None = None, most: float | None = None) -> bool:
    """Print a figure beside its bar; whether it is met."""
    met = (least is None or value >= least) and (most is None or value <= most)
    bar = f"at least {least:g}" if least is not None else f"at most {most:g}"
    print(f"  {what:58s} {value:9.2f} {unit:4s} ({bar}): {'met' if met else 'MISSED'}", flush=True)
    return met


def memory_mb(pid: int, name: str) -> float:
    """`VmRSS` or `VmHWM` of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


def folder_bytes_free(folder: Path) -> int:
    """Room left on the folder's disk."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
