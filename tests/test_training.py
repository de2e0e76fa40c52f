"""A training that is stopped and gone on with, on the demo's real tiny model."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from semievol.backends import training
from semievol.backends.chat import Chat
from semievol.backends.local import LocalBackend
from semievol.backends.training import LoraTrainer
from semievol.fakes import FakeCheckpoints
from semievol.ports import Checkpoints, Progress, TrainingLog, TrainingRow
from semievol.prompts import Message
from semievol.recipe import LoraSettings, ModelSettings, Recipe, TrainingSettings
from tests.tickets import tickets

pytestmark = pytest.mark.slow

BASE = str(Path(__file__).parent.parent / "demo" / "base")
CPU = ModelSettings(device="cpu")
ROWS = [
    TrainingRow((Message("user", question), Message("assistant", answer)), 1.0 + index % 3)
    for index, (question, answer) in enumerate(tickets(20, seed=1))
]
DROPOUT = LoraSettings(dropout=0.3)
EPOCHS = TrainingSettings(learning_rate=1e-3, epochs=3, batch_size=8, micro_batch_size=4, lora=DROPOUT)
"""Nine steps; every epoch ends with a smaller batch."""
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(BASE, None)


@pytest.fixture(autouse=True)
def sparse_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps to a logged loss, so that most stops lie between two points of the curve."""
    monkeypatch.setattr(training, "LOGGED_LOSSES", 3)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Trained:
    log: TrainingLog
    weights: bytes


def train(
    chat: Chat,
    output: Path,
    checkpoints: Checkpoints | None = None,
    settings: TrainingSettings = EPOCHS,
    rows: list[TrainingRow] = ROWS,
    **more: Any,
) -> Trained:
    log = LoraTrainer(BASE, CPU, chat, checkpoints).train(rows, settings, seed=5, output=output, **more)
    return Trained(log, (output / WEIGHTS).read_bytes())


@pytest.fixture(scope="module")
def undisturbed(chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "LOGGED_LOSSES", 3)
        return train(chat, tmp_path_factory.mktemp("undisturbed"))


def stop(chat: Chat, folder: Path, step: int, settings: TrainingSettings = EPOCHS, **more: Any) -> Path:
    """The checkpoint of a training that was stopped after `step`."""
    checkpoints = FakeCheckpoints(folder / "kept", every=1000, stop_at=step)
    with pytest.raises(KeyboardInterrupt):
        train(chat, folder / "stopped", checkpoints, settings, **more)
    assert checkpoints.saved == [step]
    assert not (folder / "stopped").exists()
    return checkpoints.folder


def resumed_at(steps: list[int]) -> Progress:
    def note(done: int, total: int, loss: float | None = None, /) -> None:
        if loss is None:
            steps.append(done)

    return note


# --- stopped and gone on with -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 8, *(pytest.param(step, marks=pytest.mark.long) for step in (1, 3, 4, 6, 9))])
def test_a_stopped_training_ends_as_the_undisturbed_one(
    chat: Chat, undisturbed: Trained, tmp_path: Path, step: int
) -> None:
    """Within epochs and at their ends, on points of the loss curve and between them, and after the last step."""
    kept, steps = stop(chat, tmp_path, step), list[int]()
    assert train(chat, tmp_path / "out", FakeCheckpoints(kept, every=1000), progress=resumed_at(steps)) == undisturbed
    assert [at for at, _ in undisturbed.log.losses] == [3, 6, 9]
    assert steps == list(range(step + 1, 10))


def test_a_training_may_be_stopped_at_every_step(chat: Chat, undisturbed: Trained, tmp_path: Path) -> None:
    for step in range(1, 10):
        checkpoints = FakeCheckpoints(tmp_path / "kept", every=1000, stop_at=step)
        with pytest.raises(KeyboardInterrupt):
            train(chat, tmp_path / "stopped", checkpoints)
    assert train(chat, tmp_path / "out", FakeCheckpoints(tmp_path / "kept")) == undisturbed


@pytest.mark.parametrize("step", [2, 4, 5])
def test_a_number_of_steps_ends_within_an_epoch(chat: Chat, tmp_path: Path, step: int) -> None:
    settings = EPOCHS.model_copy(update={"steps": 5, "micro_batch_size": None})
    whole = train(chat, tmp_path / "whole", settings=settings)
    kept = stop(chat, tmp_path, step, settings)
    assert train(chat, tmp_path / "out", FakeCheckpoints(kept), settings) == whole
    assert whole.log.steps == 5


def test_an_adapter_that_is_trained_further_is_gone_on_with(chat: Chat, undisturbed: Trained, tmp_path: Path) -> None:
    warm = tmp_path / "warm"
    train(chat, warm)
    whole = train(chat, tmp_path / "whole", start_from=warm)
    kept = stop(chat, tmp_path, 4, start_from=warm)
    assert train(chat, tmp_path / "out", FakeCheckpoints(kept), start_from=warm) == whole
    assert whole.weights != undisturbed.weights


def test_every_batch_is_seen_once_and_in_order(chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model is given, step by step, across the stop."""
    seen: list[list[list[int]]] = []
    compute = training._MaskedTrainer.compute_loss

    def watched(self: Any, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        seen.append(inputs["input_ids"].tolist())
        return compute(self, model, inputs, *rest, **named)

    monkeypatch.setattr(training._MaskedTrainer, "compute_loss", watched)
    train(chat, tmp_path / "whole")
    whole, seen = seen, []
    train(chat, tmp_path / "out", FakeCheckpoints(stop(chat, tmp_path, 5)))
    assert seen == whole
    assert len(whole) == 3 * 5


def test_a_smaller_micro_batch_goes_on_from_the_same_checkpoint(
    chat: Chat, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As after running out of memory: the batches stay, only rounding differs."""
    settings = EPOCHS.model_copy(update={"lora": LoraSettings(dropout=0.0)})
    whole = train(chat, tmp_path / "whole", settings=settings)
    kept, steps = stop(chat, tmp_path, 5, settings), list[int]()
    smaller = settings.model_copy(update={"micro_batch_size": 2})
    found = train(chat, tmp_path / "out", FakeCheckpoints(kept), smaller, progress=resumed_at(steps))
    assert [step for step, _ in found.log.losses] == [3, 6, 9]
    assert [loss for _, loss in found.log.losses] == pytest.approx([loss for _, loss in whole.log.losses], rel=1e-3)
    assert steps == [6, 7, 8, 9]
    assert not [record for record in caplog.records if record.name == training.__name__]


# --- what checkpoints leave alone -------------------------------------------------------------------------------------


def test_checkpoints_at_every_step_change_no_byte(chat: Chat, undisturbed: Trained, tmp_path: Path) -> None:
    checkpoints = FakeCheckpoints(tmp_path / "kept")
    assert train(chat, tmp_path / "out", checkpoints) == undisturbed
    assert checkpoints.saved == list(range(1, 10))


def test_without_checkpoints_none_is_written(
    chat: Chat, undisturbed: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a checkpoint was written")

    monkeypatch.setattr(training._MaskedTrainer, "_save_checkpoint", never)
    plain = train(chat, tmp_path / "out")
    never_due = train(chat, tmp_path / "other", FakeCheckpoints(tmp_path / "kept", every=1000))
    assert plain == never_due == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_checkpoints_lie_outside_the_output_and_do_not_pile_up(chat: Chat, tmp_path: Path) -> None:
    beside: list[list[str]] = []

    class Watching(FakeCheckpoints):
        def save(self, folder: Path, step: int) -> None:
            assert tmp_path / "out" not in folder.parents
            beside.append([path.name for path in folder.parent.iterdir()])
            super().save(folder, step)

    train(chat, tmp_path / "out", Watching(tmp_path / "kept"))
    assert beside == [[f"checkpoint-{step}"] for step in range(1, 10)]
    train(chat, tmp_path / "plain")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in (tmp_path / "plain").iterdir()
    }


def test_save_may_take_the_folder_away(chat: Chat, undisturbed: Trained, tmp_path: Path) -> None:
    class Moving(FakeCheckpoints):
        def save(self, folder: Path, step: int) -> None:
            folder.rename(tmp_path / f"moved-{step}")

    assert train(chat, tmp_path / "out", Moving(tmp_path / "kept", every=4)) == undisturbed
    assert (tmp_path / "moved-8" / training.NOTE).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError, type("Stop", (BaseException,), {})])
def test_what_save_raises_reaches_the_caller(chat: Chat, tmp_path: Path, error: type[BaseException]) -> None:
    class Raising(FakeCheckpoints):
        def save(self, folder: Path, step: int) -> None:
            raise error("asked for")

    with pytest.raises(error, match="asked for"):
        train(chat, tmp_path / "out", Raising(tmp_path / "kept"))
    assert not (tmp_path / "out").exists()


def test_the_backend_hands_its_checkpoints_on(tmp_path: Path) -> None:
    checkpoints = FakeCheckpoints(tmp_path / "kept")
    recipe = Recipe.resolve({"model": {"device": "cpu"}})
    LocalBackend(BASE, recipe, checkpoints).trainer().train(ROWS, EPOCHS, seed=5, output=tmp_path / "out")
    assert checkpoints.saved == list(range(1, 10))


# --- checkpoints that cannot be gone on with --------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [pytest.param(cut, marks=pytest.mark.long), Path.unlink], ids=["cut", "missing"])
@pytest.mark.parametrize(
    "name", [WEIGHTS, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", training.NOTE]
)
def test_a_damaged_checkpoint_starts_at_the_beginning(
    chat: Chat,
    undisturbed: Trained,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    harm: Callable[[Path], None],
) -> None:
    kept, steps = stop(chat, tmp_path, 2), list[int]()
    harm(kept / name)
    with caplog.at_level(logging.WARNING):
        found = train(chat, tmp_path / "out", FakeCheckpoints(kept, every=1000), progress=resumed_at(steps))
    assert (found, steps) == (undisturbed, list(range(1, 10)))
    assert "starts at the beginning" in caplog.text


class Nowhere(FakeCheckpoints):
    """Names a folder that is not there."""

    def restore(self, training: str) -> Path:
        return self.folder


def test_a_checkpoint_that_is_gone_starts_at_the_beginning(chat: Chat, undisturbed: Trained, tmp_path: Path) -> None:
    assert train(chat, tmp_path / "out", Nowhere(tmp_path / "gone", every=1000)) == undisturbed


@pytest.mark.parametrize("change", ["rows", "weight", "settings"])
def test_another_trainings_checkpoint_is_not_gone_on_with(
    chat: Chat, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    kept, steps = stop(chat, tmp_path, 2), list[int]()
    rows, settings = ROWS, EPOCHS
    if change == "rows":
        rows = ROWS[:-1]
    elif change == "weight":
        rows = [*ROWS[:-1], TrainingRow(ROWS[-1].messages, 9.0)]
    else:
        settings = EPOCHS.model_copy(update={"learning_rate": 2e-3})
    train(chat, tmp_path / "out", FakeCheckpoints(kept, every=1000), settings, rows, progress=resumed_at(steps))
    assert steps[0] == 1
    assert "another training's" in caplog.text


# --- out of memory ----------------------------------------------------------------------------------------------------


def test_a_halved_micro_batch_goes_on_from_the_checkpoint_to_the_same_adapter(chat: Chat, tmp_path: Path) -> None:
    """Dropout draws by micro-batch, so it is off; sums then differ by rounding only."""
    settings = EPOCHS.model_copy(update={"lora": LoraSettings(dropout=0)})
    whole = train(chat, tmp_path / "whole", settings=settings)
    kept = FakeCheckpoints(stop(chat, tmp_path, 4, settings), every=1000)
    log = LoraTrainer(BASE, CPU, chat, kept, halvings=1).train(ROWS, settings, seed=5, output=tmp_path / "halved")
    assert (whole.log.micro_batch_size, log.micro_batch_size) == (4, 2)
    assert log.steps == whole.log.steps
    halved, plain = (safetensors.torch.load_file(tmp_path / name / WEIGHTS) for name in ("halved", "whole"))
    assert halved.keys() == plain.keys()
    for name, weights in plain.items():
        torch.testing.assert_close(halved[name], weights, atol=1e-5, rtol=1e-3)
