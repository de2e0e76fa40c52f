"""Selection: who is trained on, and why."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.agreement import Label
from semievol.recipe import SelectionSettings
from semievol.selection import confidence_of, select

LOST = (Label("unparsable"), Label("justification_unparsable"), Label("too_long"))


def sampled(entropy: float, answer: str = "a", share: float = 1.0) -> Label:
    return Label("consistent", answer, answer, share, entropy, 0.0)


def kept(labels: list[Label], *, seed: int = 0, closed: bool = True, **settings: Any) -> list[int]:
    ids = [f"row{index:04d}" for index in range(len(labels))]
    decisions = select(ids, labels, SelectionSettings(**settings), closed=closed, seed=seed)
    return [index for index, decision in enumerate(decisions) if decision.accepted]


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=60, unique=True), st.integers(1, 99))
def test_by_rank_is_strictly_below_the_quantile_where_all_values_differ(values: list[int], percent: int) -> None:
    entropies = np.array(values) / 1000
    theta = percent / 100
    position = theta * (len(values) - 1)
    if abs(position - round(position)) < 1e-9:  # on a row: floating point may put the quantile a hair above it
        below = set(np.argsort(entropies)[: round(position)])
    else:
        below = set(np.flatnonzero(entropies < np.quantile(entropies, theta)))
    chosen = kept([sampled(float(h)) for h in entropies], theta=theta, confidence="entropy", per_answer=False)
    assert set(chosen) == below


def test_theta_1_keeps_every_row_with_an_answer() -> None:
    assert kept([sampled(h) for h in (3, 1, 2)] + list(LOST), theta=1) == [0, 1, 2]


def test_rows_that_are_all_equally_sure_are_kept_up_to_the_share_in_the_order_of_ids() -> None:
    labels = [sampled(0.0)] * 11
    assert kept(labels, theta=0.5, confidence="entropy", per_answer=False) == [0, 1, 2, 3, 4]


def test_one_row_is_kept() -> None:
    assert kept([sampled(1.0)], theta=0.5) == [0]


@pytest.mark.parametrize("rule", ["quantile", "random", "all"])
def test_a_row_without_an_answer_is_never_kept_and_says_why(rule: Any) -> None:
    labels = [*LOST, sampled(0.5)]
    settings = SelectionSettings(rule=rule, theta=1)
    decisions = list(select([*"wxyz"], labels, settings, closed=True, seed=0))
    assert [decision.reason for decision in decisions[:3]] == [label.outcome for label in LOST]
    assert [decision.accepted for decision in decisions] == [False, False, False, True]
    assert all(math.isnan(decision.confidence) for decision in decisions[:3])


@pytest.mark.parametrize("rule", ["quantile", "random", "all"])
def test_nothing_to_select_from_keeps_nothing(rule: str) -> None:
    assert kept(list(LOST) * 3, rule=rule) == []
    assert kept([], rule=rule) == []


@pytest.mark.parametrize(
    ("rule", "reasons"),
    [
        ("quantile", {"confident": 5, "not_confident": 6}),
        ("random", {"drawn": 5, "not_drawn": 6}),
        ("all", {"kept_all": 11}),
    ],
)
def test_every_row_has_a_reason_that_names_the_rule(rule: Any, reasons: dict[str, int]) -> None:
    settings = SelectionSettings(rule=rule, theta=0.5)
    labels = [sampled(index / 10) for index in range(11)]
    decisions = list(select([str(i) for i in range(11)], labels, settings, closed=True, seed=3))
    assert Counter(decision.reason for decision in decisions) == reasons


def test_per_answer_takes_the_share_within_each_answer() -> None:
    labels = [sampled(h, "sure") for h in range(11)] + [sampled(h + 100, "unsure") for h in range(11)]
    chosen = kept(labels, theta=0.5)
    assert chosen == [*range(5), *range(11, 16)]
    assert kept(labels, theta=0.5, per_answer=False) == [*range(11)]


def test_open_answers_are_ranked_together_whatever_per_answer_says() -> None:
    labels = [sampled(h, str(h)) for h in range(11)]
    assert kept(labels, theta=0.5, closed=False) == [*range(5)]


def test_random_keeps_as_many_as_the_quantile_and_others_for_another_seed() -> None:
    labels = [sampled(h) for h in range(101)]
    draws = [kept(labels, rule="random", theta=0.5, seed=seed) for seed in range(3)]
    assert {len(draw) for draw in draws} == {len(kept(labels, theta=0.5))}
    assert draws[0] != draws[1] != draws[2]
    assert kept(labels, rule="random", theta=0.5, seed=0) == draws[0]


@given(st.permutations(range(12)))
@pytest.mark.parametrize("rule", ["quantile", "random"])
def test_the_order_of_rows_changes_no_decision(rule: Any, order: list[int]) -> None:
    ids = [f"row{index}" for index in range(12)]
    labels = [sampled(index % 3, "ab"[index % 2]) for index in range(12)]
    settings = SelectionSettings(rule=rule, theta=0.6)
    straight = dict(zip(ids, select(ids, labels, settings, closed=True, seed=1), strict=True))
    shuffled_ids, shuffled = [ids[i] for i in order], [labels[i] for i in order]
    assert straight == dict(
        zip(shuffled_ids, select(shuffled_ids, shuffled, settings, closed=True, seed=1), strict=True)
    )


def test_confidence_is_the_probability_of_a_scored_answer() -> None:
    label = Label("consistent", "a", "a", 0.25, 2.0, 0.1, probability=0.7)
    assert confidence_of(label, SelectionSettings()) == 0.7
    assert confidence_of(label, SelectionSettings(confidence="entropy")) == -2.0


@given(st.integers(1, 64), st.floats(0, 1e6), st.floats(0, 1e6))
def test_more_votes_are_surer_than_any_entropy(n: int, more_unsure: float, less_sure: float) -> None:
    settings = SelectionSettings()
    more, fewer = sampled(more_unsure, share=n / 64), sampled(less_sure, share=(n - 1) / 64)
    assert confidence_of(more, settings) > confidence_of(fewer, settings)


def test_among_equal_votes_the_lower_entropy_is_surer() -> None:
    settings = SelectionSettings()
    assert confidence_of(sampled(0.1, share=0.5), settings) > confidence_of(sampled(0.2, share=0.5), settings)
    assert confidence_of(sampled(math.inf), settings) < confidence_of(sampled(1.0), settings)
