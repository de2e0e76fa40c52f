"""What an attempt does to need less memory: batches cut in halves, once more each time they did not fit.

The rows of an optimizer step stay the same: a smaller micro-batch is made up for by accumulation.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from semievol.errors import Phase
from semievol.workdir import write_whole


@dataclass(frozen=True, slots=True)
class Halvings:
    """How often the batches of each phase are cut in half."""

    training: int = 0
    generation: int = 0

    def once_more(self, phase: Phase) -> Self:
        """With the batches of one phase cut in half again."""
        times: int = getattr(self, phase)
        return replace(self, **{phase: times + 1})

    @classmethod
    def read(cls, path: Path) -> Self:
        """What an earlier attempt wrote; no halvings if there was none."""
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else cls()

    def write(self, path: Path) -> None:
        """For the next attempt."""
        write_whole(path, json.dumps(asdict(self)).encode())


def micro_batch(batch_size: int, wanted: int | None, halvings: int) -> int:
    """Longest rows in memory at once: `wanted` (by default the whole batch), halved so often; it divides the batch."""
    most = max(1, (wanted or batch_size) >> halvings)
    return max(size for size in range(1, most + 1) if batch_size % size == 0)
