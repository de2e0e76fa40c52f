"""Memory of models: told from other errors where it lacks, and given back where nobody uses it."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from semievol.errors import OutOfMemory, Phase

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In messages of torch's RuntimeErrors. Its OutOfMemoryError is one, for accelerators only."""


def give_back() -> None:
    """Free what nobody uses any more, before the next model is loaded.

    A training that keeps checkpoints leaves its model in a cycle of references, which only the collector takes apart.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether this is torch's or Python's way to say that memory is gone."""
    if isinstance(error, RuntimeError):
        return any(sign in str(error) for sign in _SIGNS)
    return isinstance(error, MemoryError)


@contextmanager
def memory_told(phase: Phase, rows: Callable[[], int]) -> Iterator[None]:
    """Raises OutOfMemory for a lack of memory inside. `rows`: how many were in memory at once; half as many may fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        raise OutOfMemory(phase, rows()) from error
