"""Every form and packing gives the same rows, and the process that unpacks ends with its reader."""

import csv
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from semievol.errors import DataError
from semievol.examples import Example, FileFacts, check_file, check_unlabeled, read_labeled, stream_unlabeled
from semievol.formats.naming import Format, format_of, guessed_format
from semievol.formats.unpacking import UNSUSPICIOUS_BYTES, unpacked_limit_bytes

pytestmark = pytest.mark.slow

PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


@dataclass(frozen=True)
class Asked:
    """A row, whatever it is written as."""

    question: str
    answer: str
    options: tuple[str, ...] | None = None


# --- writers, one for each form ---------------------------------------------------------------------------------------


def lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def chat(rows: Sequence[Asked], labeled: bool) -> list[dict[str, Any]]:
    roles = ("user", "assistant") if labeled else ("user",)
    return [
        {
            "messages": [
                {"role": role, "content": text} for role, text in zip(roles, (row.question, row.answer), strict=False)
            ]
        }
        for row in rows
    ]


def completions(rows: Sequence[Asked], labeled: bool) -> list[dict[str, Any]]:
    return [{"prompt": row.question, "completion": row.answer if labeled else None} for row in rows]


def instructions(rows: Sequence[Asked], labeled: bool) -> list[dict[str, Any]]:
    return [{"instruction": row.question, "input": "", "output": row.answer if labeled else ""} for row in rows]


def questions(rows: Sequence[Asked], labeled: bool) -> list[dict[str, Any]]:
    """The answers stand there even if nobody may look at them."""
    return [
        {"question": row.question, "options": row.options and list(row.options), "answer": row.answer} for row in rows
    ]


def comma_separated(rows: Sequence[Asked], labeled: bool) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["answer", "question", "options"])
    for row in rows:
        options = "" if row.options is None else json.dumps(row.options)
        writer.writerow([row.answer, row.question, options])
    return text.getvalue().encode()


def parquet(records: Sequence[dict[str, Any]], **types: pa.DataType) -> bytes:
    names = list(records[0])
    columns = {name: pa.array([record[name] for record in records], types.get(name)) for name in names}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=3)
    return sink.getvalue()


def question_parquet(rows: Sequence[Asked], labeled: bool) -> bytes:
    return parquet(questions(rows, labeled), options=pa.list_(pa.string()))


def json_parquet(rows: Sequence[Asked], labeled: bool) -> bytes:
    records = [row | {"options": row["options"] and json.dumps(row["options"])} for row in questions(rows, labeled)]
    return parquet(records, options=pa.large_string(), question=pa.dictionary(pa.int32(), pa.string()))


OF_QUESTIONS: dict[str, Callable[[Sequence[Asked], bool], bytes]] = {
    "questions.jsonl": lambda rows, labeled: lines(questions(rows, labeled)),
    "questions.csv": comma_separated,
    "lists.parquet": question_parquet,
    "json.parquet": json_parquet,
}
OF_ANY_TEXT: dict[str, Callable[[Sequence[Asked], bool], bytes]] = {
    "chat.jsonl": lambda rows, labeled: lines(chat(rows, labeled)),
    "completions.ndjson": lambda rows, labeled: lines(completions(rows, labeled)),
    "instructions.jsonl": lambda rows, labeled: lines(instructions(rows, labeled)),
    "chat.parquet": lambda rows, labeled: parquet(chat(rows, labeled)),
    "completions.parquet": lambda rows, labeled: parquet(completions(rows, labeled), completion=pa.string()),
    "instructions.parquet": lambda rows, labeled: parquet(instructions(rows, labeled)),
}


# --- the same content, however it is written --------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
stripped = texts.map(str.strip)


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    options = draw(st.none() | st.lists(stripped, min_size=2, max_size=5).map(tuple))
    if options is None:
        return Asked(draw(stripped), draw(stripped))
    return Asked(draw(stripped), draw(st.sampled_from([*options, *"ABCDE"[: len(options)]])), options)


def read(folder: Path, name: str, content: bytes, packing: str, labeled: bool) -> list[Example]:
    """Without lines, which differ."""
    path = folder / f"{name}{packing}"
    path.write_bytes(PACKINGS[packing](content))
    rows = read_labeled(path) if labeled else list(stream_unlabeled(path))
    return [replace(row, line=0) for row in rows]


@pytest.mark.parametrize("labeled", [True, False], ids=["labeled", "unlabeled"])
@pytest.mark.parametrize("packing", PACKINGS)
@settings(max_examples=2)
@given(rows=st.lists(asked(), min_size=5, max_size=40))
def test_rows_are_the_same_in_every_format(packing: str, labeled: bool, rows: list[Asked]) -> None:
    plain = [row for row in rows if row.options is None] or [Asked("q", "a")]
    for writers, content in ((OF_QUESTIONS, rows), (OF_QUESTIONS | OF_ANY_TEXT, plain)):
        with tempfile.TemporaryDirectory() as folder:
            found = {
                name: read(Path(folder), name, write(content, labeled), packing, labeled)
                for name, write in writers.items()
            }
        expected = found["questions.jsonl"]
        assert len(expected) == len(content)
        assert {name for name, read_rows in found.items() if read_rows != expected} == set()


ENDINGS = [f".{form}{packing}" for form in ("jsonl", "csv", "parquet") for packing in PACKINGS]


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=8)
@given(content=st.binary(max_size=300), packed=st.booleans(), cut=st.integers(0, 20), headed=st.booleans())
def test_any_bytes_are_rows_or_a_data_error(ending: str, content: bytes, packed: bool, cut: int, headed: bool) -> None:
    """Bytes as they are, and bytes that are packed rightly and then cut off."""
    start = (
        b"question,answer\n" if ending.startswith(".csv") else b"PAR1" if ending.startswith(".parquet") else b'{"prompt'
    )
    made = start + content if headed else content
    if packed:
        made = PACKINGS[ending.removeprefix(".jsonl").removeprefix(".csv").removeprefix(".parquet")](made)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"rows{ending}")
        path.write_bytes(made[: len(made) - cut])
        for reading in (read_labeled, check_unlabeled):
            try:
                outcome: Any = reading(path)
            except DataError as error:
                outcome = str(error)
            assert outcome


def test_an_instruction_and_its_input_are_one_message_after_the_system_message(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"instruction": " Translate. ", "input": "dog\n", "system": "You are brief.", "output": " Hund "}
    path.write_bytes(lines([row, row | {"system": None, "input": None}]))
    first, second = read_labeled(path)
    assert [(turn.role, turn.content) for turn in first.prompt] == [
        ("system", "You are brief."),
        ("user", "Translate.\n\ndog"),
    ]
    assert [(turn.role, turn.content) for turn in second.prompt] == [("user", "Translate.")]
    assert first.reply == "Hund"


def test_a_file_may_mix_forms_and_the_first_form_counts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    both = chat([Asked("chat", "a")], labeled=True)[0] | {"prompt": "prompt", "question": 7}
    path.write_bytes(lines([both, *completions([Asked("p", "b")], labeled=True)]))
    assert [(row.prompt[0].content, row.reply) for row in read_labeled(path)] == [("chat", "a"), ("p", "b")]


@pytest.mark.parametrize("answer", ["\ud800", 7, None, ["x"], "x" * 1000])
@pytest.mark.parametrize("form", [completions, instructions, questions])
def test_the_answer_of_an_unlabeled_row_is_not_looked_at(tmp_path: Path, form: Any, answer: Any) -> None:
    (row,) = form([Asked("q", "a")], labeled=True)
    key = next(key for key in ("completion", "output", "answer") if key in row)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row | {key: answer}))
    assert [(found.prompt[0].content, found.reply) for found in stream_unlabeled(path)] == [("q", None)]


def test_the_answer_column_of_unlabeled_parquet_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet([{"question": "q", "answer": 7}, {"question": "r", "answer": None}]))
    assert [row.prompt[0].content for row in stream_unlabeled(path)] == ["q", "r"]
    assert check_file(path) == FileFacts("unlabeled", 2)


def test_the_lines_of_parquet_are_its_rows_and_those_of_packed_text_its_lines(tmp_path: Path) -> None:
    rows = [Asked(str(number), "a") for number in range(200)]
    (tmp_path / "rows.parquet").write_bytes(question_parquet(rows, True))
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(comma_separated(rows, True)))
    assert [row.line for row in read_labeled(tmp_path / "rows.parquet")] == [*range(1, 201)]
    assert [row.line for row in read_labeled(tmp_path / "rows.csv.gz")] == [*range(2, 202)]


def test_a_problem_says_its_field_and_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    first, second = lines(completions([Asked("q", "a")], True)), b'{"messages": [{"role": "user", "content": 7}]}\n'
    path.write_bytes(first + second + b'{"prompt": \xff}\n')
    with pytest.raises(DataError) as caught:
        read_labeled(path)
    assert [(problem.line, problem.field, problem.byte_offset) for problem in caught.value.problems] == [
        (2, "messages[0].content", len(first)),
        (3, None, len(first + second) + 11),
    ]


def test_several_members_frames_and_skipped_frames_are_one_text(tmp_path: Path) -> None:
    parts = [lines(completions([Asked(f"q{part}", "a")], True)) for part in range(3)]
    (tmp_path / "rows.jsonl.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
    (tmp_path / "rows.jsonl.zst").write_bytes(skipped.join(map(zstandard.compress, parts)))
    for path in tmp_path.iterdir():
        assert [row.prompt[0].content for row in read_labeled(path)] == ["q0", "q1", "q2"]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head", "found"),
    [
        ("rows.jsonl", b"", Format("jsonl")),
        ("ROWS.NDJSON", b"", Format("jsonl")),
        ("a.b.csv.gz", b"", Format("csv", "gz")),
        ("rows.parquet.zst", b"", Format("parquet", "zst")),
        ("rows.jsonl", b"\x1f\x8b\x08", Format("jsonl", "gz")),
        ("rows.csv", b"\x28\xb5\x2f\xfd", Format("csv", "zst")),
        ("rows.csv.gz", b"\x28\xb5\x2f\xfd", Format("csv", "gz")),
        ("rows.csv", b"PAR1", Format("csv")),
        ("rows.txt", b"{", None),
        ("rows", b"PAR1", None),
        ("jsonl", b"", None),
    ],
)
def test_the_name_decides_and_packed_bytes_are_known(name: str, head: bytes, found: Format | None) -> None:
    assert format_of(name, head) == found


@pytest.mark.parametrize(
    ("name", "head", "ending"),
    [
        ("rows.csv", b"{", ".csv"),
        ("rows.txt", b'\xef\xbb\xbf \n{"', ".jsonl"),
        ("rows", b"[", ".jsonl"),
        ("rows", b"question,answer", ".csv"),
        ("rows", b"PAR1", ".parquet"),
        ("rows", b"\x1f\x8b", ".jsonl.gz"),
        ("rows.parquet", b"\x28\xb5\x2f\xfd", ".parquet.zst"),
    ],
)
def test_a_name_that_says_nothing_leaves_it_to_the_bytes(name: str, head: bytes, ending: str) -> None:
    assert guessed_format(name, head).ending == ending


# --- the process that unpacks -----------------------------------------------------------------------------------------


def many(path: Path, rows: int) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for number in range(rows):
            file.write(b'{"prompt": "%d %s"}\n' % (number, os.urandom(50).hex().encode()))
    return path


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in text.split()]


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
def test_the_process_ends_when_the_reader_stops_early(tmp_path: Path) -> None:
    before = children(os.getpid())
    rows: Any = stream_unlabeled(many(tmp_path / "rows.jsonl.gz", 50_000))
    next(rows)
    assert len(children(os.getpid())) == len(before) + 1
    rows.close()
    assert children(os.getpid()) == before


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_ends_when_its_reader_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    path = many(tmp_path / "rows.jsonl.gz", 50_000)
    script = (
        "import sys, time, pathlib; from semievol.examples import stream_unlabeled; "
        "rows = stream_unlabeled(pathlib.Path(sys.argv[1])); next(rows); print('reading', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"reading\n"
        (unpacker,) = children(reader.pid)
        reader.send_signal(number)
    wait_until(lambda: not Path(f"/proc/{unpacker}").exists())


@linux
def test_the_process_ends_with_its_reader_even_if_it_writes_nothing(tmp_path: Path) -> None:
    """It works on a file that never ends."""
    order = {"form": "jsonl", "packing": "gz", "labeled": True, "limit_bytes": 1 << 40}
    order |= {"memory_bytes": 1 << 30, "cpu_seconds": 60}
    program = Path(sys.modules["semievol.formats.unpacking"].__file__ or "").with_name("unpacker.py")
    hold_open, never = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-P", str(program), json.dumps(order)], stdin=hold_open, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=60)
    os.close(hold_open)
    os.close(never)


def test_it_runs_from_any_folder_and_without_the_script_path(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    (tmp_path / "rows.jsonl.zst").write_bytes(zstandard.compress(b'{"prompt": "p"}\n'))
    script = (
        "import pathlib; from semievol.examples import check_unlabeled as c; print(c(pathlib.Path('rows.jsonl.zst')))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_text_may_be_packed_well_but_not_beyond_belief() -> None:
    assert unpacked_limit_bytes(10) == UNSUSPICIOUS_BYTES
    assert unpacked_limit_bytes(10**9) < 20 * 10**9
    assert unpacked_limit_bytes(10**7) == 10**9


def test_too_little_processor_time_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semievol.formats.unpacking.MAX_CPU_SECONDS", 1)
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"") * 1_000_000)
    with pytest.raises(DataError, match="more than 1 seconds of a processor"):
        check_unlabeled(tmp_path / "rows.csv.gz")


@linux
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    script = (
        "import pathlib, re, sys; from semievol.examples import check_unlabeled; "
        "print(check_unlabeled(pathlib.Path(sys.argv[1])), "
        "re.search('VmHWM:[^0-9]+([0-9]+)', pathlib.Path('/proc/self/status').read_text())[1])"
    )

    def peak_kibibytes(rows: int) -> int:
        path = many(tmp_path / f"{rows}.jsonl.gz", rows)
        done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
        read, kibibytes = map(int, done.stdout.split())
        assert read == rows
        return kibibytes

    assert peak_kibibytes(100_000) < peak_kibibytes(100) + 4 * 1024


def test_every_code_is_explained() -> None:
    root = Path(__file__).resolve().parent.parent
    sources = [root / "semievol" / "examples.py", *(root / "semievol" / "formats").glob("*.py")]
    given = {
        code
        for path in sources
        for code in re.findall(r'(?:Fault\(|Problem\([a-z0]+, |code, message = )\s*"([a-z0-9_]+)"', path.read_text())
    }
    assert {"damaged", "not_utf8", "empty_file", "line_too_long", "not_json"} <= given
    assert {code for code in given if f"`{code}`" not in (root / "docs" / "formats.md").read_text()} == set()
