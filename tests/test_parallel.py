"""A training in two processes that `accelerate launch` starts, on the demo's real tiny model; gloo between them."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch
from peft import PeftModel

from semievol.backends.chat import Chat
from semievol.backends.huggingface import load_model
from semievol.backends.local import LocalBackend
from semievol.backends.parallel import check_processes
from semievol.backends.training import LoraTrainer
from semievol.errors import EngineDied, LossDiverged, ModelError, OutOfMemory, RecipeError
from semievol.fakes import FakeCheckpoints
from semievol.ports import Checkpoints, Progress, TrainingLog, TrainingRow, no_progress
from semievol.prompts import Message
from semievol.recipe import LoraSettings, ModelSettings, ParallelSettings, Recipe, TrainingSettings
from tests.servers import wait_for
from tests.test_serve import alive, descendants, wait_until_gone
from tests.tickets import tickets

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
BASE = str(ROOT / "demo" / "base")
CPU = ModelSettings(device="cpu")
ROWS = [
    TrainingRow((Message("user", question * (1 + index % 4)), Message("assistant", answer)), 1.0 + index % 3)
    for index, (question, answer) in enumerate(tickets(17, seed=1))
]
"""Of different lengths and weights. An epoch's last step has one row, so that one process has nothing to compute."""
SMOOTH = TrainingSettings(learning_rate=1e-3, epochs=3, batch_size=8, lora=LoraSettings(dropout=0.0))
"""Nine steps, all of them logged."""
DROPPING = TrainingSettings(learning_rate=1e-3, steps=15, batch_size=5, lora=LoraSettings(dropout=0.3))
WEIGHTS = "adapter_model.safetensors"
Strategy = Literal["ddp", "fsdp"]


def train(
    output: Path,
    strategy: Strategy | None,
    settings: TrainingSettings = SMOOTH,
    checkpoints: Checkpoints | None = None,
    progress: Progress = no_progress,
    rows: list[TrainingRow] = ROWS,
) -> TrainingLog:
    """In two processes, or in this one without a strategy."""
    parallel = ParallelSettings(processes=2, strategy=strategy) if strategy else ParallelSettings()
    trainer = LoraTrainer(BASE, CPU, Chat.load(BASE, None), checkpoints, parallel=parallel)
    return trainer.train(rows, settings, seed=5, output=output, progress=progress)


# --- the same as one process ------------------------------------------------------------------------------------------


@dataclass
class Trained:
    log: TrainingLog
    folder: Path
    told: Sequence[tuple[int, int, float | None]] = ()
    """What `Progress` was told."""

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return safetensors.torch.load_file(self.folder / WEIGHTS)


def trained(folder: Path, strategy: Strategy) -> Trained:
    """What an undisturbed training leaves. What a user set up for accelerate has no say."""
    told: list[tuple[int, int, float | None]] = []
    (folder / "home" / "accelerate").mkdir(parents=True)
    (folder / "home" / "accelerate" / "default_config.yaml").write_text("distributed_type: NO\nnum_processes: 1\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(folder / "home"))
        patch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
        progress = lambda done, total, loss=None, /: told.append((done, total, loss))  # noqa: E731
        log = train(folder / "out", strategy, progress=progress)
    assert {path.name for path in folder.iterdir()} == {"home", "out"}
    return Trained(log, folder / "out", told)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("alone")
    return Trained(train(folder, None), folder)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("ddp"), "ddp")


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the second process says how many frozen and trained weights it holds."""
    return tmp_path_factory.mktemp("held") / "held"


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory: pytest.TempPathFactory, held: Path) -> Trained:
    change = f"""{TRAINING}
    def watched(*given, sharded=training.LoraTrainer._sharded):
        model = sharded(*given)
        held = {{True: 0, False: 0}}
        for weight in model.parameters():
            held[weight.requires_grad] += getattr(weight, "to_local", lambda: weight)().numel()
        open({str(held)!r}, "w").write(f"{{held[False]}} {{held[True]}}")
        return model
    training.LoraTrainer._sharded = watched"""
    with in_processes(tmp_path_factory.mktemp("site"), change):
        return trained(tmp_path_factory.mktemp("fsdp"), "fsdp")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one_does(request: pytest.FixtureRequest, alone: Trained, strategy: str) -> None:
    """But for rounding: the same sums in another order, 2e-7 of the loss and 2e-6 in the weights as measured."""
    together: Trained = request.getfixturevalue(strategy)
    one, two = alone.log, together.log
    assert [step for step, _ in one.losses] == [step for step, _ in two.losses] == list(range(1, 10))
    assert [loss for _, loss in two.losses] == pytest.approx([loss for _, loss in one.losses], rel=1e-5)
    assert (two.steps, two.rows, two.tokens, two.truncated_rows) == (one.steps, one.rows, one.tokens, 0)
    assert (one.micro_batch_size, two.micro_batch_size) == (8, 4)
    assert together.told == [(step, 9, told_loss) for step, loss in two.losses for told_loss in (None, loss)]
    found, wanted = together.weights, alone.weights
    assert found.keys() == wanted.keys()
    for name, weights in wanted.items():
        torch.testing.assert_close(found[name], weights, atol=1e-5, rtol=1e-4)
    assert {path.name for path in together.folder.iterdir()} == {path.name for path in alone.folder.iterdir()}
    for name in ("adapter_config.json", "tokenizer.json"):
        assert (together.folder / name).read_bytes() == (alone.folder / name).read_bytes()
    PeftModel.from_pretrained(load_model(BASE, CPU), str(together.folder))


def test_the_frozen_weights_are_shared_out(fsdp: Trained, held: Path) -> None:
    """Each process holds half of them, and the whole adapter."""
    frozen, trained = map(int, held.read_text().split())
    assert frozen == pytest.approx(load_model(BASE, CPU).num_parameters() / 2, rel=0.01)
    assert trained == sum(weights.numel() for weights in fsdp.weights.values())


# --- stopped and gone on with -----------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_killed_training_ends_as_the_undisturbed_one(ddp: Trained, tmp_path: Path) -> None:
    kept = killed(tmp_path, "ddp", SMOOTH)
    assert kept.saved == [2, 4]
    assert gone_on_with(tmp_path, "ddp", SMOOTH, kept) == (ddp.log, list(range(5, 10)))
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (ddp.folder / WEIGHTS).read_bytes()


@pytest.mark.long
def test_dropout_and_the_curve_go_on_where_a_killed_training_left_them(tmp_path: Path) -> None:
    """Each process draws its own dropout, and the checkpoint lies between two points of the loss curve."""
    with in_processes(tmp_path / "site", f"{TRAINING}; training.LOGGED_LOSSES = 5", ranks=(0, 1)):
        undisturbed = train(tmp_path / "undisturbed", "fsdp", DROPPING)
        assert [step for step, _ in undisturbed.losses] == [3, 6, 9, 12, 15]
        kept = killed(tmp_path, "fsdp", DROPPING)
        assert kept.saved == [2, 4]
        assert gone_on_with(tmp_path, "fsdp", DROPPING, kept) == (undisturbed, list(range(5, 16)))
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "undisturbed" / WEIGHTS).read_bytes()


def killed(folder: Path, strategy: Strategy, settings: TrainingSettings) -> FakeCheckpoints:
    """Checkpoints of a training of which one process is killed after the fifth step; every other step has one."""
    kept, before = FakeCheckpoints(folder / "kept", every=2), descendants(os.getpid())

    def kill(done: int, total: int, loss: float | None = None, /) -> None:
        if done == 5:
            second = [
                pid for pid in descendants(os.getpid()) if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
            ]
            os.kill(second[0], signal.SIGKILL)

    with pytest.raises(EngineDied, match="signal 9"):
        train(folder / "out", strategy, settings, kept, kill)
    assert descendants(os.getpid()) == before
    assert not (folder / "out").exists()
    return kept


def gone_on_with(
    folder: Path, strategy: Strategy, settings: TrainingSettings, kept: FakeCheckpoints
) -> tuple[TrainingLog, list[int]]:
    """The log of the training that goes on from a checkpoint, and the steps that it does."""
    steps: list[int] = []

    def note(done: int, total: int, loss: float | None = None, /) -> None:
        if loss is None:
            steps.append(done)

    return train(folder / "out", strategy, settings, FakeCheckpoints(kept.folder, every=1000), note), steps


@pytest.mark.long
def test_what_save_raises_ends_all_and_another_number_of_processes_starts_at_the_beginning(
    alone: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, kept = descendants(os.getpid()), FakeCheckpoints(tmp_path / "kept", every=1000, stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "out", "ddp", checkpoints=kept)
    assert descendants(os.getpid()) == before
    assert kept.saved == [3]
    assert train(tmp_path / "out", None, checkpoints=FakeCheckpoints(kept.folder, every=1000)) == alone.log
    assert "another training's" in caplog.text


# --- nothing is left --------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_nothing_survives_a_killed_parent(tmp_path: Path) -> None:
    parent = os.fork()
    if parent == 0:
        begun = lambda *_: (tmp_path / "begun").touch()  # noqa: E731
        try:
            train(tmp_path / "out", "ddp", SMOOTH.model_copy(update={"steps": 100_000}), progress=begun)
        finally:
            os._exit(1)  # whatever happens, the tests go on in one process
    wait_for((tmp_path / "begun").exists, "the first step")
    tree = descendants(parent)
    assert len(tree) >= 3, "the launcher and two processes"
    assert all(alive(pid) for pid in tree)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert wait_until_gone(tree, 20) == []


# --- what goes wrong in a process -------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_loss_that_diverges_is_told_as_one_process_tells_it(tmp_path: Path) -> None:
    wild = TrainingSettings(learning_rate=1e18, steps=40, batch_size=16, max_grad_norm=1e18, warmup_ratio=0.0)
    with pytest.raises(LossDiverged, match="learning_rate"):
        train(tmp_path / "out", "ddp", wild)
    assert not list(tmp_path.iterdir())


TRAINING = "from semievol.backends import training"


@contextmanager
def in_processes(folder: Path, change: str, ranks: tuple[int, ...] = (1,)) -> Iterator[None]:
    """Have Python run a change when it starts as one of these processes, by default the second."""
    started = f"if os.environ.get('RANK') in {[*map(str, ranks)]}:"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(f"import os\n{started}\n    {change}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]))
        yield


LACK = 'def lack(*_, **__): raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory")'


@pytest.mark.long
def test_a_lack_of_memory_in_one_process_is_told_with_its_rows(tmp_path: Path) -> None:
    """As the ladder of halvings needs it: rows are those of a process, not of the step."""
    change = f"{LACK}\n    {TRAINING}; training._MaskedTrainer.compute_loss = lack"
    with in_processes(tmp_path / "site", change), pytest.raises(OutOfMemory) as told:
        train(tmp_path / "out", "ddp")
    assert (told.value.phase, told.value.rows) == ("training", 4)
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_an_error_that_is_none_of_ours_is_told(tmp_path: Path) -> None:
    change = f"{TRAINING}; training._MaskedTrainer.compute_loss = lambda *_, **__: 1 / 0"
    with in_processes(tmp_path / "site", change), pytest.raises(EngineDied, match="ZeroDivisionError"):
        train(tmp_path / "out", "ddp")


@pytest.mark.long
def test_a_process_that_does_not_start_is_told(tmp_path: Path) -> None:
    change = "os.write(2, b'no luck\\n'); os._exit(7)"
    with in_processes(tmp_path / "site", change), pytest.raises(EngineDied, match="status 7: no luck"):
        train(tmp_path / "out", "ddp")


@pytest.mark.long
def test_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    parallel = ParallelSettings(processes=2)
    trainer = LoraTrainer(str(tmp_path / "none"), CPU, Chat.load(BASE, None), parallel=parallel)
    with pytest.raises(ModelError):
        trainer.train(ROWS, SMOOTH, seed=5, output=tmp_path / "out")


# --- what there is no room for ----------------------------------------------------------------------------------------


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_processes(ParallelSettings(processes=2), ModelSettings(device="cuda"))
    with pytest.raises(RecipeError, match=r"parallel\.processes is 3.* 2 .*GPUs"):
        check_processes(ParallelSettings(processes=3), ModelSettings(device="cuda"))
    with pytest.raises(RecipeError, match=r"set model\.device to cuda"):
        check_processes(ParallelSettings(processes=2), ModelSettings(device="cuda:1"))


def test_more_processes_than_cores_are_refused_before_anything_is_done() -> None:
    cores, cpu = os.cpu_count() or 1, {"model": {"device": "cpu"}}
    with pytest.raises(RecipeError, match="CPU cores"):
        LocalBackend(BASE, Recipe.resolve(cpu, {"parallel": {"processes": cores + 1}}))
    trainer: Any = LocalBackend(BASE, Recipe.resolve(cpu, {"parallel": {"processes": cores}})).trainer()
    assert trainer.parallel.processes == cores
