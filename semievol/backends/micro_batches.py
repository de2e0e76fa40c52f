"""The rows of one optimizer step, cut into micro-batches of rows alike in length.

Rows are padded on the right. Under causal attention no token sees the padding after it, so no mask is needed, which
is the fastest form of attention on every device, and right for every kind of layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

OVERHEAD_TOKENS = {"cpu": 64, "cuda": 1_024}
"""How many tokens could be computed while a micro-batch is started, by device type. On a CPU 64 to 128 were best for
the demo's model, and one of 60 million parameters would be up to a tenth faster with 6; for CUDA an estimate."""


def overhead_of(device: torch.device) -> int:
    """What starting a micro-batch costs on the device, in tokens."""
    return OVERHEAD_TOKENS.get(device.type, 1_024)


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
    """Makes the micro-batches of an optimizer step. `most` and `overhead` in tokens: see `split`.

    Among `processes` each is given the whole step, and makes the micro-batches of its own share.
    """

    def __init__(self, pad_token_id: int, most: int, overhead: int, *, processes: int = 1, process: int = 0) -> None:
        self.pad_token_id, self.most, self.overhead = pad_token_id, most, overhead
        self.processes, self.process = processes, process

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Tensor]]]:
        """Each micro-batch has `input_ids` and `labels` [rows, tokens], `weight` [rows], and the `tokens` of the step.

        `tokens` []: labels in all of the step's rows. All processes get equally many micro-batches, as those that
        share out a model compute together; what one lacks is made up for by rows of padding.
        """
        tokens = torch.tensor(sum(label != -100 for row in rows for label in row["labels"]))
        lengths = [len(row["input_ids"]) for row in rows]
        cut = [self._split(share, lengths) for share in shares(lengths, self.processes)]
        mine = [[rows[place] for place in batch] for batch in cut[self.process]]
        nothing = [{"input_ids": [self.pad_token_id], "labels": [-100], "weight": 0.0}]
        mine += [nothing] * (max(map(len, cut)) - len(mine))
        return {"micro_batches": [{**self._padded(batch), "tokens": tokens} for batch in mine]}

    def _split(self, share: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        """The places of a share, by micro-batch."""
        batches = split([lengths[place] for place in share], self.most, self.overhead)
        return [[share[at] for at in batch] for batch in batches]

    def _padded(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), width), self.pad_token_id)
        labels = torch.full((len(rows), width), -100)
        for place, row in enumerate(rows):
            ids[place, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            labels[place, : len(row["labels"])] = torch.tensor(row["labels"])
        return {"input_ids": ids, "labels": labels, "weight": torch.tensor([row["weight"] for row in rows])}
