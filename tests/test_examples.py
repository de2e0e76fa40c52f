"""Reading files: every row or a problem with its line, and nothing of an unlabeled row's answer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.errors import DataError
from semievol.examples import (
    MAX_PROBLEMS_SHOWN,
    FileFacts,
    check_file,
    check_unlabeled,
    read_labeled,
    stream_unlabeled,
)
from semievol.formats.rows import CHOICE_INSTRUCTION
from semievol.formats.strict_json import MAX_DEPTH, MAX_LINE_BYTES, MAX_VALUES
from semievol.prompts import Message

GOOD = b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'


def chat(*turns: tuple[str, Any], **more: Any) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns], **more})


def file(folder: Path, content: bytes | str, suffix: str = ".jsonl") -> Path:
    path = folder / f"rows{suffix}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def problems(path: Path) -> list[tuple[int, str]]:
    with pytest.raises(DataError) as caught:
        read_labeled(path)
    return [(problem.line, problem.code) for problem in caught.value.problems]


def test_a_chat_row_keeps_its_turns_and_its_reply(tmp_path: Path) -> None:
    line = chat(("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b"))
    (row,) = read_labeled(file(tmp_path, line))
    assert [(turn.role, turn.content) for turn in row.prompt] == [
        ("system", "s"),
        ("user", "u"),
        ("assistant", "a"),
        ("user", "v"),
    ]
    assert (row.reply, row.options, row.line) == ("b", None, 1)


def test_a_turn_of_weight_0_keeps_it(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a", "weight": 0},
        {"role": "user", "content": "v"},
        {"role": "assistant", "content": "b", "weight": 1},
    ]
    (row,) = read_labeled(file(tmp_path, json.dumps({"messages": turns})))
    assert [turn.weight for turn in row.prompt] == [1, 0, 1]


def test_a_developer_turn_is_a_system_turn(tmp_path: Path) -> None:
    (row,) = read_labeled(file(tmp_path, chat(("developer", "s"), ("user", "u"), ("assistant", "a"))))
    assert row.prompt[0] == Message("system", "s")


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD + b"\n",
        GOOD + b"\r\n",
        b"\xef\xbb\xbf" + GOOD + b"\n",
        b"\n\n" + GOOD + b"\n  \n",
        b"  " + GOOD + b"\t\n",
    ],
)
def test_line_ends_byte_order_marks_and_empty_lines_do_not_matter(tmp_path: Path, content: bytes) -> None:
    (row,) = read_labeled(file(tmp_path, content))
    assert (row.prompt, row.reply) == ((Message("user", "q"),), "a")


def test_a_line_separator_inside_a_string_is_no_line_end(tmp_path: Path) -> None:
    line = '{"messages": [{"role": "user", "content": "a\u2028b\u0085c"}, {"role": "assistant", "content": "x"}]}'
    (row,) = read_labeled(file(tmp_path, line))
    assert row.prompt[0].content == "a\u2028b\u0085c"


USER = '{"role": "user", "content": "q"}'
REPLY = '{"role": "assistant", "content": "a"}'


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "not_json"),
        (b"[]", "not_object"),
        (b"null", "not_object"),
        (b"{}", "unknown_form"),
        (b'{"messages": {}}', "no_messages"),
        (b'{"messages": []}', "wrong_last_turn"),
        (f'{{"messages": [{USER}]}}', "wrong_last_turn"),
        (f'{{"messages": [{REPLY}]}}', "no_question"),
        (f'{{"messages": [{USER}, {REPLY}, {REPLY}]}}', "no_question"),
        (f'{{"messages": [{USER}, {{"role": "system", "content": "s"}}, {USER}, {REPLY}]}}', "late_system"),
        (f'{{"messages": ["q", {REPLY}]}}', "bad_turn"),
        (f'{{"messages": [{{"role": "tool", "content": "q"}}, {REPLY}]}}', "bad_role"),
        (f'{{"messages": [{{"role": ["user"], "content": "q"}}, {REPLY}]}}', "bad_role"),
        (f'{{"messages": [{{"content": "q"}}, {REPLY}]}}', "bad_role"),
        (f'{{"messages": [{{"role": "user"}}, {REPLY}]}}', "not_text"),
        (f'{{"messages": [{{"role": "user", "content": 7}}, {REPLY}]}}', "not_text"),
        (f'{{"messages": [{{"role": "user", "content": [{{"text": "q"}}]}}, {REPLY}]}}', "not_text"),
        (f'{{"messages": [{{"role": "user", "content": " \\n "}}, {REPLY}]}}', "empty_text"),
        (f'{{"messages": [{{"role": "user", "content": "a\\u0000b"}}, {REPLY}]}}', "nul"),
        (f'{{"messages": [{{"role": "user", "content": "a\\ud800b"}}, {REPLY}]}}', "lone_surrogate"),
        (f'{{"messages": [{USER}, {{"role": "assistant", "content": "a", "weight": 0}}]}}', "zero_weight"),
        (f'{{"messages": [{USER}, {{"role": "assistant", "content": "a", "weight": 2}}]}}', "bad_weight"),
        (f'{{"messages": [{USER}, {{"role": "assistant", "content": "a", "weight": true}}]}}', "bad_weight"),
        (f'{{"messages": [{USER}, {{"role": "assistant", "content": "a", "weight": "1"}}]}}', "bad_weight"),
        (f'{{"messages": [{USER}, {{"role": "assistant", "content": "a", "weight": 1e999}}]}}', "bad_weight"),
        (f'{{"messages": [{USER}, {REPLY}], "messages": []}}', "duplicate_key"),
        ('{"messages": [{"role": "user", "role": "user", "content": "q"}]}', "duplicate_key"),
        (f'{{"messages": [{USER}, {REPLY}], "score": NaN}}', "not_json"),
        (f'{{"messages": [{USER}, {REPLY}], "score": -Infinity}}', "not_json"),
        (f'{{"messages": [{USER}, {REPLY}], "n": {"9" * 5000}}}', "too_many_digits"),
        (f'{{"messages": [{USER}, {REPLY}], "n": -0.{"9" * 5000}}}', "too_many_digits"),
        (f'{{"messages": [{USER}, {REPLY}], "n": [{"0," * MAX_VALUES}0]}}', "too_many_values"),
        (f'{{"messages": [{USER}, {REPLY}], "n": {"[" * MAX_DEPTH}{"]" * MAX_DEPTH}}}', "too_deep"),
        (f'{{"messages": [{USER}, {REPLY}]}} trailing', "not_json"),
        (GOOD + GOOD, "not_json"),
        (b"[" * 100_000 + b"]" * 100_000, "too_deep"),
        (b'{"a":' * 100_000, "too_deep"),
        (b'{"messages": "\xff"}', "not_utf8"),
        (GOOD.decode().encode("utf-16"), "not_utf8"),
        (b'{"messages": "\xed\xa0\x80"}', "not_utf8"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_a_line_that_cannot_be_used_is_a_problem_with_its_line(tmp_path: Path, line: bytes | str, code: str) -> None:
    content = GOOD + b"\n" + (line.encode() if isinstance(line, str) else line) + b"\n"
    assert problems(file(tmp_path, content))[0] == (2, code)


def test_a_surrogate_pair_is_one_character(tmp_path: Path) -> None:
    (row,) = read_labeled(file(tmp_path, GOOD.replace(b'"q"', b'"\\ud83d\\ude00"')))
    assert row.prompt[0].content == "😀"


def test_a_line_that_is_too_long_is_skipped_and_named(tmp_path: Path) -> None:
    long = b'{"messages": "' + b"x" * (2 * MAX_LINE_BYTES) + b'"}'
    assert problems(file(tmp_path, long + b"\n" + GOOD + b"\n{\n")) == [(1, "line_too_long"), (3, "not_json")]


def test_all_problems_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_labeled(file(tmp_path, b"{\n" * 100))
    assert (len(caught.value.problems), caught.value.total) == (MAX_PROBLEMS_SHOWN, 100)
    assert f"and {100 - MAX_PROBLEMS_SHOWN} more" in str(caught.value)


def test_a_message_never_shows_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_labeled(file(tmp_path, b'{"messages": [{"role": "SECRET", "content": "SECRET"}]}\nSECRET\n'))
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [("rows.jsonl", b"", "empty_file"), ("rows.jsonl", b"\n\n", "empty_file"), ("rows.txt", b"x", "unknown_format")],
)
def test_a_file_without_rows_is_a_problem_of_the_whole_file(
    tmp_path: Path, name: str, content: bytes, code: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert problems(tmp_path / name) == [(0, code)]
    with pytest.raises(DataError):
        check_unlabeled(tmp_path / name)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.jsonl") == [(0, "no_such_file")]
    assert problems(tmp_path) == [(0, "not_a_file")]


# --- unlabeled --------------------------------------------------------------------------------------------------------


def test_an_unlabeled_row_ends_with_the_user(tmp_path: Path) -> None:
    path = file(tmp_path, chat(("user", "q")))
    (row,) = stream_unlabeled(path)
    assert (row.prompt, row.reply, check_unlabeled(path)) == ((Message("user", "q"),), None, 1)
    with pytest.raises(DataError, match="line 1"):
        check_unlabeled(file(tmp_path, GOOD))


def test_unlabeled_rows_are_read_one_by_one(tmp_path: Path) -> None:
    rows = stream_unlabeled(file(tmp_path, chat(("user", "first")) + "\n{\n"))
    assert next(rows).prompt[0].content == "first"
    with pytest.raises(DataError, match="line 2"):
        next(rows)


@pytest.mark.parametrize("answer", ["A", "", "Z", "\0", "x" * 10_000, '"quoted, ""text"""', '"two\nlines"'])
def test_the_answer_column_of_an_unlabeled_file_is_not_read(tmp_path: Path, answer: str) -> None:
    without = list(stream_unlabeled(file(tmp_path, "question,options\nq,\nr,\n", ".csv")))
    given_answers = f"question,answer,options\nq,{answer},\nr,{answer},\n"
    rows = list(stream_unlabeled(file(tmp_path, given_answers, ".csv")))
    assert [(row.id, row.prompt, row.reply) for row in rows] == [(row.id, row.prompt, None) for row in without]


# --- identity ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_ids_are_unique_and_do_not_depend_on_the_order_of_rows(
    tmp_path_factory: pytest.TempPathFactory, questions: list[str], random: Any
) -> None:
    def ids(order: Sequence[str]) -> list[tuple[str, str]]:
        path = file(tmp_path_factory.mktemp("ids"), "\n".join(chat(("user", question)) for question in order))
        return sorted((row.prompt[0].content, row.id) for row in stream_unlabeled(path))

    shuffled = questions.copy()
    random.shuffle(shuffled)
    assert ids(questions) == ids(shuffled)
    assert len({identity for _, identity in ids(questions)}) == len(questions)


def test_labels_of_equal_questions_keep_their_ids_in_any_order(tmp_path: Path) -> None:
    lines = [chat(("user", "q"), ("assistant", reply)) for reply in "abca"]
    forward = {(row.id, row.reply) for row in read_labeled(file(tmp_path, "\n".join(lines)))}
    backward = {(row.id, row.reply) for row in read_labeled(file(tmp_path, "\n".join(lines[::-1])))}
    assert forward == backward
    assert len({identity for identity, _ in forward}) == 4


def test_different_turns_never_share_an_id(tmp_path: Path) -> None:
    rows = [
        chat(("user", "ab")),
        chat(("system", "a"), ("user", "b")),
        chat(("user", "a"), ("assistant", "b"), ("user", "c")),
        chat(("user", "a"), ("user", "b"), ("user", "c")),
    ]
    assert len({row.id for row in stream_unlabeled(file(tmp_path, "\n".join(rows)))}) == 4


# --- CSV --------------------------------------------------------------------------------------------------------------


def test_a_csv_row_with_options_becomes_a_lettered_question(tmp_path: Path) -> None:
    content = 'id,question,answer,options\n1, Which? ,B,"[""cat"", ""dog""]"\n'
    (row,) = read_labeled(file(tmp_path, content, ".csv"))
    assert row.prompt[0].content == f"Which?\nA. cat\nB. dog\n{CHOICE_INSTRUCTION}"
    assert (row.reply, row.options, row.line) == ("B", ("A", "B"), 2)


@pytest.mark.parametrize(("answer", "letter"), [("b", "B"), ("dog", "B"), (" dog ", "B"), ("A", "A"), ("wolf", "C")])
def test_an_answer_is_a_letter_or_the_text_of_an_option(tmp_path: Path, answer: str, letter: str) -> None:
    content = f'question,answer,options\nq,{answer},"[""cat"", ""dog"", "" wolf ""]"\n'
    (row,) = read_labeled(file(tmp_path, content, ".csv"))
    assert row.reply == letter


def test_a_csv_row_without_options_is_an_open_question(tmp_path: Path) -> None:
    (row,) = read_labeled(file(tmp_path, "Question,ANSWER \nWhat?, Rome \n", ".csv"))
    assert (row.prompt, row.reply, row.options) == ((Message("user", "What?"),), "Rome", None)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_line_ends_and_byte_order_marks_do_not_matter(tmp_path: Path, ending: str, mark: str) -> None:
    content = mark + ending.join(["question,answer", "q,a", "", "r,b", ""])
    rows = read_labeled(file(tmp_path, content, ".csv"))
    assert [(row.prompt[0].content, row.reply, row.line) for row in rows] == [("q", "a", 2), ("r", "b", 4)]


def test_csv_lines_are_counted_in_the_file_whatever_quotes_hold(tmp_path: Path) -> None:
    content = '"question","answer","a\nnote"\n"one\ntwo\nthree",a,\nr,b,\nbad\n'
    path = file(tmp_path, content, ".csv")
    assert problems(path) == [(7, "wrong_width")]
    rows = read_labeled(file(tmp_path, content.removesuffix("bad\n"), ".csv"))
    assert [(row.prompt[0].content, row.line) for row in rows] == [("one\ntwo\nthree", 3), ("r", 6)]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("q", "wrong_width"),
        ("q,A,[],x", "wrong_width"),
        ('" ",A,', "empty_text"),
        ("q,,", "empty_text"),
        ("q\0,A,", "nul"),
        ("q,A,[]", "bad_options"),
        ('q,A,"[""one""]"', "bad_options"),
        ('q,A,"{""A"": ""one""}"', "bad_options"),
        (f'q,A,"{json.dumps(["o"] * 27).replace(chr(34), chr(34) * 2)}"', "bad_options"),
        ("q,A,cat;dog", "not_json"),
        ('q,A,"[""cat"", NaN]"', "not_json"),
        ('q,A,"[1, 2]"', "not_text"),
        ('q,A,"[""cat"", """"]"', "empty_text"),
        ('q,A,"[""cat"", ""\\ud800""]"', "lone_surrogate"),
        ('q,C,"[""cat"", ""dog""]"', "unknown_answer"),
        ('q,bird,"[""cat"", ""dog""]"', "unknown_answer"),
        ('q,A,"[""cat"", ""dog', "not_csv"),
        ('q,"A"x,', "not_csv"),
        (b"q\xff,A,", "not_utf8"),
        (b"q,\xff,", "not_utf8"),
        (b'q,A,"[""\xff"", ""b""]"', "not_utf8"),
    ],
)
def test_a_csv_row_that_cannot_be_used_is_a_problem_with_its_line(tmp_path: Path, row: str | bytes, code: str) -> None:
    content = b"question,answer,options\nq,A,\n" + (row.encode() if isinstance(row, str) else row) + b"\n"
    assert problems(file(tmp_path, content, ".csv")) == [(3, code)]


def test_bytes_that_are_no_utf8_far_down_are_named_by_their_line(tmp_path: Path) -> None:
    content = b"question,answer\n" + b"q,a\n" * 5000 + b"\xff,a\n" + b"q,a\n" * 5000
    assert problems(file(tmp_path, content, ".csv")) == [(5002, "not_utf8")]


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "missing_column"),
        ("id,text", "missing_column"),
        ("question,options", "missing_column"),
        ("question,answer,answer", "duplicate_column"),
    ],
)
def test_a_csv_header_names_the_columns(tmp_path: Path, header: str, code: str) -> None:
    assert problems(file(tmp_path, header + "\n", ".csv")) == [(1, code)]


def test_a_csv_file_in_another_encoding_says_so(tmp_path: Path) -> None:
    path = file(tmp_path, "question,answer\nq,a\n".encode("utf-16"), ".csv")
    assert problems(path) == [(1, "not_utf8")]


@given(st.binary(max_size=200))
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_any_bytes_are_rows_or_problems(tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes) -> None:
    start = b"question,answer\n" if suffix == ".csv" else GOOD + b"\n"
    path = file(tmp_path_factory.mktemp("bytes"), start + content, suffix)
    try:
        outcome: list[Any] = list(read_labeled(path))
    except DataError as error:
        outcome = [problem.message for problem in error.problems]
    assert outcome


ASKED = chat(("user", "q"))
ANSWERED = GOOD.decode()
BROKEN = '{"text": 1}'


@pytest.mark.parametrize(
    ("lines", "suffix", "facts"),
    [
        ([ANSWERED] * 3, ".jsonl", FileFacts("labeled", 3)),
        ([ASKED] * 2, ".jsonl", FileFacts("unlabeled", 2)),
        (["question", "Why?"], ".csv", FileFacts("unlabeled", 1)),
        (["question,answer", "Why?,so"], ".csv", FileFacts("labeled", 1, answers_apart=True)),
        (["question,answer", "Why?,so", "How?,"], ".csv", FileFacts("unlabeled", 2)),
    ],
)
def test_the_kind_of_a_file_is_that_of_its_rows(
    tmp_path: Path, lines: list[str], suffix: str, facts: FileFacts
) -> None:
    assert check_file(file(tmp_path, "\n".join(lines), suffix)) == facts


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([ANSWERED, ASKED, BROKEN], [(2, "wrong_last_turn"), (3, "unknown_form")]),
        ([ASKED, ANSWERED], [(2, "wrong_last_turn")]),
        ([BROKEN, ASKED], [(1, "unknown_form")]),
        ([BROKEN], [(1, "unknown_form")]),
        ([""], [(0, "empty_file")]),
    ],
)
def test_problems_are_those_of_the_likelier_kind(
    tmp_path: Path, lines: list[str], found: list[tuple[int, str]]
) -> None:
    with pytest.raises(DataError) as caught:
        check_file(file(tmp_path, "\n".join(lines)))
    assert [(problem.line, problem.code) for problem in caught.value.problems] == found
