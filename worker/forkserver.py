"""Starts runners that need not import torch: they are forks of a process that has done it.

Importing torch, transformers and peft takes seconds, and every unit of a job is a process of its own. A supervisor
talks to its `ForkServer` over a socket; the other side, `python -m worker.forkserver`, serves one runner at a time:
a spec's path and three file handles come in, the runner's process id and later its exit status go out.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from worker.guardian import guard

TARGET = "worker.runner"
HEAVY = ("semievol.backends.local",)
"""What the runners of GPU units import."""
LOST = 128 + signal.SIGKILL
"""The status of a runner whose end nobody saw, as of one that was killed."""


class Forked:
    """A guardian and, as its child, the runner: a process group. `output`: a handle to read what the runner tells."""

    def __init__(self, pid: int, lifeline: int, output: int, server: "ForkServer") -> None:
        self.pid, self.output = pid, output
        self._lifeline, self._server = lifeline, server
        self.status: int | None = None

    def fileno(self) -> int:
        """Readable once the status is known, to wait for it among other things."""
        return self._server.fileno()

    def wait(self) -> int:
        """The exit status, 128 + signal if a signal ended it; waits for it."""
        if self.status is None:
            answer = self._server.hear()
            self.status = LOST if answer is None else int(answer["status"])
            if self.status == LOST:  # a guardian that was killed has ended nobody
                self._kill_group()
        return self.status

    def ask_to_stop(self) -> None:
        """SIGTERM, which the guardian hands on to the runner."""
        if self.status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the whole group now, and wait until it has ended."""
        if self.status is None:
            self._kill_group()
            self.wait()

    def close(self) -> None:
        """Kill it if it lives, and give the handles back."""
        self.kill()
        os.close(self._lifeline)
        os.close(self.output)

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class ForkServer:
    """The supervisor's side. `preload`: modules to import before the second fork, while the first runner works."""

    def __init__(self, environment: Mapping[str, str], preload: Sequence[str] = HEAVY, target: str = TARGET) -> None:
        self.environment, self.preload, self.target = dict(environment), tuple(preload), target
        self.process: subprocess.Popen[bytes] | None = None
        self.socket: socket.socket | None = None
        self._read = b""
        self._connect()

    def start(self, spec: Path, log: BinaryIO) -> Forked:
        """A runner for the spec, in the spec's folder, with its errors in `log`. Raises OSError."""
        self._connect()
        lifeline_end, lifeline = os.pipe()
        output, output_end = os.pipe()
        try:
            assert self.socket is not None
            message = json.dumps({"spec": str(spec)}).encode() + b"\n"
            socket.send_fds(self.socket, [message], [lifeline_end, output_end, log.fileno()])
            answer = self.hear()
            if answer is None:
                raise ChildProcessError("the fork server ended before it started a runner")
        except BaseException:
            os.close(lifeline)
            os.close(output)
            raise
        finally:
            os.close(lifeline_end)
            os.close(output_end)
        return Forked(answer["pid"], lifeline, output, self)

    def hear(self) -> dict[str, Any] | None:
        """The next answer; None if there is nobody any more."""
        assert self.socket is not None
        while b"\n" not in self._read:
            try:
                chunk = self.socket.recv(4096)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                self.close()
                return None
            self._read += chunk
        line, _, self._read = self._read.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def fileno(self) -> int:
        """Of the socket, to wait for an answer among other things."""
        assert self.socket is not None
        return self.socket.fileno()

    def close(self) -> None:
        """End the server; a runner that it has started ends when its handle is closed."""
        if self.socket is not None and self.process is not None:
            self.socket.close()
            self.process.kill()
            self.process.wait()
        self.socket, self.process, self._read = None, None, b""

    def _connect(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        self.close()
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker.forkserver", str(theirs.fileno()), self.target, *self.preload],
                stdin=subprocess.DEVNULL,
                env=self.environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the supervisor's to hear
            )
        self.socket = ours


def serve(connection: socket.socket, target: str, preload: Sequence[str]) -> None:
    """Fork a runner for every request, until the supervisor has gone."""
    run: Callable[[str], int] = importlib.import_module(target).main
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a signal for all of a service is the supervisor's to hear
    while True:
        request, handles, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        if not request:
            return
        spec = Path(json.loads(request)["spec"])
        child = os.fork()
        if child == 0:
            connection.close()
            start = partial(_execute, target) if _driver_is_open() else run
            _become(partial(start, str(spec)), spec.parent, handles)
        for handle in handles:
            os.close(handle)
        try:
            _tell(connection, pid=child)
            for module in preload if sys.platform == "linux" else ():
                with suppress(ImportError):  # which the runner that needs it tells better
                    importlib.import_module(module)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            _tell(connection, status=128 - code if code < 0 else code)
        except BrokenPipeError:  # the guardian hears of it by itself
            return


def _become(start: Callable[[], int], folder: Path, handles: Sequence[int]) -> NoReturn:
    """Guardian, and in its child the runner: leader of a group, with these handles as standard input, output, error.

    Both leave without the interpreter's tidying, which takes seconds where torch is loaded.
    """
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number, handle in enumerate(handles):
            os.dup2(handle, number)
            os.close(handle)
        os.chdir(folder)
        status = guard(start)
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


def _tell(connection: socket.socket, **values: int) -> None:
    connection.sendall(json.dumps(values).encode() + b"\n")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], sys.argv[3:])
