"""How a command ends when it is told to: Ctrl-C and SIGTERM as exceptions, at once or at the next safe point."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGINT_EXIT, SIGTERM_EXIT = 130, 143


class Terminated(BaseException):
    """The process was asked to end (SIGTERM). No `Exception`, so that no library swallows it."""


_RAISED: dict[int, type[BaseException]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


class Stop:
    """A wish to stop is an exception where it finds us. While `deferred`, the first one is only noted in `asked`."""

    def __init__(self) -> None:
        self.asked: type[BaseException] | None = None
        self.deferred = False

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler. Who asks twice means at once."""
        again, self.asked = self.asked is not None, _RAISED[number]
        if again or not self.deferred:
            raise self.asked

    def check(self) -> None:
        """Stop here if that was asked for."""
        if self.asked is not None:
            raise self.asked


@contextmanager
def stoppable() -> Iterator[Stop]:
    """SIGTERM unwinds the command as Ctrl-C does, so that temporary files go and the terminal is given back."""
    stop = Stop()
    before = {number: signal.signal(number, stop.hear) for number in _RAISED}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code_of(stop: BaseException) -> int:
    """The exit code of a command that was stopped by Ctrl-C or SIGTERM."""
    return SIGTERM_EXIT if isinstance(stop, Terminated) else SIGINT_EXIT
