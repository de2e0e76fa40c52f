"""A runner for tests of the fork server: does what its spec says, without a job."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def main(spec: str) -> int:
    """Act and return the status."""
    act = json.loads(Path(spec).read_text(encoding="utf-8"))
    print(json.dumps({"pid": os.getpid(), "group": os.getpgid(0), "cwd": str(Path.cwd())}), flush=True)
    print("an error", file=sys.stderr, flush=True)
    print(
        json.dumps(
            {"ordered": sys.stdin.readline() if act.get("ordered") else "", "loaded": act.get("module") in sys.modules}
        ),
        flush=True,
    )
    if act.get("child"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(json.dumps({"child": child.pid}), flush=True)
    time.sleep(act.get("sleep", 0))
    return int(act.get("status", 0))
