"""Evaluation: accuracy with intervals and the paired test, against values from the literature."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.answers import Answers
from semievol.evaluation import Prediction, accuracy, mcnemar, predict
from semievol.examples import Example
from semievol.fakes import FakeGenerator, knowing
from semievol.prompts import Message
from semievol.replies import reply_limit


def judged(right: int, wrong: int) -> list[Prediction]:
    one = Prediction("id", 1, "a", "a", "a", correct=True)
    return [one] * right + [replace(one, correct=False)] * wrong


def row(question: str, reply: str, options: tuple[str, ...] | None = None) -> Example:
    return Example(question, 1, (Message("user", question),), reply, options)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (Wilson without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilson_s(right: int, n: int, low: float, high: float) -> None:
    measured = accuracy(judged(right, n - right))
    assert (measured.value, measured.n) == (right / n, n)
    assert measured.low == pytest.approx(low, abs=5e-5)
    assert measured.high == pytest.approx(high, abs=5e-5)


@given(st.integers(0, 50), st.integers(0, 50).filter(bool))
def test_the_interval_holds_the_value_and_stays_within_0_and_1(right: int, wrong: int) -> None:
    measured = accuracy(judged(right, wrong))
    assert 0 <= measured.low <= measured.value <= measured.high <= 1


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (8, 2, 0.109375), (2, 8, 0.109375), (5, 5, 1.0)],
)
def test_mcnemar_is_the_exact_binomial_test_over_the_flips(gained: int, lost: int, p_value: float) -> None:
    before = [*judged(0, gained), *judged(lost, 0), *judged(7, 0), *judged(0, 3)]
    after = [*judged(gained, 0), *judged(0, lost), *judged(7, 0), *judged(0, 3)]
    assert mcnemar(before, after) == {"gained": gained, "lost": lost, "p_value": pytest.approx(p_value)}


def test_mcnemar_refuses_runs_of_different_length() -> None:
    with pytest.raises(ValueError, match="zip"):
        mcnemar(judged(1, 0), judged(1, 1))


def test_predictions_keep_the_order_of_rows_and_judge_by_the_task_s_rules() -> None:
    rows = [row("one", "1"), row("thousand", "1,000"), row("none", "5")]
    truth = {"one": "1.005", "thousand": "about 1000", "none": "no idea"}
    predictions = predict(rows, FakeGenerator(knowing(truth)), Answers("number"), 10)
    assert [prediction.row for prediction in predictions] == ["one", "thousand", "none"]
    assert [prediction.correct for prediction in predictions] == [True, True, False]
    assert [prediction.answer for prediction in predictions] == ["1.005", "1000", None]


def test_a_row_that_is_too_long_counts_as_wrong() -> None:
    rows = [row("short", "a"), row("far too long for it", "a")]
    generator = FakeGenerator(knowing({"short": "a", "far too long for it": "a"}), max_words=12)
    predictions = predict(rows, generator, Answers("exact"), 10)
    assert [(prediction.correct, prediction.reply) for prediction in predictions] == [(True, "a"), (False, "")]


def test_rows_may_have_their_own_letters() -> None:
    rows = [row("q", "B", ("A", "B")), row("r", "C", ("A", "B", "C"))]
    generator = FakeGenerator(knowing({"q": "(b)", "r": "The answer is B"}))
    assert [p.correct for p in predict(rows, generator, Answers("choice"), 10)] == [True, False]


def test_bare_options_need_less_room_than_the_recipe_allows() -> None:
    rows = [row("q", "yes")]
    assert reply_limit(Answers("choice", ("yes", "no")), rows, 4096) < 100
    assert reply_limit(Answers("choice", ("yes", "no")), rows, 5) == 5
    assert reply_limit(Answers("choice", ("yes", "no"), bare=False), rows, 4096) == 4096
    assert reply_limit(Answers("text"), rows, 4096) == 4096
