"""`semievol` on a machine that holds few rows: `python -m tests.faults.short_of_memory TRAINED PROMPTS run ...`."""

import math
import sys
from collections.abc import Callable
from typing import Any

from semievol.backends.huggingface import HuggingFaceGenerator
from semievol.backends.training import _MaskedTrainer
from semievol.cli import main


def limited(work: Callable[..., Any], rows_of: Callable[..., int], most: int) -> Callable[..., Any]:
    """The work, which fails as torch does on a CPU with too many rows."""

    def limited_work(*given: Any, **named: Any) -> Any:
        if rows_of(*given) > most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return work(*given, **named)

    return limited_work


def longest_rows(trainer: Any, model: Any, inputs: dict[str, Any]) -> int:
    """How many of the training's longest rows take as much memory as this micro-batch."""
    longest = max(len(row["input_ids"]) for row in trainer.train_dataset)
    tokens: int = inputs["input_ids"].numel()
    return math.ceil(tokens / longest)


if __name__ == "__main__":
    trained, prompts = map(int, sys.argv[1:3])
    trainer: Any = _MaskedTrainer
    generator: Any = HuggingFaceGenerator
    trainer.compute_loss = limited(trainer.compute_loss, longest_rows, trained)
    generator._prefill = limited(generator._prefill, lambda _, asked: len(asked), prompts)
    sys.exit(main(sys.argv[3:]))
