"""How good a model is on held-out rows, with intervals and a paired test. Greedy decoding."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.special import bdtr

from semievol.answers import Answers
from semievol.examples import Example
from semievol.ports import Generator, Progress, Request, no_progress
from semievol.replies import reply_limit

_Z = 1.959963984540054
"""Of the normal distribution, 97.5 % lie below it."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of right answers with its Wilson 95 % interval over `n` rows."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """One greedy answer to a held-out row; `tokens`: of the reply, 0 where the row does not fit."""

    row: str
    line: int
    reply: str
    answer: str | None
    wanted: str
    correct: bool
    tokens: int = 0


def predict(
    rows: Sequence[Example],
    generator: Generator,
    answers: Answers,
    max_new_tokens: int,
    progress: Progress = no_progress,
) -> list[Prediction]:
    """Greedy answers to labeled rows, in their order. A row that is too long or cannot be read is wrong."""
    limit = reply_limit(answers, rows, max_new_tokens)
    fitting = [index for index, row in enumerate(rows) if generator.fits(row.prompt, limit)]
    requests = [Request(rows[index].prompt, (0,), temperature=0.0) for index in fitting]
    replies, tokens = [""] * len(rows), [0] * len(rows)
    responses = generator.generate(requests, max_new_tokens=limit)
    for done, (position, (response,)) in enumerate(responses, start=1):
        replies[fitting[position]], tokens[fitting[position]] = response.text, len(response.logprobs)
        progress(done, len(rows))
    return [_judge(row, reply, written, answers) for row, reply, written in zip(rows, replies, tokens, strict=True)]


def _judge(row: Example, reply: str, tokens: int, answers: Answers) -> Prediction:
    wanted = answers.parse(row.labeled_reply, row.options)
    assert wanted is not None, "labels are checked before anything runs"
    answer = answers.parse(reply, row.options)
    correct = answer is not None and answers.equal(answer, wanted)
    return Prediction(row.id, row.line, reply, answer, wanted, correct, tokens)


def accuracy(predictions: Sequence[Prediction]) -> Accuracy:
    """Accuracy with its Wilson 95 % interval."""
    return share(sum(prediction.correct for prediction in predictions), len(predictions))


def share(correct: int, n: int) -> Accuracy:
    """`correct` of `n`, at least one, with the Wilson 95 % interval."""
    value, spread = correct / n, _Z**2 / n
    middle = (value + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (value * (1 - value) + spread / 4)) / (1 + spread)
    low, high = middle - half if correct else 0.0, middle + half if correct < n else 1.0
    return Accuracy(value, low, high, n)


def mcnemar(before: Sequence[Prediction], after: Sequence[Prediction]) -> dict[str, Any]:
    """Rows that flipped each way and McNemar's exact two-sided p-value (binomial over the flips)."""
    gained = [new for old, new in zip(before, after, strict=True) if new.correct and not old.correct]
    lost = [new for old, new in zip(before, after, strict=True) if old.correct and not new.correct]
    p_value = min(1.0, 2 * float(bdtr(min(len(gained), len(lost)), len(gained) + len(lost), 0.5)))
    return {"gained": len(gained), "lost": len(lost), "p_value": p_value}


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    """A prediction as plain values."""
    return asdict(prediction)
