"""A run that is killed and started again ends with the bytes of the undisturbed one, wherever it was killed."""

import random
import signal
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.faults.runs import Point, arguments, results, run_killed, run_to_end

pytestmark = pytest.mark.slow

POINTS = {
    "the first Parquet file": Point("semievol.tables", "example_record", 10, "after"),
    "a manifest": Point("semievol.workdir", "write_whole", 2, "amid"),
    "manifest and rename": Point("semievol.workdir", "write_whole", 2, "after"),
    "a training step": Point("semievol.backends.training", "_MaskedTrainer.compute_loss", 2),
    "the trainer's own checkpoint": Point(
        "semievol.backends.training", "_MaskedTrainer._save_optimizer_and_scheduler", 3
    ),
    "a checkpoint's note": Point("semievol.backends.training", "write_whole", 2, "amid"),
    "a checkpoint's flush": Point("semievol.checkpoints", "flush", 12),
    "two checkpoints": Point("semievol.checkpoints", "_remove_all_but", 3),
    "adapter and manifest": Point("semievol.backends.training", "_save_adapter", 1, "after"),
    "a shard's generation": Point("semievol.generation", "_Shard._ask", 20),
    "a shard's Parquet file": Point("semievol.stages", "answered_record", 20),
    "the hand-out": Point("semievol.publication", "hand_out"),
}
RUNS = [
    ("the first Parquet file", "the trainer's own checkpoint", "a shard's Parquet file", "the hand-out"),
    ("a manifest", "a training step", "a checkpoint's note", "adapter and manifest"),
    ("manifest and rename", "a checkpoint's flush", "two checkpoints", "a shard's generation"),
]
"""Where each run is killed, one place after the other; counts are those of the process that goes on."""


@pytest.mark.parametrize(
    "names", [RUNS[0], *(pytest.param(names, marks=pytest.mark.long) for names in RUNS[1:])], ids=lambda names: names[0]
)
def test_killed_amid(
    names: tuple[str, ...], context: ForkServerContext, data: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    command, log = arguments(data, tmp_path / "out"), tmp_path / "log"
    for name in names:
        assert run_to_end(context, command, log, POINTS[name]) == -signal.SIGKILL, (name, log.read_text())
        assert not (tmp_path / "out" / "adapter").exists()
    assert run_to_end(context, command, log) == 0, log.read_text()
    assert results(tmp_path / "out") == undisturbed
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_every_point_is_a_run_s() -> None:
    assert sorted(POINTS) == sorted(name for names in RUNS for name in names)


@pytest.mark.long
def test_killed_at_any_time(
    context: ForkServerContext, data: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """`campaign.py` has more."""
    delays = [random.Random(number).uniform(0.2, 3) for number in range(6)]
    run_killed(context, arguments(data, tmp_path / "out"), tmp_path / "log", delays)
    assert results(tmp_path / "out") == undisturbed


TRAINING = Point("semievol.backends.training", "_MaskedTrainer.compute_loss", 3)
GENERATION = Point("semievol.generation", "_Shard._ask", 20)


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGINT), pytest.param(signal.SIGINT, signal.SIGTERM, marks=pytest.mark.long)],
)
def test_asked_to_stop_in_training_and_again_in_generation(
    first: signal.Signals,
    second: signal.Signals,
    context: ForkServerContext,
    data: Path,
    undisturbed: dict[str, str],
    tmp_path: Path,
) -> None:
    """Training stops after the step with a checkpoint that was not due; anything else at once."""
    command, log, output = arguments(data, tmp_path / "out", 1000), tmp_path / "log", tmp_path / "out"
    for number, point in ((first, TRAINING), (second, GENERATION)):
        assert run_to_end(context, command, log, replace(point, signal=number)) == 128 + number
        assert "the same command continues" in log.read_text(encoding="utf-8")
        assert [path.name for path in output.glob("checkpoints/*/*")] == ["step-000000003"]
        assert not list(output.rglob("*.partial"))
        log.unlink()
    assert run_to_end(context, command, log) == 0, log.read_text()
    assert results(output) == undisturbed
