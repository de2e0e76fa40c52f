"""Lengths in tokens. Pure; the service shows them too."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of `rows` rows, in tokens; each quantile is a length that occurs."""

    rows: int
    p50: int
    p90: int
    p99: int
    max: int
    mean: float


def lengths_of(counts: Sequence[int]) -> Lengths:
    """Of at least one row."""
    ordered = sorted(counts)

    def at(share: float) -> int:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    mean = round(sum(ordered) / len(ordered), 2)
    return Lengths(len(ordered), at(0.5), at(0.9), at(0.99), ordered[-1], mean)
