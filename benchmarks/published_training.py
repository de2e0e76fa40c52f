"""One fine-tuning as LLaMA-Factory does it: transformers' Trainer over padded batches of one row, accumulated.

What is asked is one JSON file, what is answered another; both are arguments.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

from semievol.backends.chat import Chat
from semievol.prompts import Message
from semievol.recipe import TrainingSettings


def train(asked: dict[str, Any]) -> dict[str, int]:
    """Write the adapter; how many steps were made and how many tokens the rows have."""
    settings, seed = TrainingSettings.model_validate(asked["settings"]), asked["seed"] & 0xFFFFFFFF
    output, modules = Path(asked["output"]), settings.lora.target_modules
    set_seed(seed)
    chat = Chat.load(asked["model"], asked["revision"])
    base = AutoModelForCausalLM.from_pretrained(asked["model"], revision=asked["revision"], dtype=torch.float32)
    lora = LoraConfig(
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora)
    chats = [chat.encode([Message(*message) for message in row]) for row in asked["rows"]]
    arguments = TrainingArguments(
        output_dir=str(output / "scratch"),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.batch_size,
        warmup_steps=settings.warmup_ratio,
        lr_scheduler_type=settings.schedule,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        use_cpu=True,
        seed=seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": one.input_ids, "labels": one.labels} for one in chats],
        data_collator=DataCollatorForSeq2Seq(chat.tokenizer, pad_to_multiple_of=8),
    )
    trainer.train()
    model.save_pretrained(str(output))
    chat.save(output)
    return {"steps": trainer.state.global_step, "tokens": sum(len(one.input_ids) for one in chats)}


if __name__ == "__main__":
    told = train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(told), encoding="utf-8")
