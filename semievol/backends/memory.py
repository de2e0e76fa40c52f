"""Tells a lack of memory, on any device, from other errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from semievol.errors import OutOfMemory, Phase

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In messages of torch's RuntimeErrors. Its OutOfMemoryError is one, for accelerators only."""


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether this is torch's or Python's way to say that memory is gone."""
    if isinstance(error, RuntimeError):
        return any(sign in str(error) for sign in _SIGNS)
    return isinstance(error, MemoryError)


@contextmanager
def memory_told(phase: Phase, rows: int) -> Iterator[None]:
    """Raises OutOfMemory for a lack of memory inside. `rows`: how many were in memory at once; half as many may fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        raise OutOfMemory(phase, rows) from error
