"""Seconds that work takes: guessed from the model's size, then learned from what finished jobs took.

Work of a kind costs a start, and so much for each unit that it reads and writes. The guess knows their proportions;
the fit moves them to the measured stages of that kind, each by its relative error, and stays at the guess in what the
stages do not tell apart. A kind that was never measured is guessed, at the pace of those that were.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from semievol.estimates.sizes import ModelSize
from semievol.estimates.work import Done, Work

JOBS_LEARNED_FROM = 10
"""The last finished jobs: machines and versions change."""
TRUST = 0.01
"""What the guess weighs against one measured stage."""
SHORT_SECONDS = 0.5
"""Of stages that are shorter than this, errors count less: they are noise, and no job's time."""
LEAST_PACE = 1e-3
"""Of measured against guessed seconds; a stage that took none says nothing."""
UNKNOWN_PARAMETERS = 1_000_000_000
_ROUNDS = 1000
"""Of coordinate descent over three numbers, which may depend on each other."""

Cost = tuple[float, float, float]
"""Seconds of a start, and of each unit read and written."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Roughly what a device does: `flops` a second in a model's passes, and the least seconds of a token and a step."""

    flops: float
    token_seconds: float
    step_seconds: float
    embedded_row_seconds: float
    start_seconds: float


MACHINES = {
    "cpu": Machine(flops=2e10, token_seconds=1e-5, step_seconds=0.05, embedded_row_seconds=5e-3, start_seconds=1.0),
    "cuda": Machine(flops=1e14, token_seconds=2e-6, step_seconds=0.1, embedded_row_seconds=3e-4, start_seconds=5.0),
}
MOST_ON_A_CPU = 300_000_000
"""Parameters up to which a model is taken to run on a CPU, where nobody says."""
_WEIGHTS_PER_SECOND = 5e8
"""Weights that are loaded in a second, from a disk that was not read before."""
_VLLM_START_SECONDS = 45.0


def likely_device(size: ModelSize | None) -> str:
    """The type of device that a model of that size is for."""
    return "cpu" if size and size.parameters <= MOST_ON_A_CPU else "cuda"


def guess(kind: str, size: ModelSize | None, device: str) -> Cost:
    """What a kind of work costs before anything was measured. `device`: its type."""
    machine = MACHINES.get(device, MACHINES["cpu"])
    parameters = size.parameters if size else UNKNOWN_PARAMETERS
    token = max(machine.token_seconds, 2 * parameters / machine.flops)
    load = machine.start_seconds + parameters / _WEIGHTS_PER_SECOND
    form = kind.removeprefix("vllm ")
    match form:
        case "files":
            return 0.05, 2e-4, 0.0
        case "neighbours":
            return 4.0, machine.embedded_row_seconds, 0.0
        case "neighbours bm25":
            return 0.5, 1e-3, 0.0
        case "neighbours hidden":
            return load, 64 * token, 0.0
        case "train":  # a pass forward, one backward for the activations, and the adapter's
            return load, 2.5 * token, machine.step_seconds
    start = load + _VLLM_START_SECONDS if kind != form else load
    return start, token, (2 if kind != form else 8) * token


@dataclass(frozen=True, slots=True)
class Costs:
    """What was learned. `jobs`: of how many; `pace`: seconds for each that was guessed."""

    fitted: Mapping[str, Cost]
    pace: float
    jobs: int
    size: ModelSize | None
    device: str

    @classmethod
    def learn(cls, jobs: Sequence[Sequence[Done]], size: ModelSize | None, device: str) -> Self:
        """From finished jobs, the newest first, of the same base model on the same kind of device."""
        learned = [job for job in jobs if job][:JOBS_LEARNED_FROM]
        kinds: dict[str, list[Done]] = {}
        for done in (done for job in learned for done in job):
            kinds.setdefault(done.work.kind, []).append(done)
        guesses = {kind: guess(kind, size, device) for kind in kinds}
        paces = [
            sum(done.seconds for done in ones) / sum(seconds(done.work, guesses[kind]) for done in ones)
            for kind, ones in kinds.items()
        ]
        pace = max(LEAST_PACE, statistics.median(paces)) if paces else 1.0
        fitted = {kind: _fit(ones, guesses[kind], pace) for kind, ones in kinds.items()}
        return cls(fitted, pace, len(learned), size, device)

    def seconds(self, work: Work) -> float:
        """What the work will take."""
        cost = self.fitted.get(work.kind)
        if cost is not None:
            return seconds(work, cost)
        return self.pace * seconds(work, guess(work.kind, self.size, self.device))


def seconds(work: Work, cost: Cost) -> float:
    """What the work takes at that cost."""
    start, read, written = cost
    return work.starts * start + work.read * read + work.written * written


def _fit(ones: Sequence[Done], guessed: Cost, pace: float) -> Cost:
    """The cost, nowhere negative, with the least squared errors relative to the time taken, drawn to pace x guess.

    Ridge regression: what is solved for are the factors that the parts of the guess are multiplied by.
    """
    size = range(len(guessed))
    pairs = [[TRUST / pace**2 if row == column else 0.0 for column in size] for row in size]
    pulls = [TRUST / pace for _ in size]
    for done in ones:
        amounts = (done.work.starts, done.work.read, done.work.written)
        scale = done.seconds + SHORT_SECONDS
        parts = [amount * part / scale for amount, part in zip(amounts, guessed, strict=True)]
        for row in size:
            pulls[row] += parts[row] * done.seconds / scale
            for column in size:
                pairs[row][column] += parts[row] * parts[column]
    factors = [pace for _ in size]
    for _ in range(_ROUNDS):  # coordinate descent, each factor at its best for the others
        for row in size:
            others = sum(pairs[row][column] * factors[column] for column in size if column != row)
            factors[row] = max(0.0, (pulls[row] - others) / pairs[row][row])
    start, read, written = (part * factor for part, factor in zip(guessed, factors, strict=True))
    return start, read, written
