"""The probe before the first step: what it tries, what it finds where memory lacks, and that it leaves no trace."""

import gc
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerState

from semievol.backends import probe
from semievol.backends.chat import Chat
from semievol.backends.micro_batches import StepCollator
from semievol.backends.training import LoraTrainer, _MaskedTrainer
from semievol.errors import LossDiverged, OutOfMemory
from semievol.fakes import FakeCheckpoints
from semievol.ports import Progress, TrainingLog, TrainingRow, no_progress
from semievol.prompts import Message
from semievol.recipe import LoraSettings, TrainingSettings
from tests.demo_model import BASE, SETTINGS
from tests.tickets import tickets

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"
ROWS = [
    TrainingRow((Message("user", question + " printer" * (7 * index % 30)), Message("assistant", answer)))
    for index, (question, answer) in enumerate(tickets(21, seed=1))
]
"""Of many lengths; three batches an epoch, the last of them smaller."""
DROPOUT = TrainingSettings(learning_rate=1e-3, epochs=2, batch_size=8, lora=LoraSettings(dropout=0.3))
FULL = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
"""How torch says on a CPU that memory lacks."""


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(BASE, None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PROBED", {"cpu"})


def train(chat: Chat, output: Path, settings: TrainingSettings = DROPOUT, **more: Any) -> tuple[TrainingLog, bytes]:
    """Its log, and its adapter's bytes."""
    progress: Progress = more.pop("progress", no_progress)
    log = LoraTrainer(BASE, SETTINGS, chat, **more).train(ROWS, settings, seed=5, output=output, progress=progress)
    return log, (output / WEIGHTS).read_bytes()


Work = Callable[..., Any]


def watched(monkeypatch: pytest.MonkeyPatch, work: Callable[[Work, dict[str, Any]], Any]) -> None:
    """Puts `work` in the place of the loss; it is given the loss itself and a micro-batch."""
    compute = _MaskedTrainer.compute_loss

    def replaced(self: Any, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        return work(lambda: compute(self, model, inputs, *rest, **named), inputs)

    monkeypatch.setattr(_MaskedTrainer, "compute_loss", replaced)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """A machine that holds a micro-batch of so many tokens, and says so after it has begun with a larger one."""

    def work(compute: Work, inputs: dict[str, Any]) -> Any:
        loss = compute()
        if inputs["input_ids"].numel() > tokens:
            raise RuntimeError(FULL)
        return loss

    watched(monkeypatch, work)


def longest(chat: Chat) -> int:
    return max(len(chat.encode(row.messages).input_ids) for row in ROWS)


# --- no trace ---------------------------------------------------------------------------------------------------------


def test_a_training_is_the_same_with_it_and_without(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(chat, tmp_path / "plain")
    monkeypatch.setattr(probe, "PROBED", {"cpu"})
    tried = list[int]()
    fits = probe.Probe._fits

    def noted(self: probe.Probe, *given: Any) -> bool:
        tried.append(self.collator.rows)
        return fits(self, *given)

    monkeypatch.setattr(probe.Probe, "_fits", noted)
    assert train(chat, tmp_path / "probed") == plain
    assert tried == [8]


@pytest.mark.usefixtures("probed")
def test_a_training_that_goes_on_is_the_same_too(chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(chat, tmp_path / "stopped", checkpoints=FakeCheckpoints(tmp_path / "kept", every=99, stop_at=4))
    found = train(chat, tmp_path / "out", checkpoints=FakeCheckpoints(tmp_path / "kept", every=99))
    monkeypatch.setattr(probe, "PROBED", set())
    assert found == train(chat, tmp_path / "plain")


def random_states() -> tuple[Any, Any, Any]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]  # noqa: NPY002


def test_random_states_and_buffers_are_what_they_were_even_after_an_error() -> None:
    model = torch.nn.Module()
    buffer = torch.tensor([1.0, 2.0])
    model.register_buffer("counted", buffer)

    def disturb() -> None:
        torch.rand(3)
        random.random()
        buffer.add_(1.0)
        model.register_buffer("counted", torch.zeros(5))
        raise LossDiverged("anything")

    states = random_states()
    with pytest.raises(LossDiverged), probe._left_as_it_was(model, torch.device("cpu")):
        disturb()
    assert model.counted is buffer
    assert buffer.tolist() == [1.0, 2.0]
    assert states == random_states()


# --- what is tried ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("probed")
@pytest.mark.parametrize("changes", [{}, {"steps": 4}, {"micro_batch_size": 2}])
def test_the_most_expensive_micro_batch_of_the_training_is_tried(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    seen: list[dict[str, Any]] = []

    def work(compute: Work, inputs: dict[str, Any]) -> Any:
        seen.append({name: tensor.tolist() for name, tensor in inputs.items()})
        return compute()

    watched(monkeypatch, work)
    train(chat, tmp_path / "out", DROPOUT.model_copy(update=changes))
    tried, computed = seen[0], seen[1:]
    assert tried in computed
    sizes = [len(one["input_ids"]) * len(one["input_ids"][0]) for one in computed]
    assert len(tried["input_ids"]) * len(tried["input_ids"][0]) == max(sizes) > min(sizes)


@pytest.mark.usefixtures("probed")
def test_the_order_of_all_rows_is_known_in_advance(chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foretold, seen, places = list[list[int]](), list[list[int]](), dict[int, int]()
    steps, collate = probe.Probe._steps, StepCollator.__call__

    def noted(self: probe.Probe, state: TrainerState) -> Iterator[Sequence[int]]:
        dataset: Any = self.trainer.train_dataset
        places.update({id(row): place for place, row in enumerate(dataset)})
        foretold.extend(list(step) for step in steps(self, state))
        return iter(foretold)

    def collated(self: StepCollator, rows: Sequence[dict[str, Any]]) -> Any:
        seen.append([places[id(row)] for row in rows])
        return collate(self, rows)

    monkeypatch.setattr(probe.Probe, "_steps", noted)
    monkeypatch.setattr(StepCollator, "__call__", collated)
    train(chat, tmp_path / "out", DROPOUT.model_copy(update={"epochs": 3}))
    assert seen[1:] == foretold  # the first is the probe's own
    assert len(foretold) == 9


# --- where memory lacks -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("probed")
def test_micro_batches_are_halved_at_once_and_the_training_is_that_of_the_smaller_ones(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = train(chat, tmp_path / "expected", DROPOUT.model_copy(update={"micro_batch_size": 2}))
    assert not caplog.messages
    short_of_memory(monkeypatch, 2 * longest(chat))
    found = train(chat, tmp_path / "found")
    assert found == expected
    assert found[0].micro_batch_size == 2
    assert caplog.messages == [
        "out of memory with 8 rows at once: trying 4",
        "out of memory with 4 rows at once: trying 2",
    ]


@pytest.mark.usefixtures("probed")
def test_memory_is_given_back_before_less_is_tried(chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what only the collector takes apart."""
    kept: list[weakref.ref[torch.Tensor]] = []

    def work(compute: Work, inputs: dict[str, Any]) -> Any:
        assert not [loss for loss in kept if loss() is not None]
        loss = compute()
        if inputs["input_ids"].numel() > 2 * longest(chat):
            kept.append(weakref.ref(loss))
            cycle: list[Any] = [loss]
            cycle.append(cycle)
            raise RuntimeError(FULL)
        return loss

    watched(monkeypatch, work)
    gc.disable()
    try:
        assert train(chat, tmp_path / "out")[0].micro_batch_size == 2
    finally:
        gc.enable()
    assert len(kept) == 2


@pytest.mark.usefixtures("probed")
def test_a_row_that_does_not_fit_alone_ends_the_training_before_its_first_step(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, longest(chat) - 1)
    steps = list[int]()
    with pytest.raises(OutOfMemory, match="even with a single row") as raised:
        train(chat, tmp_path / "out", progress=lambda done, *_: steps.append(done))
    assert raised.value.rows == 1
    assert not steps
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("probed")
def test_what_lacks_later_is_told_with_the_rows_that_were_found(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[int]()

    def work(compute: Work, inputs: dict[str, Any]) -> Any:
        calls.append(1)
        if inputs["input_ids"].numel() > 2 * longest(chat) or len(calls) == 9:
            raise RuntimeError(FULL)
        return compute()

    watched(monkeypatch, work)
    with pytest.raises(OutOfMemory, match="2 rows at once"):
        train(chat, tmp_path / "out")


@pytest.mark.usefixtures("probed")
def test_other_errors_pass(chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(compute: Work, inputs: dict[str, Any]) -> Any:
        raise RuntimeError("shapes do not fit")

    watched(monkeypatch, work)
    with pytest.raises(RuntimeError, match="shapes"):
        train(chat, tmp_path / "out")


def test_other_devices_are_not_probed(chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> bool:
        raise AssertionError("probed")

    monkeypatch.setattr(probe.Probe, "_fits", never)
    assert train(chat, tmp_path / "out", DROPOUT.model_copy(update={"steps": 1}))[0].steps == 1
