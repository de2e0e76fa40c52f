"""Out of memory: batches are halved in fresh processes until they fit, from where the last process was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.runs import arguments

pytestmark = [pytest.mark.slow, pytest.mark.long]


def short_of_memory(
    trained: int, prompts: int, command: list[str], *settings: str
) -> "subprocess.CompletedProcess[str]":
    """The command where no more rows and prompts fit."""
    program = [sys.executable, "-m", "tests.faults.short_of_memory", str(trained), str(prompts)]
    return subprocess.run(
        [*program, *command, *(f"--set={setting}" for setting in settings)], capture_output=True, text=True, check=False
    )


def test_batches_are_halved_until_they_fit(data: Path, tmp_path: Path) -> None:
    command = arguments(data, tmp_path / "out")
    ended = short_of_memory(2, 8, command, "warmup.batch_size=4", "evolution.batch_size=8")
    assert ended.returncode == 0, ended.stderr
    assert "out of memory in training with 4 rows at once; a new process goes on with half as many" in ended.stderr
    assert "out of memory in generation with" in ended.stderr
    trained = json.loads((tmp_path / "out" / "stages" / "warm-up" / "manifest.json").read_text(encoding="utf-8"))
    assert trained["facts"]["micro_batch_size"] == 2
    remembered = json.loads((tmp_path / "out" / "stages" / "memory.json").read_text(encoding="utf-8"))
    assert remembered["training"] == 2, "evolution has twice the batch"
    assert remembered["generation"] > 0


def test_a_row_that_does_not_fit_alone_ends_the_run(data: Path, tmp_path: Path) -> None:
    command = arguments(data, tmp_path / "out")
    ended = short_of_memory(0, 1000, command, "warmup.batch_size=2")
    assert ended.returncode == 1
    assert "out of memory in training with 2 rows at once; a new process goes on with half as many" in ended.stderr
    assert "even with a single row: lower model.max_length" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out" / "adapter").exists()
