"""How far estimates of tokens and time are off, after three finished jobs, on ten demo-sized jobs of other shapes.

    python -m benchmarks.estimates [--only NAME ...] [--output DIR]

Every job goes through the library: `semievol validate`'s estimate first, from the jobs that were finished before the
ten began, then the run. Time is the process's CPU time on one thread, which other programs on the machine disturb
little; the factor by the wall clock, learned from wall clocks, stands beside it. The bar is on CPU time and on tokens.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from demo.generate import draw, write
from demo.tasks import CLINIC, HELPDESK, Domain
from semievol import pipeline
from semievol.backends.local import LocalBackend
from semievol.cli import build_backend, read_layers
from semievol.estimates.estimate import Estimator
from semievol.estimates.work import Done, observed, tokens_of
from semievol.fakes import FakeObserver
from semievol.model_files import config_of
from semievol.recipe import Recipe
from semievol.validation.checking import check

MOST_OFF = 1.5
MODEL = "demo/base"
CLOCKS = ("cpu", "wall")


@dataclass(frozen=True)
class Case:
    """One job: rows of its files and settings over the demo's. Without `unlabeled` it is plain fine-tuning."""

    name: str
    labeled: int
    unlabeled: int
    test: int
    settings: tuple[str, ...]
    validation: int = 0
    domain: Domain = HELPDESK


_SHORT = ("warmup.epochs=6", "evolution.steps=20")
_EPOCHS = ("warmup.epochs=10", "evolution.epochs=2", "evolution.steps=null")
LEARNING = (
    Case("scored", 32, 120, 60, _SHORT),
    Case("sampled, n=3, no test file", 40, 80, 0, (*_SHORT, "generation.answers=sampled", "generation.n=3")),
    Case("SFT alone", 48, 0, 40, ("warmup.epochs=10",)),
)
JOBS = (
    Case("more rows", 64, 400, 150, _SHORT),
    Case("two rounds", 48, 160, 40, (*_SHORT, "rounds=2", "selection.theta=0.5")),
    Case("preset paper", 40, 150, 60, ("preset=paper", *_SHORT)),
    Case("sampled, n=8", 32, 100, 40, (*_SHORT, "generation.answers=sampled", "generation.n=8")),
    Case("k=6, shared examples", 40, 200, 40, (*_SHORT, "propagation.k=6", "generation.worked_examples=shared")),
    Case("no worked examples, epochs", 32, 150, 40, ("propagation.in_context=false", *_EPOCHS)),
    Case("SFT alone, more of it", 120, 0, 150, ("warmup.epochs=8",)),
    Case("batches of 4", 32, 120, 40, (*_SHORT, "warmup.batch_size=4", "evolution.batch_size=4")),
    Case("validation file, bm25", 40, 150, 0, (*_SHORT, "propagation.retriever=bm25"), validation=80),
    Case("longer texts, early stop", 48, 100, 50, (*_SHORT, "generation.answers=sampled", "generation.early_stop=true"),
         domain=CLINIC),
)  # fmt: skip


@dataclass
class Clock(FakeObserver):
    """Notes what each stage left and took, by both clocks."""

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    begun: dict[str, float] = field(default_factory=dict)

    def stage_started(self, stage: str) -> None:
        """See `ports.Observer`."""
        self.begun = _now()

    def stage_finished(self, stage: str, facts: dict[str, Any], *, resumed: bool) -> None:
        """See `ports.Observer`."""
        self.facts[stage] = facts
        self.seconds[stage] = {clock: now - self.begun[clock] for clock, now in _now().items()}

    def done(self, clock: str, recipe: Recipe) -> list[Done]:
        """The stages as work that took so long."""
        stages = {name: (facts, self.seconds[name][clock]) for name, facts in self.facts.items()}
        return observed(stages, recipe)

    def total(self, clock: str) -> float:
        """Of all stages that an estimate covers."""
        return sum(taken[clock] for name, taken in self.seconds.items() if name != "publish")


def _now() -> dict[str, float]:
    return {"cpu": time.process_time(), "wall": time.monotonic()}


@dataclass(frozen=True)
class Result:
    """Expected and actual seconds by clock, and tokens; `done` is what later jobs may learn from."""

    seconds: dict[str, tuple[float, float]]
    tokens: tuple[int, int]
    done: dict[str, list[Done]]


def run(case: Case, number: int, folder: Path, learned: Sequence[Result]) -> Result:
    """Estimate the job, then do it."""
    data = folder / "data"
    tests = max(case.test, case.validation, len(case.domain.answers))
    write(data, case.domain, draw(case.domain, 7100 + number, case.labeled, max(case.unlabeled, 1), tests))
    roles = {"labeled": data / "labeled.jsonl"}
    roles |= {"unlabeled": data / "unlabeled.jsonl"} if case.unlabeled else {}
    roles |= {"test": data / "test.jsonl"} if case.test else {}
    roles |= {"validation": data / "test.jsonl"} if case.validation else {}
    recipe = Recipe.resolve(*read_layers(MODEL, None, list(case.settings)).values())
    job = pipeline.Job(
        MODEL, roles["labeled"], roles.get("unlabeled"), recipe, number, roles.get("validation"), roles.get("test")
    )
    backend = build_backend(MODEL, recipe)
    assert isinstance(backend, LocalBackend)
    told = {clock: estimate(job, roles, backend, [one.done[clock] for one in learned]) for clock in CLOCKS}
    clock = Clock()
    pipeline.run(job, backend, folder / "run", clock)
    done = {name: clock.done(name, recipe) for name in CLOCKS}
    expected, actual = told["cpu"]["tokens"], tokens_of(one.work for one in done["cpu"])
    return Result(
        {name: (told[name]["seconds"], clock.total(name)) for name in CLOCKS},
        (sum(expected.values()), actual.total),
        done,
    )


def estimate(
    job: pipeline.Job, roles: dict[str, Path], backend: LocalBackend, jobs: list[list[Done]]
) -> dict[str, Any]:
    """As `semievol validate` makes it, but for where the finished jobs come from; the newest is the last."""
    checked = check(roles, job.recipe, job.seed)
    assert checked.rules is not None
    samples = {"labeled": checked.train, "unlabeled": checked.pool, "validation": checked.validation}
    samples |= {"test": checked.test}
    rows = {role: checked.used.get(role, 0) for role in samples}
    device = backend.device.partition(" ")[0]
    estimator = Estimator.of(config_of(MODEL, None), jobs[::-1], backend.lengths, device=device)
    return estimator.estimate(job.recipe, checked.rules, rows, samples)


def factor(pair: tuple[float, float]) -> float:
    """How far an expectation is off, whichever way."""
    return max(pair[0] / pair[1], pair[1] / pair[0])


def line(name: str, result: Result) -> str:
    """A row of the table."""
    cpu, wall, tokens = result.seconds["cpu"], result.seconds["wall"], result.tokens
    times = f"{cpu[0]:7.1f} {cpu[1]:7.1f} {factor(cpu):6.2f} {factor(wall):8.2f}"
    return f"{name:28s} {times} {tokens[0]:12,} {tokens[1]:10,} {factor(tokens):6.2f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[case.name for case in JOBS], help="of the ten")
    parser.add_argument("--output", type=Path, help="folder of data and runs; by default they are thrown away")
    given = parser.parse_args()
    torch.set_num_threads(1)  # threads that wait for one another spend CPU time too
    with tempfile.TemporaryDirectory(prefix="estimates-") as scratch:
        folder = given.output or Path(scratch)
        print(f"{'':28s} CPU s: expected, took, off; wall off; tokens: expected, actual, off")
        learned: list[Result] = []
        for number, case in enumerate(LEARNING):
            learned.append(run(case, number, folder / f"learning-{number}", learned))
            print(line(f"(learning) {case.name}"[:28], learned[-1]), flush=True)
        found = []
        for number, case in enumerate(JOBS, start=len(LEARNING)):
            if given.only and case.name not in given.only:
                continue
            found.append(run(case, number, folder / f"job-{number}", learned))
            print(line(case.name, found[-1]), flush=True)
    worst = {
        "time": max(factor(one.seconds["cpu"]) for one in found),
        "tokens": max(factor(one.tokens) for one in found),
    }
    for what, off in worst.items():
        met = "met" if off <= MOST_OFF else "MISSED"
        print(f"{what}: off by a factor of {off:.2f} at worst (at most {MOST_OFF}): {met}")
    sys.exit(any(off > MOST_OFF for off in worst.values()))


if __name__ == "__main__":
    main()
