"""A training in several processes of this machine, one for each GPU: `accelerate launch` starts them, we answer them.

Each connects to a socket of ours, is told what to train, and asks us for all that only the process that was asked for
the training can do: its checkpoints and its progress. When we are gone, so are they: a process whose connection
closes ends at once. The processes' own side is `training_process.py`; what they compute is in `training.py`.
"""

import json
import logging
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import torch

from semievol.backends.huggingface import device_of
from semievol.backends.memory import give_back
from semievol.errors import EngineDied, RecipeError, SemiEvolError
from semievol.ports import Checkpoints, Progress, TrainingLog
from semievol.recipe import ModelSettings, ParallelSettings

LOOK_SECONDS = 0.5
"""How often we look whether the launcher still runs."""
END_SECONDS = 60
"""Until the launcher is killed that was asked to end. It gives its processes 30 seconds."""
_MODULE = "semievol.backends.training_process"
# Ctrl-C is for who asks.
_PROGRAM = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from accelerate.commands import launch; "
_PROGRAM += "launch.main()"
_ENVIRONMENT = {"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM"}
_NOT_OURS = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "PET_", "TORCHELASTIC_")
"""Variables that would change how processes are started or what they do; so would accelerate's own config file."""
_EXIT_CODE = re.compile(r"exitcode\s*:\s*(-?\d+)")
_LAUNCHER_SPOKE = re.compile(r"^[EW]\d{4} .*torch/distributed/elastic", re.MULTILINE)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """The first message, to each process: the arguments of `LoraTrainer` and of its `train_here`."""

    model: str
    settings: ModelSettings
    parallel: ParallelSettings
    halvings: int
    keeps_checkpoints: bool
    training: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Progressed:
    """What `ports.Progress` is told."""

    done: int
    total: int
    loss: float | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A call of `ports.Checkpoints`. All processes ask alike: it is made once, and each gets the answer."""

    method: Literal["restore", "due", "save", "finish"]
    given: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Warned:
    """A line for our log."""

    level: int
    message: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A process cannot go on, and ends. `error`: what it raised, if that is one of ours."""

    error: SemiEvolError | None
    message: str


@dataclass(frozen=True, slots=True)
class Done:
    """The adapter is written."""

    log: TrainingLog


def check_processes(parallel: ParallelSettings, settings: ModelSettings) -> None:
    """Raises RecipeError if there cannot be so many processes here."""
    if parallel.processes == 1:
        return
    device = device_of(settings)
    if ":" in settings.device:
        raise RecipeError(
            f"model.device is {settings.device}, which is one GPU, and parallel.processes is {parallel.processes}: "
            "set model.device to cuda"
        )
    there = torch.cuda.device_count() if device.type == "cuda" else os.cpu_count() or 1
    if parallel.processes > there:
        raise RecipeError(
            f"parallel.processes is {parallel.processes}, and there is room for {there} here: it may be at most the "
            f"number of {'GPUs in sight' if device.type == 'cuda' else 'CPU cores'}"
        )


def train_in_processes(start: Start, checkpoints: Checkpoints | None, progress: Progress) -> TrainingLog:
    """The log of a training that several processes did; no process is left.

    Raises what one process would, and EngineDied if one of them ended or went wrong.
    """
    give_back()  # one of them takes the GPU that we used
    processes = _Processes(start, checkpoints, progress)
    try:
        return processes.answer()
    finally:
        processes.close()


class _Processes:
    def __init__(self, start: Start, checkpoints: Checkpoints | None, progress: Progress) -> None:
        self.start, self.checkpoints, self.progress = start, checkpoints, progress
        self.connections: list[Connection] = []
        self.answers: dict[Asked, Any] = {}
        self.failure: str | None = None
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  -- closed by `close`
        self.folder = tempfile.TemporaryDirectory(prefix="semievol-")  # a socket's path is short, which ours are not
        address = str(Path(self.folder.name) / "socket")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen(start.parallel.processes)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *_options(Path(self.folder.name), start.parallel.processes), address],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            env={name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)} | _ENVIRONMENT,
        )

    def answer(self) -> TrainingLog:
        """Answer the processes until they are done. Raises what the checkpoints raise, too."""
        while True:
            ended = self.process.poll() is not None
            ready = wait([self.listener, *self.connections], timeout=0 if ended else LOOK_SECONDS)
            if ended and not ready:
                raise self._death()
            for one in ready:
                if not isinstance(one, Connection):
                    self._welcome()
                    continue
                message = self._heard(one)
                if isinstance(message, Done):
                    return message.log
                self._see(message, one)

    def _see(self, message: Any, connection: Connection) -> None:
        if isinstance(message, Progressed):
            self.progress(message.done, message.total, message.loss)
        elif isinstance(message, Warned):
            _log.log(message.level, message.message)
        elif isinstance(message, Failed):
            self._fail(message)
        elif isinstance(message, Asked):
            if message not in self.answers:
                self.answers[message] = getattr(self.checkpoints, message.method)(*message.given)
            _send(connection, self.answers[message])

    def _welcome(self) -> None:
        connection = Connection(self.listener.accept()[0].detach())
        self.connections.append(connection)
        _send(connection, self.start)

    def _heard(self, connection: Connection) -> Any:
        """Its next message; None if it has ended."""
        try:
            return connection.recv()
        except (EOFError, OSError):
            self.connections.remove(connection)
            return None

    def _fail(self, failed: Failed) -> None:
        """Raise an error of ours. Any other may come of another process's end, and that one's tells more."""
        if failed.error is not None:
            raise failed.error
        self.failure = self.failure or failed.message

    def _death(self) -> EngineDied:
        """Of a process that was killed, the others only say that it is gone; the launcher says by what."""
        self.log.seek(0)
        told = self.log.read().decode(errors="replace")
        codes = [int(code) for code in _EXIT_CODE.findall(told)] or [self.process.returncode]
        code = next((code for code in codes if code < 0 and code != -signal.SIGTERM), codes[0])
        if self.failure is not None and code >= 0:
            return EngineDied(f"a process of the training stopped: {self.failure}")
        how = f"signal {-code}" if code < 0 else f"status {code}"
        last = "" if self.failure else _LAUNCHER_SPOKE.split(told)[0].strip().rpartition("\n")[2]
        return EngineDied(f"a process of the training ended with {how}" + (f": {last[:300]}" if last else ""))

    def close(self) -> None:
        """End the processes, at once: those that hear us by themselves, and the launcher ends the others."""
        for connection in self.connections:
            connection.close()
        self.listener.close()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        self.process.kill()
        self.process.wait()
        self.log.close()
        self.folder.cleanup()


def _options(folder: Path, processes: int) -> list[str]:
    """Of `accelerate launch`. Its own MULTI_CPU starts one process, without MPI; which device is ours to say."""
    config = folder / "config.json"
    settings = {"distributed_type": "MULTI_GPU", "num_processes": processes, "gpu_ids": "all", "main_process_port": 0}
    config.write_text(json.dumps({**settings, "mixed_precision": "no"}), encoding="utf-8")
    threads = max(1, torch.get_num_threads() // processes)
    return ["--config_file", str(config), "--num_cpu_threads_per_process", str(threads), "--module", _MODULE]


def _send(connection: Connection, message: Any) -> None:
    with suppress(OSError):  # it has ended, which is heard next
        connection.send(message)


class Line:
    """A process's connection to who started it. When that is gone, this process ends."""

    def __init__(self, address: str) -> None:
        opened = socket.socket(socket.AF_UNIX)
        opened.connect(address)
        self.connection = Connection(opened.detach())
        self.heard = queue.SimpleQueue[Any]()
        threading.Thread(target=self._listen, name="line", daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                self.heard.put(self.connection.recv())
        except (EOFError, OSError):
            os._exit(1)

    def tell(self, message: Any) -> None:
        """Send it."""
        self.connection.send(message)

    def hear(self) -> Any:
        """The next message."""
        return self.heard.get()


class AskedCheckpoints:
    """The port `Checkpoints` in one of the processes."""

    def __init__(self, line: Line) -> None:
        self.line = line

    def restore(self, training: str) -> Path | None:
        """See `ports.Checkpoints`."""
        folder: Path | None = self._ask("restore", training)
        return folder

    def due(self, step: int) -> bool:
        """See `ports.Checkpoints`."""
        return bool(self._ask("due", step))

    def save(self, folder: Path, step: int) -> None:
        """See `ports.Checkpoints`. What it raises ends all processes."""
        self._ask("save", folder, step)

    def finish(self) -> None:
        """See `ports.Checkpoints`. What it raises ends all processes."""
        self._ask("finish")

    def _ask(self, method: Any, *given: Any) -> Any:
        self.line.tell(Asked(method, given))
        return self.line.hear()


class WarningsTold(logging.Handler):
    """Hands on what the process logs."""

    def __init__(self, tell: Callable[[Any], None]) -> None:
        super().__init__(logging.WARNING)
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        self.tell(Warned(record.levelno, record.getMessage()))
