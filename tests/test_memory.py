"""Less memory for an attempt, and how a machine's faults are named."""

import errno
from pathlib import Path

import pytest
import torch

from semievol.backends.memory import memory_told
from semievol.errors import DiskFull, OutOfMemory
from semievol.faults import fault_of
from semievol.memory import Halvings, micro_batch


@pytest.mark.parametrize(
    ("batch", "wanted", "halvings", "expected"),
    [
        (8, None, 0, 8),
        (8, None, 1, 4),
        (8, 4, 1, 2),
        (8, None, 3, 1),
        (8, None, 9, 1),
        (6, None, 1, 3),
        (6, 3, 1, 1),
        (12, None, 1, 6),
        (10, None, 1, 5),
        (10, None, 2, 2),
        (7, None, 1, 1),
    ],
)
def test_micro_batches_divide_the_batch(batch: int, wanted: int | None, halvings: int, expected: int) -> None:
    assert micro_batch(batch, wanted, halvings) == expected


def test_halvings_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    assert Halvings.read(path) == Halvings()
    Halvings().once_more("training").once_more("training").once_more("generation").write(path)
    assert Halvings.read(path) == Halvings(training=2, generation=1)


def test_torchs_lack_of_memory_is_told() -> None:
    with (
        pytest.raises(OutOfMemory, match="out of memory in training with 4 rows at once"),
        memory_told("training", lambda: 4),
    ):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_one_row_that_does_not_fit_says_what_to_do() -> None:
    assert "lower model.max_length" in str(OutOfMemory("generation", 1))


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_told("training", lambda: 4):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "full"), "disk_full"),
        (OSError(errno.EDQUOT, "quota"), "disk_full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk_full"),
        (RuntimeError("basic_ios::clear: iostream error"), "disk_full"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
    ],
)
def test_faults_have_names(error: Exception, code: str) -> None:
    fault = fault_of(error)
    assert fault is not None
    assert fault.code == code
    assert isinstance(fault, DiskFull | OutOfMemory)


def test_an_unknown_error_is_no_fault() -> None:
    assert fault_of(OSError(errno.EACCES, "denied")) is None
