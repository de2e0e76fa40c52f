"""What a failure of the machine, rather than of the work, is called."""

import errno

from semievol.errors import DiskFull, OutOfMemory, SemiEvolError

_NO_ROOM = (
    "No space left on device",
    "Disk quota exceeded",
    "PytorchStreamWriter failed writing",
    "basic_ios::clear: iostream error",
    ". unexpected pos ",
)
"""In messages of safetensors, Arrow and torch, whose errors bear no errno; the last three are torch's when it saves."""


def fault_of(error: BaseException) -> SemiEvolError | None:
    """The fault that a library's error stands for: a full disk, a lack of memory; None for any other error."""
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    if full or any(sign in str(error) for sign in _NO_ROOM):
        return DiskFull("the disk is full; make room")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemory("loading", 1)
    return None
