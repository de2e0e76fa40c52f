"""Before a training's first step: its most expensive micro-batch is computed once, and halved until it fits.

A lack of memory would otherwise show where the longest rows come together, perhaps after hours, and cost an attempt.
What still runs out later (fragments, other programs on the GPU) goes down the ladder of `semievol.memory`.
"""

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from semievol.backends.memory import give_back, is_lack_of_memory
from semievol.backends.micro_batches import StepCollator
from semievol.errors import OutOfMemory
from semievol.estimates.memory import micro_batch_bytes
from semievol.estimates.sizes import ModelSize
from semievol.memory import micro_batch
from semievol.recipe import ModelSettings, TrainingSettings

PROBED = {"cuda"}
"""Types of devices that say when their memory is full. A machine's own swaps, or kills."""
_GRADIENT_BYTES, _MOMENTS_BYTES = 4, 8
"""Of each trained weight, in fp32: its gradient in the micro-batches before, and what AdamW keeps."""
_log = logging.getLogger(__name__)


class Probe(TrainerCallback):
    """Finds the `rows` of the collator that fit; everything else is left as it was, to the byte.

    That is all weights, gradients, buffers and random states. Each process of a training finds its own number.
    """

    def __init__(
        self, trainer: Trainer, collator: StepCollator, model: ModelSettings, settings: TrainingSettings
    ) -> None:
        self.trainer, self.collator, self.model, self.settings = trainer, collator, model, settings
        trained: Any = trainer.model
        self.size = ModelSize.of(trained.config.to_dict())
        trainer.add_callback(self)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Raises OutOfMemory if a single row does not fit."""
        if args.device.type not in PROBED:
            return
        with _left_as_it_was(self.trainer.model, args.device):
            while not self._fits(self._most_expensive(state), args.device):
                give_back()
                rows = self.collator.rows
                if rows == 1:
                    raise OutOfMemory("training", rows)
                self.collator.rows = micro_batch(self.settings.batch_size, rows, 1)
                _log.warning("out of memory with %d rows at once: trying %d", rows, self.collator.rows)

    def _most_expensive(self, state: TrainerState) -> dict[str, Tensor]:
        """Of all micro-batches of the steps that are left, as they are cut now."""
        dataset: Any = self.trainer.train_dataset
        lengths = [len(row["input_ids"]) for row in dataset]
        labels = [sum(label != -100 for label in row["labels"]) for row in dataset]
        most = -1
        found: tuple[Sequence[int], int] = [], 0
        for step in islice(self._steps(state), state.global_step, state.max_steps):
            for number, places in enumerate(self._cut([lengths[row] for row in step])):
                rows = [step[place] for place in places]
                cost = self._cost(len(rows) * max(lengths[row] for row in rows), sum(labels[row] for row in rows))
                if cost > most:
                    most, found = cost, (step, number)
        step, number = found
        return self.collator([dataset[row] for row in step])["micro_batches"][number]

    def _cut(self, lengths: Sequence[int]) -> list[list[int]]:
        """This process's micro-batches of a step."""
        return self.collator.cut(lengths)[self.collator.process]

    def _cost(self, tokens: int, labels: int) -> int:
        """Of a micro-batch's memory, padding among the tokens. Where a model's size is unknown, the tokens alone."""
        return micro_batch_bytes(self.size, self.model, self.settings, tokens, labels) if self.size else tokens

    def _steps(self, state: TrainerState) -> Iterator[Sequence[int]]:
        """Which rows each optimizer step will see, epoch by epoch: from a loader like the training's own."""
        loader: Any = self.trainer.get_train_dataloader()
        for epoch in range(state.num_train_epochs):
            loader.set_epoch(epoch)
            yield from loader.batch_sampler

    def _fits(self, batch: dict[str, Tensor], device: torch.device) -> bool:
        """Whether the micro-batch can be computed forward and backward beside what the optimizer will hold."""
        model: Any = self.trainer.model
        optimizer: Any = self.trainer.optimizer
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        bytes_each = _GRADIENT_BYTES + (0 if optimizer.state else _MOMENTS_BYTES)  # a checkpoint brings its moments
        model.train()
        try:
            held = torch.empty(trained * bytes_each, dtype=torch.uint8, device=device)
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            with self.trainer.compute_loss_context_manager():
                loss = self.trainer.compute_loss(model, inputs)
            self.trainer.accelerator.backward(loss)
            del held
        except (RuntimeError, MemoryError) as error:
            if not is_lack_of_memory(error):
                raise
            return False
        finally:
            model.zero_grad(set_to_none=True)
        return True


@contextmanager
def _left_as_it_was(model: Any, device: torch.device) -> Iterator[None]:
    """Inside, random numbers may be drawn and buffers may change; afterwards they are what they were."""
    modules: Iterator[nn.Module] = model.modules()
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module.named_buffers(recurse=False)
    ]
    drawn = random.getstate()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(drawn)
        for module, name, buffer, content in buffers:
            setattr(module, name, buffer.copy_(content))
