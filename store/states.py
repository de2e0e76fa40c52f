"""States of jobs and units, and the moves between them, as one table of data."""

from typing import Final, Literal

JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
UnitState = Literal["waiting", "ready", "running", "done", "failed", "cancelled"]
UnitKind = Literal["cpu", "gpu"]

JOB_MOVES: Final[dict[JobStatus, frozenset[JobStatus]]] = {
    "validating_files": frozenset({"queued", "paused", "failed", "cancelled", "succeeded"}),
    "queued": frozenset({"running", "paused", "failed", "cancelled", "succeeded"}),
    "running": frozenset({"paused", "succeeded", "failed", "cancelled"}),
    "paused": frozenset({"validating_files", "queued", "running", "failed", "cancelled", "succeeded"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""Where a job may go from where. What leads nowhere is final. A pause may come too late: its last unit still ends."""

UNIT_MOVES: Final[dict[UnitState, frozenset[UnitState]]] = {
    "waiting": frozenset({"ready", "cancelled"}),
    "ready": frozenset({"running", "cancelled"}),
    "running": frozenset({"ready", "done", "failed", "cancelled"}),
    "done": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

FINAL: Final = tuple(status for status, moves in JOB_MOVES.items() if not moves)
ACTIVE: Final[tuple[JobStatus, ...]] = ("validating_files", "queued", "running")
"""Statuses in which workers take the job's units."""

TASK: Final = "semievol.work"
"""Name of the Celery task: look for ready units. It has no arguments."""
QUEUES: Final[dict[str, str]] = {"cpu": "semievol-cpu", "gpu": "semievol-gpu"}
"""The Celery queue of each kind of unit."""


def sources(target: JobStatus) -> tuple[JobStatus, ...]:
    """The statuses that may move to `target`."""
    return tuple(status for status, moves in JOB_MOVES.items() if target in moves)
