"""How many of the rows that would be trained on are right, judging by those that a person has looked at. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

PRIOR_ROWS = 2.0
"""How many looked-at rows a bin's certainty is worth before anybody has looked."""
_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Stratum:
    """The rows that selection accepted in one bin of certainty, and what a person made of those looked at."""

    rows: int
    kept: int = 0
    corrected: int = 0
    thrown_out: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


def estimate(strata: Sequence[Stratum], added: int = 0) -> Estimate | None:
    """The share of right answers among the rows to train on; None until an accepted row was looked at.

    `strata`: equal bins of certainty from 0 to 1. `added`: rows that selection had rejected and a person accepted.

    People look at the rows that they choose, mostly those that are least sure, so the share of right answers among
    those looked at says little of the others. Within a bin of certainty rows are alike, so each bin is estimated by
    itself and counts by its rows (post-stratification):

    - A bin's share of right answers p has a Beta prior around the bin's middle m that is worth 2 rows: with nothing
      known the model is believed, and it takes few rows to think otherwise. Every row looked at counts, `kept` as
      right, `corrected` and `thrown_out` as wrong: p ~ Beta(a, b), a = 2m + kept, b = 2(1 - m) + corrected +
      thrown_out.
    - What is not known is only how many of the u rows nobody looked at are right: beta-binomial, with the mean
      u a/(a+b) and the variance u ab(a+b+u) / ((a+b)^2 (a+b+1)).
    - The rest is known: rows kept, corrected and added are right now, rows thrown out are not trained on. So when all
      rows were looked at the interval has no width.

    value = (sum of the means + kept + corrected + added) / rows to train on; the interval is 1.96 times the root of the
    summed variances to either side, cut off at 0 and 1.

    In bins that nobody has looked into the model is believed. One that is too sure is then found out only by looking at
    rows of every certainty: 20 points too sure, with 150 of 2,000 rows looked at, the interval held the truth in 14 of
    100 simulations if these were the least sure rows, and in 90 if they were any rows.
    """
    if not any(one.kept + one.corrected + one.thrown_out for one in strata):
        return None
    right, total, variance = float(added), added, 0.0
    for place, one in enumerate(strata):
        middle = (place + 0.5) / len(strata)
        wrong = one.corrected + one.thrown_out
        a, b = PRIOR_ROWS * middle + one.kept, PRIOR_ROWS * (1 - middle) + wrong
        unknown, n = max(0, one.rows - one.kept - wrong), a + b
        right += unknown * a / n + one.kept + one.corrected
        total += unknown + one.kept + one.corrected
        variance += unknown * a * b * (n + unknown) / (n * n * (n + 1))
    if not total:
        return None
    value, half = right / total, _NORMAL_95 * math.sqrt(variance) / total
    return Estimate(round(value, 4), round(max(0.0, value - half), 4), round(min(1.0, value + half), 4))
