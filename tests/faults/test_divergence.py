"""A loss that is not finite ends a run with its reason, and nothing is handed out."""

from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.faults.runs import arguments, run_to_end


@pytest.mark.slow
@pytest.mark.long
def test_a_loss_that_diverges(context: ForkServerContext, data: Path, tmp_path: Path) -> None:
    command, log = [*arguments(data, tmp_path / "out"), "--set=evolution.learning_rate=1e38"], tmp_path / "log"
    assert run_to_end(context, command, log) == 1
    said = log.read_text(encoding="utf-8")
    assert "lower learning_rate" in said
    assert "Traceback" not in said
    assert (tmp_path / "out" / "stages" / "warm-up" / "manifest.json").exists()
    assert not (tmp_path / "out" / "adapter").exists()
    assert not list((tmp_path / "out").rglob("*.partial"))
