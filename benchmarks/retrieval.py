"""Retrieval beside the warm-up against retrieval after it, on the demo: seconds of both stages, and the same bytes.

    python -m benchmarks.retrieval [--rows N] [--rounds N]

The demo's own recipe and one thread, so that a core idles while the warm-up trains on another. Peers alternate;
medians.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.accuracy import resolve
from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol import stages
from semievol.backends.local import LocalBackend
from semievol.fakes import FakeObserver
from semievol.pipeline import Job
from semievol.ports import do_nothing
from semievol.workdir import Workdir, sha256_of

BASE = str(Path("demo/base").resolve())
BESIDE, AFTER = "beside the warm-up", "after it"


class AfterTheWarmUp(LocalBackend):
    """The backend without what this measures."""

    @contextmanager
    def looking_ahead(
        self, documents: Sequence[str], queries: int, groups: Iterable[Sequence[str]], k: int
    ) -> Iterator[Callable[[], None]]:
        """See `ports.Backend`."""
        yield do_nothing


def stages_of(job: Job, backend: LocalBackend, folder: Path) -> tuple[float, float, list[str]]:
    """Seconds of the warm-up and of the retrieval, and the digests of what they leave."""
    work = Workdir(folder, job.identity(), FakeObserver())
    prepared = work.stage("prepare", stages.prepare(job))
    data, pending = stages.Prepared.of(prepared), stages.Pending.of(prepared, job.recipe)
    trained = work.stage("warm-up", stages.warm_up(data, backend, pending, job))
    found = work.stage("neighbours", stages.find_neighbours(data, backend, pending, job))
    left = [trained.folder / stages.ADAPTER / "adapter_model.safetensors", *sorted(found.folder.glob("*.npz"))]
    return trained.seconds, found.seconds, [sha256_of(path) for path in left]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe = resolve(BASE, ("model.device=cpu",))
    peers = {BESIDE: LocalBackend(BASE, recipe), AFTER: AfterTheWarmUp(BASE, recipe)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    left: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, HELPDESK, draw(HELPDESK, 5, 32, given.rows, 8))
        job = Job(BASE, folder / "labeled.jsonl", folder / "unlabeled.jsonl", recipe, 1)
        for turn in range(given.rounds + 1):
            for peer, backend in peers.items():
                trained, found, left[peer] = stages_of(job, backend, folder / f"{peer}-{turn}")
                if turn:  # the first imports what both need
                    seconds[peer].append((trained, found))
    print(f"{given.rows} rows; {given.rounds} alternating rounds, medians of seconds")
    both = {peer: statistics.median(map(sum, taken)) for peer, taken in seconds.items()}
    for peer, taken in seconds.items():
        warm_up, retrieval = (statistics.median(column) for column in zip(*taken, strict=True))
        print(f"  {peer:20s} warm-up {warm_up:6.1f}, retrieval {retrieval:6.1f}, both {both[peer]:6.1f}")
    print(f"  {BESIDE}: {both[AFTER] / both[BESIDE]:.2f} times as fast")
    same = left[BESIDE] == left[AFTER]
    print(f"  adapter and neighbours: {'the same bytes' if same else 'OTHER BYTES'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
