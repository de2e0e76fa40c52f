"""Every error a caller may want to name. Each has a stable `code` and a message that says what to do next.

SemiEvolError
├── DataError           a file cannot be used as it is (exit code 2)
├── RecipeError         a setting is unknown or contradicts another (exit code 2)
├── ModelError          the base model, adapter or embedder cannot be loaded (exit code 2)
├── WorkdirError        the output folder belongs to another run or is damaged (exit code 2)
├── TrainingError       training cannot go on, for example because the loss is no longer finite (exit code 1)
├── OutOfMemory         a batch did not fit; with smaller ones the work can go on (exit code 1)
├── EngineDied          a process that generates (twice) or trains ended; another attempt may do (exit code 1)
└── DiskFull            nothing more can be written; with room the work can go on (exit code 1)
"""

from dataclasses import dataclass
from typing import Literal

Phase = Literal["loading", "training", "generation"]


class SemiEvolError(Exception):
    """Root of the library's errors; `code` is stable, the message is for people."""

    code = "error"
    exit_code = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with an input file. `line` counts from 1; 0 means the whole file. Never echoes the data.

    `field`: where in the row, such as `messages[0].role`. `byte_offset`: where in the unpacked text. Both where known.
    """

    line: int
    code: str
    message: str
    field: str | None = None
    byte_offset: int | None = None


class DataError(SemiEvolError):
    """An input file has problems; the first ones are listed with their lines, all are counted."""

    code = "invalid_file"
    exit_code = 2

    def __init__(self, path: str, problems: list[Problem], total: int | None = None) -> None:
        super().__init__(path, problems, total)
        self.path, self.problems, self.total = path, problems, total if total is not None else len(problems)

    def __str__(self) -> str:
        lines: dict[str, list[int]] = {}
        for problem in self.problems:
            lines.setdefault(problem.message, []).append(problem.line)
        shown = [f"  {_told_lines(where)}{message}" for message, where in lines.items()]
        more = self.total - len(self.problems)
        if more > 0:
            shown.append(f"  … and {more} more")
        return "\n".join([f"{self.path} cannot be used:", *shown])


def _told_lines(lines: list[int]) -> str:
    if not any(lines):
        return ""
    return f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}: "


class RecipeError(SemiEvolError):
    """A recipe, or a combination of settings and data, makes no sense."""

    code = "invalid_recipe"
    exit_code = 2


class ModelError(SemiEvolError):
    """A model, adapter or embedder cannot be loaded or lacks something that the loop needs."""

    code = "invalid_model"
    exit_code = 2


class WorkdirError(SemiEvolError):
    """The output folder holds another run's stages, or a stage does not match its manifest."""

    code = "invalid_workdir"
    exit_code = 2


class TrainingError(SemiEvolError):
    """Training cannot go on."""

    code = "training_failed"


class LossDiverged(TrainingError):
    """The loss is not finite any more; nothing is published."""

    code = "loss_diverged"


class OutOfMemory(SemiEvolError):
    """The device or the machine has no memory for `rows` rows at once in `phase` (training or generation)."""

    code = "out_of_memory"

    def __init__(self, phase: Phase, rows: int) -> None:
        super().__init__(phase, rows)
        self.phase, self.rows = phase, rows

    def __str__(self) -> str:
        if self.rows > 1:
            return f"out of memory in {self.phase} with {self.rows} rows at once"
        return (
            f"out of memory in {self.phase}, even with a single row: lower model.max_length, turn "
            "gradient_checkpointing on (in warmup and evolution), or take a smaller model or a larger machine"
        )


class EngineDied(SemiEvolError):
    """The engine's process ended, was killed or went wrong, and so did a fresh one; or a process of a training did."""

    code = "engine_died"


class DiskFull(SemiEvolError):
    """There is no room left where something had to be written. What was committed before is whole."""

    code = "disk_full"
