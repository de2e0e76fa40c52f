"""Stands between supervisor and runner: whatever dies, nothing of the attempt lives on.

Leader of its own session and process group. The supervisor holds the other end of its standard input: when that
closes, because the supervisor wants it or is dead, the whole group is killed, engine processes included. Parent-death
signals alone would spare the engine's children. Run as a file, so that it starts in milliseconds.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def end_group() -> None:
    """Kill everybody in our group, ourselves last of all."""
    os.killpg(0, signal.SIGKILL)


def main(command: list[str]) -> int:
    """Run the command until it ends or the supervisor lets go; its exit status, 128 + signal if it was killed."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    waker, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def arm() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=arm)  # noqa: PLW1509  -- single thread

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)  # to the runner alone: it stops its engine in order

    signal.signal(signal.SIGTERM, forward)
    while child.poll() is None:
        ready, _, _ = select.select([sys.stdin.fileno(), waker], [], [], 5)
        if waker in ready:
            os.read(waker, 512)
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 512):
            end_group()
    status = child.returncode
    _end_others()
    return 128 - status if status < 0 else status


def _end_others() -> None:
    """The runner has ended; what it left behind in the group ends too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:  # noqa: PTH112, PTH208  -- starts fast
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                if os.getpgid(int(entry)) == os.getpid():
                    os.kill(int(entry), signal.SIGKILL)
            except ProcessLookupError:
                continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
