"""Stands between supervisor and runner: whatever dies, nothing of the attempt lives on.

Leader of its own session and process group. The supervisor holds the other end of its standard input: when that
closes, because the supervisor wants it or is dead, the whole group is killed, engine processes included. Parent-death
signals alone would spare the engine's children. What comes in there is handed on to the runner's standard input.
"""

import ctypes
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

PR_SET_PDEATHSIG = 1


def guard(run: Callable[[], int]) -> int:
    """Call `run` in a child process and guard it until it ends; its status, 128 + signal if it was killed.

    To be called by the leader of a process group. Returns in the child too, with what `run` returned there.
    """
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    orders, handed_on = os.pipe()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    child = os.fork()
    if child == 0:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _leave_to_the_child(woken, waker, handed_on)
        os.dup2(orders, 0)  # the supervisor's pipe is the guardian's alone
        os.close(orders)
        return run()
    os.close(orders)

    def forward(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)  # to the runner alone: it stops its engine in order

    signal.signal(signal.SIGTERM, forward)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        ready, _, _ = select.select([0, woken], [], [], 5)
        if woken in ready:
            os.read(woken, 512)
        if 0 in ready:
            told = os.read(0, 4096)
            if not told:
                os.killpg(0, signal.SIGKILL)
            with suppress(BrokenPipeError):
                os.write(handed_on, told)
    _end_others()
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _leave_to_the_child(*handles: int) -> None:
    """Undo what was set up for the guardian, whose handles these are."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for handle in handles:
        os.close(handle)


def _end_others() -> None:
    """The runner has ended; what it left behind in the group ends too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    for entry in os.listdir("/proc") if sys.platform == "linux" else []:  # noqa: PTH208  -- names are enough
        if entry.isdigit() and int(entry) != os.getpid():
            with suppress(ProcessLookupError):
                if os.getpgid(int(entry)) == os.getpid():
                    os.kill(int(entry), signal.SIGKILL)
