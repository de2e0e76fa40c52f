"""Starts runners that need not import torch: they are forks of a process that has done it.

Importing torch, transformers and peft takes seconds, and nearly every unit of a job is a process of its own. A
`ForkServer` is asked over a socket; the other side, `python -m worker.forkserver`, forks a guardian with its runner for
each request and forgets it. What the guardian has to say comes over a pipe of its own: its process id, then the status.
"""

import gc
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, NoReturn

from worker.guardian import guard

TARGET = "worker.runner"
HEAVY = ("semievol.backends.local",)
"""What the runners of GPU units import."""
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
LOST = 128 + signal.SIGKILL
"""The status of a runner whose end nobody saw, as of one that was killed."""


class Forked:
    """A guardian and, as its child, the runner: a process group. `output`: a handle to read what the runner tells."""

    def __init__(self, lifeline: int, output: int, news: int) -> None:
        self.output = output
        self.pid: int | None = None
        self.status: int | None = None
        self._lifeline: int | None = lifeline
        self._news = news
        self._read = b""

    def fileno(self) -> int:
        """Readable when there is something to hear."""
        return self._news

    def hear(self) -> None:
        """Wait for news: first of the process id, which is the group's, then of the exit status."""
        chunk = os.read(self._news, 512)
        *lines, self._read = (self._read + chunk).split(b"\n")
        for line in lines:
            name, value = line.split()
            if name == b"pid":
                self.pid = int(value)
            else:
                self.status = int(value)
        if not chunk and self.status is None:
            self.status = LOST
            self._kill_group()  # a guardian that was killed has ended nobody

    def wait(self) -> int:
        """The exit status, 128 + signal if a signal ended it; waits for it."""
        while self.status is None:
            self.hear()
        return self.status

    def tell(self, line: bytes) -> None:
        """Put a line into the runner's standard input. One that has just ended does not hear it."""
        if self._lifeline is not None:
            with suppress(BrokenPipeError):
                os.write(self._lifeline, line)

    def ask_to_stop(self) -> None:
        """SIGTERM, which the guardian hands on to the runner. One that is still to be forked ends as it starts."""
        if self.pid is None:
            self._let_go()
        elif self.status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the whole group now, and wait until it has ended."""
        self._let_go()
        if self.status is None:
            self._kill_group()
        self.wait()

    def close(self) -> None:
        """Kill it if it lives, and give the handles back."""
        self.kill()
        os.close(self.output)
        os.close(self._news)

    def _let_go(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def _kill_group(self) -> None:
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


class ForkServer:
    """This side; threads may share it. `preload`: imported after the first fork, while that runner works."""

    def __init__(self, environment: Mapping[str, str], preload: Sequence[str] = HEAVY, target: str = TARGET) -> None:
        self.environment, self.preload, self.target = dict(environment), tuple(preload), target
        self.process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        with self._lock:
            self._connect()

    def start(self, spec: Path, log: BinaryIO) -> Forked:
        """A runner for the spec, in the spec's folder, with its errors in `log`. Raises OSError."""
        lifeline_end, lifeline = os.pipe()
        output, output_end = os.pipe()
        news, news_end = os.pipe()
        try:
            with self._lock:
                handles = [lifeline_end, output_end, log.fileno(), news_end]
                socket.send_fds(self._connect(), [str(spec).encode()], handles)
        except BaseException:
            for handle in (lifeline, output, news):
                os.close(handle)
            raise
        finally:
            for handle in (lifeline_end, output_end, news_end):
                os.close(handle)
        return Forked(lifeline, output, news)

    def close(self) -> None:
        """End the server. The runners that it has started go on."""
        with self._lock:
            self._disconnect()

    def _connect(self) -> socket.socket:
        if self._socket is not None and self.process is not None and self.process.poll() is None:
            return self._socket
        self._disconnect()
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker.forkserver", str(theirs.fileno()), self.target, *self.preload],
                stdin=subprocess.DEVNULL,
                env=self.environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the supervisor's to hear
            )
        return self._socket

    def _disconnect(self) -> None:
        if self._socket is not None and self.process is not None:
            self._socket.close()
            self.process.kill()
            self.process.wait()
        self._socket, self.process = None, None


def serve(connection: socket.socket, target: str, preload: Sequence[str]) -> None:
    """Fork a runner for every request, until nobody can ask any more."""
    gc.disable()  # a fifth of the time of importing
    run: Callable[[str], int] = importlib.import_module(target).main
    gc.freeze()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a signal for all of a service is the supervisor's to hear
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for guardians: they tell their status themselves
    waiting = list(preload) if sys.platform == "linux" else []
    while True:
        request, handles, _, _ = socket.recv_fds(connection, 1 << 16, 4, _CLOSE_ON_EXEC)
        if not request:
            return
        if os.fork() == 0:
            connection.close()
            _become(run, target, Path(os.fsdecode(request)), handles)
        for handle in handles:
            os.close(handle)
        while waiting:
            with suppress(ImportError):  # which the runner that needs it tells better
                importlib.import_module(waiting.pop())
            gc.freeze()  # what is loaded is no garbage: children neither look at it nor copy its pages


def _become(run: Callable[[str], int], target: str, spec: Path, handles: Sequence[int]) -> NoReturn:
    """Guardian, and in its child the runner: leader of a group, with the handles as standard input, output, error.

    Both leave without the interpreter's tidying, which takes seconds where torch is loaded.
    """
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        gc.enable()
        *standard, news = handles
        for number, handle in enumerate(standard):
            os.dup2(handle, number)
            os.close(handle)
        os.chdir(spec.parent)
        start = partial(_execute, target) if _driver_is_open() else run
        guardian = os.getpid()

        def act() -> int:
            os.close(news)  # the guardian alone tells what happens
            return start(str(spec))

        os.write(news, b"pid %d\n" % guardian)
        status = guard(act)
        if os.getpid() == guardian:
            os.write(news, b"status %d\n" % status)
    except BaseException:  # noqa: BLE001  -- the outermost frame
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _driver_is_open() -> bool:
    """Whether an import has woken the GPU driver, which does not survive a fork."""
    handles = Path("/proc/self/fd")
    if not handles.exists():
        return False
    links = []
    for handle in handles.iterdir():
        with suppress(OSError):
            links.append(handle.readlink())
    return any(link.name.startswith("nvidia") for link in links if link.parent.name == "dev")


def _execute(target: str, spec: str) -> int:
    """A runner that shares nothing with this process."""
    os.execv(sys.executable, [sys.executable, "-m", target, spec])


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], sys.argv[3:])
    os._exit(0)
