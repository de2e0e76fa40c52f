"""A training in two processes that `accelerate launch` starts, on the demo's real tiny model; gloo between them."""

import os
import signal
import subprocess
import sys
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
DROPPING = TrainingSettings(learning_rate=1e-3, steps=81, batch_size=5, lora=LoraSettings(dropout=0.3))
"""Two steps to a logged loss."""
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingLog, Path]:
    folder = tmp_path_factory.mktemp("alone")
    return train(folder, None), folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one_does(
    alone: tuple[TrainingLog, Path], tmp_path: Path, strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for rounding: the same float32 sums in another order, 2e-7 of the loss and 2e-6 in the weights as measured.

    What a user set up for accelerate has no say.
    """
    (tmp_path / "home" / "accelerate").mkdir(parents=True)
    (tmp_path / "home" / "accelerate" / "default_config.yaml").write_text("distributed_type: NO\nnum_processes: 1\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    one, folder = alone
    told: list[tuple[int, int, float | None]] = []
    two = train(tmp_path / "two", strategy, progress=lambda done, total, loss=None, /: told.append((done, total, loss)))
    assert [step for step, _ in one.losses] == [step for step, _ in two.losses] == list(range(1, 10))
    assert [loss for _, loss in two.losses] == pytest.approx([loss for _, loss in one.losses], rel=1e-5)
    assert (two.steps, two.rows, two.tokens, two.truncated_rows) == (one.steps, one.rows, one.tokens, 0)
    assert (one.micro_batch_size, two.micro_batch_size) == (8, 4)
    assert told == [(step, 9, told_loss) for step, loss in two.losses for told_loss in (None, loss)]
    found, wanted = (safetensors.torch.load_file(place / WEIGHTS) for place in (tmp_path / "two", folder))
    assert found.keys() == wanted.keys()
    for name, weights in wanted.items():
        torch.testing.assert_close(found[name], weights, atol=1e-5, rtol=1e-4)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in folder.iterdir()}
    for name in ("adapter_config.json", "tokenizer.json"):
        assert (tmp_path / "two" / name).read_bytes() == (folder / name).read_bytes()
    PeftModel.from_pretrained(load_model(BASE, CPU), str(tmp_path / "two"))
    assert {path.name for path in tmp_path.iterdir()} == {"home", "two"}


def test_the_frozen_weights_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process holds half of them, and the whole adapter."""
    change = f"""
    def watched(*given, sharded=training.LoraTrainer._sharded):
        model = sharded(*given)
        held = {{True: 0, False: 0}}
        for weight in model.parameters():
            held[weight.requires_grad] += getattr(weight, "to_local", lambda: weight)().numel()
        open({str(tmp_path / "held")!r}, "w").write(f"{{held[False]}} {{held[True]}}")
        return model
    training.LoraTrainer._sharded = watched"""
    in_the_second_process(tmp_path / "site", change, monkeypatch)
    train(tmp_path / "out", "fsdp", SMOOTH.model_copy(update={"steps": 1}))
    frozen, trained = map(int, (tmp_path / "held").read_text().split())
    assert frozen == pytest.approx(load_model(BASE, CPU).num_parameters() / 2, rel=0.01)
    adapter = safetensors.torch.load_file(tmp_path / "out" / WEIGHTS)
    assert trained == sum(weights.numel() for weights in adapter.values())


# --- stopped and gone on with -----------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_training_ends_as_the_undisturbed_one(tmp_path: Path, strategy: Strategy) -> None:
    """One of the processes is killed between two points of the loss curve; both draw their own dropout."""
    kept, steps = FakeCheckpoints(tmp_path / "kept", every=13), list[int]()
    undisturbed = train(tmp_path / "undisturbed", strategy, DROPPING)

    def kill(done: int, total: int, loss: float | None = None, /) -> None:
        if done == 30:
            second = [
                pid for pid in descendants(os.getpid()) if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
            ]
            os.kill(second[0], signal.SIGKILL)

    before = descendants(os.getpid())
    with pytest.raises(EngineDied, match="signal 9"):
        train(tmp_path / "killed", strategy, DROPPING, kept, kill)
    assert descendants(os.getpid()) == before
    assert not (tmp_path / "killed").exists()
    assert kept.saved == [13, 26]

    def note(done: int, total: int, loss: float | None = None, /) -> None:
        if loss is None:
            steps.append(done)

    assert (
        train(tmp_path / "resumed", strategy, DROPPING, FakeCheckpoints(kept.folder, every=1000), note) == undisturbed
    )
    assert steps == list(range(27, 82))
    assert (tmp_path / "resumed" / WEIGHTS).read_bytes() == (tmp_path / "undisturbed" / WEIGHTS).read_bytes()


@pytest.mark.long
def test_what_save_raises_reaches_the_caller_and_ends_all(tmp_path: Path) -> None:
    before, kept = descendants(os.getpid()), FakeCheckpoints(tmp_path / "kept", every=1000, stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", "ddp", checkpoints=kept)
    assert descendants(os.getpid()) == before
    assert kept.saved == [3]


@pytest.mark.long
def test_another_number_of_processes_starts_at_the_beginning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept, steps = FakeCheckpoints(tmp_path / "kept", every=1000, stop_at=3), list[int]()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", None, checkpoints=kept)
    kept.stop_at = None
    train(tmp_path / "two", "ddp", checkpoints=kept, progress=lambda done, *_: steps.append(done))
    assert steps[0] == 1
    assert "another training's" in caplog.text


# --- nothing is left --------------------------------------------------------------------------------------------------


def train_long(folder: Path) -> None:
    """Says each step that is done."""
    settings = SMOOTH.model_copy(update={"steps": 100_000})
    train(folder / "out", "ddp", settings, progress=lambda done, *_: print(done, flush=True))


@pytest.mark.long
def test_nothing_survives_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.test_parallel import train_long as go; go(Path(sys.argv[1]))"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"1\n"
        tree = descendants(parent.pid)
        assert len(tree) >= 3, "the launcher and two processes"
        assert all(alive(pid) for pid in tree)
        parent.kill()
    assert wait_until_gone(tree, 20) == []


# --- what goes wrong in a process -------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_loss_that_diverges_is_told_as_one_process_tells_it(tmp_path: Path) -> None:
    wild = TrainingSettings(learning_rate=1e18, steps=40, batch_size=16, max_grad_norm=1e18, warmup_ratio=0.0)
    with pytest.raises(LossDiverged, match="learning_rate"):
        train(tmp_path / "out", "ddp", wild)
    assert not list(tmp_path.iterdir())


def in_the_second_process(folder: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Python run a change of `training` when it starts as the second process."""
    lines = ["import os", "if os.environ.get('RANK') == '1':", "    from semievol.backends import training", change]
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]))


LACK = '    def lack(*_, **__): raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory")'


@pytest.mark.long
def test_a_lack_of_memory_in_one_process_is_told_with_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the ladder of halvings needs it: rows are those of a process, not of the step."""
    change = f"{LACK}\n    training._MaskedTrainer.compute_loss = lack"
    in_the_second_process(tmp_path / "site", change, monkeypatch)
    with pytest.raises(OutOfMemory) as told:
        train(tmp_path / "out", "ddp")
    assert (told.value.phase, told.value.rows) == ("training", 4)
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_an_error_that_is_none_of_ours_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = "    training._MaskedTrainer.compute_loss = lambda *_, **__: 1 / 0"
    in_the_second_process(tmp_path / "site", change, monkeypatch)
    with pytest.raises(EngineDied, match="ZeroDivisionError"):
        train(tmp_path / "out", "ddp")


@pytest.mark.long
def test_a_process_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_second_process(tmp_path / "site", "    os.write(2, b'no luck\\n'); os._exit(7)", monkeypatch)
    with pytest.raises(EngineDied, match="status 7: no luck"):
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
