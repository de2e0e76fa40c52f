"""What runner and supervisor tell each other: JSON lines on pipes. The runner itself never sees the database."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from worker.plan import Committed, JobSpec

EXIT_DONE, EXIT_FAILED, EXIT_STOPPED = 0, 1, 75
"""Of a runner: unit done; told an error; stopped because it was asked to."""


def write_spec(path: Path, spec: JobSpec, **more: Any) -> None:
    """Put the job and what the runner needs besides into a file."""
    path.write_text(json.dumps({"job": asdict(spec), **more}), encoding="utf-8")


def read_spec(path: Path) -> tuple[JobSpec, dict[str, Any]]:
    """The job, and the rest."""
    content = json.loads(path.read_text(encoding="utf-8"))
    job = content.pop("job")
    stages = {name: Committed(**known) for name, known in job.pop("stages").items()}
    return JobSpec(**job, stages=stages), content


def order(unit: str | None) -> bytes:
    """What the supervisor answers to `unit_done`: another unit of the same job, or that there is none."""
    return json.dumps({"unit": unit}).encode() + b"\n"


class Pipe:
    """The runner's end. `orders`: where the supervisor answers."""

    def __init__(self, handle: int, orders: TextIO) -> None:
        self.handle, self.orders = handle, orders

    def tell(self, kind: str, **values: Any) -> None:
        """One line. Lines of other threads do not mix in: a line is one write."""
        line = (json.dumps({"kind": kind, **values}) + "\n").encode()
        while line:
            line = line[os.write(self.handle, line) :]

    def next_unit(self) -> str | None:
        """Tell that the unit is done, and hear which one to do now; None: this process is to end."""
        self.tell("unit_done")
        heard: dict[str, str | None] = json.loads(self.orders.readline() or '{"unit": null}')
        return heard["unit"]
