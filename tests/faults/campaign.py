"""More faults than a test run has time for: `python -m tests.faults.campaign [--runs 40] [--seed 0]`.

Every run is killed with SIGKILL several times at random times and must end with the bytes of the undisturbed one; then
the same with disks of ten sizes. Prints what a kill cost at most beside what one may cost: the longest shard or the
time between two checkpoints (here a step), and a start.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.runs import arguments, results, run_killed, server, write_files

KILOBYTES = (64, 256, 700, 1000, 1200, 2000, 2800, 3600, 4400, 5200)


def main() -> int:
    """Command line; the exit code tells whether everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        data = write_files(folder / "data")
        return max(kills(folder, data, given.runs, given.seed), full_disks(folder, data))


def kills(folder: Path, data: Path, runs: int, seed: int) -> int:
    """Runs killed at random times."""
    context, log = server(), folder / "log"
    run_killed(context, arguments(data, folder / "warm"), log, [])  # the first one waits for the server
    [undisturbed_seconds] = run_killed(context, arguments(data, folder / "undisturbed"), log, [])
    wanted, equal, killed, worst = results(folder / "undisturbed"), 0, 0, 0.0
    print(f"undisturbed: {undisturbed_seconds:.1f} s")
    for number in range(runs):
        draw = random.Random(f"{seed}-{number}")
        delays = [draw.uniform(0.1, undisturbed_seconds) for _ in range(draw.randint(2, 5))]
        output = folder / f"run-{number}"
        attempts = run_killed(context, arguments(data, output), log, delays)
        lost = (sum(attempts) - undisturbed_seconds) / max(1, len(attempts) - 1)
        same = results(output) == wanted
        equal, killed, worst = equal + same, killed + len(attempts) - 1, max(worst, lost)
        ending = "same bytes" if same else "OTHER BYTES"
        print(f"run {number:2d}: killed {len(attempts) - 1} times, {lost:4.1f} s lost a kill, {ending}", flush=True)
    print(f"{equal} of {runs} runs end with the same bytes after {killed} kills; at most {worst:.1f} s lost a kill")
    print(
        f"a start takes {start_seconds(folder / 'undisturbed', undisturbed_seconds):.1f} s, the longest shard "
        f"{longest(folder / 'undisturbed', 'round-1/generate-*'):.1f} s, a step less than 1 s"
    )
    return 0 if equal == runs else 1


def longest(output: Path, stages: str) -> float:
    """Seconds of the longest stage."""
    manifests = (output / "stages").glob(f"{stages}/manifest.json")
    return max(float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) for path in manifests)


def start_seconds(output: Path, whole_seconds: float) -> float:
    """What a run takes beside its stages."""
    manifests = (output / "stages").rglob("manifest.json")
    return whole_seconds - sum(float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) for path in manifests)


def full_disks(folder: Path, data: Path) -> int:
    """Runs on disks that get full."""
    wanted, right = results(folder / "undisturbed"), 0
    command = [sys.executable, "-m", "tests.faults.disk_full", str(data)]
    for kilobytes in map(str, KILOBYTES):
        (folder / kilobytes).mkdir()
        told = subprocess.run(
            ["unshare", "-rm", *command, str(folder / kilobytes), kilobytes],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        ended, [found] = (json.loads(told.stdout)[name] for name in ("ended", "full"))
        whole = found["unfinished"] == [] and not found["handed_out"]
        held = found["status"] == 1 and "the disk is full" in found["said"] and whole and ended["results"] == wanted
        right += held
        print(f"disk of {kilobytes:>5} KB: status {found['status']}, then {'the same bytes' if held else 'WRONG'}")
    print(f"{right} of {len(KILOBYTES)} full disks ended as they should")
    return 0 if right == len(KILOBYTES) else 1


if __name__ == "__main__":
    sys.exit(main())
