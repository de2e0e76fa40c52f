"""Uploads: memory of the API while 2 GB come in, and its speed against a handler that only writes and hashes.

Both get the same multipart body from curl on the same disk. The bare handler takes the raw stream and does not wait for
the disk; the service does (fsync), so a third peer, which is bare but for the fsync, shows what that costs.
"""

import hashlib
import os
import secrets
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.service_rig import (
    ROUNDS,
    Process,
    alternate,
    folder_bytes_free,
    memory_mb,
    seconds_of,
    service,
    uvicorn,
    verdict,
)

MB = 1024**2
MOST_GROWTH_MB = 64
LEAST_SPEED = 0.6
_BLOCK = 4 * MB


def bare() -> Starlette:
    """The peer: writes the raw stream to a file and hashes it. With `?fsync`, waits for the disk."""
    folder = Path(os.environ["BARE_FOLDER"])

    async def take(request: Request) -> JSONResponse:
        digest = hashlib.sha256()
        with (folder / secrets.token_hex(8)).open("wb", buffering=0) as file:
            async for chunk in request.stream():
                digest.update(chunk)
                file.write(chunk)
            if "fsync" in request.query_params:
                os.fsync(file.fileno())
        return JSONResponse({"sha256": digest.hexdigest()})

    return Starlette(routes=[Route("/", take, methods=["POST"])])


def make_file(path: Path, size: int) -> None:
    """A file of noise that repeats."""
    block = os.urandom(_BLOCK)
    with path.open("wb") as file:
        for start in range(0, size, _BLOCK):
            file.write(block[: size - start])


def renew(path: Path) -> None:
    """Other first bytes, so that the service has not got these bytes yet."""
    with path.open("r+b") as file:
        file.write(secrets.token_bytes(32))


def post(address: str, path: Path, key: str) -> None:
    """Upload with curl. Raises CalledProcessError unless the answer is good."""
    form = ("-F", "purpose=user_data", "-F", f"file=@{path}")
    subprocess.run(
        ["curl", "-sS", "--fail-with-body", "-H", f"Authorization: Bearer {key}", "-H", "Expect:", *form, address],
        check=True,
        stdout=subprocess.DEVNULL,
    )


class Highest:
    """The highest resident memory of a process between start and stop, sampled."""

    def __init__(self, pid: int) -> None:
        self.pid, self.mb, self._over = pid, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def _sample(self) -> None:
        while not self._over.wait(0.02):
            self.mb = max(self.mb, memory_mb(self.pid, "VmRSS"))

    def stop(self) -> float:
        """What it was."""
        self._over.set()
        self._thread.join()
        return self.mb


def _empty(*folders: Path) -> None:
    """Remove what was stored, and let the disk come to rest."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                path.unlink()
    os.sync()


def growth(process: Process, address: str, key: str, folder: Path, size: int) -> bool:
    """One large upload, after a small one that loads what is loaded late."""
    small, large = folder / "small", folder / "large"
    make_file(small, MB)
    post(address, small, key)
    make_file(large, size)
    os.sync()
    before, peak_before = (memory_mb(process.pid, name) for name in ("VmRSS", "VmHWM"))
    highest = Highest(process.pid)
    seconds = seconds_of(partial(post, address, large, key))
    sampled, after, peak = highest.stop(), memory_mb(process.pid, "VmRSS"), memory_mb(process.pid, "VmHWM")
    _empty(folder / "data" / "objects")
    large.unlink()
    print(
        f"{size // MB} MB in {seconds:.1f} s ({size / MB / seconds:.0f} MB/s). Resident: {before:.1f} MB before, "
        f"{sampled:.1f} highest sampled, {after:.1f} after; VmHWM {peak_before:.1f} before, {peak:.1f} after"
    )
    return verdict("resident memory, VmHWM after minus VmRSS before", peak - before, "MB", most=MOST_GROWTH_MB)


def speed(address: str, bare_address: str, key: str, folder: Path, size: int, rounds: int) -> bool:
    """MB/s of the peers. Each gets other bytes and an idle disk, and what it wrote is removed."""
    path = folder / "medium"
    make_file(path, size)
    stored = (folder / "data" / "objects", folder / "bare")

    def rate(to: str) -> float:
        renew(path)
        os.sync()
        started = time.perf_counter()
        post(to, path, key)
        seconds = time.perf_counter() - started
        _empty(*stored)
        return size / MB / seconds

    peers = {"service": address, "bare": bare_address, "bare, with fsync": f"{bare_address}?fsync"}
    for to in peers.values():
        rate(to)
    medians = alternate({name: partial(rate, to) for name, to in peers.items()}, rounds)
    print(f"{size // MB} MB, medians of {rounds} alternating rounds")
    for name, found in medians.items():
        print(f"  {name:20s} {found:8.1f} MB/s")
    print(f"  service / bare with fsync: {medians['service'] / medians['bare, with fsync']:.2f}")
    return verdict("service / bare", medians["service"] / medians["bare"], "", least=LEAST_SPEED)


def main(large_mb: int = 2048, medium_mb: int = 256, rounds: int = ROUNDS) -> bool:
    """Both measurements; whether both bars are met."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        wanted = 3 * large_mb * MB
        if folder_bytes_free(folder) < wanted:
            print(f"Left out: the disk of {folder} has not {wanted:,} bytes free.")
            return False
        (folder / "bare").mkdir()
        process, key = stack.enter_context(service(folder, f"sqlite:///{folder / 'service.db'}"))
        peer = stack.enter_context(uvicorn("benchmarks.service_upload:bare", folder, BARE_FOLDER=str(folder / "bare")))
        address, bare_address = f"http://127.0.0.1:{process.port}/v1/files", f"http://127.0.0.1:{peer.port}/"
        small = growth(process, address, key, folder, large_mb * MB)
        return speed(address, bare_address, key, folder, medium_mb * MB, rounds) and small
