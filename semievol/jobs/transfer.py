"""Files to the service and back: uploads in parts where they are large, downloads that go on where they stopped."""

import hashlib
import io
import os
import re
import shutil
import stat
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from semievol.client import TRIES, Client, Refused, ServiceError, Unreachable
from semievol.errors import DataError, Problem

LARGE_BYTES = 64 * 1024**2
PART_BYTES = 32 * 1024**2
CHUNK_BYTES = 1024**2
MAX_UNPACKED_SHARE, ROOM_BYTES = 20, 256 * 1024**2
"""An archive that unpacks to more than so many times its size, and this room besides, is not what it says."""
_SHA256 = re.compile(r"[0-9a-f]{64}")

Advance = Callable[[int], None]
"""Told how many bytes more have passed."""


class Slice(io.RawIOBase):
    """A part of a file, read as a file of its own, telling how much was read."""

    def __init__(self, path: Path, start: int, length: int, advance: Advance) -> None:
        self.file = path.open("rb")
        self.start, self.length, self.advance = start, length, advance
        self.reached = 0
        self.file.seek(start)

    def read(self, size: int = -1) -> bytes:
        """See `io.RawIOBase`."""
        room = self.length - self.file.tell() + self.start
        data = self.file.read(room if size < 0 else min(size, room))
        passed = self.tell()
        if passed > self.reached:  # reading again after a failure is no progress
            self.advance(passed - self.reached)
            self.reached = passed
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.RawIOBase`."""
        base = {os.SEEK_SET: self.start, os.SEEK_CUR: self.file.tell(), os.SEEK_END: self.start + self.length}[whence]
        return self.file.seek(base + offset) - self.start

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self.file.tell() - self.start

    def seekable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def close(self) -> None:
        """See `io.RawIOBase`."""
        self.file.close()
        super().close()


# --- up ---------------------------------------------------------------------------------------------------------------


def check_readable(paths: Iterable[Path]) -> None:
    """Raises DataError for the first path that is no file."""
    for path in paths:
        if not path.is_file():
            what = "this is a folder; give one file" if path.is_dir() else "there is no such file"
            raise DataError(str(path), [Problem(0, "no_such_file", what)])


def upload(client: Client, path: Path, advance: Advance) -> str:
    """Send a file; returns its id. Raises ServiceError."""
    size = path.stat().st_size
    if size >= LARGE_BYTES:
        return _upload_in_parts(client, path, size, advance)
    with Slice(path, 0, size, advance) as content:
        sent = client.post("/files", data={"purpose": "fine-tune"}, files={"file": (path.name, content)})
    return str(sent["id"])


def _upload_in_parts(client: Client, path: Path, size: int, advance: Advance) -> str:
    facts = {"filename": path.name, "purpose": "fine-tune", "bytes": size, "mime_type": "application/octet-stream"}
    upload_id = client.post("/uploads", facts)["id"]
    try:
        parts = [
            _send_part(client, upload_id, path, start, min(PART_BYTES, size - start), advance)
            for start in range(0, size, PART_BYTES)
        ]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        done = client.post(f"/uploads/{upload_id}/complete", {"part_ids": parts, "md5": digest})
    except BaseException:  # Ctrl-C, too: the server need not keep the parts
        _give_up(client, upload_id)
        raise
    return str(done["file"]["id"])


def _send_part(client: Client, upload_id: str, path: Path, start: int, length: int, advance: Advance) -> str:
    with Slice(path, start, length, advance) as content:
        for attempt in range(1, TRIES + 1):
            try:
                sent = client.post(f"/uploads/{upload_id}/parts", files={"data": (path.name, content)})
                return str(sent["id"])
            except Unreachable:
                if attempt == TRIES:
                    raise
                time.sleep(attempt)
    raise AssertionError("the last try returns or raises")


def _give_up(client: Client, upload_id: str) -> None:
    try:
        client.post(f"/uploads/{upload_id}/cancel")
    except ServiceError:
        return  # it expires by itself


# --- down -------------------------------------------------------------------------------------------------------------


def save(client: Client, path: str, target: Path, headers: Mapping[str, str] | None = None, **params: Any) -> int:
    """Write an answer to a file that appears whole or not at all; returns its bytes. Raises ServiceError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    try:
        with client.stream(path, headers, **params) as response, partial.open("wb") as file:
            for chunk in response.iter_bytes(CHUNK_BYTES):
                file.write(chunk)
            size = file.tell()
        partial.replace(target)
        return size
    finally:
        partial.unlink(missing_ok=True)


def download(client: Client, path: str, target: Path, advance: Callable[[int, int], None]) -> None:
    """Fetch a file that never changes and check its SHA-256. A later call goes on where this one stopped.

    `advance` is told bytes done and in all. Raises ServiceError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, tag = target.with_name(f"{target.name}.partial"), target.with_name(f"{target.name}.etag")
    for attempt in range(1, TRIES + 3):
        try:
            expected = _fetch(client, path, partial, tag, advance)
            break
        except Unreachable:
            if attempt == TRIES + 2:
                raise
            time.sleep(attempt)
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    tag.unlink(missing_ok=True)
    if found != expected:
        partial.unlink()
        raise Unreachable(f"{target.name} arrived damaged: its SHA-256 is {found}, not {expected}; try again")
    partial.replace(target)


def _fetch(client: Client, path: str, partial: Path, tag: Path, advance: Callable[[int, int], None]) -> str:
    """Append what is missing to `partial`; returns the SHA-256 that the whole must have."""
    have = partial.stat().st_size if partial.exists() and tag.exists() else 0
    headers = {"Range": f"bytes={have}-", "If-Range": tag.read_text(encoding="ascii")} if have else {}
    try:
        with client.stream(path, headers | {"Accept-Encoding": "identity"}) as response:
            etag, expected = _etag(response)
            tag.write_text(etag, encoding="ascii")
            goes_on = response.status_code == httpx.codes.PARTIAL_CONTENT
            have = have if goes_on else 0
            total = have + int(response.headers.get("content-length", 0))
            with partial.open("ab" if goes_on else "wb") as file:
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    file.write(chunk)
                    advance(file.tell(), total)
    except Refused as error:
        if (
            error.status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and have
        ):  # all there already, or too much: begin again
            partial.unlink()
            return _fetch(client, path, partial, tag, advance)
        raise
    return expected


def _etag(response: httpx.Response) -> tuple[str, str]:
    """The ETag and the SHA-256 in it; a redirect's own answer counts before the store's."""
    for answer in (*response.history, response):
        etag = answer.headers.get("etag", "")
        if found := _SHA256.search(etag):
            return etag, found[0]
    raise Unreachable("the server names no SHA-256 for this file, so it cannot be checked")


# --- archives ---------------------------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path) -> None:
    """Unpack into `folder`, which appears whole or not at all. Raises Refused for an archive that is not plain."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as content:
            _check_plain(content, archive)
            content.extractall(partial)
    except zipfile.BadZipFile as error:
        raise Refused(f"{archive} is no whole archive: {error}") from None
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _check_plain(content: zipfile.ZipFile, archive: Path) -> None:
    entries = content.infolist()
    for entry in entries:
        name, kind = PurePosixPath(entry.filename), stat.S_IFMT(entry.external_attr >> 16)
        outside = name.is_absolute() or ".." in name.parts or "\\" in entry.filename or ":" in entry.filename
        if outside or kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
            raise Refused(f"{archive} holds {entry.filename!r}, which is no plain file within it; nothing was unpacked")
    if sum(entry.file_size for entry in entries) > MAX_UNPACKED_SHARE * archive.stat().st_size + ROOM_BYTES:
        raise Refused(f"{archive} would unpack to far more than its size; nothing was unpacked")
