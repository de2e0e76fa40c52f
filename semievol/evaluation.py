"""How good a model is on held-out rows, with intervals and a paired test. Greedy decoding."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from semievol.answers import Answers
from semievol.examples import Example
from semievol.ports import Generator, Progress, Request, no_progress
from semievol.replies import reply_limit


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
    interval = _binomial_test(correct, n).proportion_ci(0.95, method="wilson")
    return Accuracy(correct / n, float(interval.low), float(interval.high), n)


def mcnemar(before: Sequence[Prediction], after: Sequence[Prediction]) -> dict[str, Any]:
    """Rows that flipped each way and McNemar's exact two-sided p-value (binomial over the flips)."""
    gained = [new for old, new in zip(before, after, strict=True) if new.correct and not old.correct]
    lost = [new for old, new in zip(before, after, strict=True) if old.correct and not new.correct]
    flips = len(gained) + len(lost)
    p_value = float(_binomial_test(len(gained), flips).pvalue) if flips else 1.0
    return {"gained": len(gained), "lost": len(lost), "p_value": p_value}


def _binomial_test(successes: int, trials: int) -> Any:
    """Of a fair coin."""
    from scipy.stats import binomtest  # noqa: PLC0415  -- half a second, which only the end of a run needs

    return binomtest(successes, trials, 0.5)


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    """A prediction as plain values."""
    return asdict(prediction)
