"""How much memory a worker holds, read from /proc; where there is none, nobody can tell."""

import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")


def held_bytes(runner: int | None) -> int | None:
    """Resident memory of this process, its children (the fork server), and the process group of a runner.

    Forks share most of their pages, so each page counts as a share of those who hold it (Linux's `Pss`).
    """
    if not (_PROC / "self").exists():
        return None
    own = os.getpid()
    return sum(_held(pid) for pid, parent, group in _processes() if own in (pid, parent) or group == runner)


def _processes() -> Iterator[tuple[int, int, int]]:
    """Id, parent and group of each."""
    for folder in _PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            continue  # it has just ended
        _, parent, group = stat.rpartition(")")[2].split()[:3]
        yield int(folder.name), int(parent), int(group)


def _held(pid: int) -> int:
    """Bytes; 0 of a process that has ended. Where shares are not told, pages that are shared count whole."""
    for name, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            lines = (_PROC / str(pid) / name).read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return 0
