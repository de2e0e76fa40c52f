"""The rows of one optimizer step, cut into micro-batches of rows alike in length.

Rows are padded on the right. Under causal attention no token sees the padding after it, so no mask is needed, which
is the fastest form of attention on every device, and right for every kind of layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

START = {"cpu": (16, 9.8e6), "cuda": (120, 1e11)}
"""What it costs to start a batch, by device type: the tokens that could be computed while the weights are read,
and how many weights could meet a token while a layer is started. On a CPU 64 to 128 tokens in all were best for the
demo's model, 16 to 40 for one of 60 million parameters; for CUDA an estimate from what an H100 reads and computes."""


def overhead_of(model: PreTrainedModel, adapter: int = 0) -> int:
    """What starting a batch costs the model on its device, in tokens: most for many small layers.

    `adapter`: how many of its weights belong to one.
    """
    weights = model.num_parameters(exclude_embeddings=True) - adapter
    read, started = START.get(model.device.type, START["cuda"])
    return int(read + started * model.config.get_text_config().num_hidden_layers / weights)


def split(lengths: Sequence[int], most: int, overhead: int) -> list[list[int]]:
    """Places of the rows of each micro-batch, the longest rows first, such that all of them cost the least.

    A micro-batch costs its rows times its longest row, and `overhead`; in tokens. Only one that is a single row may
    have more than `most` tokens.
    """
    places = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    costs, starts = [0], [0]  # of the cheapest way to cut the first rows, and where its last micro-batch starts
    for end in range(1, len(places) + 1):
        cost, start = min(
            (costs[start] + lengths[places[start]] * (end - start) + overhead, start)
            for start in range(end)
            if start == end - 1 or lengths[places[start]] * (end - start) <= most
        )
        costs.append(cost)
        starts.append(start)
    batches, end = list[list[int]](), len(places)
    while end:
        batches.append(places[starts[end] : end])
        end = starts[end]
    return batches[::-1]


def shares(lengths: Sequence[int], processes: int) -> list[list[int]]:
    """Places of the rows that each process computes, the longest first: about as many tokens each."""
    found, tokens = [list[int]() for _ in range(processes)], [0] * processes
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        least = min(range(processes), key=tokens.__getitem__)
        found[least].append(place)
        tokens[least] += lengths[place]
    return found


class StepCollator:
    """Makes the micro-batches of an optimizer step.

    `rows`: of the training's longest, whose length is `longest` tokens, so many may be in memory at once. `overhead` in
    tokens: see `split`. Among `processes` each is given the whole step, and makes the micro-batches of its own share.
    """

    def __init__(
        self, pad_token_id: int, rows: int, longest: int, overhead: int, *, processes: int = 1, process: int = 0
    ) -> None:
        self.pad_token_id, self.rows, self.longest, self.overhead = pad_token_id, rows, longest, overhead
        self.processes, self.process = processes, process

    def cut(self, lengths: Sequence[int]) -> list[list[list[int]]]:
        """Places of the rows of each process's micro-batches, by the lengths of the step's rows."""
        return [
            [[share[at] for at in batch] for batch in self._split([lengths[place] for place in share])]
            for share in shares(lengths, self.processes)
        ]

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Tensor]]]:
        """Each micro-batch has `input_ids` and `labels` [rows, tokens], `weight` [rows], and the `tokens` of the step.

        `tokens` []: labels in all of the step's rows. All processes get equally many micro-batches, as those that
        share out a model compute together; what one lacks is made up for by rows of padding.
        """
        tokens = torch.tensor(sum(label != -100 for row in rows for label in row["labels"]))
        cut = self.cut([len(row["input_ids"]) for row in rows])
        mine = [[rows[place] for place in batch] for batch in cut[self.process]]
        nothing = [{"input_ids": [self.pad_token_id], "labels": [-100], "weight": 0.0}]
        mine += [nothing] * (max(map(len, cut)) - len(mine))
        return {"micro_batches": [{**self._padded(batch), "tokens": tokens} for batch in mine]}

    def _split(self, lengths: Sequence[int]) -> list[list[int]]:
        return split(lengths, self.rows * self.longest, self.overhead)

    def _padded(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), width), self.pad_token_id)
        labels = torch.full((len(rows), width), -100)
        for place, row in enumerate(rows):
            ids[place, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            labels[place, : len(row["labels"])] = torch.tensor(row["labels"])
        return {"input_ids": ids, "labels": labels, "weight": torch.tensor([row["weight"] for row in rows])}
