"""`semievol run` on the demo's model in processes that are killed: at random times, or at a named point.

Processes are forked from a server that has torch loaded, as a run takes two seconds and importing torch takes five.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol.workdir import sha256_of

BASE = Path(__file__).parents[2] / "demo" / "base"
SETTINGS = {
    "model.device": "cpu",
    "warmup.steps": 4,
    "warmup.learning_rate": 0.002,
    "evolution.steps": 4,
    "evolution.learning_rate": 0.002,
    "generation.shard_size": 12,
    "generation.answers": "sampled",
    "generation.max_new_tokens": 8,
    "generation.n": 2,
    "propagation.retriever": "bm25",
}
SHARDS = 4


def server() -> ForkServerContext:
    """Makes processes with torch loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["semievol.backends.local", "semievol.pipeline", "semievol.summary", __name__])
    return context


def write_files(folder: Path) -> Path:
    """A small job's files."""
    write(folder, HELPDESK, draw(HELPDESK, 91, 16, 12 * SHARDS, 8))
    return folder


def arguments(data: Path, output: Path, checkpoint_seconds: int = 0) -> list[str]:
    """The command; by default with a checkpoint after every step."""
    files = [f"--{role}={data / role}.jsonl" for role in ("labeled", "unlabeled", "test")]
    settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    more = [f"--output={output}", f"--checkpoint-seconds={checkpoint_seconds}", "--quiet"]
    return ["run", f"--model={BASE}", *files, *settings, *more]


def results(output: Path) -> dict[str, str]:
    """SHA-256 of every file that must not depend on how often the run was killed."""
    paths = [output / "pseudo_labels.parquet", *sorted((output / "adapter").iterdir())]
    return {path.relative_to(output).as_posix(): sha256_of(path) for path in paths}


@dataclass(frozen=True)
class Point:
    """Send a signal when `function` of `module` is called for the `count`-th time: before, after, or amid its work."""

    module: str
    function: str
    count: int = 1
    when: str = "before"
    signal: int = signal.SIGKILL


def _run(command: list[str], log: Path, point: Point | None) -> None:
    import torch

    from semievol.cli import main

    torch.set_num_threads(1)
    with log.open("a") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    if point is not None:
        _arm(point)
    sys.exit(main(command))


def _arm(point: Point) -> None:
    module: Any = __import__(point.module, fromlist=["_"])
    holder, _, name = point.function.rpartition(".")
    place: Any = getattr(module, holder) if holder else module
    original: Callable[..., Any] = getattr(place, name)
    calls = 0

    def deadly(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != point.count:
            return original(*given, **named)
        if point.when == "amid":
            _half(given)
        elif point.when == "after":
            original(*given, **named)
        os.kill(os.getpid(), point.signal)
        return original(*given, **named)

    setattr(place, name, deadly)


def _half(given: tuple[Any, ...]) -> None:
    """Half of the bytes that `write_whole` would have written, where it writes them."""
    path, content = given
    path.with_name(path.name + ".partial").write_bytes(content[: len(content) // 2])


def start(context: ForkServerContext, command: list[str], log: Path, point: Point | None = None) -> ForkServerProcess:
    """The command in a process of its own."""
    process = context.Process(target=_run, args=(command, log, point))
    process.start()
    return process


@contextlib.contextmanager
def ended(process: ForkServerProcess) -> Iterator[ForkServerProcess]:
    """The process, which is gone on leaving."""
    try:
        yield process
    finally:
        process.kill()
        process.join()


def run_to_end(context: ForkServerContext, command: list[str], log: Path, point: Point | None = None) -> int:
    """Its exit status; minus the signal's number if it was killed."""
    with ended(start(context, command, log, point)) as process:
        process.join()
        assert process.exitcode is not None
        return process.exitcode


def run_killed(context: ForkServerContext, command: list[str], log: Path, delays_seconds: list[float]) -> list[float]:
    """Kill the command so long after each start, then let it end. Returns the seconds of each attempt."""
    attempts = []
    for delay in [*delays_seconds, None]:
        began = time.monotonic()
        with ended(start(context, command, log)) as process:
            process.join(delay)
            if delay is None and process.exitcode != 0:
                raise RuntimeError(log.read_text(errors="replace"))
        attempts.append(time.monotonic() - began)
    return attempts
