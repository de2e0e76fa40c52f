"""One unit of a job, in a process of its own: `python -m worker.runner SPEC`. Only this imports torch or an engine.

It reads a spec, fetches what its steps need, does them, puts what they leave into the object store, and tells the
supervisor on a pipe. It has no database. With an engine loaded it goes on with other shards of the round, if the
supervisor has some for it.
"""

import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from semievol.errors import DataError, DiskFull, EngineDied, OutOfMemory, SemiEvolError
from semievol.estimates.estimate import Estimator, counting
from semievol.estimates.work import plain_jobs
from semievol.faults import fault_of
from semievol.formats.naming import HEAD_BYTES, guessed_format
from semievol.garbage import collect_rarely
from semievol.memory import Halvings
from semievol.model_files import config_of, text_counter, tokenizer_of
from semievol.pipeline import Job, Step
from semievol.ports import Backend
from semievol.signals import Stop, Terminated
from semievol.workdir import Stage
from store.objects import ObjectMissing, open_objects
from store.settings import Settings
from worker import plan
from worker.cache import Cache, store_folder
from worker.messages import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, Pipe, read_spec

PROGRESS_SECONDS = 0.5
PARAMETERS = {
    "labeled": "training_file",
    "unlabeled": "semievol.unlabeled_file",
    "validation": "validation_file",
    "test": "semievol.test_file",
}
"""Where the request names the file of a role."""


class TrainingCheckpoints:
    """The port `Checkpoints` over the object store: the last checkpoint of the stage that trains."""

    def __init__(self, runner: "Runner", every_seconds: float) -> None:
        self.runner, self.every_seconds = runner, every_seconds
        self.saved = time.monotonic()

    def restore(self, training: str) -> Path | None:
        """See `ports.Checkpoints`. Only the stage that wrote a checkpoint goes on from it."""
        self.runner.stop.deferred = True  # from here on a stop waits for the next step
        known = self.runner.checkpoint
        if known is None or known["stage"] != self.runner.current:
            return None
        folder = self.runner.scratch / "checkpoint" / f"checkpoint-{known['step']}"
        shutil.rmtree(folder, ignore_errors=True)
        self.runner.cache.place_all(known["files"], folder)
        return folder

    def due(self, step: int) -> bool:
        """See `ports.Checkpoints`."""
        return self.runner.stop.asked is not None or time.monotonic() - self.saved > self.every_seconds

    def save(self, folder: Path, step: int) -> None:
        """See `ports.Checkpoints`. Raises Terminated after the checkpoint is safe, if we were asked to stop."""
        files = store_folder(folder, self.runner.cache.objects)
        self.runner.pipe.tell("checkpoint", stage=self.runner.current, step=step, files=files)
        self.saved = time.monotonic()
        self.runner.stop.check()

    def finish(self) -> None:
        """See `ports.Checkpoints`."""
        self.runner.stop.deferred = False
        self.runner.stop.check()


class Runner:
    """The steps of one unit, one after the other, and of the units that it is given after that one."""

    def __init__(self, spec: plan.JobSpec, more: dict[str, Any], settings: Settings, pipe: Pipe) -> None:
        self.spec, self.pipe = spec, pipe
        self.unit: str = more["unit"]
        self.scratch = Path(more["scratch"])
        self.checkpoint: dict[str, Any] | None = more["checkpoint"]
        self.halvings = Halvings(**more["adjustments"])
        self.checkpoint_seconds = settings.checkpoint_seconds
        self.cache = Cache(open_objects(settings), settings.data / "cache", settings.cache_bytes)
        self.stop = Stop()
        self.current = ""
        self.told_at = 0.0
        self.stages = {
            name: Stage(self.scratch / "stages" / name, known.facts, known.seconds)
            for name, known in spec.stages.items()
        }

    def run(self) -> None:
        """Do the steps that are not done. Raises SemiEvolError, Terminated, and what else goes wrong."""
        signal.signal(signal.SIGTERM, self.stop.hear)
        job = self.spec.job(self._inputs())
        if self.unit == plan.PREPARE:
            job = replace(job, estimator=self._estimator())
        late: Any = _Late(lambda: self._backend(job))
        while True:
            steps = plan.plan(job, late)
            try:
                offered = plan.ready(steps, self.stages)
                mine = [step for step in offered if step.unit == self.unit]
                if not mine:
                    return
                while mine:
                    for step in mine:
                        self._do(step)
                    mine = self._more(offered)
            finally:
                steps.close()

    def _more(self, offered: Sequence[Step]) -> list[Step]:
        """The steps of another unit that could be done now as well, if the supervisor has one for us."""
        if all(step.unit == self.unit or step.name in self.stages for step in offered):
            return []
        unit = self.pipe.next_unit()
        if unit is None:
            return []
        self.unit = unit
        return [step for step in offered if step.unit == unit]

    def _inputs(self) -> dict[str, Path]:
        """The files that users gave, for the unit that reads them."""
        files = {}
        if self.unit == plan.PREPARE:
            for role, entry in self.spec.inputs.items():
                path = self.scratch / "inputs" / role
                self.cache.place(entry["sha256"], path)
                files[role] = renamed(path, entry["filename"])
        if self.spec.reviewed is not None and self.unit.endswith(plan.REVIEW):
            files["reviewed"] = self.scratch / "inputs" / "reviewed.jsonl"
            self.cache.place(self.spec.reviewed, files["reviewed"])
        return files

    def _estimator(self) -> Estimator:
        """As the service's validation has one: it counts tokens by the text, as no engine is loaded for this unit."""
        count = counting(text_counter(tokenizer_of(self.spec.model, self.spec.revision)))
        config = config_of(self.spec.model, self.spec.revision)
        return Estimator.of(config, plain_jobs(self.spec.measured), count)

    def _backend(self, job: Job) -> Backend:
        self.pipe.tell("loading")
        from semievol.backends.local import LocalBackend  # noqa: PLC0415  -- torch, which other units do not need

        checkpoints = TrainingCheckpoints(self, self.checkpoint_seconds)
        return LocalBackend(job.model, job.recipe, checkpoints, self.halvings)

    def _do(self, step: Step) -> None:
        for stage in step.needs:
            self._place(stage)
        self.current, folder = step.name, self.scratch / "stages" / step.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.pipe.tell("started", stage=step.name)
        started = time.monotonic()
        facts = dict(step.work(folder, self._progress))
        seconds = round(time.monotonic() - started, 3)
        self.pipe.tell(
            "committed", stage=step.name, facts=facts, seconds=seconds, files=store_folder(folder, self.cache.objects)
        )
        self.stages[step.name] = Stage(folder, facts, seconds)

    def _place(self, stage: Stage) -> None:
        name = stage.folder.relative_to(self.scratch / "stages").as_posix()
        if not stage.folder.exists():
            self.cache.place_all(self.spec.stages[name].files, stage.folder)

    def _progress(self, done: int, total: int, loss: float | None = None, /) -> None:
        now = time.monotonic()
        if now - self.told_at >= PROGRESS_SECONDS or done == total or loss is not None:
            self.told_at = now
            self.pipe.tell(
                "progress",
                stage=self.current,
                done=done,
                total=total,
                loss=loss,
                gpu_memory_bytes=gpu_memory_bytes(),
            )


def gpu_memory_bytes() -> int | None:
    """What torch has taken of the GPU for this process; None where no GPU is in use. Does not load torch for it."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.memory_reserved()) if torch is not None and torch.cuda.is_initialized() else None


class _Late:
    """A backend that is built when it is first used: units without a model never build one."""

    def __init__(self, build: Callable[[], Backend]) -> None:
        self._build = cache(build)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._build(), name)


def told(error: Exception, spec: plan.JobSpec, adjustments: dict[str, int]) -> dict[str, Any]:
    """What the supervisor hears. `own`: it is the job's own fault, so that it would fail again.

    `smaller`: what another attempt should do to need less memory.
    """
    fault = error if isinstance(error, SemiEvolError) else fault_of(error)
    if fault is None:
        return {"code": _code_of(error), "message": f"{type(error).__name__}: {error}", "own": False}
    own = not isinstance(fault, DiskFull | EngineDied)
    heard: dict[str, Any] = {"code": fault.code, "own": own, **in_users_words(fault, spec)}
    if isinstance(fault, OutOfMemory) and fault.rows > 1:
        heard["smaller"] = asdict(Halvings(**adjustments).once_more(fault.phase))
    return heard


def _code_of(error: Exception) -> str:
    """The stable code of an error that is none of ours."""
    away = isinstance(error, ObjectMissing) or type(error).__module__.startswith(("botocore", "boto3", "urllib3"))
    return "io_error" if away or isinstance(error, OSError) else "internal_error"


def in_users_words(error: SemiEvolError, spec: plan.JobSpec) -> dict[str, str | None]:
    """Message and parameter of an error, with the user's file names instead of ours."""
    if not isinstance(error, DataError):
        return {"message": str(error), "param": None}
    role = Path(error.path).name.partition(".")[0]
    shown = DataError(spec.inputs.get(role, {}).get("filename", role), error.problems, error.total)
    return {"message": str(shown), "param": PARAMETERS.get(role)}


def renamed(path: Path, filename: str) -> Path:
    """The file under a name whose ending says how it is read."""
    with path.open("rb") as file:
        how = guessed_format(filename, file.read(HEAD_BYTES))
    return path.rename(path.with_suffix(how.ending))


def main(spec_path: str, kind: type[Runner] = Runner) -> int:
    """Do the unit of the spec; see `messages` for the exit status."""
    pipe = Pipe(os.dup(1), sys.stdin)
    os.dup2(2, 1)  # what libraries print goes to the log, not among the messages
    collect_rarely()
    try:
        spec, more = read_spec(Path(spec_path))
        kind(spec, more, Settings(), pipe).run()
    except Terminated:
        return EXIT_STOPPED
    except Exception as error:  # noqa: BLE001  -- the outermost frame
        if not isinstance(error, SemiEvolError):
            traceback.print_exc()
        pipe.tell("error", **told(error, spec, more["adjustments"]))
        return EXIT_FAILED
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
