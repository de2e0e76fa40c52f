"""Which prompts are computed together, and what these begin with, so that it is computed once for all of them. Pure.

Rows of a batch are as wide as the widest of them. So every prompt is cut into a beginning, which others may share, and
a rest that is no longer than one width for all.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Tokens = list[int]
WIDTHS = 8
"""How many widths of the rests are tried."""


@dataclass(frozen=True, slots=True)
class Cut:
    """`beginnings`: each once, and shorter than any prompt that has it; `owners`: which one each prompt has.

    `cost`: tokens that are computed, with padding and the start of one more batch. Without beginnings, of all.
    """

    beginnings: list[Tokens]
    owners: list[int]
    cost: int


def cut(prompts: Sequence[Tokens], overhead: int) -> Cut:
    """The cheapest of some ways to cut the prompts, or none. `overhead`: of one more batch, in tokens."""
    order = sorted(range(len(prompts)), key=lambda index: prompts[index])
    lengths = [len(prompts[index]) for index in order]
    shared = [0, *(common(prompts[one], prompts[other]) for one, other in pairwise(order))]
    best = Cut([], [], len(prompts) * max(lengths))
    for width in _widths(lengths, shared) if min(lengths) > 1 else ():
        groups = _groups(lengths, shared, width)
        begun = [max(1, max(lengths[start:end]) - width) for start, end in groups]
        cost = len(prompts) * width + len(groups) * max(begun) + overhead
        if cost < best.cost:
            owners = [0] * len(prompts)
            for number, (start, end) in enumerate(groups):
                for place in range(start, end):
                    owners[order[place]] = number
            beginnings = [prompts[order[start]][:length] for (start, _), length in zip(groups, begun, strict=True)]
            best = Cut(beginnings, owners, cost)
    return best


def cost_of(prompts: Sequence[Tokens], overhead: int) -> int:
    """Tokens that are computed for the prompts, and the starts of batches, if beginnings are cut in turn."""
    found = cut(prompts, overhead)
    if not found.beginnings:
        return found.cost
    rests = found.cost - len(found.beginnings) * max(map(len, found.beginnings))
    return rests + cost_of(found.beginnings, overhead)


def common(one: Tokens, other: Tokens) -> int:
    """Length of the beginning that two prompts share, short of the last token of either."""
    low, high = 0, min(len(one), len(other)) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _widths(lengths: Sequence[int], shared: Sequence[int]) -> list[int]:
    """What neighbours would leave as rests, some values from the least to the most."""
    rests = sorted({max(lengths[place - 1 : place + 1]) - shared[place] for place in range(1, len(lengths))})
    rests = [rest for rest in rests if rest < max(lengths)]
    return sorted({rests[place * (len(rests) - 1) // (WIDTHS - 1)] for place in range(WIDTHS)}) if rests else []


def _groups(lengths: Sequence[int], shared: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Neighbours that share a beginning after which no rest is longer than `width`: (start, end) places."""
    groups, start = list[tuple[int, int]](), 0
    longest, common_length = lengths[0], lengths[0] - 1
    for place in range(1, len(lengths)):
        longest, common_length = max(longest, lengths[place]), min(common_length, shared[place], lengths[place] - 1)
        if common_length < max(1, longest - width):
            groups.append((start, place))
            start, longest, common_length = place, lengths[place], lengths[place] - 1
    return [*groups, (start, len(lengths))]


class Queue:
    """Prompts that wait for their batch, by index.

    In the order of their tokens, so that those that begin alike go together, or of their lengths, so that little is
    padded: whichever costs less. `copies`: of each prompt, with `room` for new tokens each. A batch has at most `most`
    tokens, but for one that is a single prompt. `overhead`: see `cut`.
    """

    def __init__(
        self, prompts: Sequence[list[int]], copies: Sequence[int], *, room: int, most: int, overhead: int
    ) -> None:
        self.prompts, self.copies = list(prompts), list(copies)
        self.room, self.most, self.overhead = room, most, overhead
        orders = {key: sorted(range(len(prompts)), key=key) for key in (self._length, self._tokens)}
        self.key = min(orders, key=lambda key: self._cost(orders[key]))
        self.waiting = orders[self.key]

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def add(self, prompt: list[int], copies: int) -> None:
        """One more prompt, whose index is the next."""
        self.prompts.append(prompt)
        self.copies.append(copies)
        insort(self.waiting, len(self.prompts) - 1, key=self.key)

    def take(self) -> list[int]:
        """The next batch."""
        start = self._start(self.waiting, len(self.waiting))
        batch = self.waiting[start:][::-1]
        del self.waiting[start:]
        return batch

    def _length(self, index: int) -> tuple[int, int]:
        return len(self.prompts[index]), -index

    def _tokens(self, index: int) -> tuple[list[int], int]:
        return self.prompts[index], -index

    def _start(self, order: Sequence[int], end: int) -> int:
        """Where the batch begins that ends at `end`."""
        longest = copies = 0
        for place in range(end - 1, -1, -1):
            longest, copies = max(longest, len(self.prompts[order[place]])), copies + self.copies[order[place]]
            if (longest + self.room) * copies > self.most and place < end - 1:
                return place + 1
        return 0

    def _cost(self, order: Sequence[int]) -> int:
        cost, end = 0, len(order)
        while end:
            start = self._start(order, end)
            cost += cost_of([self.prompts[index] for index in order[start:end]], self.overhead)
            end = start
        return cost
