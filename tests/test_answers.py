"""Answers: what a reply says, and when two replies say the same."""

import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.answers import Answers, Kind, fold, fold_case, infer, parse_number
from semievol.errors import RecipeError

LETTERS = ("A", "B", "C", "D")
SENTIMENT = ("negative", "neutral", "positive")


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("B", "B"),
        (" b ", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B) the second one", "B"),
        ("B: cell membrane", "B"),
        ("**B**", "B"),
        ("The answer is B", "B"),
        ("The answer is (B).", "B"),
        ("Answer: B", "B"),
        ("**Answer:** B", "B"),
        ("It is A or B. The answer is B because cells divide.", "B"),
        ("answer is A. Wait. The answer is C", "C"),
        ("#### D", "D"),
        ("Option C", "C"),
        ("I think it is option C.", "C"),
        ("A dog barks, so B", None),
        ("A or B", None),
        ("The answer is A or B", None),
        ("E", None),
        ("Because", None),
        ("", None),
        ("   ", None),
        ("?!", None),
        ("1", None),
    ],
)
def test_a_letter_is_read_from_a_reply(reply: str, answer: str | None) -> None:
    assert Answers("choice").parse(reply, LETTERS) == answer


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("positive", "positive"),
        ("Positive.", "positive"),
        ("  POSITIVE\n", "positive"),
        ("“Positive”", "positive"),
        ("**positive**", "positive"),
        ("ｐｏｓｉｔｉｖｅ", "positive"),
        ("The sentiment is positive.", "positive"),
        ("negative, since profits fell", "negative"),
        ("It was neutral at first. Answer: positive", "positive"),
        ("positive, not neutral", None),
        ("neutral or positive", None),
        ("positively", None),
        ("nonnegative", None),
        ("happy", None),
    ],
)
def test_a_class_is_read_from_a_reply(reply: str, answer: str | None) -> None:
    assert Answers("choice", SENTIMENT).parse(reply) == answer


@pytest.mark.parametrize(
    ("options", "reply", "answer"),
    [
        (("positive", "very positive"), "very positive", "very positive"),
        (("positive", "very positive"), "It is very positive indeed", "very positive"),
        (("positive", "very positive"), "It is positive indeed", "positive"),
        (("positive", "very positive"), "positive or very positive", None),
        (("male", "female"), "The patient is female.", "female"),
        (("male", "female"), "male or female", None),
        (("-1", "0", "1"), "-1", "-1"),
        (("-1", "0", "1"), "1", "1"),
        (("-1", "0", "1"), "The answer is -1", "-1"),
        (("C", "C#", "C++"), "C++", "C++"),
        (("C", "C#", "C++"), "c#", "C#"),
        (("C", "C#", "C++"), "C", "C"),
        (("<5", "5", ">5"), ">5", ">5"),
        (("+", "-"), "-", "-"),
        (("1", "2", "3", "4", "5"), "4 stars", "4"),
        (("1", "2", "3", "4", "5"), "3.7", None),
        (("yes", "no", "maybe"), "No, there is none known", "no"),
        (("Straße", "Weg"), "STRASSE", "Straße"),
        (("да", "нет"), "Ответ да.", "да"),
        (("new york", "york"), "New   York", "new york"),
        (("a.b", "axb"), "axb", "axb"),
    ],
)
def test_options_that_look_alike_are_told_apart(options: tuple[str, ...], reply: str, answer: str | None) -> None:
    assert Answers("choice", options).parse(reply) == answer


@given(st.lists(st.text(min_size=1, max_size=8).filter(str.strip), min_size=2, max_size=6, unique_by=fold_case))
def test_every_option_is_read_as_itself(options: list[str]) -> None:
    assert [Answers("choice", tuple(options)).parse(option) for option in options] == options


@given(st.text(), st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=5))
def test_a_choice_is_one_of_the_options_or_nothing(reply: str, options: list[str]) -> None:
    assert Answers("choice").parse(reply, options) in {*options, None}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", "7"),
        ("-7", "-7"),
        ("+7", "7"),
        ("\u22127", "-7"),
        ("1,234", "1234"),
        ("1,234,567.5", "1234567.5"),
        ("$1,234.50", "1234.5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("5%", "0.05"),
        ("5 %", "0.05"),
        ("-12.5%", "-0.125"),
        ("(3)", "-3"),
        ("(1,234)", "-1234"),
        ("($1,234)", "-1234"),
        ("$(1,234)", "-1234"),
        ("(5%)", "-0.05"),
        ("(5)%", "-0.05"),
        ("(-5)", "-5"),
        (".5", "0.5"),
        ("-.5", "-0.5"),
        ("3.", "3"),
        ("1e3", "1000"),
        ("2.5E-2", "0.025"),
        ("007", "7"),
        ("0", "0"),
        ("1,2,3", "3"),
        ("10-20", "20"),
        ("covid-19", "19"),
        ("3 + 4 = 7", "7"),
        ("12 - 5 = 7.", "7"),
        ("The answer is 5.", "5"),
        ("the answer is 12, up from 10 in the year before that is all of 2", "2"),
        ("5 apples (fresh)", "5"),
        ("٣", "3"),
    ],
)
def test_the_last_number_is_read(text: str, value: str) -> None:
    assert parse_number(text) == Decimal(value)


@pytest.mark.parametrize(
    "text", ["", "none", "-", ".", "()", "%", "$", "__import__('os')", "nan", "inf", "Infinity", "½"]
)
def test_what_is_no_number_is_none(text: str) -> None:
    assert parse_number(text) is None


@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_a_written_number_is_read_back(units: int, decimals: int) -> None:
    value = Decimal(units).scaleb(-decimals)
    assert parse_number(f"so it is {value:,f}") == value


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("100", "101", True),
        ("100", "99", True),
        ("100", "101.1", False),
        ("-5", "5", False),
        ("0", "0", True),
        ("0", "-0", True),
        ("0", "0.0001", False),
        ("0.05", "5", False),
    ],
)
def test_numbers_are_equal_within_one_percent(left: str, right: str, same: bool) -> None:
    assert Answers("number").equal(left, right) is same
    assert Answers("number").equal(right, left) is same


def test_a_number_is_canonical_however_it_is_written() -> None:
    parse = Answers("number").parse
    assert {parse("1,234"), parse("Answer: 1234.0"), parse("#### $1234"), parse("1.234e3")} == {"1234"}


@given(st.text(max_size=200))
def test_any_reply_is_a_number_that_can_be_compared_or_none(reply: str) -> None:
    rules = Answers("number")
    answer = rules.parse(reply)
    assert answer is None or rules.equal(answer, answer)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("The Eiffel Tower.", "eiffel tower"),
        ("eiffel   tower", "eiffel tower"),
        ("Answer: an Eiffel-Tower", "eiffel tower"),
        ("Café", "café"),
        ("Cafe\u0301", "café"),
        ("A", "a"),
        ("The", "the"),
        ("?!", "?!"),
        ("   ", None),
    ],
)
def test_text_is_folded(reply: str, answer: str | None) -> None:
    assert Answers("text").parse(reply) == answer


@given(st.text(st.characters(max_codepoint=0x17F)))
def test_folding_twice_changes_nothing_more(text: str) -> None:
    assert fold_case(fold_case(text)) == fold_case(text)
    assert fold(fold(text)) == fold(text)


def test_exact_keeps_everything_but_outer_white_space() -> None:
    assert Answers("exact").parse(" Ab, c!\n") == "Ab, c!"
    assert Answers("exact").parse(" \n") is None


@pytest.mark.parametrize(
    ("reply", "tail"),
    [
        ("The answer is: 5", "5"),
        ("7 apples. The answer isn't 5", "7 apples answer isn t 5"),
        ("Answer:", "answer"),
        ("final ANSWER = x", "x"),
        ("3 #### 4 #### 5", "5"),
        ("The unanswered question: x", "unanswered question x"),
    ],
)
def test_what_follows_the_last_marker_counts(reply: str, tail: str) -> None:
    assert Answers("text").parse(reply) == tail


@pytest.mark.parametrize(
    "long",
    [
        "1" * 200_000,
        "1" * 200_000 + "x",
        "1," * 100_000,
        "1,111" * 50_000,
        "-" * 200_000,
        "(" * 200_000,
        "answer" * 50_000,
        "answer " * 50_000,
        "answer" + " " * 200_000,
        "#" * 200_000,
        " " * 200_000 + "x",
        "A " * 100_000,
        "positive " * 30_000,
        "e" * 200_000,
        "9e999 " * 30_000,
        "." * 200_000,
        "\u0301" * 200_000,
    ],
    ids=lambda long: f"{long[:8]!r}",
)
@pytest.mark.parametrize("kind", ["choice", "number", "text", "exact"])
def test_a_long_reply_is_read_in_less_than_a_second(kind: Kind, long: str) -> None:
    started = time.perf_counter()
    Answers(kind, SENTIMENT if kind == "choice" else None).parse(long)
    Answers(kind, LETTERS if kind == "choice" else None).parse(long)
    assert time.perf_counter() - started < 1


def test_a_long_labeled_reply_is_judged_in_less_than_a_second() -> None:
    started = time.perf_counter()
    infer(["1" * 200_000 + "x", *"abcdefgh"], [None] * 9)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("digits", [5_000, 1_000_001, 3_000_000])
def test_a_number_of_thousands_of_digits_is_not_read(digits: int) -> None:
    assert Answers("number").parse("9" * digits) is None


@given(st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", "c"])), max_size=12))
def test_groups_split_the_votes_and_leave_out_what_is_unread(parsed: list[str | None]) -> None:
    groups = Answers("exact").group(parsed)
    assert sorted(index for group in groups for index in group) == [i for i, a in enumerate(parsed) if a is not None]
    assert all(len({parsed[index] for index in group}) == 1 for group in groups)
    assert len(groups) == len(set(parsed) - {None})
    assert [len(group) for group in groups] == sorted((len(group) for group in groups), reverse=True)


def test_equal_groups_keep_the_order_of_first_appearance() -> None:
    assert Answers("exact").group(["b", "a", "a", "b"]) == [[0, 3], [1, 2]]


@pytest.mark.parametrize(
    ("replies", "kind", "options"),
    [
        (["positive", "negative"] * 5, "choice", ("negative", "positive")),
        (
            ["Positive", "positive", "positive", "negative", "negative.", "negative"] * 5,
            "choice",
            ("negative", "positive"),
        ),
        (["-1", "0", "1"] * 5, "choice", ("-1", "0", "1")),
        (["C", "C++", "C#"] * 5, "choice", ("C", "C#", "C++")),
        (["12", "7.5", "1,234", "-3", "5%", "(4)"], "number", None),
        (["12", "-12", "3"], "number", None),
        (["12 apples", "7", "8", "9", "10", "11"], "text", None),
        (["Paris", "London", "Rome", "Oslo"], "text", None),
        (["a long reply of more than six words", "another long reply of more than six words"] * 4, "text", None),
    ],
)
def test_the_kind_of_answer_is_inferred(replies: list[str], kind: str, options: tuple[str, ...] | None) -> None:
    answers = infer(replies, [None] * len(replies))
    assert (answers.kind, sorted(answers.options or ()) or None) == (kind, sorted(options or ()) or None)


def test_rows_with_their_own_letters_are_a_choice_among_those() -> None:
    answers = infer(["A", "E"], [("A", "B"), ("A", "B", "C", "D", "E")])
    assert (answers.kind, answers.options, answers.bare) == ("choice", None, True)


def test_inference_does_not_depend_on_the_order_of_rows() -> None:
    replies = ["Positive", "positive", "negative", "NEGATIVE"] * 3
    assert infer(replies, [None] * 12) == infer(replies[::-1], [None] * 12)


@pytest.mark.parametrize(
    ("replies", "bare"), [(["yes", "no"] * 4, True), (["yes", "no", "The answer is yes", "no"] * 4, False)]
)
def test_bare_says_that_replies_are_nothing_but_options(replies: list[str], bare: bool) -> None:
    assert infer(replies, [None] * len(replies), options=("yes", "no")).bare is bare


@pytest.mark.parametrize(
    ("replies", "kind", "options"),
    [(["ten", "12"], "number", None), (["yes", "perhaps"], "auto", ("yes", "no"))],
)
def test_labels_that_cannot_be_read_are_a_recipe_error(
    replies: list[str], kind: Kind, options: tuple[str, ...] | None
) -> None:
    with pytest.raises(RecipeError, match="labeled row"):
        infer(replies, [None] * len(replies), kind=kind, options=options)


def test_the_recipe_decides_over_what_is_seen() -> None:
    assert infer(["1", "2"] * 9, [None] * 18, kind="text").kind == "text"
    assert infer(["yes", "no"] * 4, [None] * 8, options=("no", "unknown", "yes")).options == ("no", "unknown", "yes")
