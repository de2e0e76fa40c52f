"""How good a model is on held-out rows, with intervals and a paired test. Greedy decoding."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binomtest

from semievol.answers import Answers
from semievol.examples import Example
from semievol.ports import Generator, Progress, Request, no_progress


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of right answers with its Wilson 95 % interval over `n` rows."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """One greedy answer to a held-out row."""

    row: str
    line: int
    reply: str
    answer: str | None
    wanted: str
    correct: bool


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
    requests = [Request(rows[index].prompt, (0,)) for index in fitting]
    replies = [""] * len(rows)
    responses = generator.generate(requests, temperature=0.0, max_new_tokens=limit)
    for done, (position, (response,)) in enumerate(responses, start=1):
        replies[fitting[position]] = response.text
        progress(done, len(rows))
    return [_judge(row, reply, answers) for row, reply in zip(rows, replies, strict=True)]


def _judge(row: Example, reply: str, answers: Answers) -> Prediction:
    wanted = answers.parse(row.labeled_reply, row.options)
    assert wanted is not None, "labels are checked before anything runs"
    answer = answers.parse(reply, row.options)
    correct = answer is not None and answers.equal(answer, wanted)
    return Prediction(row.id, row.line, reply, answer, wanted, correct)


def reply_limit(answers: Answers, rows: Sequence[Example], max_new_tokens: int) -> int:
    """Room for a reply: where replies are bare options, no more than the longest takes with some words around it."""
    if answers.kind != "choice" or not answers.bare:
        return max_new_tokens
    options = {option for row in rows for option in (answers.options or row.options or ())}
    return min(max_new_tokens, 32 + max((len(option.encode()) for option in options), default=0))


def accuracy(predictions: Sequence[Prediction]) -> Accuracy:
    """Accuracy with its Wilson 95 % interval."""
    return share(sum(prediction.correct for prediction in predictions), len(predictions))


def share(correct: int, n: int) -> Accuracy:
    """`correct` of `n`, at least one, with the Wilson 95 % interval."""
    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return Accuracy(correct / n, float(interval.low), float(interval.high), n)


def mcnemar(before: Sequence[Prediction], after: Sequence[Prediction]) -> dict[str, Any]:
    """Rows that flipped each way and McNemar's exact two-sided p-value (binomial over the flips)."""
    gained = [new for old, new in zip(before, after, strict=True) if new.correct and not old.correct]
    lost = [new for old, new in zip(before, after, strict=True) if old.correct and not new.correct]
    flips = len(gained) + len(lost)
    p_value = float(binomtest(len(gained), flips, 0.5).pvalue) if flips else 1.0
    return {"gained": len(gained), "lost": len(lost), "p_value": p_value}


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    """A prediction as plain values."""
    return asdict(prediction)
