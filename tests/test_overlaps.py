"""Rows that several files hold: which are left out, which stay, and what is told of them."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol import wording
from semievol.answers import Answers
from semievol.examples import Example, content_id
from semievol.overlaps import Apart, contradicting, keep_apart
from semievol.prompts import Message

CLASSES = Answers("choice", ("yes", "no"))


def rows(prompts: str, replies: str = "") -> list[Example]:
    """A row for each letter, with ids as readers give them: the letter, and a counter where it comes again."""
    seen = Counter[str]()
    made = []
    for line, letter in enumerate(prompts, start=1):
        seen[letter] += 1
        row_id = letter if seen[letter] == 1 else f"{letter}-{seen[letter]}"
        reply = {"y": "yes", "n": "no"}[replies[line - 1]] if replies else None
        made.append(Example(row_id, line, (Message("user", letter),), reply))
    return made


def apart(labeled: str, unlabeled: str, validation: str, test: str) -> tuple[Apart, list[Example]]:
    files = keep_apart(rows(labeled), rows(validation), rows(test))
    return files, list(files.pool.keep(rows(unlabeled)))


def ids(kept: list[Example]) -> str:
    return " ".join(row.id for row in kept)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        pytest.param(("abc", "def", "g", "h"), ("a b c", "d e f", "g", "h"), id="nothing in common"),
        pytest.param(("abc", "d", "b", "c"), ("a", "d", "b", "c"), id="labeled rows that are measured on"),
        pytest.param(("a", "bcd", "b", "c"), ("a", "d", "b", "c"), id="unlabeled rows that are measured on"),
        pytest.param(("ab", "bbc", "d", "e"), ("a b", "c", "d", "e"), id="unlabeled rows with a known answer"),
        pytest.param(("a", "b", "cd", "de"), ("a", "b", "c", "d e"), id="validation rows of the test file"),
        pytest.param(("aab", "ccd", "ee", "ff"), ("a a-2 b", "c c-2 d", "e e-2", "f f-2"), id="rows that repeat stay"),
        pytest.param(("aba", "cdc", "a", "c"), ("b", "d", "a", "c"), id="all copies go"),
        pytest.param(("ab", "ab", "", ""), ("a b", "", "", ""), id="nothing left of the pool"),
    ],
)
def test_a_row_is_in_one_file_only(given: tuple[str, str, str, str], kept: tuple[str, str, str, str]) -> None:
    files, pool = apart(*given)
    assert (ids(files.labeled), ids(pool), ids(files.validation), ids(files.test)) == kept


def test_findings_name_the_file_that_counts_first_and_the_first_lines() -> None:
    files, _ = apart("avt", "xxxtvaaaaaaaay", "vt", "t")
    told = files.facts(None)
    assert told["left_out"] == [
        {"role": "labeled", "also_in": "test", "rows": 1, "lines": (3,)},
        {"role": "labeled", "also_in": "validation", "rows": 1, "lines": (2,)},
        {"role": "unlabeled", "also_in": "test", "rows": 1, "lines": (4,)},
        {"role": "unlabeled", "also_in": "validation", "rows": 1, "lines": (5,)},
        {"role": "unlabeled", "also_in": "labeled", "rows": 8, "lines": (6, 7, 8, 9, 10)},
        {"role": "validation", "also_in": "test", "rows": 1, "lines": (2,)},
    ]
    assert told["repeated"] == [{"role": "unlabeled", "also_in": None, "rows": 9, "lines": (2, 3, 7, 8, 9)}]
    assert told["contradicting"] is None


FILE = st.text("abcdefgh", max_size=12)


@given(FILE, FILE, FILE, FILE)
def test_no_prompt_is_in_two_files_and_every_row_is_kept_or_counted(
    labeled: str, unlabeled: str, validation: str, test: str
) -> None:
    files, pool = apart(labeled, unlabeled, validation, test)
    kept = {"labeled": files.labeled, "unlabeled": pool, "validation": files.validation, "test": files.test}
    given_rows = dict(zip(kept, map(rows, (labeled, unlabeled, validation, test)), strict=True))
    prompts = [{content_id(row.id) for row in part} for part in kept.values()]
    assert sum(map(len, prompts)) == len(set().union(*prompts))
    left_out = Counter[str]()
    for one in files.facts(None)["left_out"]:
        left_out[one["role"]] += one["rows"]
    for role, part in kept.items():
        assert len(part) + left_out[role] == len(given_rows[role])
        assert part == [row for row in given_rows[role] if row in part]  # as they were, in their order
    assert files.test == given_rows["test"]


@pytest.mark.parametrize(
    ("prompts", "replies", "lines"),
    [
        ("abc", "yny", None),
        ("aab", "yyn", None),
        ("aabb", "ynnn", (1, 2)),
        ("abababab", "ynynynyy", (2, 4, 6, 8)),
        ("aaaaaaa", "nnnnnny", (1, 2, 3, 4, 5)),
    ],
)
def test_rows_that_contradict_one_another_are_counted(prompts: str, replies: str, lines: tuple[int, ...]) -> None:
    found = contradicting(rows(prompts, replies), CLASSES)
    assert (found.lines if found else None) == lines
    if found:
        assert found.rows == (7 if len(lines) == 5 else len(lines))


def test_answers_that_are_equal_as_answers_contradict_nothing() -> None:
    first, second = rows("aa", "yy")
    pair = [replace(first, reply="1,000"), replace(second, reply="the answer is 1000.5")]
    assert contradicting(pair, Answers("number")) is None
    assert contradicting([pair[0], replace(second, reply="1100")], Answers("number")) is not None


# --- words ------------------------------------------------------------------------------------------------------------


def test_nothing_is_said_where_nothing_was_found() -> None:
    files, _ = apart("a", "b", "c", "d")
    for report in ({}, {"overlaps": None}, {"overlaps": files.facts(None)}):
        assert wording.left_out(report) is None
        assert wording.worth_a_look(report) is None


def test_findings_in_words() -> None:
    files, _ = apart("ab", "aaaaaaab", "c", "b")
    report = {"overlaps": files.facts(contradicting(rows("aa", "yn"), CLASSES))}
    assert wording.left_out(report) == (
        "Left out, so that no row is both learned from and measured on or known already: 1 labeled row (line 2) also "
        "in the test file, 1 unlabeled row (line 8) also in the test file and 7 unlabeled rows (lines 1, 2, 3, 4, 5 "
        "and 2 more) also in the labeled file."
    )
    assert wording.worth_a_look(report) == (
        "Kept as they are: 6 unlabeled rows (lines 2, 3, 4, 5, 6 and 1 more) repeating another of the file and 2 "
        "labeled rows (lines 1 and 2) asking the same as another and answered differently."
    )
