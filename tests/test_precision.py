"""The share of right rows, by what a person looked at."""

import random

import pytest

from semievol.precision import Estimate, Stratum, estimate

BINS = 20


def strata(**bins: Stratum) -> list[Stratum]:
    """Twenty bins, empty but for those named `b19` and so on."""
    return [bins.get(f"b{place}", Stratum(0)) for place in range(BINS)]


@pytest.mark.parametrize(
    ("bins", "added", "value"),
    [
        ({"b19": Stratum(10, kept=10)}, 0, 1.0),
        ({"b19": Stratum(10, corrected=10)}, 0, 1.0),  # a person's answer is right
        ({"b19": Stratum(10, kept=5, thrown_out=5)}, 0, 1.0),  # what was thrown out is not trained on
        ({"b19": Stratum(10, thrown_out=10)}, 7, 1.0),
        ({"b9": Stratum(3, kept=1)}, 0, (1 + 2 * (0.95 + 1) / 3) / 3),
        ({"b9": Stratum(3, corrected=1)}, 0, (1 + 2 * 0.95 / 3) / 3),
        ({"b9": Stratum(3, thrown_out=1)}, 0, (2 * 0.95 / 3) / 2),
        ({"b19": Stratum(100, kept=98, thrown_out=1), "b0": Stratum(100)}, 0, (98 + 99.95 / 101 + 2.5) / 199),
    ],
)
def test_the_value_is_what_is_known_and_what_each_bin_says(bins: dict[str, Stratum], added: int, value: float) -> None:
    found = estimate(strata(**bins), added)
    assert found is not None
    assert found.value == pytest.approx(value, abs=1e-4)
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize("nothing", [[], strata(), strata(b19=Stratum(50)), strata(b3=Stratum(4, thrown_out=4))])
def test_nothing_is_claimed_before_anybody_looked_or_of_no_rows(nothing: list[Stratum]) -> None:
    assert estimate(nothing) is None
    assert estimate(strata(b19=Stratum(50)), 3) is None


def test_what_all_looked_at_comes_to_is_certain() -> None:
    assert estimate(strata(b19=Stratum(4, kept=3, thrown_out=1), b5=Stratum(2, corrected=2))) == Estimate(1.0, 1.0, 1.0)


def test_more_looking_narrows_the_interval() -> None:
    widths = []
    for looked in (1, 4, 16, 64):
        found = estimate(strata(b15=Stratum(1000, kept=3 * looked, thrown_out=looked)))
        assert found is not None
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(
    ("too_sure", "spread", "least"),
    [
        (0.0, 12, 95),  # a model that is as sure as it should be, whatever is looked at
        (0.0, 1000, 90),
        (0.2, 1000, 85),  # one that is 20 points too sure, where rows of all bins are looked at
    ],
)
def test_the_interval_holds_the_truth(too_sure: float, spread: float, least: int) -> None:
    """Of 2,000 rows 150 are looked at, with a small `spread` the least sure; how often in 100 times."""
    assert sum(truth_is_held(random.Random(seed), too_sure, spread) for seed in range(100)) >= least


def truth_is_held(draw: random.Random, too_sure: float, spread: float) -> bool:
    sure = [draw.uniform(0.5, 1) for _ in range(2000)]
    rows = [(int(one * BINS), draw.random() < one - too_sure) for one in sure]
    looked = set(sorted(range(2000), key=lambda row: rows[row][0] + draw.uniform(0, spread))[:150])
    bins = []
    for place in range(BINS):
        judged = [rows[row][1] for row in looked if rows[row][0] == place]
        size = sum(one == place for one, _ in rows)
        bins.append(Stratum(size, kept=sum(judged), thrown_out=len(judged) - sum(judged)))
    found = estimate(bins)
    assert found is not None
    left = [right for row, (_, right) in enumerate(rows) if right or row not in looked]
    return found.low <= sum(left) / len(left) <= found.high
