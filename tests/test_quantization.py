"""The base model in 4 bits: trained on, gone on with, answered by, and what is told where it cannot be."""

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import PeftModel
from torch import nn

from semievol import cli, wording
from semievol.backends import local, quantization
from semievol.backends.chat import Chat
from semievol.backends.huggingface import load_model, open_generator
from semievol.backends.local import LocalBackend
from semievol.backends.training import LoraTrainer
from semievol.errors import ModelError
from semievol.estimates.memory import NF4_BYTES
from semievol.examples import Example
from semievol.fakes import FakeCheckpoints
from semievol.ports import Checkpoints, Request, TrainingLog
from semievol.prompts import Prompt
from semievol.recipe import LoraSettings, Recipe, TrainingSettings
from tests.demo_model import BASE, SETTINGS, labeled_rows, prompts_of, training_rows

WEIGHTS = "adapter_model.safetensors"
NF4 = SETTINGS.model_copy(update={"quantization": "nf4"})
TRAINING = TrainingSettings(learning_rate=2e-3, steps=12, batch_size=16, lora=LoraSettings(dropout=0.2))
slow = pytest.mark.slow
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(BASE, None)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return labeled_rows(tmp_path_factory.mktemp("demo"), 77)


@pytest.fixture(scope="module")
def prompts(labeled: list[Example]) -> list[Prompt]:
    return prompts_of(labeled)[:12]


def train(
    labeled: list[Example], chat: Chat, output: Path, checkpoints: Checkpoints | None = None, **changes: Any
) -> TrainingLog:
    settings = TRAINING.model_copy(update=changes)
    return LoraTrainer(BASE, NF4, chat, checkpoints).train(training_rows(labeled), settings, seed=1, output=output)


@pytest.fixture(scope="module")
def adapter(labeled: list[Example], chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    train(labeled, chat, folder)
    return folder


def logits(model: Any, chat: Chat, prompt: Prompt) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.tensor([chat.prompt_ids(prompt)])).logits[0, -1]
    return found


# --- the model --------------------------------------------------------------------------------------------------------


@slow
@needs_bitsandbytes
def test_the_matrices_have_4_bits_and_the_rest_is_whole(chat: Chat, prompts: list[Prompt]) -> None:
    from bitsandbytes.nn.modules import Linear4bit

    whole, quantised = load_model(BASE, SETTINGS), load_model(BASE, NF4)
    linear = {name for name, module in whole.named_modules() if type(module) is nn.Linear and name != "lm_head"}
    assert {name for name, module in quantised.named_modules() if isinstance(module, Linear4bit)} == linear
    assert linear
    for name, weight in whole.named_parameters():
        other = quantised.get_parameter(name)
        if name.removesuffix(".weight") in linear:
            state = other.quant_state  # type: ignore[attr-defined]
            held = other.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
            assert held == pytest.approx(NF4_BYTES * weight.numel(), rel=0.01)
        else:
            assert torch.equal(other, weight)
    ours, theirs = logits(quantised, chat, prompts[0]), logits(whole, chat, prompts[0])
    assert 0 < (ours - theirs).norm() < 0.5 * theirs.norm()


# --- training ---------------------------------------------------------------------------------------------------------


@slow
@needs_bitsandbytes
def test_the_loss_falls_and_the_adapter_is_loaded_again_on_either_base(
    labeled: list[Example], chat: Chat, prompts: list[Prompt], tmp_path: Path
) -> None:
    log = train(labeled, chat, tmp_path)
    assert [step for step, _ in log.losses] == list(range(1, 13))
    assert log.losses[-1][1] < 0.7 * log.losses[0][1]
    for settings in (NF4, SETTINGS):
        base = load_model(BASE, settings)
        before = logits(base, chat, prompts[0])
        adapted = PeftModel.from_pretrained(base, str(tmp_path))
        assert not torch.allclose(logits(adapted, chat, prompts[0]), before, atol=0.1)


@slow
@needs_bitsandbytes
def test_trainings_of_both_kinds_differ_and_each_repeats_itself(
    labeled: list[Example], chat: Chat, adapter: Path, tmp_path: Path
) -> None:
    train(labeled, chat, tmp_path / "again")
    LoraTrainer(BASE, SETTINGS, chat).train(training_rows(labeled), TRAINING, seed=1, output=tmp_path / "whole")
    ours, again, whole = (
        (folder / WEIGHTS).read_bytes() for folder in (adapter, tmp_path / "again", tmp_path / "whole")
    )
    assert ours == again != whole
    assert {*safetensors.torch.load(ours)} == {*safetensors.torch.load(whole)}


@slow
@needs_bitsandbytes
@pytest.mark.parametrize("step", [1, pytest.param(7, marks=pytest.mark.long)])
def test_a_stopped_training_ends_as_the_undisturbed_one(
    labeled: list[Example], chat: Chat, adapter: Path, tmp_path: Path, step: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(labeled, chat, tmp_path, FakeCheckpoints(tmp_path / "kept", every=1000, stop_at=step))
    kept = FakeCheckpoints(tmp_path / "kept", every=1000)
    assert train(labeled, chat, tmp_path / "out", kept).steps == 12
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()


@slow
@needs_bitsandbytes
def test_a_checkpoint_of_the_whole_model_is_not_gone_on_with(
    labeled: list[Example], chat: Chat, adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = FakeCheckpoints(tmp_path / "kept", every=1000, stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        LoraTrainer(BASE, SETTINGS, chat, checkpoints).train(
            training_rows(labeled), TRAINING, seed=1, output=tmp_path / "whole"
        )
    with caplog.at_level(logging.WARNING):
        train(labeled, chat, tmp_path / "out", FakeCheckpoints(tmp_path / "kept", every=1000))
    assert "another training's" in caplog.text
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()


@pytest.mark.long
@slow
@needs_bitsandbytes
def test_gradient_checkpointing_changes_no_byte(
    labeled: list[Example], chat: Chat, adapter: Path, tmp_path: Path
) -> None:
    train(labeled, chat, tmp_path, gradient_checkpointing=True)
    assert (tmp_path / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()


# --- answers ----------------------------------------------------------------------------------------------------------


@slow
@needs_bitsandbytes
def test_what_answers_is_what_was_trained(prompts: list[Prompt], chat: Chat, adapter: Path) -> None:
    """The adapter beside the matrices in 4 bits, to the rounding of batches; merged it would be rounded away."""
    report = {"recipe": {"model": {"quantization": "nf4"}}, "provenance": {"dtype": "float32"}}
    names: dict[str, Any] = {}
    exec("\n".join(wording.load_lines(report, BASE, str(adapter))), names)
    with open_generator(BASE, NF4, chat, adapter) as generator:
        assert not any(module.training for module in generator.model.modules())
        requests = [Request(prompt, (0,), temperature=0.0) for prompt in prompts]
        found = dict(generator.generate(requests, max_new_tokens=1))
    for index, prompt in enumerate(prompts):
        wanted = logits(names["model"], chat, prompt).log_softmax(dim=-1).max()
        assert found[index][0].logprobs[0] == pytest.approx(float(wanted), abs=2e-3)


def test_vllm_does_not_take_its_place_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "check_quantization", lambda _: None)
    monkeypatch.setattr(local, "vllm_installed", lambda: True)
    monkeypatch.setattr(local, "knows", lambda *_: True)
    for name, quantised, labels, evaluates in [
        ("auto", "none", "vllm", "vllm"),
        ("auto", "nf4", "huggingface", "huggingface"),
        ("vllm", "nf4", "vllm", "vllm"),
        ("huggingface", "none", "huggingface", "huggingface"),
    ]:
        backend = LocalBackend(BASE, Recipe.resolve({"engine": {"name": name}, "model": {"quantization": quantised}}))
        assert backend.engine("label", 10_000) == labels
        assert backend.engine("evaluate", 10_000) == evaluates


@needs_bitsandbytes
def test_provenance_says_that_it_was_quantised_and_by_what() -> None:
    told = LocalBackend(BASE, Recipe.resolve({"model": {"quantization": "nf4"}})).provenance()
    assert told["quantization"] == "nf4"
    assert told["bitsandbytes"]
    assert "quantization" not in LocalBackend(BASE, Recipe()).provenance()


# --- a run ------------------------------------------------------------------------------------------------------------


@slow
@needs_bitsandbytes
def test_a_run_is_quantised_throughout_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labeled_rows(tmp_path, 3)
    settings = ["model.device=cpu", "propagation.retriever=hidden", "warmup.steps=3", "evolution.steps=3"]
    files = [f"--{role}={tmp_path / role}.jsonl" for role in ("labeled", "unlabeled")]
    command = ["run", f"--model={BASE}", *files, f"--output={tmp_path / 'out'}", "--quiet"]
    command += [f"--set={setting}" for setting in settings]
    assert cli.main([*command, "--set=model.quantization=nf4"]) == 0
    told = capsys.readouterr().out
    assert "BitsAndBytesConfig" in told
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["provenance"]["quantization"] == "nf4"
    assert (tmp_path / "out" / "adapter" / WEIGHTS).is_file()
    assert cli.main(command) == 2
    assert "model.quantization: nf4 there, none now" in capsys.readouterr().err


# --- what is missing --------------------------------------------------------------------------------------------------


@pytest.fixture
def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)


@pytest.mark.usefixtures("without_bitsandbytes")
def test_a_missing_library_is_told_before_anything_is_loaded() -> None:
    with pytest.raises(ModelError, match=r"install semievol\[qlora\]"):
        LocalBackend("nobody/nothing", Recipe.resolve({"model": {"quantization": "nf4"}}))
    with pytest.raises(ModelError, match=r"install semievol\[qlora\]"):
        load_model("nobody/nothing", NF4)
    LocalBackend(BASE, Recipe())  # which needs it not


@pytest.mark.usefixtures("without_bitsandbytes")
@pytest.mark.parametrize("command", ["run", "validate"])
def test_commands_tell_of_a_missing_library_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    labeled_rows(tmp_path, 3)
    files = [f"--{role}={tmp_path / role}.jsonl" for role in ("labeled", "unlabeled")]
    more = [f"--output={tmp_path / 'out'}"] if command == "run" else []
    assert cli.main([command, f"--model={BASE}", *files, *more, "--set", "model.quantization=nf4"]) == 2
    told = "".join(capsys.readouterr())
    assert "install semievol[qlora]" in " ".join(told.split())
    assert not (tmp_path / "out" / "stages").exists()
