"""The process tree of `semievol serve`: the API and a worker that polls, under one parent, dying together.

The parent holds the listening socket, so a taken port is known before anything is made, and connections wait while the
API starts. Children get the settings in their environment. They are sessions of their own, so that Ctrl-C on a terminal
reaches the parent alone, which then tells them; and the kernel kills them when the parent is killed.
"""

import ctypes
import errno
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType

from store.settings import Settings
from worker.first_start import (
    FirstKey,
    SetupError,
    environment,
    first_key,
    make_data_folder,
    make_ready,
    open_database,
    with_demo_model,
)

RESTARTS = 5
"""Times that the worker is started again before the service gives up."""
STEADY_SECONDS = 60.0
"""A worker that lived this long may fail as often as a new one."""
STOP_SECONDS = 5.0
"""For a child to end, beyond the runners' grace."""
LOOK_SECONDS = 0.1
BACKLOG = 2048
_PR_SET_PDEATHSIG = 1
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Hosts that mean all addresses, and the one of them to connect to."""


def serve(settings: Settings, say: Callable[[str], None], *, worker: bool = True) -> int:
    """Run until a signal or the API's end; returns the exit code. Raises SetupError."""
    listener = listen(settings.host, settings.port)
    with listener:
        settings = with_demo_model(settings.model_copy(update={"port": listener.getsockname()[1]}))
        make_data_folder(settings.data)
        database = open_database(settings)
        make_ready(database)
        key = first_key(database, settings.data)
        database.close()
        return Tree(settings, listener, say, greeting(settings, key, worker=worker)).run(worker=worker)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises SetupError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except socket.gaierror:
        raise SetupError(
            f"the host {host} is not known; 127.0.0.1 listens on this machine, 0.0.0.0 everywhere"
        ) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            hint = "stop what listens there, or choose another with --port (0 takes a free one)"
            raise SetupError(f"port {port} on {host} is taken; {hint}") from None
        raise SetupError(f"cannot listen on {host}, port {port}: {error.strerror}") from None


# --- the tree ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tree:
    """The parent's view of its children."""

    settings: Settings
    listener: socket.socket
    say: Callable[[str], None]
    greeting: str
    signals: list[int] = field(default_factory=list)
    worker: subprocess.Popen[bytes] | None = None
    worker_started: float = 0.0
    worker_due: float | None = None
    """When the worker is to be started again."""
    deaths: int = 0

    def run(self, *, worker: bool) -> int:
        """Start the children, watch them, and end them all; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)
        api = self._start([sys.executable, "-P", "-m", "semievol", "api-process", f"--fd={self.listener.fileno()}"])
        try:
            if worker:
                self._start_worker()
            return self._watch(api)
        finally:
            self._stop([child for child in (api, self.worker) if child])

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)

    def _watch(self, api: subprocess.Popen[bytes]) -> int:
        greeted = False
        while not self.signals:
            if api.poll() is not None:
                self.say(f"The API has ended ({_ended(api)}), and the service with it; what it said is above.")
                return 1
            if not self._tend_worker():
                return 1
            if not greeted and answers(self.settings.host, self.settings.port):
                greeted = True
                self.say(self.greeting)
            time.sleep(LOOK_SECONDS)
        self.say("Stopping ...")
        return 0

    def _tend_worker(self) -> bool:
        """Start a worker that has died again, after a pause that grows; False if it died too often."""
        if self.worker_due is not None and time.monotonic() >= self.worker_due:
            self._start_worker()
        if self.worker is None or self.worker.poll() is None:
            return True
        ended, self.worker = self.worker, None
        self.deaths = 1 if time.monotonic() - self.worker_started > STEADY_SECONDS else self.deaths + 1
        if self.deaths > RESTARTS:
            self.say(f"The worker has ended {self.deaths} times ({_ended(ended)}); what it said is above.")
            return False
        pause = float(2 ** (self.deaths - 1))
        self.worker_due = time.monotonic() + pause
        self.say(f"The worker has ended ({_ended(ended)}); it starts again in {pause:.0f} s.")
        return True

    def _start_worker(self) -> None:
        self.worker_due, self.worker_started = None, time.monotonic()
        self.worker = self._start([sys.executable, "-P", "-m", "worker.local"])

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            env=environment(self.settings),
            stdin=subprocess.DEVNULL,
            pass_fds=[self.listener.fileno()] if "api-process" in command else [],
            start_new_session=True,
            preexec_fn=tied_to(os.getpid()),  # noqa: PLW1509  -- the parent has one thread
        )

    def _stop(self, children: Sequence[subprocess.Popen[bytes]]) -> None:
        """End the children: politely, then by force. A second signal means: now."""
        for child in children:
            child.terminate()
        asked = len(self.signals)
        deadline = time.monotonic() + self.settings.grace_seconds + STOP_SECONDS
        while any(child.poll() is None for child in children):
            if time.monotonic() > deadline or len(self.signals) > max(asked, 1):
                for child in children:
                    child.kill()
            time.sleep(LOOK_SECONDS / 2)


def tied_to(parent: int) -> Callable[[], None] | None:
    """For `preexec_fn`: has the kernel kill the child when its parent dies (Linux; elsewhere nothing does)."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def tie() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before it could be tied to
            os._exit(1)

    return tie


def _ended(child: subprocess.Popen[bytes]) -> str:
    code = child.returncode
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def answers(host: str, port: int) -> bool:
    """Whether the API answers by now. Waits a second at most."""
    connection = http.client.HTTPConnection(_EVERYWHERE.get(host, host), port, timeout=1)
    try:
        connection.request("GET", "/healthz")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


# --- words ------------------------------------------------------------------------------------------------------------


def address(settings: Settings) -> str:
    """Where clients on this machine find the service."""
    host = _EVERYWHERE.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def greeting(settings: Settings, key: FirstKey, *, worker: bool) -> str:
    """What is said when the service answers."""
    if key.clear:
        told = f"{key.clear}\n           shown this once; also in {key.path}"
    elif key.path.exists():
        told = f"in {key.path}, from the first start"
    else:
        told = "was shown at the first start (semievol jobs keys create makes more)"
    lines = [
        f"SemiEvol is ready at {address(settings)}",
        f"  Key      {told}",
        f"  Data     {settings.data}",
        f"  Models   {', '.join(settings.models) or 'none; name some in SEMIEVOL_MODELS'}",
        f"  Stop     Ctrl-C, or kill {os.getpid()}; jobs go on at the next start",
    ]
    if not worker:
        lines.append("  Work     is done by others; start them with: semievol worker")
    model = next(iter(settings.models), "a-model")
    return "\n".join([*lines, "", "Use it with the openai client:", "", *client_lines(settings, key, model), ""])


def client_lines(settings: Settings, key: FirstKey, model: str) -> list[str]:
    """Five lines of Python that start a job."""
    method = '{"type": "semievol", "semievol": {"unlabeled_file": unlabeled.id}}'
    return [
        "  from openai import OpenAI",
        f'  client = OpenAI(base_url="{address(settings)}/v1", api_key=open("{key.path}").read().strip())',
        '  labeled = client.files.create(file=open("labeled.jsonl", "rb"), purpose="fine-tune")',
        '  unlabeled = client.files.create(file=open("unlabeled.jsonl", "rb"), purpose="fine-tune")',
        f'  job = client.fine_tuning.jobs.create(model="{model}", training_file=labeled.id, method={method})',
    ]
