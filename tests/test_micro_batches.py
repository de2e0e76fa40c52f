"""An optimizer step cut into micro-batches by length: which rows go together, and that nothing but time changes."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from semievol.backends.micro_batches import StepCollator, shares, split
from semievol.backends.training import _arguments, _MaskedTrainer
from semievol.recipe import TrainingSettings

ONE_STEP = TrainingSettings(batch_size=8, steps=1, max_grad_norm=1e9)
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "llama": LlamaConfig(**TINY),
    "qwen3": Qwen3Config(**TINY),
    "gemma2, which caps logits and slides its window": Gemma2Config(
        **TINY, sliding_window=5, final_logit_softcapping=2.0
    ),
    "gpt2, whose positions are learned": GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
}


# --- which rows go together -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "most", "overhead", "expected"),
    [
        ([5], 5, 0, [[0]]),
        ([7, 7, 7], 99, 0, [[0, 1, 2]]),
        ([10, 50, 10], 99, 20, [[1], [0, 2]]),
        ([10, 50, 10], 999, 81, [[1, 0, 2]]),
        ([10, 20, 30], 999, 0, [[2], [1], [0]]),
        ([8, 8, 8, 8], 16, 100, [[0, 1], [2, 3]]),
        ([40, 8, 8, 8], 24, 100, [[0], [1, 2, 3]]),
        ([40, 20, 20], 40, 100, [[0], [1, 2]]),
    ],
)
def test_rows_alike_in_length_go_together(
    lengths: list[int], most: int, overhead: int, expected: list[list[int]]
) -> None:
    assert split(lengths, most, overhead) == expected


def cost(lengths: list[int], batches: list[list[int]], overhead: int) -> int:
    return sum(len(batch) * max(lengths[place] for place in batch) + overhead for batch in batches)


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(0, 40), st.integers(1, 3))
def test_no_other_cut_costs_less(lengths: list[int], overhead: int, longest_rows: int) -> None:
    most = longest_rows * max(lengths)
    found = split(lengths, most, overhead)
    assert sorted(place for batch in found for place in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[place] for place in batch) <= most for batch in found)
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    for cuts in range(2 ** (len(lengths) - 1)):
        other, batch = list[list[int]](), list[int]()
        for at, place in enumerate(order):
            batch.append(place)
            if cuts >> at & 1 or at == len(order) - 1:
                other.append(batch)
                batch = []
        if all(len(batch) * lengths[batch[0]] <= most for batch in other):
            assert cost(lengths, found, overhead) <= cost(lengths, other, overhead)


@pytest.mark.parametrize(
    ("lengths", "processes", "expected"),
    [
        ([5, 9], 1, [[1, 0]]),
        ([8, 8, 8, 8], 2, [[0, 2], [1, 3]]),
        ([4, 30, 4, 4], 2, [[1], [0, 2, 3]]),
        ([7], 3, [[0], [], []]),
    ],
)
def test_processes_get_about_as_many_tokens(lengths: list[int], processes: int, expected: list[list[int]]) -> None:
    assert shares(lengths, processes) == expected


@pytest.mark.parametrize("processes", [1, 2, 3, 9])
def test_processes_have_every_row_of_a_step_once_in_equally_many_micro_batches(processes: int) -> None:
    rows = rows_of_many_lengths()
    made = [
        StepCollator(pad_token_id=0, rows=2, longest=41, overhead=8, processes=processes, process=process)(rows)[
            "micro_batches"
        ]
        for process in range(processes)
    ]
    assert len({len(micro_batches) for micro_batches in made}) == 1
    every = [micro for micro_batches in made for micro in micro_batches]
    weights = sorted(weight for micro in every for weight in micro["weight"].tolist() if weight)
    assert weights == pytest.approx(sorted(row["weight"] for row in rows))
    labels = sum(int((micro["labels"] != -100).sum()) for micro in every)
    assert {int(micro["tokens"]) for micro in every} == {labels}


# --- loss and gradients -----------------------------------------------------------------------------------------------


def rows_of_many_lengths() -> list[dict[str, Any]]:
    """Rows with a reply at the end, one with two replies, and one whose reply was cut away."""
    drawing = random.Random(3)
    rows = list[dict[str, Any]]()
    for length in (6, 41, 7, 19, 9, 8, 30, 8):
        ids = [drawing.randrange(3, 64) for _ in range(length)]
        rows.append({"input_ids": ids, "labels": [-100] * (length - 3) + ids[-3:], "weight": drawing.uniform(0.2, 2)})
    rows[1]["labels"][5:9] = rows[1]["input_ids"][5:9]
    rows[2]["labels"] = [-100] * 7
    return rows


def adapted(config: PreTrainedConfig) -> Any:
    set_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(model, lora).eval()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


class Gradients(TrainerCallback):
    """Notes what the optimizer is given."""

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, *, model: nn.Module | None = None, **_: Any
    ) -> None:
        assert model is not None
        self.gradients = gradients(model)


def row_by_row(model: Any, rows: list[dict[str, Any]]) -> float:
    """The loss as it is defined: each row alone, all its logits, no padding."""
    loss = torch.zeros(())
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        targets = torch.tensor(row["labels"][1:])
        loss = loss + row["weight"] * nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    loss = loss / sum(label != -100 for row in rows for label in row["labels"])
    loss.backward()
    return float(loss.detach())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT notices GPT-2's layers and says so
@pytest.mark.parametrize("longest_rows", [1, 8])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_has_the_loss_and_the_gradients_of_its_rows_one_by_one(
    tmp_path: Path, name: str, longest_rows: int
) -> None:
    model, rows = adapted(MODELS[name]), rows_of_many_lengths()
    expected_loss = row_by_row(model, rows)
    expected = gradients(model)
    model.zero_grad()
    collator = StepCollator(pad_token_id=0, rows=longest_rows, longest=41, overhead=8)
    assert 1 < len(collator(rows)["micro_batches"]) < len(rows)
    noted = Gradients()
    trainer = _MaskedTrainer(
        model=model,
        args=_arguments(ONE_STEP, len(rows), 1, str(tmp_path), torch.device("cpu")),
        train_dataset=rows,
        data_collator=collator,
        callbacks=[noted],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected_loss, rel=1e-5)
    assert noted.gradients.keys() == expected.keys()
    assert len(expected) >= 16
    for weight, gradient in expected.items():
        torch.testing.assert_close(noted.gradients[weight], gradient, atol=1e-6, rtol=1e-4)
