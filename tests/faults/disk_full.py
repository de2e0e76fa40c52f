"""A run on a disk that gets full: `unshare -rm python -m tests.faults.disk_full DATA FOLDER KILOBYTES...` prints JSON.

Inside a mount namespace of its own it mounts a small tmpfs, runs until that is full, makes room, and runs again.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from tests.faults.runs import arguments, results, run_to_end, server

ROOM = "size=256m"


def fill(context: ForkServerContext, data: Path, disk: Path, kilobytes: int) -> dict[str, Any]:
    """What a run on a disk of so many kilobytes said and left, and what it ended with once there was room."""
    disk.mkdir()
    log, output = disk.with_suffix(".log"), disk / "out"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)], check=True)
    status = run_to_end(context, arguments(data, output), log)
    found = {
        "status": status,
        "said": log.read_text(encoding="utf-8"),
        "unfinished": [str(path) for path in output.rglob("*.partial")],
        "handed_out": (output / "adapter").exists(),
    }
    subprocess.run(["mount", "-o", f"remount,{ROOM}", str(disk)], check=True)
    found["status_with_room"] = run_to_end(context, arguments(data, output), log)
    found["results"] = results(output)
    subprocess.run(["umount", str(disk)], check=True)
    return found


def main(data: str, folder: str, kilobytes: Sequence[str]) -> None:
    """Print what each size led to."""
    context = server()
    print(json.dumps({size: fill(context, Path(data), Path(folder, size), int(size)) for size in kilobytes}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
