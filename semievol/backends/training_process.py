"""One of the processes of a training: `accelerate launch --module semievol.backends.training_process ADDRESS`.

See `parallel.py`. All processes do the same; the first alone tells how the training goes on and writes the adapter.
"""

import logging
import sys
import traceback
from datetime import timedelta

import torch
from accelerate import PartialState
from transformers.utils import logging as transformers_logging

from semievol.backends.chat import Chat
from semievol.backends.huggingface import device_of
from semievol.backends.parallel import AskedCheckpoints, Done, Failed, Line, Progressed, Start, WarningsTold
from semievol.backends.training import LoraTrainer
from semievol.errors import SemiEvolError
from semievol.faults import fault_of
from semievol.ports import no_progress

WAIT = timedelta(hours=2)
"""How long a process waits for the others, one of which may be storing a checkpoint."""


def main(address: str) -> int:
    """Do what the other end of the line asks for."""
    line = Line(address)
    try:
        start: Start = line.hear()
        # Joins the processes, and takes this one's GPU.
        first = PartialState(cpu=device_of(start.settings).type == "cpu", timeout=WAIT).is_main_process
        _train(start, line, first=first)
    except Exception as error:  # noqa: BLE001  -- the outermost frame
        traceback.print_exc()
        ours = error if isinstance(error, SemiEvolError) else fault_of(error)
        line.tell(Failed(ours, f"{type(error).__name__}: {error}"))
        return 1
    torch.distributed.destroy_process_group()
    return 0


def _train(start: Start, line: Line, *, first: bool) -> None:
    transformers_logging.disable_progress_bar()
    if first:
        logging.getLogger("semievol").addHandler(WarningsTold(line.tell))
    trainer = LoraTrainer(
        start.model,
        start.settings,
        Chat.load(start.model, start.settings.revision),
        AskedCheckpoints(line) if start.keeps_checkpoints else None,
        halvings=start.halvings,
        parallel=start.parallel,
    )

    def progress(done: int, total: int, loss: float | None = None, /) -> None:
        line.tell(Progressed(done, total, loss))

    log = trainer.train_here(**start.training, progress=progress if first else no_progress)
    if first:
        line.tell(Done(log))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
