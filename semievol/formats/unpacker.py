"""Unpacks one file under limits: `python -P unpacker.py ORDER`, started by `unpacking.py` and by nothing else.

Standard input is the file, standard output gets its text (the rows of Parquet as JSON lines), standard error one last
line of JSON: a code that is empty if all went well. What strangers packed may be made to exhaust memory, disk or time,
or to crash a library; it does that here, alone. Imports nothing of ours, so that it runs from any folder.
"""

import errno
import gzip
import json
import os
import resource
import select
import signal
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

COPY_BYTES = 64 * 1024
ZSTD_STEP_BYTES = 1024
"""A block of four bytes may hold 128 KiB: a step gives 32 MiB at most."""
ZSTD_WINDOW_BYTES = 128 * 1024**2
"""What `zstd` itself accepts without being told to use more memory."""
BATCH_ROWS = 64
BUFFER_BYTES = 1024 * 1024
ANSWERS = {"messages": None, "prompt": "completion", "instruction": "output", "question": "answer"}
"""The column that says what the rows are, and the one that holds their answers."""
EXTRAS = {"messages": [], "prompt": [], "instruction": ["input", "system"], "question": ["options"]}
"""Columns that may be there."""


class Fault(Exception):
    """Why the file cannot be read (on)."""

    def __init__(self, code: str, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.code, self.line = code, line


class Sink(Protocol):
    """Takes bytes."""

    def write(self, data: bytes, /) -> int:
        """All of them."""


class Counted:
    """Passes bytes on until there are too many. Writing raises Fault."""

    def __init__(self, sink: Sink, limit_bytes: int) -> None:
        self._sink, self._limit_bytes, self._bytes = sink, limit_bytes, 0

    def write(self, data: bytes, /) -> int:
        """See Sink."""
        self._bytes += len(data)
        if self._bytes > self._limit_bytes:
            message = (
                f"the file holds more than {self._limit_bytes:,} bytes when unpacked, which is too much for its size"
            )
            raise Fault("too_large_decompressed", f"{message}; give the rows in several files or not packed")
        return self._sink.write(data)


# --- gzip and Zstandard -----------------------------------------------------------------------------------------------


def gunzip(file: BinaryIO, sink: Sink) -> None:
    """Raises Fault."""
    if not _begins_with(file, b"\x1f\x8b"):
        raise Fault("not_gzip", "the name ends in .gz, but this is not gzip; rename the file or pack it with gzip")
    try:
        with gzip.open(file) as stream:
            while data := stream.read(COPY_BYTES):
                sink.write(data)
    except EOFError:
        raise _truncated("gzip") from None
    except (gzip.BadGzipFile, zlib.error):
        raise _damaged("gzip") from None


def unzstd(file: BinaryIO, sink: Sink) -> None:
    """Raises Fault."""
    if not _begins_with(file, b"\x28\xb5\x2f\xfd"):
        raise Fault(
            "not_zstd", "the name ends in .zst, but this is not Zstandard; rename the file or pack it with zstd"
        )
    import zstandard  # noqa: PLC0415

    unpacker, frame = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES), None
    try:
        while data := file.read(ZSTD_STEP_BYTES):
            while data:
                frame = frame or unpacker.decompressobj()
                sink.write(frame.decompress(data))
                data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as error:
        if "memory" in str(error):
            message = "the file is packed with a window of more than 128 MiB; pack it again without --long"
            raise Fault("window_too_large", message) from None
        raise _damaged("Zstandard") from None
    if frame is not None:
        raise _truncated("Zstandard")


def _begins_with(file: BinaryIO, magic: bytes) -> bool:
    start = file.read(len(magic))
    file.seek(0)
    return start == magic


def _truncated(what: str) -> Fault:
    return Fault("truncated", f"the {what} data ends too early: part of the file is missing; copy or write it again")


def _damaged(what: str) -> Fault:
    return Fault("damaged", f"the {what} data is damaged, or something else follows it; copy or write the file again")


# --- Parquet ----------------------------------------------------------------------------------------------------------


def parquet_rows(file: BinaryIO, sink: Sink, *, labeled: bool) -> None:
    """The columns that rows are made of, one JSON object a line. Raises Fault."""
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # the others reserve more than they use
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    _check_ends(file)
    try:
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES)
        columns = _columns(table.schema_arrow, labeled=labeled)
        first = 1
        for batch in table.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False):
            for record in _records(batch.select(list(columns)).rename_columns(list(columns.values())), first):
                sink.write(json.dumps(record, ensure_ascii=False, default=_unknown).encode() + b"\n")
            first += batch.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names in the schema that are not UTF-8
        if isinstance(error, MemoryError | BrokenPipeError):
            raise
        raise _damaged("Parquet") from None


def _check_ends(file: BinaryIO) -> None:
    if not _begins_with(file, b"PAR1"):
        raise Fault("not_parquet", "this is not Parquet; rename the file or write it as Parquet")
    file.seek(-4, os.SEEK_END)
    if file.read(4) != b"PAR1":
        raise _truncated("Parquet")
    file.seek(0)


def _columns(schema: Any, *, labeled: bool) -> dict[str, str]:
    """Columns to read: their names in the file, and ours. Raises Fault."""
    names = [name.strip().lower() for name in schema.names]
    if len({*names}) != len(names):
        raise Fault("duplicate_column", "the table has two columns of the same name; rename or remove one")
    form = next((key for key in ANSWERS if key in names), None)
    if form is None:
        message = "the table has none of the columns messages, prompt, instruction and question"
        raise Fault("missing_column", f"{message}; rename the one that holds the question")
    answer = ANSWERS[form] if labeled else None
    if answer and answer not in names:
        raise Fault("missing_column", f"the table has the column {form} but not {answer}; labeled rows need both")
    found = {
        name: ours for name, ours in zip(schema.names, names, strict=True) if ours in {form, answer, *EXTRAS[form]}
    }
    for name, ours in found.items():
        _check_type(ours, schema.field(name).type)
    return found


def _check_type(name: str, kind: Any) -> None:
    """Raises Fault if the column cannot hold what its name says."""
    if name == "messages":
        fits, needed = _is_list(kind) and str(kind.value_type).startswith("struct"), "a list of structs (role, content)"
    elif name == "options":
        fits, needed = (
            _is_text(kind) or (_is_list(kind) and _is_text(kind.value_type)),
            "a list of strings, or its JSON",
        )
    else:
        fits, needed = _is_text(kind), "a string"
    if not fits:
        raise Fault("wrong_type", f"the column {name} is of another type; each of its values is {needed}")


def _is_text(kind: Any) -> bool:
    from pyarrow import types  # noqa: PLC0415

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(fits(kind) for fits in (types.is_string, types.is_large_string, types.is_string_view, types.is_null))


def _is_list(kind: Any) -> bool:
    from pyarrow import types  # noqa: PLC0415

    return any(fits(kind) for fits in (types.is_list, types.is_large_list, types.is_fixed_size_list))


def _records(batch: Any, first: int) -> Iterator[dict[str, Any]]:
    for index in range(batch.num_rows):
        try:
            yield batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError:
            raise Fault("not_utf8", "a text in this row is not UTF-8; write the file again", first + index) from None


def _unknown(value: object) -> None:
    """In place of what JSON cannot say: the reader then tells that text is missing there."""


# --- the process ------------------------------------------------------------------------------------------------------


def unpack(file: BinaryIO, output: Sink, order: dict[str, Any]) -> None:
    """Do what is ordered. Raises Fault."""
    sink = Counted(output, order["limit_bytes"])
    if order["form"] != "parquet":
        (gunzip if order["packing"] == "gz" else unzstd)(file, sink)
        return
    if not order["packing"]:
        parquet_rows(file, sink, labeled=order["labeled"])
        return
    with tempfile.TemporaryFile() as plain:  # has no name: it is gone with this process, however that ends
        (gunzip if order["packing"] == "gz" else unzstd)(file, Counted(plain, order["limit_bytes"]))
        plain.seek(0)
        parquet_rows(plain, sink, labeled=order["labeled"])


def limit(memory_bytes: int, cpu_seconds: int) -> None:
    """Of this process. A crash leaves no core file."""
    wanted = {resource.RLIMIT_CPU: cpu_seconds, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":  # elsewhere address space is not counted, or not so
        wanted[resource.RLIMIT_AS] = memory_bytes
    for what, most in wanted.items():
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def end_with_reader() -> None:
    """The pipe has an error once nobody reads it any more: however busy this process is, it ends then."""
    pipe = select.poll()
    pipe.register(1, 0)

    def watch() -> None:
        pipe.poll()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(order: dict[str, Any]) -> None:
    """Unpack, and say how it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the reader, with which this ends
    limit(order["memory_bytes"], order["cpu_seconds"])
    end_with_reader()
    verdict, code, message, line = os.dup(2), "", "", 0
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries print is no verdict
    # Both pipes stay open to the end: a closed output would look like a reader that is gone.
    output = open(1, "wb", buffering=COPY_BYTES, closefd=False)  # noqa: SIM115
    try:
        with open(0, "rb") as file:
            unpack(file, output, order)
        output.flush()
    except Fault as fault:
        code, message, line = fault.code, str(fault), fault.line
    except MemoryError:
        code, message = "too_large_decompressed", f"the file needs more than {order['memory_bytes']:,} bytes of memory"
        message += "; write it with smaller rows, pages and row groups, or as JSON lines"
    except ImportError:
        raise  # no fault of the file
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        code, message = "no_room", "the disk has no room to unpack it into a temporary file (TMPDIR); make some"
    except Exception:  # noqa: BLE001  -- the outermost frame; libraries fail in many ways on what strangers made
        code, message = "damaged", "the file is damaged in a way that its library does not know; write it again"
    os.write(verdict, b"\n" + json.dumps({"code": code, "message": message, "line": line}).encode())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
