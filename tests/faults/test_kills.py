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
    "the first Parquet file": Point("semievol.tables", "example_record", 30, "after"),
    "a shard's generation": Point("semievol.generation", "_Shard._ask", 20),
    "a shard's Parquet file": Point("semievol.stages", "answered_record", 30),
    "a manifest": Point("semievol.workdir", "write_whole", 5, "amid"),
    "manifest and rename": Point("semievol.workdir", "write_whole", 6, "after"),
    "a training step": Point("semievol.backends.training", "_MaskedTrainer.compute_loss", 4),
    "the trainer's own checkpoint": Point(
        "semievol.backends.training", "_MaskedTrainer._save_optimizer_and_scheduler", 3
    ),
    "a checkpoint's note": Point("semievol.backends.training", "write_whole", 3, "amid"),
    "a checkpoint's flush": Point("semievol.checkpoints", "flush", 12),
    "two checkpoints": Point("semievol.checkpoints", "_remove_all_but", 5),
    "adapter and manifest": Point("semievol.backends.training", "_save_adapter", 2, "after"),
    "the hand-out": Point("semievol.publication", "hand_out"),
}
FEW = ("a shard's Parquet file",)
"""What every test run sees; the others are marked as long."""


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.long) for name in POINTS]
)
def test_killed_amid(
    name: str, context: ForkServerContext, data: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    command, log = arguments(data, tmp_path / "out"), tmp_path / "log"
    assert run_to_end(context, command, log, POINTS[name]) == -signal.SIGKILL, log.read_text()
    assert not (tmp_path / "out" / "adapter").exists()
    assert run_to_end(context, command, log) == 0, log.read_text()
    assert results(tmp_path / "out") == undisturbed
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_time(
    seed: int, context: ForkServerContext, data: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    delays = [random.Random(seed * 10 + number).uniform(0.2, 3) for number in range(3)]
    run_killed(context, arguments(data, tmp_path / "out"), tmp_path / "log", delays)
    assert results(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("point", "keeps_checkpoint"),
    [
        (Point("semievol.backends.training", "_MaskedTrainer.compute_loss", 4), True),
        pytest.param(Point("semievol.generation", "_Shard._ask", 20), False, marks=pytest.mark.long),
    ],
    ids=["training", "generation"],
)
def test_asked_to_stop(
    number: signal.Signals,
    point: Point,
    keeps_checkpoint: bool,
    context: ForkServerContext,
    data: Path,
    undisturbed: dict[str, str],
    tmp_path: Path,
) -> None:
    """Training stops after the step with a checkpoint that was not due; anything else at once."""
    command, log, output = arguments(data, tmp_path / "out", 1000), tmp_path / "log", tmp_path / "out"
    assert run_to_end(context, command, log, replace(point, signal=number)) == 128 + number
    assert "the same command continues" in log.read_text(encoding="utf-8")
    assert bool(list(output.glob("checkpoints/*/step-000000004"))) == keeps_checkpoint
    assert not list(output.rglob("*.partial"))
    assert run_to_end(context, command, log) == 0, log.read_text()
    assert results(output) == undisturbed
