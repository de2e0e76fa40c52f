"""Bytes coming in: a multipart body as a stream into a staging file, counted and hashed, never held in memory.

Then what the bytes are: training files are read once, and their problems are told by line.
"""

import asyncio
import hashlib
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import anyio.to_thread
from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.errors import BadRequest, TooLarge, Unavailable
from semievol.errors import DataError
from semievol.examples import check_file
from semievol.formats.naming import HEAD_BYTES, guessed_format

WRITE_BYTES = 1024 * 1024
"""How much is gathered before it is hashed and written, in a thread."""
MAX_FIELD_BYTES = 4096
MAX_PARTS = 32
MAX_HEADER_BYTES = 16 * 1024
FORM_OVERHEAD_BYTES = 256 * 1024
"""What a form may have beside its file: boundaries, headers, fields."""
FILENAME_BYTES = 255
_SURROGATE = re.compile("[\ud800-\udfff]")


# --- staging ----------------------------------------------------------------------------------------------------------


class Staging:
    """A file that nobody sees yet. Counts and hashes what is written to it."""

    def __init__(self, path: Path, *, with_md5: bool = False) -> None:
        self.path = path
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if with_md5 else None
        self._file: BinaryIO = path.open("wb", buffering=0)

    def write(self, data: bytes | bytearray) -> None:
        """Append."""
        self._sha256.update(data)
        if self._md5 is not None:
            self._md5.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self.size += len(data)

    def close(self) -> None:
        """Close, as it is."""
        self._file.close()

    def flush(self) -> None:
        """To the disk itself."""
        os.fsync(self._file.fileno())

    @property
    def sha256(self) -> str:
        """Of what was written."""
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        """Of what was written."""
        assert self._md5 is not None
        return self._md5.hexdigest()


@contextmanager
def staging(data: Path, *, with_md5: bool = False) -> Iterator[Staging]:
    """A new staging file that is gone on leaving, unless it was moved."""
    folder = data / "staging"
    folder.mkdir(parents=True, exist_ok=True)
    opened = Staging(folder / f"{secrets.token_hex(16)}.partial", with_md5=with_md5)
    try:
        yield opened
    finally:
        opened.close()
        opened.path.unlink(missing_ok=True)


def check_room(data: Path, wanted_bytes: int) -> None:
    """Raises Unavailable (`disk_full`) if the disk of the staging folder has no room for so many bytes."""
    if shutil.disk_usage(data).free < wanted_bytes:
        raise Unavailable(f"the service's disk has no room for {wanted_bytes:,} bytes", code="disk_full")


# --- multipart --------------------------------------------------------------------------------------------------------


@dataclass
class Form:
    """A form that was received: its fields, and the client's name of its file."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


@dataclass
class _Part:
    name: str = ""
    filename: str | None = None
    is_file: bool = False
    text: bytearray = field(default_factory=bytearray)


class FormReader:
    """Puts a multipart body apart as it comes: the one file into `pending`, the few fields into `form`."""

    def __init__(self, boundary: bytes, file_field: str, limit_bytes: int) -> None:
        self.form, self.file_field, self.limit_bytes = Form(), file_field, limit_bytes
        self.pending = bytearray()
        self.complete = self.seen_file = False
        self._received = self._parts = 0
        self._part = _Part()
        self._header_name, self._header_value, self._header_bytes = bytearray(), bytearray(), 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header_name,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    @classmethod
    def of(cls, request: Request, file_field: str, limit_bytes: int) -> Self:
        """For the body of the request. Raises BadRequest if it is no form."""
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            message = "send multipart/form-data with a boundary, as HTML forms and the openai client do"
            raise BadRequest(message, code="invalid_form")
        return cls(boundary, file_field, limit_bytes)

    def feed(self, data: bytes) -> None:
        """The next bytes of the body. Raises BadRequest and TooLarge."""
        try:
            self._parser.write(data)
        except MultipartParseError:
            raise _broken("it does not keep to its boundary") from None

    def take(self) -> bytearray:
        """What of the file came since the last time."""
        taken, self.pending = self.pending, bytearray()
        return taken

    def finish(self) -> Form:
        """After the last byte. Raises BadRequest if the form ends early or lacks its file."""
        if not self.complete:
            raise _broken("it ends early")
        if not self.seen_file:
            raise BadRequest(
                f"{self.file_field}: is required, as a file of the form", code="missing_file", param=self.file_field
            )
        return self.form

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _broken(f"it has more than {MAX_PARTS} parts")
        self._part, self._header_bytes = _Part(), 0

    def _count_header(self, length: int) -> None:
        self._header_bytes += length
        if self._header_bytes > MAX_HEADER_BYTES:
            raise _broken("a part's headers are too long")

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if bytes(self._header_name).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._header_value))
            self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
            name = options.get(b"filename")
            self._part.filename = name.decode("utf-8", "replace") if name is not None else None
        self._header_name, self._header_value = bytearray(), bytearray()

    def _on_headers(self) -> None:
        self._part.is_file = self._part.name == self.file_field
        if self._part.is_file:
            if self.seen_file:
                raise BadRequest("send one file a request", code="invalid_form", param=self.file_field)
            self.seen_file, self.form.filename = True, self._part.filename

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if not self._part.is_file:
            self._part.text += data[start:end]
            if len(self._part.text) > MAX_FIELD_BYTES:
                raise _broken(f"a field is longer than {MAX_FIELD_BYTES:,} bytes")
            return
        self._received += end - start
        if self._received > self.limit_bytes:
            raise too_large(self.limit_bytes, self.file_field)
        self.pending += memoryview(data)[start:end]

    def _end(self) -> None:
        if self._part.is_file:
            return
        text = bytes(self._part.text).decode("utf-8", "replace")
        if self._part.name in self.form.fields:
            raise BadRequest("send each field once", code="invalid_form", param=self._part.name[:64])
        self.form.fields[self._part.name] = text

    def _finish(self) -> None:
        self.complete = True


async def receive(request: Request, into: Staging, *, file_field: str, limit_bytes: int) -> Form:
    """Stream the form's file into the staging file, to the disk. Memory does not grow with the file.

    Raises BadRequest, TooLarge, Unavailable and, when the client leaves, ClientDisconnect.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal():
        if int(length) > limit_bytes + FORM_OVERHEAD_BYTES:
            raise too_large(limit_bytes, file_field)
        check_room(into.path.parent, int(length))
    reader, writer = FormReader.of(request, file_field, limit_bytes), _Writer(into)
    try:
        async for chunk in request.stream():
            reader.feed(chunk)
            if len(reader.pending) >= WRITE_BYTES:
                await writer.write(reader.take())
        form = reader.finish()
        await writer.write(reader.take())
    finally:
        await writer.settle()
    await anyio.to_thread.run_sync(into.flush)
    return form


class _Writer:
    """Hashes and writes in a thread while the next bytes come: one block is written and one is gathered, not more."""

    def __init__(self, into: Staging) -> None:
        self._into = into
        self._writing: asyncio.Task[None] | None = None

    async def write(self, data: bytearray) -> None:
        """Begin to write, after what came before."""
        await self.settle()
        self._writing = asyncio.create_task(asyncio.to_thread(self._into.write, data))

    async def settle(self) -> None:
        """Wait for the write that goes on."""
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing


def too_large(limit_bytes: int, param: str = "file") -> TooLarge:
    """The file is larger than allowed."""
    return TooLarge(f"{param}: is larger than {limit_bytes:,} bytes", code="file_too_large", param=param)


def _broken(why: str) -> BadRequest:
    return BadRequest(f"the form cannot be read: {why}", code="invalid_form")


# --- what the bytes are -----------------------------------------------------------------------------------------------


def display_name(given: str | None) -> str:
    """A client's file name, for display only: no folders, no control characters, at most 255 bytes."""
    base = (given or "").replace("\\", "/").rpartition("/")[2]
    kept = "".join(char for char in base if unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Zl", "Zp"})
    shortened = kept.strip()
    while len(shortened.encode()) > FILENAME_BYTES:
        shortened = shortened[:-1]
    return shortened if shortened not in {"", ".", ".."} else "file"


@dataclass(frozen=True, slots=True)
class Checked:
    """What a file's check found."""

    status: str
    details: str | None
    facts: dict[str, Any] | None


def check(path: Path, filename: str, purpose: str) -> Checked:
    """What the staged bytes are. A training file with problems gets the status `error` and its problems by line."""
    if purpose != "fine-tune":
        return Checked("processed", None, None)
    with path.open("rb") as file:
        how = guessed_format(filename, file.read(HEAD_BYTES))
    named = path.with_name(f"{path.name}{how.ending}")  # the readers go by the ending
    os.link(path, named)
    try:
        found = check_file(named)
    except DataError as error:
        told = DataError(filename, error.problems, error.total)
        problems = [asdict(problem) for problem in error.problems]
        return Checked("error", str(told), {"problems": problems, "total": error.total})
    finally:
        named.unlink()
    return Checked("processed", None, asdict(found))
