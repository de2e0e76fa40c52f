"""Packed files and Parquet are opened by another process, which may use so much memory, time and output and no more.

It is the program `unpacker.py`. It gets the open file as its standard input, writes plain text to a pipe, and ends with
its reader, whatever happens to that.
"""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from semievol.formats.naming import Format
from semievol.formats.problems import FileFault

GIB = 1024**3
MAX_MEMORY_BYTES = 1 * GIB
MAX_CPU_SECONDS = 600
MAX_UNPACKED_BYTES = 16 * GIB
MAX_UNPACKED_RATIO = 100
"""Text packs ten times smaller, seldom thirty times. More would let a small upload make much work."""
UNSUSPICIOUS_BYTES = 32 * 1024**2
"""What any file may hold, however well it is packed."""
UNPACKER = Path(__file__).with_name("unpacker.py")
_BUFFER_BYTES = 256 * 1024
# One thread each: on machines of many cores the threads' stacks and heaps alone would exceed the memory limit.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


def unpacked_limit_bytes(size_bytes: int) -> int:
    """How much text a file of this size may hold."""
    return min(MAX_UNPACKED_BYTES, max(UNSUSPICIOUS_BYTES, MAX_UNPACKED_RATIO * size_bytes))


@contextmanager
def unpacked(file: BinaryIO, how: Format, *, labeled: bool) -> Iterator[io.BufferedReader]:
    """The text of a packed file, or the rows of a Parquet file as JSON lines. Reading it raises FileFault."""
    os.lseek(file.fileno(), 0, os.SEEK_SET)  # beneath the buffer: the other process shares the position
    order = {
        "form": how.form,
        "packing": how.packing,
        "labeled": labeled,
        "limit_bytes": unpacked_limit_bytes(os.fstat(file.fileno()).st_size),
        "memory_bytes": MAX_MEMORY_BYTES,
        "cpu_seconds": MAX_CPU_SECONDS,
    }
    command = [sys.executable, "-P", str(UNPACKER), json.dumps(order)]
    with subprocess.Popen(
        command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=os.environ | _ONE_THREAD
    ) as process:
        try:
            yield io.BufferedReader(_Text(process), _BUFFER_BYTES)
        finally:
            process.kill()


class _Text(io.RawIOBase):
    """What the process writes. Its end is an end only if the process says so."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process, self._pipe, self._verdict_pipe = process, process.stdout, process.stderr
        self._said = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See RawIOBase. Raises FileFault at the end of a file that could not be read to its end."""
        count: int = cast(Any, self._pipe).readinto(buffer)
        if not count:
            self._said += self._verdict_pipe.read()
            _check(self._said, self._process)
        return count


def _check(said: bytes, process: subprocess.Popen[bytes]) -> None:
    """Raises FileFault unless the process's last line says that all went well.

    Its exit status is no proof: somebody else in this process may have collected it.
    """
    try:
        verdict = json.loads(said.rpartition(b"\n")[2])
    except ValueError:
        raise _died(process.wait()) from None
    if verdict["code"]:
        raise FileFault(verdict["code"], verdict["message"], verdict["line"])


def _died(status: int) -> FileFault:
    if status == -signal.SIGXCPU:
        message = (
            f"unpacking it took more than {MAX_CPU_SECONDS} seconds of a processor; give the rows in several files"
        )
        return FileFault("too_slow", message)
    how = f"signal {-status}" if status < 0 else f"status {status}"
    message = (
        f"the process that unpacks it ended early ({how}): the file is damaged, or needs more than "
        f"{MAX_MEMORY_BYTES // GIB} GiB of memory; write it again, with smaller rows or as JSON lines"
    )
    return FileFault("damaged", message)
