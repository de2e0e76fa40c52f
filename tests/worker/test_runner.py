"""What the runner does with users' files: reads them as names and bytes say, and speaks of them by their names."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from semievol.errors import DataError, EngineDied, Problem
from semievol.examples import read_labeled
from worker.plan import JobSpec
from worker.runner import in_users_words, renamed, told

ROW = b'{"prompt": "Why?", "completion": "so"}'


@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("rows.jsonl", ROW),
        ("rows.v2.CSV.gz", gzip.compress(b"question,answer\nWhy?,so\n", mtime=0)),
        ("rows", gzip.compress(ROW, mtime=0)),
        ("rows.txt", b"question,answer\nWhy?,so\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_is_read_as_its_users_name_and_its_bytes_say(tmp_path: Path, filename: str, content: bytes) -> None:
    path = tmp_path / "labeled"
    path.write_bytes(content)
    [row] = read_labeled(renamed(path, filename))
    assert (row.prompt[0].content, row.reply) == ("Why?", "so")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet.zst"])
def test_a_problem_is_told_with_the_users_name_of_the_file(ending: str) -> None:
    spec: Any = JobSpec.__new__(JobSpec)
    object.__setattr__(spec, "inputs", {"test": {"filename": "measure.csv"}})
    told = in_users_words(DataError(f"/scratch/inputs/test{ending}", [Problem(3, "nul", "remove it")]), spec)
    assert told == {"message": "measure.csv cannot be used:\n  line 3: remove it", "param": "semievol.test_file"}


def test_an_engine_that_died_is_not_the_job_s_own_fault() -> None:
    """So another attempt is made, in a fresh process."""
    spec = JobSpec("ftjob-1", "tiny", None, {}, 0, {})
    heard = told(EngineDied("the process of vLLM ended with signal 9"), spec, {})
    assert (heard["code"], heard["own"]) == ("engine_died", False)
    assert "signal 9" in heard["message"]
