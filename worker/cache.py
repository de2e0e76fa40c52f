"""Files that stages hand each other: fetched once from the object store, linked into the folders that read them."""

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semievol.workdir import sha256_of
from store.objects import LocalObjects, ObjectStore


class Cache:
    """Copies of objects on this machine, by digest. An object folder on the same disk needs none."""

    def __init__(self, objects: ObjectStore, folder: Path, limit_bytes: int) -> None:
        self.objects, self.folder, self.limit_bytes = objects, folder, limit_bytes

    def place(self, sha256: str, target: Path) -> None:
        """Put the object at `target`, which only readers may touch. Raises ObjectMissing."""
        target.parent.mkdir(parents=True, exist_ok=True)
        source = self._kept(sha256)
        try:
            os.link(source, target)
        except OSError:  # another disk
            shutil.copyfile(source, target)

    def place_all(self, files: Mapping[str, Any], folder: Path) -> None:
        """Put every file of a manifest into the folder."""
        for name, entry in files.items():
            self.place(entry["sha256"], folder / name)

    def _kept(self, sha256: str) -> Path:
        if isinstance(self.objects, LocalObjects) and self.objects.exists(sha256):
            return self.objects.path(sha256)
        kept = self.folder / sha256[:2] / sha256
        if kept.exists():
            os.utime(kept)
        else:
            kept.parent.mkdir(parents=True, exist_ok=True)
            self.objects.fetch(sha256, kept)
            self._make_room(kept)
        return kept

    def _make_room(self, newest: Path) -> None:
        """Drop what was not asked for the longest; links in use keep their bytes."""
        kept = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self.folder.glob("??/*"))
        total = sum(size for _, size, _ in kept)
        for _, size, path in kept:
            if total <= self.limit_bytes or path == newest:
                break
            path.unlink(missing_ok=True)
            total -= size


def store_folder(folder: Path, objects: ObjectStore) -> dict[str, dict[str, Any]]:
    """Put every file of a folder into the store: {path: {"bytes", "sha256"}}. The folder is empty of them afterwards.

    The bytes are safe when this returns, so a row may name them.
    """
    manifest = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, size, digest = path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of(path)
        copy = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        os.link(path, copy)  # the stage's own folder keeps its file; the store may take the other
        objects.put(copy, digest)
        copy.unlink(missing_ok=True)
        manifest[name] = {"bytes": size, "sha256": digest}
    return manifest
