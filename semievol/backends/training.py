"""LoRA fine-tuning with PEFT under transformers' Trainer: loss on the assistant's tokens, rows weighted.

A training that stops can go on from a checkpoint, and ends with the bytes of the undisturbed one. Among several
processes (`parallel.py`) each computes a share of every optimizer step, and all have the same adapter after it.
"""

import hashlib
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from semievol.backends.chat import Chat, Encoded
from semievol.backends.huggingface import device_of, dtype_of, load_model
from semievol.backends.memory import memory_told
from semievol.backends.micro_batches import StepCollator, overhead_of
from semievol.backends.parallel import Start, train_in_processes
from semievol.backends.probe import Probe
from semievol.errors import LossDiverged, ModelError
from semievol.memory import micro_batch
from semievol.ports import Checkpoints, Progress, TrainingLog, TrainingRow, no_progress
from semievol.recipe import ModelSettings, ParallelSettings, TrainingSettings
from semievol.workdir import sha256_of, write_whole

LOGGED_LOSSES = 40
"""About how many points a loss curve has."""
WEIGHTS = "adapter_model.safetensors"
NOTE = "checkpoint.json"
"""Written last into a checkpoint: whose it is, the digests of its files, and what transformers leaves out of it."""
_STATE = "trainer_state.json"
ONE_PROCESS = ParallelSettings()
_log = logging.getLogger(__name__)


class LoraTrainer:
    """The `Trainer` port. With `checkpoints`, a training that was stopped goes on where they left it.

    `halvings`: how often its micro-batch is cut in half, by accumulating more of them. `parallel`: how many processes
    it takes.
    """

    def __init__(
        self,
        model: str,
        settings: ModelSettings,
        chat: Chat,
        checkpoints: Checkpoints | None = None,
        *,
        halvings: int = 0,
        parallel: ParallelSettings = ONE_PROCESS,
    ) -> None:
        self.model, self.settings, self.chat, self.checkpoints = model, settings, chat, checkpoints
        self.halvings, self.parallel = halvings, parallel

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
        """See `ports.Trainer`. Raises EngineDied if one of several processes ended."""
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
            given: dict[str, Any] = {
                "rows": rows,
                "settings": settings,
                "seed": seed,
                "output": output,
                "start_from": start_from,
                "scratch": scratch,
            }
            if self.parallel.processes == 1:
                return self.train_here(**given, progress=progress)
            kept = self.checkpoints is not None
            start = Start(self.model, self.settings, self.parallel, self.halvings, kept, given)
            return train_in_processes(start, self.checkpoints, progress)

    def train_here(
        self,
        rows: Sequence[TrainingRow],
        settings: TrainingSettings,
        *,
        seed: int,
        output: Path,
        start_from: Path | None,
        scratch: str,
        progress: Progress,
    ) -> TrainingLog:
        """The training, or this process's part of it: each is called alike. `scratch`: a folder, the same for all."""
        set_seed(seed & 0xFFFFFFFF)
        processes, process = self.parallel.processes, distributed.get_rank() if self.parallel.processes > 1 else 0
        device = device_of(self.settings)
        model = self._sharded(settings, start_from) if self._shards else self._adapted(settings, start_from)
        encoded = [self.chat.encode(row.messages) for row in rows]
        mean_weight = math.fsum(row.weight for row in rows) / len(rows)
        dataset = [_cut(one, self.settings.max_length) for one in encoded]
        weighted = [{**item, "weight": row.weight / mean_weight} for item, row in zip(dataset, rows, strict=True)]
        collator = StepCollator(
            self.chat.tokenizer.pad_token_id,
            rows=micro_batch(math.ceil(settings.batch_size / processes), settings.micro_batch_size, self.halvings),
            longest=max(len(item["input_ids"]) for item in dataset),
            overhead=_overhead(model),
            processes=processes,
            process=process,
        )
        with memory_told("training", lambda: collator.rows):
            trainer = _MaskedTrainer(
                model=model,
                args=_arguments(settings, len(rows), seed, scratch, device),
                train_dataset=weighted,
                data_collator=collator,
                callbacks=[_Watch(progress)],
            )
            if not self._shards:  # what one process lacks, the others would wait for
                Probe(trainer, collator, self.settings, settings)
            trainer.remove_callback(_printer())
            if self.checkpoints is None:
                trainer.train()
            else:
                identity = self._identity(rows, settings, seed, start_from)
                _Resumable(trainer, self.checkpoints, identity).train()
        if process == 0:
            _save_adapter(model, output)
            self.chat.save(output)
        return TrainingLog(
            steps=trainer.state.global_step,
            rows=len(rows),
            tokens=sum(len(item["input_ids"]) for item in dataset),
            truncated_rows=sum(len(one.input_ids) > self.settings.max_length for one in encoded),
            micro_batch_size=collator.rows,
            losses=[(int(entry["step"]), entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
        )

    def _identity(
        self, rows: Sequence[TrainingRow], settings: TrainingSettings, seed: int, start_from: Path | None
    ) -> str:
        """SHA-256 over what decides the result. How a batch is cut up does not: an attempt may cut it smaller."""
        recipe = settings.model_dump_json(exclude={"micro_batch_size", "gradient_checkpointing"})
        start = sha256_of(start_from / WEIGHTS) if start_from else None
        decisive = (self.model, self.settings.quantization, self.settings.max_length, recipe, seed, start)
        digest = hashlib.sha256(repr(decisive).encode())
        if self.parallel.processes > 1:  # each draws its own dropout
            digest.update(repr(self.parallel).encode())
        for row in rows:
            digest.update(repr(row).encode())
        return digest.hexdigest()

    @property
    def _shards(self) -> bool:
        return self.parallel.processes > 1 and self.parallel.strategy == "fsdp"

    def _sharded(self, settings: TrainingSettings, start_from: Path | None) -> PeftModel:
        """The adapted model, whose frozen weights are shared out among the processes' devices.

        Raises ModelError if the model does not say what its layers are.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        device = device_of(self.settings)
        dtype = str(dtype_of(self.settings)).removeprefix("torch.")
        whole = ModelSettings.model_validate({**self.settings.model_dump(), "device": "cpu", "dtype": dtype})
        model = self._adapted(settings, start_from, whole)
        layers = set(getattr(model.get_base_model(), "_no_split_modules", None) or ())
        if not layers:
            raise ModelError(f"{self.model} does not say what its layers are: set parallel.strategy to ddp")
        trained = {weight for weight in model.parameters() if weight.requires_grad}
        for weight in trained:
            weight.data = weight.data.to(device)
        mesh = init_device_mesh(device.type, (self.parallel.processes,))
        for module in [module for module in model.modules() if type(module).__name__ in layers]:
            fully_shard(module, mesh=mesh, ignored_params=trained)
        fully_shard(model, mesh=mesh, ignored_params=trained)
        return model

    def _adapted(
        self, settings: TrainingSettings, start_from: Path | None, loading: ModelSettings | None = None
    ) -> PeftModel:
        """The base model with the adapter that is trained. `loading`: how it is loaded, if not as the recipe says."""
        base = load_model(self.model, loading or self.settings)
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


def _overhead(model: PeftModel) -> int:
    base: Any = model.get_base_model()
    return overhead_of(base, adapter=base.num_parameters(only_trainable=True, exclude_embeddings=True))


def _arguments(
    settings: TrainingSettings, rows: int, seed: int, scratch: str, device: torch.device
) -> TrainingArguments:
    steps = settings.steps or math.ceil(rows / settings.batch_size) * settings.epochs
    arguments = TrainingArguments(
        output_dir=scratch,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        per_device_train_batch_size=settings.batch_size,  # a step of transformers is one of the optimizer
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
    arguments._n_gpu = min(arguments.n_gpu, 1)  # of several GPUs in sight transformers would take all
    return arguments


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def _save_adapter(model: PeftModel, output: Path) -> None:
    """Write the adapter. PEFT keeps names of modules as a set, whose order changes from process to process."""
    model.save_pretrained(str(output))
    path = output / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class _MaskedTrainer(Trainer):
    """Computes logits only where a label is, micro-batch by micro-batch.

    Among several processes none is wrapped by torch's DDP: the weights that are trained are few and whole in each of
    them, so their gradients are added up once a step, here. docs/decisions/0014 has the reasons.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        # Where this is set, accelerate does not wrap the model.
        self.is_distributed_loading_by_transformers = self.accelerator.num_processes > 1

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Among several processes nothing: it is where it shall be, and weights that are shared out may not move."""
        if self.accelerator.num_processes == 1:
            super()._move_model_to_device(model, device)

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Nothing: they are equal from the beginning, and `training_step` keeps them so."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Every process sees all steps whole, in the same order; its collator takes its share of them."""
        if self.accelerator.num_processes == 1:
            return super().get_train_dataloader()
        dataset: Any = self.train_dataset
        loader: DataLoader[Any] = prepare_data_loader(
            DataLoader(
                dataset,
                batch_size=self.args.train_batch_size,
                shuffle=True,
                collate_fn=self.data_collator,
                pin_memory=self.args.dataloader_pin_memory,
            ),
            self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            use_seedable_sampler=True,
        )
        torch.manual_seed(self.args.seed + self.args.process_index)  # dropout, from here on; the order is settled
        return loader

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of all of an optimizer step; its loss."""
        losses = [super(_MaskedTrainer, self).training_step(model, micro) for micro in inputs["micro_batches"]]
        loss = torch.stack(losses).sum()
        return loss if self.accelerator.num_processes == 1 else _added_up(loss, model)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """A micro-batch's share: weighted negative log-likelihood in nats, over the labels of the whole step."""
        targets = nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
        labeled = (targets != -100).nonzero(as_tuple=True)
        with _only_at(labeled, self.model):
            output = model(input_ids=inputs["input_ids"], use_cache=False)
        losses = nn.functional.cross_entropy(output.logits[0].float(), targets[labeled], reduction="none")
        loss = (losses * inputs["weight"][labeled[0]]).sum() / inputs["tokens"]
        return (loss, output) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: nobody reads it, and transformers walks over all modules for it at every step."""
        return 0

    def unlogged(self) -> dict[str, float]:
        """The sum of the losses since the last point of the curve, which no checkpoint of transformers holds."""
        return {"loss": self._tr_loss.item(), "since": self._globalstep_last_logged}

    def take_up(self, unlogged: dict[str, float]) -> None:
        """Go on summing where `unlogged` left it."""
        self._tr_loss = torch.full_like(self._tr_loss, unlogged["loss"])
        self._globalstep_last_logged = int(unlogged["since"])


def _added_up(loss: Tensor, model: nn.Module) -> Tensor:
    """The step's loss, of which each process has a share; the gradients likewise. All in one exchange."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    shares = torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)])
    distributed.all_reduce(shares)
    parts = shares[1:].split([weight.numel() for weight in weights])
    for weight, part in zip(weights, parts, strict=True):
        weight.grad = part.view_as(weight).to(weight.dtype)
    return shares[0].clone()


@contextmanager
def _only_at(positions: tuple[Tensor, ...], model: Any) -> Iterator[None]:
    """Inside, the model's head sees the hidden states at `positions` (rows, columns) alone: logits [1, positions, ...].

    transformers' `logits_to_keep` takes the same columns of all rows, and replies end in different ones.
    """

    def select(_: nn.Module, given: tuple[Tensor]) -> Tensor:
        return given[0][positions][None]

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


class _Resumable(TrainerCallback):
    """One training with its checkpoints: hands them out as they are due, and starts from the last."""

    def __init__(self, trainer: _MaskedTrainer, checkpoints: Checkpoints, identity: str) -> None:
        self.trainer, self.checkpoints, self.identity = trainer, checkpoints, identity
        self.unlogged: dict[str, float] | None = None
        trainer.add_callback(self)

    def train(self) -> None:
        """Train to the end. What the checkpoints raise is not caught."""
        folder = self.checkpoints.restore(self.identity)
        note = _read_note(folder, self.identity) if folder else None
        if folder is None or note is None:
            self.trainer.train()
        else:
            self._go_on(folder, note)
        self.checkpoints.finish()

    def _go_on(self, folder: Path, note: dict[str, Any]) -> None:
        state = TrainerState.load_from_json(str(folder / _STATE))
        if state.global_step < state.max_steps:
            self.unlogged = note["unlogged"]
            self.trainer.train(resume_from_checkpoint=str(folder))
        else:  # nothing is left to do, but within an epoch transformers would take one more step
            model = self.trainer.model
            assert isinstance(model, PeftModel)
            model.load_adapter(str(folder), model.active_adapter, is_trainable=True)
            self.trainer.state = state

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.unlogged is not None:
            self.trainer.take_up(self.unlogged)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.checkpoints.due(state.global_step):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()  # each process writes a file of its own
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
        note = {"training": self.identity, "unlogged": self.trainer.unlogged(), "files": files}
        write_whole(folder / NOTE, json.dumps(note, indent=1).encode())
        self.checkpoints.save(folder, state.global_step)
        shutil.rmtree(folder, ignore_errors=True)  # `save` may have moved it


def _read_note(folder: Path, identity: str) -> dict[str, Any] | None:
    """What was noted of a checkpoint; None, with a warning, if it cannot be gone on with.

    Starting at the beginning costs time and changes no byte. transformers itself would go on without a file that is
    missing, to another result.
    """
    try:
        note: dict[str, Any] = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        changed = [name for name, digest in note["files"].items() if sha256_of(folder / name) != digest]
        other = note["training"] != identity
    except (OSError, ValueError, KeyError) as error:
        _log.warning("the checkpoint %s is not whole (%s): training starts at the beginning", folder, error)
        return None
    if changed or other:
        reason = f"damaged: {', '.join(changed)}" if changed else "another training's"
        _log.warning("the checkpoint %s is %s: training starts at the beginning", folder, reason)
        return None
    return note


class _Watch(TrainerCallback):
    """Reports steps and losses, and stops at a loss that is not finite."""

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
        logged = logs or {}
        for name in ("loss", "train_loss", "grad_norm"):
            value = logged.get(name, 0.0)
            if not math.isfinite(value):
                raise LossDiverged(
                    f"the {name} is {value} at step {state.global_step}: lower learning_rate, and check the labeled "
                    "rows; no adapter was written"
                )
        if "loss" in logged:
            self.progress(state.global_step, state.max_steps, logged["loss"])


def _cut(encoded: Encoded, max_length: int) -> dict[str, Any]:
    """A row within `max_length`: the prompt loses its beginning, so that the reply stays whole where it can."""
    ids, labels = encoded.input_ids[-max_length:], encoded.labels[-max_length:]
    return {"input_ids": ids, "labels": [-100, *labels[1:]]}  # nothing predicts the first token
