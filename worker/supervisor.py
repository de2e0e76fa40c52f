"""Owns one unit under a lease: claims it, runs it in another process, keeps the lease, commits what comes out.

Thin on purpose: it imports no engine, and every word it writes to the database names the unit's lease token.
"""

import json
import os
import selectors
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from store import units
from store.database import Database
from store.objects import ObjectStore
from store.settings import Settings
from store.states import ACTIVE, FINAL
from store.units import Claim
from worker import commits, registry
from worker.forkserver import LOST, Forked, ForkServer
from worker.messages import EXIT_DONE, EXIT_STOPPED, order, write_spec
from worker.plan import JobSpec

BEAT_SECONDS = 1.0
"""How often progress is written and the job's status is read, at most."""
LOG_TAIL_BYTES = 2000
ROOT = Path(__file__).resolve().parent.parent

Ring = Callable[[set[str]], None]
"""Wakes workers for units of these kinds."""


class LeaseLost(Exception):
    """Somebody else owns the unit now, or may: stop at once and write nothing."""


@dataclass(slots=True)
class Outcome:
    """How a runner ended. `error`: what it said."""

    status: int
    error: dict[str, Any] | None
    log: str

    def cause(self) -> str:
        """How it ended, and the last line of its log, for people."""
        how = f"signal {self.status - 128}" if self.status > 128 else f"status {self.status}"
        last = self.log.strip().rpartition("\n")[2]
        return f"the runner ended with {how}" + (f": {last[:300]}" if last else "")


@dataclass(slots=True)
class Progress:
    """The latest word of the runner, written with the next beat. `losses`: those of its training since the last."""

    values: dict[str, Any] = field(default_factory=dict)
    losses: list[tuple[int, float]] = field(default_factory=list)

    def hear(self, loss: float | None = None, **values: Any) -> None:
        """Stage, done and total are so now; `loss` is of the step that is done."""
        self.values = values
        if loss is not None:
            self.losses.append((values["done"], loss))


class Supervisor:
    """Does units of some kinds, one at a time. `stopping` says that this worker shall end."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        objects: ObjectStore,
        *,
        runners: ForkServer,
        ring: Ring,
        kinds: Sequence[str],
        stopping: Callable[[], bool],
        slot: int = 0,
    ) -> None:
        self.settings, self.database, self.objects = settings, database, objects
        self.runners, self.ring, self.kinds, self.stopping = runners, ring, kinds, stopping
        self.worker_id = registry.worker_id(slot)
        self.beat = min(BEAT_SECONDS, settings.lease_seconds / 3)

    def work_once(self) -> bool:
        """Take a ready unit and do it; False if there was none."""
        with self.database.write() as session:
            claim = units.claim(session, self.worker_id, self.kinds, self.settings.lease_seconds)
            if claim is None:
                return False
            spec = commits.begin(session, claim)
        attempt = Attempt(self, claim, spec)
        try:
            attempt.run()
        except LeaseLost:
            pass  # whoever owns the unit now goes on; `clean_up` ends what we started
        finally:
            attempt.clean_up()
        return True


class Attempt:
    """One process of a runner and the unit that it does, from spawn to the last word in the database.

    After a shard it may get another one of the same round: `claim` is the one that it does now, and `done` says that
    it gets none any more.
    """

    def __init__(self, supervisor: Supervisor, claim: Claim, spec: JobSpec) -> None:
        self.supervisor, self.claim, self.spec = supervisor, claim, spec
        self.settings, self.database = supervisor.settings, supervisor.database
        own = registry.scratch_of(self.settings.data, supervisor.worker_id)
        self.scratch = own / f"{claim.unit_id}-{claim.token[:8]}"
        self.process: Forked | None = None
        self.progress = Progress()
        self.gpu_memory_bytes: int | None = None
        self.error: dict[str, Any] | None = None
        self.done = False
        self.stop_asked_at: float | None = None
        self.stop_reason = ""
        self.kill_after = 0.0
        self.owned_until = time.monotonic() + self.settings.lease_seconds

    # --- the runner's process

    def run(self) -> None:
        """Run the unit to its end. Raises LeaseLost."""
        try:
            process = self.process = self._spawn()
        except BrokenPipeError:
            self._conclude(Outcome(LOST, None, "the fork server has just ended"))
            return
        lines = _Lines(process.output)
        next_beat = 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(process.output, selectors.EVENT_READ)
            selector.register(process, selectors.EVENT_READ)
            while process.status is None or not lines.ended:
                for ready, _ in selector.select(timeout=self.supervisor.beat / 2):
                    if ready.fileobj is process:
                        process.hear()
                        if process.status is None:
                            self._record_runner(process)
                        else:
                            selector.unregister(process)
                    else:
                        for message in lines.read():
                            self._hear(message)
                        if lines.ended:
                            selector.unregister(process.output)
                if time.monotonic() >= next_beat:
                    self._beat()
                    next_beat = time.monotonic() + self.supervisor.beat
                self._kill_if_late()
        self._conclude(Outcome(process.wait(), self.error, self._log_tail()))

    def _spawn(self) -> Forked:
        self.scratch.mkdir(parents=True)
        spec_path = self.scratch / "spec.json"
        write_spec(
            spec_path,
            self.spec,
            unit=self.claim.name,
            scratch=str(self.scratch),
            checkpoint=self.claim.checkpoint,
            adjustments=self.claim.adjustments,
        )
        with (self.scratch / "runner.log").open("wb") as log:
            return self.supervisor.runners.start(spec_path, log)

    def _record_runner(self, process: Forked) -> None:
        with self.database.write() as session:
            registry.record_runner(session, self.supervisor.worker_id, self.claim.unit_id, process.pid)

    def clean_up(self) -> None:
        """Leave neither processes nor scratch files."""
        if self.process is not None:
            self.process.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        with suppress(OSError):
            self.scratch.parent.rmdir()
        with self.database.write() as session:
            registry.record_runner(session, self.supervisor.worker_id, None, None)

    def _ask_to_stop(self, reason: str, grace_seconds: float) -> None:
        if self.stop_asked_at is None and self.process is not None:
            self.stop_asked_at, self.stop_reason, self.kill_after = time.monotonic(), reason, grace_seconds
            self.process.ask_to_stop()

    def _kill_if_late(self) -> None:
        late = self.stop_asked_at is not None and time.monotonic() - self.stop_asked_at > self.kill_after
        if late and self.process is not None:
            self.process.kill()
        if time.monotonic() > self.owned_until:
            raise LeaseLost

    def _log_tail(self) -> str:
        with (self.scratch / "runner.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace")

    # --- what it says

    def _hear(self, message: dict[str, Any]) -> None:
        kind = message.pop("kind")
        if kind == "progress":
            self.gpu_memory_bytes = message.pop("gpu_memory_bytes", None)
            self.progress.hear(**message)
        elif kind == "started":
            self.progress.hear(**message, done=0, total=0)
        elif kind == "committed":
            self._fenced(lambda session: commits.commit_stage(session, self.claim, self.supervisor.objects, **message))
        elif kind == "checkpoint":
            self._fenced(lambda session: commits.note_checkpoint(session, self.claim, message))
        elif kind == "unit_done":
            self._go_on()
        elif kind == "error":
            self.error = message

    def _go_on(self) -> None:
        """Finish the unit, and give the runner another one if one of its kind is next."""
        worker, lease = self.supervisor, self.settings.lease_seconds
        following = None
        with self.database.write() as session:
            rings = commits.finish_unit(session, self.claim)
            if self.stop_asked_at is None and not worker.stopping():
                following = commits.another_shard(session, self.claim, worker.worker_id, worker.kinds, lease)
            if following is not None and self.process is not None:
                registry.record_runner(session, worker.worker_id, following.unit_id, self.process.pid)
        if rings:
            worker.ring(rings)
        self.progress = Progress()
        if following is None:
            self.done = True
        else:
            self.claim, self.owned_until = following, time.monotonic() + lease
        if self.process is not None:
            self.process.tell(order(following.name if following else None))

    def _fenced(self, write: Callable[[Any], None]) -> None:
        with self.database.write() as session:
            if not units.hold(session, self.claim):
                raise LeaseLost
            self._tell_losses(session)  # first: no attempt goes on from a checkpoint behind a loss that nobody wrote
            write(session)
        self.progress.losses.clear()

    def _tell_losses(self, session: Session) -> None:
        """Write the losses that were heard. Our unit is held; they are forgotten once this is committed."""
        if self.progress.losses:
            known = self.progress.values
            commits.tell_losses(session, self.claim.job_id, known["stage"], self.progress.losses, known["total"])

    # --- the lease

    def _beat(self) -> None:
        """Renew, write progress, and hear what became of the job. Raises LeaseLost."""
        if self.done:
            return
        asked_at = time.monotonic()
        try:
            with self.database.write() as session:
                status = units.renew(session, self.claim, self.settings.lease_seconds, **self.progress.values)
                if status is not None:
                    self._tell_losses(session)
                if self.gpu_memory_bytes is not None:
                    registry.note_gpu_memory(session, self.supervisor.worker_id, self.gpu_memory_bytes)
        except OperationalError:  # unknown is not lost: go on until our own clock says that the lease has ended
            return
        if status is None:
            raise LeaseLost
        self.progress.losses.clear()
        self.owned_until = asked_at + 0.9 * self.settings.lease_seconds
        if status in FINAL:
            self._ask_to_stop("over", min(self.settings.grace_seconds, 4))
        elif status not in ACTIVE:
            self._ask_to_stop("paused", self.settings.grace_seconds)
        elif self.supervisor.stopping():
            self._ask_to_stop("worker", self.settings.grace_seconds)

    # --- the end

    def _conclude(self, outcome: Outcome) -> None:
        if self.done:
            return
        rings: set[str] = set()
        with self.database.write() as session:
            if self.progress.losses and units.hold(session, self.claim):
                self._tell_losses(session)  # the last ones say most of why a training diverged
            if outcome.status == EXIT_DONE:
                rings = commits.finish_unit(session, self.claim)
            elif self.stop_reason:
                commits.give_back(session, self.claim, self.stop_reason)
                rings = {self.claim.kind}
            elif outcome.error is not None and outcome.status != EXIT_STOPPED:
                rings = commits.unit_failed(session, self.claim, outcome.error, self.settings.max_attempts)
            else:
                rings = commits.runner_lost(session, self.claim, outcome.cause(), self.settings.max_attempts)
        if rings:
            self.supervisor.ring(rings)


class _Lines:
    """JSON lines from a pipe that does not block."""

    def __init__(self, handle: int) -> None:
        os.set_blocking(handle, False)
        self.handle, self.rest, self.ended = handle, b"", False

    def read(self) -> list[dict[str, Any]]:
        try:
            chunk = os.read(self.handle, 1 << 20)
        except BlockingIOError:
            return []
        self.ended = not chunk
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        return [json.loads(line) for line in lines]


def runner_environment(settings: Settings) -> dict[str, str]:
    """What a runner sees: the settings' own names, and an engine that fetches nothing."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "SEMIEVOL_DATA": str(settings.data),
        "SEMIEVOL_OBJECTS": settings.objects,
        "SEMIEVOL_CHECKPOINT_SECONDS": str(settings.checkpoint_seconds),
        "SEMIEVOL_DATABASE_URL": "sqlite://",  # a runner has no business in the database
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
    }
    environment.pop("SEMIEVOL_BROKER_URL", None)
    if settings.s3_endpoint:
        environment["SEMIEVOL_S3_ENDPOINT"] = settings.s3_endpoint
    if settings.threads:
        environment["OMP_NUM_THREADS"] = str(settings.threads)
    return environment
