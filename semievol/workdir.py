"""One folder per stage, its manifest written last: what is there is whole, and what is done is not done again.

A stage works in a temporary folder. Its files are flushed to disk, `manifest.json` with their sizes and SHA-256 comes
last, then one rename makes the stage exist. The folder as a whole is bound to one job (model, files, recipe, seed):
other data never resumes it.
"""

import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semievol.errors import WorkdirError
from semievol.ports import Observer, Progress

MANIFEST = "manifest.json"
IDENTITY = "job.json"

StageWork = Callable[[Path, Progress], Mapping[str, Any]]
"""Fills the folder it is given, reports progress, and returns facts about what it did (JSON values)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A committed stage: its folder and what its manifest says of it."""

    folder: Path
    facts: Mapping[str, Any]
    seconds: float


class Workdir:
    """The output folder of one job."""

    def __init__(self, root: Path, identity: Mapping[str, Any], observer: Observer) -> None:
        """Open or create. Raises WorkdirError if the folder belongs to another job, naming what differs."""
        self.root, self.observer = root, observer
        self.stages: dict[str, Stage] = {}
        if root.exists() and not root.is_dir():
            raise WorkdirError(f"{root} is a file; --output names a folder")
        self._was_there = root.exists()
        known = root / "stages" / IDENTITY
        begun = {known.parent, partial_of(known)}  # all that a run leaves that was stopped before it had an identity
        if known.exists():
            _refuse_other(root, json.loads(known.read_text(encoding="utf-8")), _as_read(identity))
        elif any(path not in begun for path in root.rglob("*")):
            raise WorkdirError(f"{root} holds other files; give an empty or new folder as --output")
        else:
            known.parent.mkdir(parents=True, exist_ok=True)
            write_whole(known, json.dumps(identity, indent=2, sort_keys=True, ensure_ascii=False).encode())

    def stage(self, name: str, work: StageWork) -> Stage:
        """The committed stage `name`, doing its work if that has not been done yet."""
        folder = self.root / "stages" / name
        resumed = (folder / MANIFEST).exists()
        self.observer.stage_started(name)
        stage = _read(folder) if resumed else self._commit(name, folder, work)
        self.observer.stage_finished(name, dict(stage.facts), resumed=resumed)
        self.stages[name] = stage
        return stage

    def leave_nothing(self) -> None:
        """Remove what was begun if no stage is done: the job turned out to be one that cannot run."""
        if any((self.root / "stages").glob(f"*/{MANIFEST}")):
            return
        shutil.rmtree(self.root / "stages", ignore_errors=True)
        if not self._was_there:
            self.root.rmdir()

    def _commit(self, name: str, folder: Path, work: StageWork) -> Stage:
        partial = partial_of(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            return self._fill(name, folder, partial, work)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _fill(self, name: str, folder: Path, partial: Path, work: StageWork) -> Stage:
        started = time.monotonic()
        facts = _as_read(work(partial, functools.partial(self.observer.stage_progress, name)))
        seconds = round(time.monotonic() - started, 3)
        files = {}
        for path in sorted(path for path in partial.rglob("*") if path.is_file()):
            flush(path)
            files[path.relative_to(partial).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        manifest = {"stage": name, "seconds": seconds, "facts": facts, "files": files}
        write_whole(partial / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode())
        shutil.rmtree(folder, ignore_errors=True)  # without a manifest it is nothing that counts
        partial.rename(folder)
        flush(folder.parent)
        return Stage(folder, facts, seconds)


def _read(folder: Path) -> Stage:
    """A committed stage. Raises WorkdirError if a file is missing or has another size than its manifest says."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise WorkdirError(f"{path} is missing or damaged; delete the folder {folder} to do this stage again")
    return Stage(folder, manifest["facts"], manifest["seconds"])


def _refuse_other(root: Path, known: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    differing = sorted(key for key in known.keys() | identity.keys() if known.get(key) != identity.get(key))
    if differing:
        lines = [f"  {key}: {known.get(key)} there, {identity.get(key)} now" for key in differing]
        raise WorkdirError(
            "\n".join([f"{root} belongs to another run, which differs in", *lines, "Give another --output."])
        )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is either whole or not there."""
    partial = partial_of(path)
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def partial_of(path: Path) -> Path:
    """Where a file or folder is made before it gets its name."""
    return path.with_name(path.name + ".partial")


def _as_read(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON gives them back, so that a resumed run sees what the first one saw."""
    return dict(json.loads(json.dumps(values)))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """A file's bytes, or a folder's names, to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
