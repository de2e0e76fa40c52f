"""One loop in a process of its own, as `published.py` starts it: this project's, or with the published schedule.

What is asked is one JSON file; where the seconds of each stage go is the other argument.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.accuracy import resolve
from benchmarks.published_schedule import PublishedBackend
from semievol import pipeline
from semievol.backends.local import LocalBackend


class Stopwatch:
    """The `Observer` port that notes when stages begin: [name, seconds, seconds of CPU of all processes so far]."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, float, float]] = []

    def stage_started(self, stage: str) -> None:
        """See `ports.Observer`. What follows the stage before is over by then, such as the end of an engine."""
        whose = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        self.begun.append((stage, time.perf_counter(), sum(used.ru_utime + used.ru_stime for used in whose)))

    def stage_progress(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        """See `ports.Observer`."""

    def stage_finished(self, stage: str, facts: dict[str, Any], *, resumed: bool) -> None:
        """See `ports.Observer`."""

    def taken(self) -> list[tuple[str, float, float]]:
        """Stage, seconds and seconds of CPU, from its beginning to that of the next."""
        self.stage_started("end")
        pairs = zip(self.begun, self.begun[1:], strict=False)
        return [(name, ended - begun, used - before) for (name, begun, before), (_, ended, used) in pairs]


def main() -> None:
    """Run what the first argument asks for."""
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    recipe, data, model = resolve(asked["model"], tuple(asked["settings"])), Path(asked["data"]), asked["model"]
    backend = (PublishedBackend if asked["published"] else LocalBackend)(model, recipe)
    labeled, unlabeled, test = (data / f"{name}.jsonl" for name in ("labeled", "unlabeled", "test"))
    stopwatch = Stopwatch()
    job = pipeline.Job(model, labeled, unlabeled, recipe, asked["seed"], test=test)
    pipeline.run(job, backend, Path(asked["output"]), stopwatch)
    Path(sys.argv[2]).write_text(json.dumps(stopwatch.taken()), encoding="utf-8")


if __name__ == "__main__":
    main()
