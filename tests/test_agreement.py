"""Agreement: what several answers to one row amount to."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.agreement import (
    JUSTIFICATION,
    Trial,
    answer_entropy,
    balance,
    candidates,
    is_unanimous,
    label_sampled,
    label_scored,
    mean_probabilities,
    provisional,
)
from semievol.answers import Answers

EXACT = Answers("exact")


def said(answer: str | None, logprob: float = -1.0, collaborator: int = 0, tokens: int = 2) -> Trial:
    return Trial(collaborator, 0, (), (), f"so {answer}", answer, (logprob,) * tokens, ("so",) * tokens)


def scored(*probabilities: float, options: str = "ABC") -> Trial:
    logprobs = tuple(math.log(p) if p else -math.inf for p in probabilities)
    best = int(np.argmax(probabilities))
    return Trial(0, 0, (), (), options[best], options[best], (logprobs[best],), (options[best],), logprobs)


@pytest.mark.parametrize(
    ("answers", "unanimous"),
    [
        (["a", "a", "a", "a"], True),
        (["a", "a", "a", "b"], False),
        (["a", "a", "a", None], False),
        ([None, None, None, None], False),
        ([None], False),
        (["a"], True),
    ],
)
def test_unanimous_means_that_all_answered_and_the_same(answers: list[str | None], unanimous: bool) -> None:
    assert is_unanimous([said(answer) for answer in answers], EXACT) is unanimous


def test_numbers_within_the_tolerance_agree() -> None:
    trials = [said("100"), said("100.5"), said("101")]
    assert is_unanimous(trials, Answers("number"))
    assert not is_unanimous([*trials, said("105")], Answers("number"))


@pytest.mark.parametrize("justification", [None, said("a", collaborator=JUSTIFICATION)])
@pytest.mark.parametrize("n", [1, 4])
def test_only_failures_are_a_rejection_and_never_agreement(n: int, justification: Trial | None) -> None:
    label = label_sampled([said(None)] * n, justification, EXACT, unjustified=None)
    assert (label.outcome, label.answer, label.reply) == ("unparsable", None, None)
    assert math.isnan(label.vote_share)
    assert label_sampled([said(None)] * n, justification, EXACT, unjustified="majority").outcome == "unparsable"


def test_a_consistent_row_has_the_mean_entropy_of_its_samples_and_the_surest_reply() -> None:
    trials = [said("a", -0.5), said("a", -0.1, tokens=9), said("a", -0.6)]
    label = label_sampled(trials, None, EXACT, unjustified=None)
    assert (label.outcome, label.answer, label.vote_share, label.answer_entropy) == ("consistent", "a", 1.0, 0.0)
    assert label.entropy == pytest.approx((0.5 + 0.1 + 0.6) / 3)
    assert label.reply == trials[1].reply


@pytest.mark.parametrize("answers", [["a", "a", "b", "b"], ["a", "a", "a", None]])
def test_a_justified_row_has_the_justification_s_answer_and_entropy(answers: list[str | None]) -> None:
    trials = [said(answer, -1.0) for answer in answers]
    label = label_sampled(trials, said("a", -0.25), EXACT, unjustified=None)
    assert (label.outcome, label.answer, label.entropy) == ("justified", "a", 0.25)
    assert label.vote_share == answers.count("a") / 4


def test_a_justification_may_give_an_answer_that_nobody_gave() -> None:
    label = label_sampled([said("a"), said("b")], said("c"), EXACT, unjustified=None)
    assert (label.outcome, label.answer, label.vote_share) == ("justified", "c", 0.0)


@pytest.mark.parametrize("justification", [None, said(None)])
def test_without_a_readable_justification_the_row_is_lost_with_that_reason(justification: Trial | None) -> None:
    label = label_sampled([said("a"), said("b")], justification, EXACT, unjustified=None)
    assert (label.outcome, label.answer) == ("justification_unparsable", None)


@pytest.mark.parametrize(
    ("trials", "answer", "share"),
    [
        ([said("a"), said("b"), said("b")], "b", 2 / 3),
        ([said("a", -0.9), said("b", -0.1)], "b", 1 / 2),
        ([said("a", -0.1), said("b", -0.9), said(None)], "a", 1 / 3),
    ],
)
def test_the_majority_is_the_largest_group_and_the_surer_among_equals(
    trials: list[Trial], answer: str, share: float
) -> None:
    label = label_sampled(trials, None, EXACT, unjustified="majority")
    assert (label.outcome, label.answer) == ("majority", answer)
    assert label.vote_share == pytest.approx(share)


def test_candidates_are_one_reply_for_each_answer_the_most_voted_first() -> None:
    trials = [said("a", -3), said("b", -2), said(None), said("b", -1)]
    assert candidates(trials, EXACT) == [trials[3].reply, trials[0].reply]


@pytest.mark.parametrize(
    ("trials", "agreed", "entropy"),
    [
        ([said("a", -1), said("a", -3)], "consistent", 2.0),
        ([said("a", -1), said("a", -3), said("b", -9)], "differed", 2.0),
        ([said("a", -1), said(None, -3)], "differed", 1.0),
        ([said(None), said(None)], "unparsable", math.nan),
        ([], "too_long", math.nan),
    ],
)
def test_what_is_told_of_a_row_before_anything_is_decided(trials: list[Trial], agreed: str, entropy: float) -> None:
    assert provisional(trials, EXACT) == (agreed, pytest.approx(entropy, nan_ok=True))


def test_entropy_is_the_mean_surprise_of_the_response_s_tokens() -> None:
    assert Trial(0, 0, (), (), "x", "x", (-1.0, -2.0, -0.0), ("x", "y", "z")).entropy == 1.0


def test_a_response_without_tokens_is_never_sure() -> None:
    assert Trial(0, 0, (), (), "", None, (), ()).entropy == math.inf


@given(st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=6), st.booleans())
def test_every_row_gets_an_answer_or_an_outcome_that_says_why_not(answers: list[str | None], majority: bool) -> None:
    rule = "majority" if majority else None
    label = label_sampled([said(answer) for answer in answers], said("a"), EXACT, unjustified=rule)  # type: ignore[arg-type]
    assert (label.answer is None) == (label.outcome in {"unparsable", "justification_unparsable"})
    assert (label.outcome == "consistent") == (len(set(answers)) == 1 and None not in answers)


# --- scored options ---------------------------------------------------------------------------------------------------


def test_the_mean_distribution_counts_a_justification_as_one_more_voice() -> None:
    trials = [scored(0.6, 0.4), scored(0.2, 0.8)]
    assert mean_probabilities(trials, None) == pytest.approx([0.4, 0.6])
    assert mean_probabilities(trials, scored(1.0, 0.0)) == pytest.approx([0.6, 0.4])


@pytest.mark.parametrize(
    ("trials", "justification", "final", "outcome", "answer", "share"),
    [
        ([scored(0.9, 0.1), scored(0.8, 0.2)], None, [0.85, 0.15], "consistent", "A", 1.0),
        ([scored(0.9, 0.1), scored(0.4, 0.6)], None, [0.65, 0.35], "majority", "A", 0.5),
        ([scored(0.9, 0.1), scored(0.4, 0.6)], scored(0.1, 0.9), [0.47, 0.53], "justified", "B", 0.5),
        ([scored(0.6, 0.4), scored(0.6, 0.4)], None, [0.3, 0.7], "balanced", "B", 0.0),
    ],
)
def test_scored_rows_take_the_most_probable_option(
    trials: list[Trial],
    justification: Trial | None,
    final: list[float],
    outcome: str,
    answer: str,
    share: float,
) -> None:
    label = label_scored(trials, justification, final, "AB")
    assert (label.outcome, label.answer, label.reply, label.vote_share) == (outcome, answer, answer, share)
    assert label.probability == max(final)


def test_a_scored_row_s_entropy_is_that_of_the_winner_among_those_who_chose_it() -> None:
    label = label_scored([scored(0.9, 0.1), scored(0.2, 0.8)], None, [0.55, 0.45], "AB")
    assert label.entropy == pytest.approx(-math.log(0.9))


@pytest.mark.parametrize(
    ("weights", "entropy"),
    [([4], 0.0), ([2, 2], math.log(2)), ([1, 1, 1], math.log(3)), ([0.5, 0.5, 0.0], math.log(2)), ([1, 0], 0.0)],
)
def test_answer_entropy_is_in_nats(weights: list[float], entropy: float) -> None:
    assert answer_entropy(weights) == pytest.approx(entropy, abs=1e-12)


# --- balance ----------------------------------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn, least: float = 0.0) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    cell = st.one_of(st.just(least), st.floats(1e-300, 1e-200), st.floats(max(1e-6, least), 1))
    values = draw(st.lists(st.lists(cell, min_size=columns, max_size=columns), min_size=rows, max_size=rows))
    table = np.array(values)
    table[table.sum(axis=1) < 1e-9, 0] = 1
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def even(columns: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.full(columns, 1 / columns)


@given(tables())
def test_balanced_rows_sum_to_1_and_impossible_answers_stay_impossible(
    table: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> None:
    before = table.copy()
    balanced = balance(table, even(table.shape[1]))
    assert np.isfinite(balanced).all()
    assert balanced.sum(axis=1) == pytest.approx(1)
    assert (balanced[before == 0] == 0).all()
    assert np.array_equal(table, before)


@given(st.integers(0, 1000), st.lists(st.integers(1, 9), min_size=2, max_size=6))
def test_balanced_columns_follow_the_mix(seed: int, counts: list[int]) -> None:
    mix = np.array(counts) / sum(counts)
    table = np.random.default_rng(seed).dirichlet(np.ones(len(mix)), size=60) * 0.9 + 0.1 / len(mix)
    assert balance(table, mix).mean(axis=0) == pytest.approx(mix, abs=0.01)


def test_balance_does_not_depend_on_the_order_of_rows() -> None:
    table = np.random.default_rng(0).dirichlet([1, 2, 3], size=20)
    order = np.random.default_rng(1).permutation(20)
    assert balance(table[order], even(3)) == pytest.approx(balance(table, even(3))[order])


def test_a_class_that_the_model_overuses_stops_swallowing_others() -> None:
    table = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    assert list(balance(table, even(2)).argmax(axis=1)) == [0, 0, 1, 1]


@pytest.mark.parametrize("smallest", [0.0, 5e-324, 1e-320, 1e-300])
def test_an_answer_that_no_row_gives_any_weight_does_no_harm(smallest: float) -> None:
    rows: Sequence[Sequence[float]] = [[0.75, 0.25, smallest], [0.5, 0.5, smallest]] * 6
    balanced = balance(np.array(rows), even(3))
    assert np.isfinite(balanced).all()
    assert balanced.sum(axis=1) == pytest.approx(1)
