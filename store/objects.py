"""Bulk data by content: an object is named by the SHA-256 of its bytes, so it is written once and never changes.

`LocalObjects` keeps a folder, `S3Objects` a bucket of any S3-compatible server.
"""

import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

if TYPE_CHECKING:
    from store.settings import Settings

CHUNK_BYTES = 1024 * 1024
EMPTY = hashlib.sha256(b"").hexdigest()


class ObjectMissing(Exception):
    """An object that a row names is not in the store."""


class ObjectStore(Protocol):
    """Where objects are."""

    def put(self, path: Path, sha256: str) -> None:
        """Store the file under its digest; afterwards `path` may be gone. Nothing happens if it is there already."""
        ...

    def fetch(self, sha256: str, path: Path) -> None:
        """Write the object to `path`, whole or not at all. Raises ObjectMissing."""
        ...

    def read(self, sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes from `start`, in chunks. Raises ObjectMissing, before the first chunk."""
        ...

    def exists(self, sha256: str) -> bool:
        """Whether the object is there."""
        ...

    def delete(self, sha256: str) -> None:
        """Remove the object; nothing happens if it is not there."""
        ...

    def names(self) -> Iterator[tuple[str, float]]:
        """Digest and time of writing (seconds since 1970) of every object."""
        ...

    def presigned(self, sha256: str, filename: str) -> str | None:
        """An address to fetch the object from for a few minutes; None where there is no such thing."""
        ...

    def check(self) -> None:
        """Raises OSError, with what to do, if objects cannot be written."""
        ...

    def free_bytes(self) -> int | None:
        """Room left; None where that is not known."""
        ...


class LocalObjects:
    """Objects in a folder: `ab/abcdef…`. Whole files appear by rename after fsync."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Where the object is."""
        return self.root / sha256[:2] / sha256

    def put(self, path: Path, sha256: str) -> None:
        """See `ObjectStore`. Moves the file where it can."""
        target = self.path(sha256)
        if target.exists():
            os.utime(target)  # young again, so that no sweep takes it before its row is there
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _flush(path)
            path.rename(target)
        except OSError:
            _copy_whole(path, target)
        _flush(target.parent)

    def fetch(self, sha256: str, path: Path) -> None:
        """See `ObjectStore`."""
        if not self.exists(sha256):
            raise ObjectMissing(sha256)
        _copy_whole(self.path(sha256), path)

    def read(self, sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """See `ObjectStore`."""
        try:
            file = self.path(sha256).open("rb")
        except FileNotFoundError:
            raise ObjectMissing(sha256) from None
        return _chunks(file, start, length)

    def exists(self, sha256: str) -> bool:
        """See `ObjectStore`."""
        return self.path(sha256).is_file()

    def delete(self, sha256: str) -> None:
        """See `ObjectStore`."""
        self.path(sha256).unlink(missing_ok=True)

    def names(self) -> Iterator[tuple[str, float]]:
        """See `ObjectStore`."""
        for path in self.root.glob("??/*"):
            if len(path.name) == len(EMPTY):
                yield path.name, path.stat().st_mtime

    def presigned(self, sha256: str, filename: str) -> str | None:
        """A folder has no addresses."""
        return None

    def check(self) -> None:
        """See `ObjectStore`."""
        self.root.mkdir(parents=True, exist_ok=True)
        probe = self.root / f".probe-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()

    def free_bytes(self) -> int | None:
        """See `ObjectStore`."""
        return shutil.disk_usage(self.root).free


class S3Objects:
    """Objects in a bucket, under a prefix. Large ones go up and down in parts, in bounded memory."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self.client, self.bucket, self.prefix = client, bucket, prefix

    def _key(self, sha256: str) -> str:
        return f"{self.prefix}{sha256}"

    def put(self, path: Path, sha256: str) -> None:
        """See `ObjectStore`."""
        if not self.exists(sha256):
            self.client.upload_file(str(path), self.bucket, self._key(sha256))

    def fetch(self, sha256: str, path: Path) -> None:
        """See `ObjectStore`."""
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        try:
            self.client.download_file(self.bucket, self._key(sha256), str(partial))
        except self.client.exceptions.ClientError as error:
            raise _missing(error, sha256) from error
        partial.replace(path)

    def read(self, sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """See `ObjectStore`."""
        if length == 0:
            return iter(())
        end = "" if length is None else str(start + length - 1)
        options = {"Range": f"bytes={start}-{end}"} if start or length is not None else {}
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=self._key(sha256), **options)
        except self.client.exceptions.ClientError as error:
            raise _missing(error, sha256) from error
        chunks: Iterator[bytes] = answer["Body"].iter_chunks(CHUNK_BYTES)
        return chunks

    def exists(self, sha256: str) -> bool:
        """See `ObjectStore`."""
        try:
            self.client.head_object(Bucket=self.bucket, Key=self._key(sha256))
        except self.client.exceptions.ClientError as error:
            if isinstance(_missing(error, sha256), ObjectMissing):
                return False
            raise
        return True

    def delete(self, sha256: str) -> None:
        """See `ObjectStore`."""
        self.client.delete_object(Bucket=self.bucket, Key=self._key(sha256))

    def names(self) -> Iterator[tuple[str, float]]:
        """See `ObjectStore`."""
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix):
            for entry in page.get("Contents", []):
                yield entry["Key"].removeprefix(self.prefix), entry["LastModified"].timestamp()

    def presigned(self, sha256: str, filename: str) -> str | None:
        """See `ObjectStore`."""
        parameters = {
            "Bucket": self.bucket,
            "Key": self._key(sha256),
            "ResponseContentDisposition": f'attachment; filename="{filename}"',
        }
        address: str = self.client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=300)
        return address

    def check(self) -> None:
        """See `ObjectStore`."""
        try:
            self.client.head_bucket(Bucket=self.bucket)
        except Exception as error:
            raise OSError(f"the bucket {self.bucket} cannot be used: {error}") from error

    def free_bytes(self) -> int | None:
        """Not known."""
        return None


def open_objects(settings: "Settings") -> ObjectStore:
    """The store that the settings name."""
    if not settings.objects.startswith("s3://"):
        return LocalObjects(Path(settings.objects))
    import boto3  # noqa: PLC0415  -- slow to import, and only needed here

    bucket, _, prefix = settings.objects.removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=settings.s3_endpoint)
    return S3Objects(client, bucket, f"{prefix.rstrip('/')}/" if prefix else "")


class _ObjectBytes(io.RawIOBase):
    """An object as a file that can be read anywhere; each read asks the store for that range."""

    def __init__(self, objects: ObjectStore, sha256: str, size: int) -> None:
        self._objects, self._sha256, self._size, self._place = objects, sha256, size, 0

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.RawIOBase`."""
        self._place = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence] + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`. Raises ObjectMissing."""
        wanted = max(0, min(len(buffer), self._size - self._place))
        filled = 0
        for chunk in self._objects.read(self._sha256, self._place, wanted) if wanted else ():
            buffer[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        self._place += filled
        return filled


def open_object(objects: ObjectStore, sha256: str, size: int) -> BinaryIO:
    """An object of that size to read from anywhere, a chunk at a time. Close it. Reads raise ObjectMissing."""
    return io.BufferedReader(_ObjectBytes(objects, sha256, size), CHUNK_BYTES)


def _missing(error: Any, sha256: str) -> Exception:
    code = error.response.get("Error", {}).get("Code")
    return ObjectMissing(sha256) if code in {"404", "NoSuchKey", "NotFound"} else error


def _chunks(file: BinaryIO, start: int, length: int | None) -> Iterator[bytes]:
    with file:
        file.seek(start)
        left = length
        while left is None or left > 0:
            chunk = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
            if not chunk:
                return
            left = None if left is None else left - len(chunk)
            yield chunk


def _copy_whole(source: Path, target: Path) -> None:
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    try:
        shutil.copyfile(source, partial)
        _flush(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
