"""What there is besides jobs and files: workers, the queue, what a project uses, and the recipe's settings."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class WorkView(BaseModel):
    """What a worker is at. `done` of `total` rows or steps; `total` is 0 before it is known."""

    job_id: str
    unit: str
    stage: str | None
    done: int
    total: int
    since: int


class WorkerView(BaseModel):
    """A worker of the last hour. `alive`: it was seen within the last minute.

    `memory_bytes`: what its process, its fork server and its runner hold, when it was last seen; null where nobody can
    tell. `gpu_memory_bytes`: what the runner's torch has taken of its GPU; null where it uses none.
    """

    id: str
    object: Literal["worker"] = "worker"
    kinds: list[Literal["cpu", "gpu"]]
    started_at: int
    seen_at: int
    alive: bool
    memory_bytes: int | None
    gpu_memory_bytes: int | None
    work: WorkView | None


class KindCounts(BaseModel):
    """Units by what they need."""

    cpu: int
    gpu: int


class QueueUnit(BaseModel):
    """A piece of a job. `since`: when it began, or was ready to."""

    job_id: str
    unit: str
    kind: Literal["cpu", "gpu"]
    state: Literal["ready", "running"]
    since: int
    worker: str | None


class QueueView(BaseModel):
    """Work that runs or could run now. Ready units of paused jobs wait for a person and do not count."""

    object: Literal["queue"] = "queue"
    ready: KindCounts
    running: KindCounts
    oldest_ready_seconds: float | None
    units: list[QueueUnit]


class Quota(BaseModel):
    """How much is used of how much."""

    used: int
    limit: int | None


class UsageView(BaseModel):
    """What the project uses. `requests_per_minute`: of each key; null is any number."""

    object: Literal["usage"] = "usage"
    project: str
    active_jobs: Quota
    bytes: Quota
    requests_per_minute: int | None


class RecipeView(BaseModel):
    """Every setting of a recipe as a JSON schema, with meanings, bounds and defaults; and the presets' names."""

    object: Literal["recipe"] = "recipe"
    settings: dict[str, Any] = Field(serialization_alias="schema")
    presets: list[str]
