"""LoRA fine-tuning with PEFT under transformers' Trainer: loss on the assistant's tokens, rows weighted."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from semievol.backends.chat import Chat, Encoded
from semievol.backends.huggingface import load_model
from semievol.errors import LossDiverged
from semievol.ports import Progress, TrainingLog, TrainingRow, no_progress
from semievol.recipe import ModelSettings, TrainingSettings

LOGGED_LOSSES = 40
"""About how many points a loss curve has."""


class LoraTrainer:
    """The `Trainer` port."""

    def __init__(self, model: str, settings: ModelSettings, chat: Chat) -> None:
        self.model, self.settings, self.chat = model, settings, chat

    def train(
        self,
        rows: Sequence[TrainingRow],
        settings: TrainingSettings,
        *,
        seed: int,
        output: Path,
        start_from: Path | None = None,
        progress: Progress = no_progress,
    ) -> TrainingLog:
        """See `ports.Trainer`."""
        set_seed(seed & 0xFFFFFFFF)
        model = self._adapted(settings, start_from)
        encoded = [self.chat.encode(row.messages) for row in rows]
        mean_weight = math.fsum(row.weight for row in rows) / len(rows)
        dataset = [_cut(one, self.settings.max_length) for one in encoded]
        weighted = [{**item, "weight": row.weight / mean_weight} for item, row in zip(dataset, rows, strict=True)]
        with tempfile.TemporaryDirectory() as scratch:
            trainer = _MaskedTrainer(
                model=model,
                args=_arguments(settings, len(rows), seed, scratch, model.device),
                train_dataset=weighted,
                data_collator=_Collator(self.chat.tokenizer.pad_token_id),
                callbacks=[_Watch(progress)],
            )
            trainer.remove_callback(_printer())
            trainer.train()
        model.save_pretrained(str(output))
        self.chat.save(output)
        return TrainingLog(
            steps=trainer.state.global_step,
            rows=len(rows),
            tokens=sum(len(item["input_ids"]) for item in dataset),
            truncated_rows=sum(len(one.input_ids) > self.settings.max_length for one in encoded),
            losses=[(int(entry["step"]), entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
        )

    def _adapted(self, settings: TrainingSettings, start_from: Path | None) -> PeftModel:
        base = load_model(self.model, self.settings)
        if start_from is not None:
            return PeftModel.from_pretrained(base, str(start_from), is_trainable=True)
        lora = settings.lora
        modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=modules,
            task_type="CAUSAL_LM",
        )
        adapted = get_peft_model(base, config)
        assert isinstance(adapted, PeftModel)
        return adapted


def _arguments(
    settings: TrainingSettings, rows: int, seed: int, scratch: str, device: torch.device
) -> TrainingArguments:
    micro = settings.micro_batch_size or settings.batch_size
    steps = settings.steps or math.ceil(rows / settings.batch_size) * settings.epochs
    return TrainingArguments(
        output_dir=scratch,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        warmup_steps=settings.warmup_ratio,
        lr_scheduler_type=settings.schedule,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=device.type == "cuda" and torch.cuda.is_bf16_supported(),
        use_cpu=device.type == "cpu",
        seed=seed & 0xFFFFFFFF,
        logging_steps=max(1, int(steps / LOGGED_LOSSES)),
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
    )


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


class _MaskedTrainer(Trainer):
    """Computes logits only where a label is: replies end the row, so the last positions are enough."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = True  # the loss below divides by num_items_in_batch itself

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Weighted negative log-likelihood in nats per labeled token of the whole (accumulated) batch."""
        labels, weights = inputs.pop("labels"), inputs.pop("weight")
        first_label = int((labels != -100).any(dim=0).nonzero()[0, 0])
        keep = labels.shape[1] - first_label + 1
        output = model(**inputs, logits_to_keep=keep)
        targets = labels[:, first_label:]
        losses = nn.functional.cross_entropy(
            output.logits[:, :-1].float().transpose(1, 2), targets, ignore_index=-100, reduction="none"
        )
        tokens = num_items_in_batch if num_items_in_batch is not None else (targets != -100).sum()
        loss = (losses * weights[:, None]).sum() / tokens
        return (loss, output) if return_outputs else loss


class _Collator:
    """Pads on the left, so that all replies end at the last position."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), width), self.pad_token_id)
        labels = torch.full((len(rows), width), -100)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for place, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[place, width - length :] = torch.tensor(row["input_ids"])
            labels[place, width - length :] = torch.tensor(row["labels"])
            mask[place, width - length :] = 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
            "labels": labels,
            "weight": torch.tensor([row["weight"] for row in rows]),
        }


class _Watch(TrainerCallback):
    """Reports steps and stops at a loss that is not finite."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress(state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        for name in ("loss", "train_loss", "grad_norm"):
            value = (logs or {}).get(name, 0.0)
            if not math.isfinite(value):
                raise LossDiverged(
                    f"the {name} is {value} at step {state.global_step}: lower learning_rate, and check the labeled "
                    "rows; no adapter was written"
                )


def _cut(encoded: Encoded, max_length: int) -> dict[str, Any]:
    """A row within `max_length`: the prompt loses its beginning, so that the reply stays whole where it can."""
    ids, labels = encoded.input_ids[-max_length:], encoded.labels[-max_length:]
    return {"input_ids": ids, "labels": [-100, *labels[1:]]}  # nothing predicts the first token
