"""A run's checkpoints: the newest whole one of the training at hand, and a stop that waits for it."""

import signal
from pathlib import Path

import pytest

from semievol.checkpoints import FolderCheckpoints
from semievol.signals import Stop, Terminated

TRAINING = "a" * 64


def checkpoints(root: Path, stop: Stop | None = None, every_seconds: float = 0) -> FolderCheckpoints:
    return FolderCheckpoints(root / "checkpoints", every_seconds, stop or Stop())


def written(folder: Path, content: str = "weights") -> Path:
    folder.mkdir()
    (folder / "adapter").write_text(content)
    return folder


def test_the_newest_is_kept_and_found_again(tmp_path: Path) -> None:
    first = checkpoints(tmp_path)
    assert first.restore(TRAINING) is None
    for step in (9, 10):
        first.save(written(tmp_path / "made", str(step)), step)
        assert not (tmp_path / "made").exists()
    found = checkpoints(tmp_path).restore(TRAINING)
    assert found is not None
    assert (found / "adapter").read_text() == "10"
    assert list(found.parent.iterdir()) == [found]


def test_unfinished_ones_and_those_of_other_trainings_go(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path)
    kept.restore(TRAINING)
    kept.save(written(tmp_path / "made"), 1)
    written(kept.folder / "step-000000002.partial")
    assert checkpoints(tmp_path).restore(TRAINING) == kept.folder / "step-000000001"
    assert not (kept.folder / "step-000000002.partial").exists()
    assert checkpoints(tmp_path).restore("b" * 64) is None
    assert not kept.folder.exists()


def test_what_cannot_be_kept_leaves_nothing(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path)
    kept.restore(TRAINING)
    with pytest.raises(FileNotFoundError):
        kept.save(tmp_path / "not there", 1)
    assert list(tmp_path.rglob("step-*")) == []


def test_one_is_due_after_its_time(tmp_path: Path) -> None:
    assert checkpoints(tmp_path, every_seconds=0).due(1)
    assert not checkpoints(tmp_path, every_seconds=60).due(1)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_stop_waits_for_a_checkpoint(tmp_path: Path, number: int, raised: type[BaseException]) -> None:
    stop = Stop()
    kept = checkpoints(tmp_path, stop, every_seconds=60)
    kept.restore(TRAINING)
    stop.hear(number, None)
    assert kept.due(3)
    with pytest.raises(raised):
        kept.save(written(tmp_path / "made"), 3)
    assert checkpoints(tmp_path).restore(TRAINING) is not None


def test_a_second_stop_does_not_wait(tmp_path: Path) -> None:
    stop = Stop()
    checkpoints(tmp_path, stop).restore(TRAINING)
    stop.hear(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        stop.hear(signal.SIGINT, None)


def test_after_training_a_stop_is_heard_at_once(tmp_path: Path) -> None:
    stop = Stop()
    kept = checkpoints(tmp_path, stop)
    kept.restore(TRAINING)
    kept.finish()
    with pytest.raises(Terminated):
        stop.hear(signal.SIGTERM, None)
    with pytest.raises(Terminated):
        kept.finish()


def test_clear_removes_all(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path)
    kept.clear()
    kept.restore(TRAINING)
    kept.save(written(tmp_path / "made"), 1)
    kept.clear()
    assert list(tmp_path.iterdir()) == []
