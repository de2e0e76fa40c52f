"""A million unlabeled rows through everything but the model: how long and how much memory, beside a tenth of them.

    python -m benchmarks.scale [--rows N]

Every run is a process of its own: files are read, checked and split, each row finds its neighbours among 10,000
labeled ones by exact search over made-up vectors of 384 dimensions, a made-up model scores the options for four
collaborators, labels are agreed on, balanced and selected, and written as Parquet.

Machines change their pace within half an hour by more than what is asked here. So the large run and small ones, one
after the other, take turns of a few seconds (one is stopped while the other goes on), and their CPU time is compared.
All of it is in one thread. With the default of a million rows on an idle machine it takes about half an hour.
"""

import argparse
import contextlib
import json
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semievol import stages
from semievol.fakes import FakeBackend, FakeObserver
from semievol.garbage import collect_rarely
from semievol.outcome import final_labels
from semievol.pipeline import Job, plan
from semievol.ports import (
    Floats,
    Generator,
    Progress,
    Purpose,
    Request,
    Response,
    Retriever,
    Then,
    no_progress,
    nothing_more,
)
from semievol.prompts import Prompt
from semievol.propagation import DenseRetriever
from semievol.recipe import Recipe
from semievol.seeds import seed_of
from semievol.tables import PSEUDO_LABELS, write_rows
from semievol.workdir import Stage, Workdir

ROWS = 1_000_000
SMALLER = 10
"""The small runs have a tenth of the rows."""
TURN_SECONDS = {"large": 4.0, "small": 1.2}
"""Such that about three small runs come to their end beside the large one."""
LABELED = 10_000
CLASSES = 8
DIMENSIONS = 384
MOST_MB = 2048
MOST_RATIO = 11.0
LAST = "round-1/select"


class MadeUpVectors:
    """The `Embedder` port: a unit vector that depends on the text alone."""

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Floats:
        """See `ports.Embedder`."""
        vectors = np.empty((len(texts), DIMENSIONS), dtype=np.float32)
        for place, text in enumerate(texts):
            vectors[place] = np.random.Generator(np.random.SFC64(seed_of(text))).random(DIMENSIONS, np.float32)
        return np.asarray((vectors - 0.5) / np.linalg.norm(vectors - 0.5, axis=1, keepdims=True), dtype=np.float32)


class MadeUpScores:
    """The `Generator` port: one greedy reply, and log-probabilities of options that depend on the prompt."""

    engine = "made-up"
    prompt_tokens = 0

    def fits(self, prompt: Prompt, max_new_tokens: int) -> bool:
        """See `ports.Generator`."""
        return True

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, then: Then = nothing_more
    ) -> Iterator[tuple[int, list[Response]]]:
        """See `ports.Generator`. Only asked for greedy replies, which lead to no others."""
        for place, request in enumerate(requests):
            yield place, [Response("class-0", (-0.1,), ("class-0",), True) for _ in request.seeds]

    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[float]]]:
        """See `ports.Generator`."""
        for place, (prompt, row) in enumerate(zip(prompts, options, strict=True)):
            chosen = seed_of(prompt[-1].content) % len(row)
            seen = len(prompt[1].content) / 1000
            scores = np.full(len(row), -3.0 - seen)
            scores[chosen] = 0.0
            yield place, (scores - np.log(np.exp(scores).sum())).tolist()


class MadeUpBackend(FakeBackend):
    """No engine, and vectors that cost little."""

    @contextlib.contextmanager
    def generator(self, adapter: Path | None, purpose: Purpose, rows: int) -> Iterator[Generator]:
        """See `ports.Backend`."""
        yield MadeUpScores()

    def retriever(self, documents: Sequence[str], queries: int) -> Retriever:
        """See `ports.Backend`."""
        return DenseRetriever(MadeUpVectors(), documents)


def write_files(folder: Path, rows: int) -> Job:
    """Labeled and unlabeled rows of a closed task."""
    recipe = Recipe.resolve({"warmup": {"steps": 1}})
    job = Job("made-up", folder / "labeled.jsonl", folder / "unlabeled.jsonl", recipe, validation=folder / "few.jsonl")
    filler = "the quick brown fox jumps over the lazy dog and " * 4
    sizes = {job.labeled: LABELED, job.unlabeled: rows, job.validation: 100}
    for path, count in sizes.items():
        assert path is not None
        with path.open("w", encoding="utf-8") as file:
            for number in range(count):
                turns = [{"role": "user", "content": f"{path.stem} question {number}: {filler}{number * 7919 % 10007}"}]
                if path != job.unlabeled:
                    turns.append({"role": "assistant", "content": f"class-{number % CLASSES}"})
                file.write(json.dumps({"messages": turns}) + "\n")
    return job


def measure(rows: int, folder: Path) -> dict[str, Any]:
    """Seconds of CPU time in all, and the most memory of this process."""
    collect_rarely()
    job, output = write_files(folder, rows), folder / "out"
    started = time.process_time()
    work = Workdir(output, job.identity(), FakeObserver())
    with contextlib.closing(plan(job, MadeUpBackend())) as steps:
        ready = next(steps)
        while not any(step.name == LAST for step in ready):
            ready = steps.send([work.stage(step.name, step.work) for step in ready])
        [selected] = [work.stage(step.name, step.work) for step in ready]
    written = write_rows(output / "pseudo_labels.parquet", PSEUDO_LABELS, _published(selected), 1024)
    assert written == rows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": rows, "seconds": time.process_time() - started, "peak_mb": peak}


def _published(selected: Stage) -> Iterator[dict[str, Any]]:
    done: Any = stages.Round(1, [], selected, selected, selected)
    return final_labels([done])


class Run:
    """One measured process, stopped but for its turns."""

    def __init__(self, rows: int, turn_seconds: float) -> None:
        self.turn_seconds = turn_seconds
        command = [sys.executable, "-m", "benchmarks.scale", "--alone", "--rows", str(rows)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def turn(self) -> bool:
        """Go on for a while; whether it has ended."""
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(self.turn_seconds)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGSTOP)
            return False
        if self.process.returncode:
            sys.exit(f"a run ended with status {self.process.returncode}")
        return True

    def told(self) -> dict[str, Any]:
        """What it measured."""
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.read())
        print(f"{found['rows']:>9,} rows: {found['seconds']:7.1f} s, peak {found['peak_mb']:6.0f} MB", flush=True)
        return found


def in_turns(rows: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the large run measured, and what the small ones beside it did."""
    large, small = Run(rows, TURN_SECONDS["large"]), Run(rows // SMALLER, TURN_SECONDS["small"])
    found: list[dict[str, Any]] = []
    try:
        while not large.turn():
            if small.turn():
                found.append(small.told())
                small = Run(rows // SMALLER, TURN_SECONDS["small"])
        while not found:
            if small.turn():
                found.append(small.told())
        return large.told(), found
    finally:
        for run in (large, small):
            run.process.kill()
            run.process.wait()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help="of the large run")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            print(json.dumps(measure(arguments.rows, Path(folder))))
        return
    large, small = in_turns(arguments.rows)
    each = statistics.mean(one["seconds"] for one in small)
    ratio, peak = large["seconds"] / each, large["peak_mb"]
    print(
        f"  {ratio:.1f} times the CPU time of {len(small)} small runs' mean ({each:.1f} s) for {SMALLER} times the rows"
    )
    print(f"  at most {MOST_RATIO:g} times: {'met' if ratio <= MOST_RATIO else 'MISSED'}")
    print(f"  under {MOST_MB:,} MB: {'met' if peak < MOST_MB else 'MISSED'}")
    sys.exit(ratio > MOST_RATIO or peak >= MOST_MB)


if __name__ == "__main__":
    main()
