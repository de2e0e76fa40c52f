"""Where the trainings of `semievol run` keep their checkpoints: a folder for each training, in the output folder."""

import shutil
import time
from pathlib import Path

from semievol.signals import Stop
from semievol.workdir import flush, partial_of


class FolderCheckpoints:
    """The `Checkpoints` port over a folder. A wish to stop waits for the next step, which leaves a checkpoint."""

    def __init__(self, root: Path, every_seconds: float, stop: Stop) -> None:
        self.root, self.every_seconds, self.stop = root, every_seconds, stop
        self.folder = root
        self.saved_at = time.monotonic()

    def restore(self, training: str) -> Path | None:
        """See `ports.Checkpoints`. What another training left is removed: trainings come one after the other."""
        self.stop.deferred = True
        self.folder, self.saved_at = self.root / training[:16], time.monotonic()
        _remove_all_but(self.root, self.folder)
        newest = max(self.folder.glob("step-*[0-9]"), default=None)
        _remove_all_but(self.folder, newest)
        return newest

    def due(self, step: int) -> bool:
        """See `ports.Checkpoints`."""
        return self.stop.asked is not None or time.monotonic() - self.saved_at > self.every_seconds

    def save(self, folder: Path, step: int) -> None:
        """See `ports.Checkpoints`. Raises KeyboardInterrupt or Terminated once it is safe, if that was asked for."""
        target = self.folder / f"step-{step:09d}"
        partial = partial_of(target)
        try:
            shutil.move(folder, partial)
            for path in (*partial.iterdir(), partial):
                flush(path)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        flush(self.folder)
        _remove_all_but(self.folder, target)
        self.saved_at = time.monotonic()
        self.stop.check()

    def finish(self) -> None:
        """See `ports.Checkpoints`."""
        self.stop.deferred = False
        self.stop.check()

    def clear(self) -> None:
        """Remove all: the run has ended well."""
        shutil.rmtree(self.root, ignore_errors=True)


def _remove_all_but(folder: Path, kept: Path | None) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path != kept:
            shutil.rmtree(path)
