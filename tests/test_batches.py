"""What is computed together: every prompt once and whole, and at no more cost than without cutting."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.backends.batches import Queue, common, cost_of, cut

prompts_of = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=25)
SYSTEM, EXAMPLES = [1] * 30, [[10 + example] * 20 for example in range(6)]


def prompts_with(pairs: list[tuple[int, int]], question: int = 8) -> list[list[int]]:
    """A system message, two worked examples, and a question that no other prompt has."""
    return [[*SYSTEM, *EXAMPLES[a], *EXAMPLES[b], *([100 + row] * question)] for row, (a, b) in enumerate(pairs)]


@given(prompts_of, st.integers(0, 30))
def test_a_prompt_is_its_beginning_and_a_rest(prompts: list[list[int]], overhead: int) -> None:
    found = cut(prompts, overhead)
    whole = len(prompts) * max(map(len, prompts))
    assert found.cost <= whole
    if not found.beginnings:
        assert (found.owners, found.cost) == ([], whole)
        return
    assert sorted(set(found.owners)) == list(range(len(found.beginnings)))
    for prompt, owner in zip(prompts, found.owners, strict=True):
        beginning = found.beginnings[owner]
        assert 0 < len(beginning) < len(prompt)
        assert prompt[: len(beginning)] == beginning
    width = max(len(prompt) - len(found.beginnings[owner]) for prompt, owner in zip(prompts, found.owners, strict=True))
    begun = max(map(len, found.beginnings))
    assert len(prompts) * width + len(found.beginnings) * begun + overhead <= found.cost < whole


@given(prompts_of, st.integers(0, 30))
def test_beginnings_of_beginnings_cost_no_more(prompts: list[list[int]], overhead: int) -> None:
    assert cost_of(prompts, overhead) <= cut(prompts, overhead).cost


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_what_two_prompts_share(one: list[int], other: list[int]) -> None:
    equal = [a == b for a, b in zip(one, other, strict=False)]
    whole = equal.index(False) if False in equal else len(equal)
    assert common(one, other) == min(whole, len(one) - 1, len(other) - 1)


def test_worked_examples_are_computed_once_for_all_rows_that_have_them() -> None:
    pairs = [(0, 1), (2, 3), (4, 5)]
    prompts = prompts_with(pairs * 10)
    found = cut(prompts, overhead=16)
    assert sorted(found.beginnings) == sorted([*SYSTEM, *EXAMPLES[a], *EXAMPLES[b]] for a, b in pairs)
    assert cost_of(prompts, overhead=16) == 30 * 8 + 16 + 3 * 40 + 16 + 30  # rests; examples; the system message once


def test_a_row_that_shares_nothing_widens_no_other() -> None:
    """It is cut too, though nobody shares its beginning."""
    prompts = [*prompts_with([(0, 1)] * 20), list(range(200, 278))]
    found = cut(prompts, overhead=16)
    assert found.cost == 21 * 8 + 2 * 70 + 16
    assert found.beginnings[found.owners[-1]] == list(range(200, 270))


def test_nothing_is_cut_where_a_batch_more_costs_more() -> None:
    prompts = prompts_with([(0, 1)] * 4)
    assert cut(prompts, overhead=3 * 70).beginnings == []
    assert cut(prompts, overhead=3 * 70 - 1).beginnings == [prompts[0][:70]]


def drained(queue: Queue) -> list[list[int]]:
    batches = []
    while queue:
        batches.append(queue.take())
    return batches


@given(prompts_of, st.integers(1, 60), st.data())
def test_every_prompt_is_taken_once_and_no_batch_is_too_large(
    prompts: list[list[int]], most: int, data: st.DataObject
) -> None:
    copies = data.draw(st.lists(st.integers(1, 3), min_size=len(prompts), max_size=len(prompts)))
    first = data.draw(st.integers(1, len(prompts)))
    queue = Queue(prompts[:first], copies[:first], room=2, most=most, overhead=4)
    batches = [queue.take()]
    for prompt, times in zip(prompts[first:], copies[first:], strict=True):
        queue.add(prompt, times)
    batches += drained(queue)
    assert sorted(itertools.chain(*batches)) == list(range(len(prompts)))
    for batch in batches:
        tokens = (max(len(prompts[index]) for index in batch) + 2) * sum(copies[index] for index in batch)
        assert len(batch) == 1 or tokens <= most


@pytest.mark.parametrize(
    ("prompts", "together"),
    [
        (prompts_with([(0, 1), (2, 3), (4, 5)] * 4), [{0, 3, 6, 9}, {1, 4, 7, 10}, {2, 5, 8, 11}]),
        ([[row] * length for row, length in enumerate([5, 50, 6, 51, 7, 52])], [{0, 2, 4}, {1, 3, 5}]),
    ],
    ids=["alike", "of one length"],
)
def test_prompts_go_together_that_begin_alike_or_are_alike_in_length(
    prompts: list[list[int]], together: list[set[int]]
) -> None:
    longest = max(map(len, prompts)) + 1
    queue = Queue(prompts, [1] * len(prompts), room=1, most=longest * len(together[0]), overhead=4)
    assert sorted(map(set, drained(queue)), key=min) == together
