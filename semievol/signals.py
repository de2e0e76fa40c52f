"""How a command ends when it is told to: exit codes, and SIGTERM as an exception."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGINT_EXIT, SIGTERM_EXIT = 130, 143


class Terminated(BaseException):
    """The process was asked to end (SIGTERM). No `Exception`, so that no library swallows it."""


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM unwinds the command as Ctrl-C does, so that temporary files go and the terminal is given back."""

    def terminate(signal_number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code_of(stop: BaseException) -> int:
    """The exit code of a command that was stopped by Ctrl-C or SIGTERM."""
    return SIGTERM_EXIT if isinstance(stop, Terminated) else SIGINT_EXIT
