"""Generation: who is asked what, with which seeds, and what is kept of it."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from semievol.agreement import JUSTIFICATION, Trial, is_decided, label_sampled
from semievol.answers import Answers
from semievol.examples import Example
from semievol.fakes import FakeGenerator, FakeRetriever, knowing
from semievol.generation import Answered, Neighbours, answer_shard, pool_size
from semievol.prompts import Message, question_of
from semievol.recipe import Recipe
from semievol.replies import options_of, scores_options
from semievol.seeds import seed_of

TOPICS = {"bill": "money", "invoice": "money", "login": "access", "password": "access"}
LABELED = [
    Example(f"L{index}", index, (Message("user", f"my {word} number {index}"),), TOPICS[word])
    for index, word in enumerate(list(TOPICS) * 3)
]
ROWS = [Example(f"U{i}", i, (Message("user", f"about {word} {i}"),)) for i, word in enumerate(list(TOPICS) * 3)]
TRUTH = {question_of(row.prompt): TOPICS[question_of(row.prompt).split()[1]] for row in ROWS}
OPTIONS = ("access", "money")
CLOSED, OPEN = Answers("choice", OPTIONS), Answers("exact")


def recipe(**generation: Any) -> Recipe:
    return Recipe.resolve({"generation": generation})


def neighbours(rows: Sequence[Example], k: int) -> Neighbours:
    retriever = FakeRetriever([question_of(row.prompt) for row in LABELED])
    return Neighbours(*retriever.nearest([question_of(row.prompt) for row in rows], k))


def answer(
    rows: Sequence[Example] = ROWS,
    *,
    generator: FakeGenerator | None = None,
    answers: Answers = OPEN,
    near: bool = True,
    seed: int = 0,
    round_number: int = 1,
    k: int = 3,
    **settings: Any,
) -> list[Answered]:
    chosen = Recipe.resolve({"generation": settings, "propagation": {"in_context": near, "k": k}})
    pool = pool_size(chosen, len(LABELED))
    return answer_shard(
        rows,
        neighbours(rows, pool) if pool else None,
        LABELED,
        generator or FakeGenerator(knowing(TRUTH, 0.4)),
        answers,
        chosen,
        seed=seed,
        round_number=round_number,
    )


def test_every_row_has_n_trials_in_the_order_of_collaborators() -> None:
    answered = answer(n=5, answers=OPEN)
    assert [one.row for one in answered] == ROWS
    assert all([trial.collaborator for trial in one.trials] == [0, 1, 2, 3, 4] for one in answered)


def test_a_trial_s_seed_is_a_function_of_job_row_collaborator_and_round() -> None:
    for one in answer(seed=7, round_number=2):
        assert [trial.seed for trial in one.trials] == [seed_of(7, one.row.id, c, 2) for c in range(4)]


@pytest.mark.parametrize("answers", [CLOSED, OPEN], ids=["scored", "sampled"])
def test_a_row_s_trials_do_not_depend_on_the_other_rows_of_its_shard(answers: Answers) -> None:
    together = {one.row.id: one for one in answer(answers=answers)}
    backwards = {one.row.id: one for one in answer(ROWS[::-1], answers=answers)}
    alone = {row.id: answer([row], answers=answers)[0] for row in ROWS}
    assert together == backwards == alone


@pytest.mark.parametrize("change", [{"seed": 1}, {"round_number": 2}])
def test_another_seed_or_round_draws_anew(change: dict[str, int]) -> None:
    assert answer() != answer(**change)  # type: ignore[arg-type]


def test_the_first_collaborator_sees_the_k_nearest_and_the_nearest_comes_last() -> None:
    near = neighbours(ROWS, 3)
    for index, one in enumerate(answer(k=3)):
        nearest_last = [LABELED[at].id for at in reversed(near.indices[index])]
        assert list(one.trials[0].worked_examples) == nearest_last
        assert list(one.trials[0].similarities) == sorted(one.trials[0].similarities)


def test_varied_collaborators_all_see_the_nearest_and_differ_in_the_others() -> None:
    near = neighbours(ROWS, 5)
    answered = answer(k=3, n=8, worked_examples="varied")
    for index, one in enumerate(answered):
        pool = [LABELED[at].id for at in near.indices[index]]
        for trial in one.trials:
            assert len(set(trial.worked_examples)) == 3
            ranks = [pool.index(example) for example in trial.worked_examples]
            assert ranks == sorted(ranks, reverse=True)
            assert ranks[-1] == 0
    assert any(len({trial.worked_examples for trial in one.trials}) > 2 for one in answered)


def test_shared_collaborators_see_the_same_prompt_which_is_asked_once() -> None:
    generator = FakeGenerator(knowing(TRUTH))
    answered = answer(worked_examples="shared", generator=generator)
    assert all(len({trial.worked_examples for trial in one.trials}) == 1 for one in answered)
    assert len(generator.prompts) == len(ROWS)


def test_without_in_context_propagation_the_prompt_is_the_row_s_own() -> None:
    generator = FakeGenerator(knowing(TRUTH))
    answered = answer(near=False, generator=generator)
    assert {trial.worked_examples for one in answered for trial in one.trials} == {()}
    assert sorted(map(question_of, generator.prompts)) == sorted(question_of(row.prompt) for row in ROWS)
    assert {len(prompt) for prompt in generator.prompts} == {1}


def test_without_collaboration_there_is_one_answer_and_no_justification() -> None:
    for one in answer(collaboration=False):
        assert (len(one.trials), one.justification) == (1, None)


def differ(one: Answered) -> bool:
    return len({trial.answer for trial in one.trials}) > 1


def test_rows_whose_collaborators_differ_are_justified_greedily_and_no_others_are() -> None:
    generator = FakeGenerator(knowing(TRUTH, 0.15))
    answered = answer(generator=generator)
    assert any(differ(one) for one in answered)
    assert any(not differ(one) for one in answered)
    for one in answered:
        assert (one.justification is not None) == differ(one)
        if one.justification is not None:
            assert one.justification.collaborator == JUSTIFICATION
            assert one.justification.answer == TRUTH[question_of(one.row.prompt)]
    asked = [question_of(prompt) for prompt in generator.prompts if "Candidate answers:" in question_of(prompt)]
    assert all("\n1. " in text and "\n2. " in text for text in asked)


def test_a_row_is_justified_while_others_wait_for_their_first_answer() -> None:
    generator = FakeGenerator(knowing(TRUTH, 0.4))
    heard: list[int] = []
    pool = pool_size(recipe(), len(LABELED))
    answered = answer_shard(
        ROWS, neighbours(ROWS, pool), LABELED, generator, OPEN, recipe(), seed=0, round_number=1,
        progress=lambda done, total, loss=None: heard.append(len(generator.prompts)),
    )  # fmt: skip
    justifies = ["Candidate answers:" in question_of(prompt) for prompt in generator.prompts]
    assert sum(justifies) == sum(one.justification is not None for one in answered) > 2
    assert justifies.index(True) < len(justifies) - justifies[::-1].index(False) - 1
    assert heard[-1] == len(generator.prompts), "a row is done when it is justified"


def test_a_majority_needs_no_justification() -> None:
    assert all(one.justification is None for one in answer(disagreement="majority"))


@pytest.mark.parametrize("disagreement", ["justify", "majority"])
def test_an_early_stop_saves_samples_and_changes_no_outcome(disagreement: Literal["justify", "majority"]) -> None:
    """What was drawn are the first of the samples that would have been drawn."""
    every = answer(disagreement=disagreement, n=5)
    stopped = answer(disagreement=disagreement, n=5, early_stop=True)
    unjustified: Literal["majority"] | None = "majority" if disagreement == "majority" else None
    saved = 0
    for full, short in zip(every, stopped, strict=True):
        assert short.trials == full.trials[: len(short.trials)]
        assert len(short.trials) >= 2
        saved += len(full.trials) - len(short.trials)
        ours, theirs = (
            label_sampled(one.trials, one.justification, OPEN, unjustified=unjustified) for one in (short, full)
        )
        assert ours.outcome == theirs.outcome
        if disagreement == "majority" or theirs.outcome == "consistent":
            assert ours.answer == theirs.answer
    assert saved > 0


def test_an_early_stop_asks_on_while_the_outcome_is_open() -> None:
    """Two that agree, or by majority a lead that can be caught up with, are not enough."""
    assert not decided("justify", 4, "a", "a")
    assert decided("justify", 4, "a", "b")
    assert decided("justify", 4, "a", None)
    assert not decided("majority", 4, "a", "a", "b")
    assert decided("majority", 5, "a", "a", "a", "b")
    assert decided("majority", 5, "a", "a", "a", None)
    assert not decided("majority", 3, "a", "b")
    assert decided("majority", 3, "a", "a", "a")
    assert not decided("justify", 3)


@pytest.mark.parametrize("disagreement", ["justify", "majority"])
def test_collaborators_who_surely_agree_are_not_asked(disagreement: Literal["justify", "majority"]) -> None:
    """Two of four that agree: the others do too if each is 97.5 % likely to, as 0.975 ** 2 is above 0.95."""
    assert decided(disagreement, 4, "a", "a", likely=0.975)
    assert not decided(disagreement, 4, "a", "a", likely=0.974)
    assert not decided(disagreement, 5, "a", "a", likely=0.975)
    assert decided(disagreement, 5, "a", "a", "a", likely=0.975)
    assert not decided(disagreement, 2, "a", likely=1.0), "one agrees with nobody"
    assert decided(disagreement, 4, "a", "a", likely=0.975, temperature=0.5)
    assert not decided(disagreement, 4, "a", "a", likely=0.999, temperature=1.1)


def decided(
    disagreement: Literal["justify", "majority"],
    n: int,
    *replies: str | None,
    likely: float = 0.9,
    temperature: float = 1.0,
) -> bool:
    """Replies of two tokens; the least sure is the last."""
    both = math.log(likely) / 2
    trials = [
        Trial(c, 0, (), (), str(reply), reply, (both / 9, both / 9), ("x", "y")) for c, reply in enumerate(replies)
    ]
    if trials:
        trials[-1] = replace(trials[-1], logprobs=(both, both))
    return is_decided(trials, OPEN, n, disagreement=disagreement, temperature=temperature)


def test_progress_of_an_early_stop_ends_at_the_number_of_rows() -> None:
    heard: list[tuple[int, int]] = []
    generator = FakeGenerator(knowing(TRUTH, 0.4))
    pool = pool_size(recipe(early_stop=True), len(LABELED))
    answer_shard(
        ROWS, neighbours(ROWS, pool), LABELED, generator, OPEN, recipe(early_stop=True), seed=0, round_number=1,
        progress=lambda done, total, loss=None: heard.append((done, total)),
    )  # fmt: skip
    assert heard == [(done, len(ROWS)) for done in sorted({done for done, _ in heard})]
    assert heard[-1] == (len(ROWS), len(ROWS))


def test_rows_that_nobody_answered_are_not_justified() -> None:
    unread = FakeGenerator(lambda prompt: {"?!": 0.5, "hm": 0.5})
    answered = answer(generator=unread, answers=Answers("number"))
    assert all(one.justification is None and {trial.answer for trial in one.trials} == {None} for one in answered)


def test_one_failure_among_agreeing_answers_is_justified() -> None:
    generator = FakeGenerator(lambda prompt: {"5": 0.6, "hm": 0.4})
    answered = answer(generator=generator, answers=Answers("number"))
    mixed = [one for one in answered if {trial.answer for trial in one.trials} == {"5", None}]
    assert mixed
    assert all(one.justification is not None for one in mixed)


def test_a_reply_that_was_cut_off_is_no_answer() -> None:
    generator = FakeGenerator(lambda prompt: {"the answer is 5 and more": 1.0})
    answered = answer(generator=generator, answers=Answers("number"), max_new_tokens=5)
    assert {(trial.answer, trial.reply) for one in answered for trial in one.trials} == {(None, "the answer is 5 and")}


@pytest.mark.parametrize(("room", "shown"), [(100, 3), (16, 2), (12, 1), (8, 0)])
def test_the_farthest_worked_examples_are_left_out_until_the_prompt_fits(room: int, shown: int) -> None:
    # A worked example takes 5 words here, the question 3, the reply 2.
    generator = FakeGenerator(knowing(TRUTH), max_words=room)
    near = neighbours(ROWS, 3)
    for index, one in enumerate(answer(generator=generator, worked_examples="shared", max_new_tokens=2)):
        expected = [LABELED[at].id for at in near.indices[index, :shown][::-1]]
        assert [list(trial.worked_examples) for trial in one.trials] == [expected] * 4


def test_a_row_that_never_fits_has_no_trials() -> None:
    generator = FakeGenerator(knowing(TRUTH), max_words=4)
    answered = answer(generator=generator, max_new_tokens=2)
    assert [(one.trials, one.justification) for one in answered] == [((), None)] * len(ROWS)


def test_scored_rows_carry_the_exact_distribution_of_every_collaborator() -> None:
    for one in answer(answers=CLOSED):
        right = TRUTH[question_of(one.row.prompt)]
        assert len(one.trials) == 4
        for trial in one.trials:
            assert trial.option_logprobs is not None
            assert math.fsum(map(math.exp, trial.option_logprobs)) == pytest.approx(1)
            assert (trial.answer, trial.reply) == (right, right)
            assert trial.logprobs == (max(trial.option_logprobs),)
            assert math.exp(trial.option_logprobs[OPTIONS.index(right)]) == pytest.approx(0.6)


def test_scored_rows_that_differ_are_scored_again_over_their_candidates() -> None:
    def wavering(prompt: tuple[Message, ...]) -> dict[str, float]:
        justifying = "Candidate answers:" in question_of(prompt)
        first = prompt[0].content.endswith(("1", "3", "5", "7", "9"))
        return {"money": 0.9, "access": 0.1} if justifying or first else {"money": 0.4, "access": 0.6}

    answered = answer(answers=CLOSED, generator=FakeGenerator(wavering), n=8)
    assert any(differ(one) for one in answered)
    for one in answered:
        assert (one.justification is not None) == differ(one)
        assert one.justification is None or one.justification.answer == "money"


def test_scored_rows_may_have_their_own_letters() -> None:
    rows = [
        Example("u", 1, ROWS[0].prompt, None, ("A", "B")),
        Example("v", 2, ROWS[1].prompt, None, ("A", "B", "C", "D", "E")),
    ]
    generator = FakeGenerator(lambda prompt: {"B": 1.0})
    answered = answer(rows, answers=Answers("choice"), generator=generator)
    assert [len(one.trials[0].option_logprobs or ()) for one in answered] == [2, 5]


@pytest.mark.parametrize(
    ("answers", "setting", "scored"),
    [
        (CLOSED, "auto", True),
        (Answers("choice", OPTIONS, bare=False), "auto", False),
        (CLOSED, "sampled", False),
        (Answers("number"), "auto", False),
        (Answers("choice", OPTIONS, bare=False), "scored", True),
    ],
)
def test_options_are_scored_where_replies_are_nothing_but_options(answers: Answers, setting: str, scored: bool) -> None:
    assert scores_options(answers, recipe(answers=setting).generation) is scored


def test_the_task_s_classes_go_before_the_row_s_letters() -> None:
    row = Example("u", 1, ROWS[0].prompt, None, ("A", "B"))
    assert options_of(row, CLOSED) == OPTIONS
    assert options_of(row, Answers("choice")) == ("A", "B")


@pytest.mark.parametrize(
    ("settings", "labeled", "pool"),
    [
        ({}, 100, 5),
        ({"generation": {"worked_examples": "shared"}}, 100, 3),
        ({"generation": {"collaboration": False}}, 100, 3),
        ({"propagation": {"in_context": False}}, 100, 0),
        ({}, 4, 4),
    ],
)
def test_the_pool_is_as_large_as_the_collaborators_need(settings: Any, labeled: int, pool: int) -> None:
    assert pool_size(Recipe.resolve({"propagation": {"k": 3}}, settings), labeled) == pool


def test_fewer_labeled_rows_than_k_are_all_shown() -> None:
    few = LABELED[:2]
    near = Neighbours(np.array([[1, 0]]), np.array([[0.5, 0.25]], dtype=np.float32))
    (one,) = answer_shard(ROWS[:1], near, few, FakeGenerator(knowing(TRUTH)), OPEN, recipe(), seed=0, round_number=1)
    assert {trial.worked_examples for trial in one.trials} == {("L0", "L1")}


def test_progress_counts_rows_and_ends_at_their_number() -> None:
    calls: list[tuple[int, int]] = []
    answer_shard(
        ROWS,
        None,
        LABELED,
        FakeGenerator(knowing(TRUTH)),
        OPEN,
        Recipe(),
        seed=0,
        round_number=1,
        progress=lambda done, total, _=None: calls.append((done, total)),
    )
    assert calls == [(done, len(ROWS)) for done in range(1, len(ROWS) + 1)]


def test_an_empty_shard_is_answered() -> None:
    assert answer_shard([], None, LABELED, FakeGenerator(knowing(TRUTH)), OPEN, Recipe(), seed=0, round_number=1) == []


def test_samples_of_a_row_are_independent() -> None:
    answered = answer(n=64, disagreement="majority", worked_examples="shared")
    votes = [[trial.answer for trial in one.trials] for one in answered]
    share = np.mean(
        [v == TRUTH[question_of(one.row.prompt)] for one, row in zip(answered, votes, strict=True) for v in row]
    )
    assert share == pytest.approx(0.6, abs=0.06)
    assert all(left != right for left, right in itertools.pairwise(votes))


def test_a_trial_is_a_plain_value() -> None:
    trials = {trial for one in answer() for trial in one.trials}
    assert all(isinstance(trial, Trial) for trial in trials)
