"""A run on a disk that gets full: `unshare -rm python -m tests.faults.disk_full DATA FOLDER KILOBYTES...` prints JSON.

Inside a mount namespace of its own it mounts a small tmpfs, runs until that is full, makes room, and runs again, until
the run ends.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from tests.faults.runs import arguments, results, run_to_end, server

ROOM = "256m"


def fill(context: ForkServerContext, data: Path, disk: Path, kilobytes: Sequence[int]) -> dict[str, Any]:
    """What a run said and left on a disk of each size, and what it ended with once there was room."""
    disk.mkdir()
    log, output = disk.with_suffix(".log"), disk / "out"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes[0]}k", "tmpfs", str(disk)], check=True)
    found = []
    for size in kilobytes:
        _resize(disk, f"{size}k")
        status = run_to_end(context, arguments(data, output), log)
        found.append(
            {
                "kilobytes": size,
                "status": status,
                "said": log.read_text(encoding="utf-8"),
                "unfinished": [str(path) for path in output.rglob("*.partial")],
                "handed_out": (output / "adapter").exists(),
            }
        )
        log.unlink()
    _resize(disk, ROOM)
    status = run_to_end(context, arguments(data, output), log)
    ended = {"status": status, "said": log.read_text(encoding="utf-8"), "results": results(output)}
    subprocess.run(["umount", str(disk)], check=True)
    return {"full": found, "ended": ended}


def _resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def main(data: str, folder: str, kilobytes: Sequence[str]) -> None:
    """Print what the sizes led to."""
    print(json.dumps(fill(server(), Path(data), Path(folder, "disk"), [int(size) for size in kilobytes])))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
