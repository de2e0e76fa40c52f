"""Tokens per second of the LoRA trainer against TRL's `SFTTrainer`, with its packing and padded; memory; final loss.

    python -m benchmarks.training [--rounds N] [--seeds N] [--case demo|tail|llama ...] [--part speed|memory|loss ...]

Cases: `demo`, the demo's model and rows; `tail`, the same rows behind 0 to 24 worked examples, so that a few are ten
times as long as most; `llama`, the demo's rows on a randomly initialised Llama of 60 million parameters. All peers have
the same model, LoRA, rows, optimizer steps and loss (completions only), fp32 without gradient checkpointing; a pack is
as long as it takes to make the same number of steps. Speed is tokens of rows, no padding, per second of CPU time of one
thread between the beginning and the end of training (neither loading nor tokenising); peers alternate, medians; the
matrix products of the layers and their adapters are timed alone as a bound. Memory is of one training in a process of
its own. The loss is that of the trained model on its rows, row by row. A pack has other rows than a batch, so it is
another training: its loss is compared with that of our trainer whose steps are the packs.
Needs TRL, which is no part of the project's environment: pip install trl==1.16.0
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
import transformers
from peft import LoraConfig, PeftModel
from torch import nn
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol.backends import training as trainers
from semievol.backends.chat import Chat
from semievol.backends.huggingface import load_model
from semievol.backends.training import LoraTrainer
from semievol.examples import read_labeled
from semievol.ports import TrainingRow
from semievol.prompts import Message, question_of, with_worked_examples
from semievol.recipe import LoraSettings, ModelSettings, TrainingSettings

CPU = ModelSettings(device="cpu", max_length=2048)
BATCH = 16
LEAST = {"packed": 1.3, "padded": 2.0}
"""How many times TRL's tokens per second ours should be."""
MOST_LOSS = 0.01
"""By how much final losses may differ, of the peer's."""


@dataclass(frozen=True)
class Case:
    """What is trained. `steps`: optimizer steps of one epoch, which speed and memory are measured over."""

    steps: int
    long_tail: bool = False
    large: bool = False


CASES = {"demo": Case(10), "tail": Case(3, long_tail=True), "llama": Case(1, large=True)}


@dataclass
class Cost:
    """What a training took: `grown_mb` is how much of the process's `peak_mb` came with it."""

    cpu_seconds: float = 0.0
    grown_mb: float = 0.0
    peak_mb: float = 0.0


@dataclass
class Trained:
    """One training."""

    tokens: int
    steps: int
    cost: Cost
    model: nn.Module


class Training:
    """A case made ready: its model in a folder, its rows, and the peers that train on them."""

    def __init__(self, name: str, folder: Path) -> None:
        case = CASES[name]
        self.model = str(large_model(folder)) if case.large else "demo/base"
        self.chat, self.steps = Chat.load("demo/base", None), case.steps
        self.rows = rows_of(case, folder)
        encoded = [self.chat.encode(row.messages) for row in self.rows]
        self.columns = {
            "input_ids": [one.input_ids for one in encoded],
            "labels": [[-100, *one.labels[1:]] for one in encoded],
        }
        self.lengths = [len(ids) for ids in self.columns["input_ids"]]

    def semievol(self, seed: int, epochs: int) -> Trained:
        """Ours."""
        settings = TrainingSettings(learning_rate=2e-3, batch_size=BATCH, epochs=epochs, lora=LoraSettings(dropout=0))
        with tempfile.TemporaryDirectory() as name, measured() as cost:
            output = Path(name, "adapter")
            log = LoraTrainer(self.model, CPU, self.chat).train(self.rows, settings, seed=seed, output=output)
            model = PeftModel.from_pretrained(load_model(self.model, CPU), str(output))
        return Trained(log.tokens * epochs, log.steps, cost, model)

    def packed(self, seed: int, epochs: int) -> Trained:
        """TRL with packing: a pack is a step."""
        return self._trl(seed, epochs, packing=True, per_device_train_batch_size=1, max_length=self._pack_length())

    def padded(self, seed: int, epochs: int) -> Trained:
        """TRL without."""
        return self._trl(seed, epochs, packing=False, per_device_train_batch_size=BATCH, max_length=CPU.max_length)

    def _trl(self, seed: int, epochs: int, **more: Any) -> Trained:
        from datasets import Dataset  # noqa: PLC0415  -- installed only for this benchmark
        from trl import SFTConfig, SFTTrainer  # noqa: PLC0415

        set_seed(seed)
        settings, lora = TrainingSettings(learning_rate=2e-3), LoraSettings()
        assert isinstance(lora.target_modules, str)
        with tempfile.TemporaryDirectory() as name, measured() as cost:
            trainer = SFTTrainer(
                model=load_model(self.model, CPU),
                args=SFTConfig(
                    output_dir=name, seed=seed, num_train_epochs=epochs, learning_rate=settings.learning_rate,
                    lr_scheduler_type=settings.schedule, warmup_steps=settings.warmup_ratio,
                    max_grad_norm=settings.max_grad_norm, bf16=False, gradient_checkpointing=False, use_cpu=True,
                    logging_steps=self.steps, save_strategy="no", report_to="none", disable_tqdm=True,
                    dataloader_pin_memory=False, **more,
                ),
                train_dataset=Dataset.from_dict(self.columns),
                processing_class=self.chat.tokenizer,
                peft_config=LoraConfig(
                    r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0, target_modules=lora.target_modules,
                    task_type="CAUSAL_LM",
                ),
            )  # fmt: skip
            trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
            trainer.train()
        return Trained(sum(self.lengths) * epochs, trainer.state.global_step, cost, trainer.model)

    def on_packs(self, seed: int, epochs: int) -> Trained:
        """Ours, but that a step has the rows of one of TRL's packs, in the order in which TRL takes them."""
        packs = [list(dict.fromkeys(places)) for places in self._packs(self._pack_length())["place"]]

        loader = trainers._MaskedTrainer.get_train_dataloader

        def of_packs(trainer: Any) -> DataLoader[Any]:
            rows, collate = trainer.train_dataset, trainer.data_collator
            trainer.train_dataset = [[rows[place] for place in pack] for pack in packs]
            trainer.data_collator, trainer._train_batch_size = lambda packed: collate(packed[0]), 1
            return loader(trainer)

        with patch.object(trainers._MaskedTrainer, "get_train_dataloader", of_packs):
            return self.semievol(seed, epochs)

    def _pack_length(self) -> int:
        """Tokens of a pack such that an epoch has as many packs as ours has steps."""
        length = max(*self.lengths, sum(self.lengths) // self.steps)
        while len(self._packs(length)) > self.steps:
            length += math.ceil(length / 100)
        return length

    def _packs(self, length: int) -> Any:
        """TRL's packs of so many tokens; `place`: of each token's row."""
        from datasets import Dataset  # noqa: PLC0415
        from trl import pack_dataset  # noqa: PLC0415

        places = [[place] * length for place, length in enumerate(self.lengths)]
        return pack_dataset(Dataset.from_dict({**self.columns, "place": places}), length, "bfd")

    @torch.inference_mode()
    def products(self) -> tuple[float, float]:
        """Tokens a second, and GFLOP/s, of what no LoRA training can do without: the layers' and adapters' products.

        A step's rows without padding, times each layer's weights forward and backward, times both matrices of its
        adapter, and for their gradients; the best of three.
        """
        layers = [m for m in load_model(self.model, CPU).base_model.modules() if isinstance(m, nn.Linear)]
        tokens, rank, seconds = sum(self.lengths) // self.steps, LoraSettings().rank, list[float]()
        pairs = [(torch.randn(tokens, layer.in_features), torch.randn(tokens, layer.out_features)) for layer in layers]
        adapters = [(torch.randn(rank, layer.in_features), torch.randn(layer.out_features, rank)) for layer in layers]
        for _ in range(3):
            begun = time.process_time()
            for layer, (x, gradient), (down, up) in zip(layers, pairs, adapters, strict=True):
                x @ layer.weight.T
                gradient @ layer.weight
                within, back = x @ down.T, gradient @ up
                within @ up.T
                back @ down
                gradient.T @ within
                back.T @ x
            seconds.append(time.process_time() - begun)
        frozen = 4 * tokens * sum(layer.weight.numel() for layer in layers)
        trained = 6 * tokens * sum(matrix.numel() for pair in adapters for matrix in pair)
        return tokens / min(seconds), (frozen + trained) / min(seconds) / 1e9

    @torch.inference_mode()
    def loss(self, model: nn.Module) -> float:
        """Mean negative log-likelihood of all labels, in nats."""
        model.eval()
        total, tokens = 0.0, 0
        for ids, labels in zip(self.columns["input_ids"], self.columns["labels"], strict=True):
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
            total += float(nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum"))
            tokens += sum(label != -100 for label in labels)
        return total / tokens


PEERS: dict[str, Callable[[Training, int, int], Trained]] = {
    "semievol": Training.semievol,
    "packed": Training.packed,
    "padded": Training.padded,
}


def large_model(folder: Path) -> Path:
    """A random Llama with the demo's tokenizer and a vocabulary of usual size."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=512, intermediate_size=1408, num_hidden_layers=14, num_attention_heads=8,
        num_key_value_heads=8, tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(str(folder / "llama"))
    return folder / "llama"


def rows_of(case: Case, folder: Path) -> list[TrainingRow]:
    """Labeled tickets of the demo; in the long tail behind worked examples whose number is Pareto distributed."""
    write(folder, HELPDESK, draw(HELPDESK, 7, BATCH * case.steps, 8, 8))
    labeled, drawing = read_labeled(folder / "labeled.jsonl")[: BATCH * case.steps], random.Random(0)
    pairs = [(question_of(row.prompt), row.labeled_reply) for row in labeled]
    rows = []
    for row in labeled:
        examples = min(24, int(drawing.paretovariate(1.0)) - 1) if case.long_tail else 0
        prompt = with_worked_examples(row.prompt, drawing.sample(pairs, examples)) if examples else row.prompt
        rows.append(TrainingRow((*prompt, Message("assistant", row.labeled_reply))))
    return rows


@contextmanager
def measured() -> Iterator[Cost]:
    """What the training inside takes."""
    cost, trainer = Cost(), cast(Any, transformers.Trainer)
    train = trainer.train

    def timed(*given: Any, **named: Any) -> Any:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest mark begins anew
        before, begun = _status_mb("VmRSS"), time.process_time()
        done = train(*given, **named)
        cost.cpu_seconds, cost.peak_mb = time.process_time() - begun, _status_mb("VmHWM")
        cost.grown_mb = cost.peak_mb - before
        return done

    trainer.train = timed
    try:
        yield cost
    finally:
        trainer.train = train


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1e3


def bar(met: bool, bound: str) -> str:
    """How a bar is told."""
    return f"({bound}): {'met' if met else 'MISSED'}"


def speed(name: str, training: Training, rounds: int) -> bool:
    """Alternating rounds; whether the bars are met."""
    rates: dict[str, list[float]] = {peer: [] for peer in PEERS}
    steps = {}
    for seed in range(rounds):
        for peer, train in PEERS.items():
            done = train(training, seed, 1)
            rates[peer].append(done.tokens / done.cost.cpu_seconds)
            steps[peer] = done.steps
    lengths = training.lengths
    print(
        f"{name}: {len(lengths)} rows of {min(lengths)} to {max(lengths)} tokens, median "
        f"{statistics.median(lengths):.0f}, mean {statistics.fmean(lengths):.0f}; medians of {rounds} rounds"
    )
    for peer, found in rates.items():
        middle, low, high = statistics.median(found), min(found), max(found)
        print(f"  {peer:9s} {middle:9.0f} tokens/s ({low:.0f} to {high:.0f}), {steps[peer]} steps")
    met = True
    for peer, least in LEAST.items():
        ratio = statistics.median(rates["semievol"]) / statistics.median(rates[peer])
        met = met and ratio >= least
        print(f"  semievol / {peer}: {ratio:.2f} {bar(ratio >= least, f'at least {least}')}")
    bound, gflops = training.products()
    share = statistics.median(rates["semievol"]) / bound
    print(
        f"  the products of layers and adapters alone: {bound:.0f} tokens/s, {gflops:.0f} GFLOP/s; "
        f"semievol reaches {share:.0%}"
    )
    sys.stdout.flush()
    return met


def memory(name: str) -> bool:
    """One training of each peer, each in a fresh process."""
    found = {}
    for peer in PEERS:
        call = f"from benchmarks.training import alone; alone({name!r}, {peer!r})"
        ended = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True)
        found[peer] = json.loads(ended.stdout.splitlines()[-1])
        print(f"  {name}, {peer:9s} peak {found[peer]['peak']:6.0f} MB, training {found[peer]['grown']:6.0f} MB of it")
    met = all(found["semievol"]["peak"] <= found[peer]["peak"] for peer in LEAST)
    print(f"  {name}: peak {bar(met, 'at most the peers')}", flush=True)
    return met


def alone(name: str, peer: str) -> None:
    """One training in this process, its memory as JSON."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        done = PEERS[peer](Training(name, Path(folder)), 0, 1)
    print(json.dumps({"peak": done.cost.peak_mb, "grown": done.cost.grown_mb}))


def final_loss(name: str, training: Training, seeds: int) -> bool:
    """Of four epochs; whether the means over seeds agree."""
    peers = {**PEERS, "on packs": Training.on_packs}
    losses: dict[str, list[float]] = {peer: [] for peer in peers}
    for seed in range(seeds):
        for peer, train in peers.items():
            done = train(training, seed, 4)
            losses[peer].append(training.loss(done.model))
    for peer, found in losses.items():
        print(f"  {name}, {peer:9s} loss {statistics.fmean(found):.4f} ({', '.join(f'{one:.4f}' for one in found)})")
    met = True
    for ours, peer in (("semievol", "padded"), ("on packs", "packed")):
        ratio = statistics.fmean(losses[ours]) / statistics.fmean(losses[peer])
        agrees = abs(ratio - 1) <= MOST_LOSS
        met = met and agrees
        print(f"  {name}, {ours} / {peer}: {ratio:.4f} {bar(agrees, 'within 1 %')}", flush=True)
    return met


def parts(name: str, given: argparse.Namespace, wanted: Sequence[str]) -> Iterator[bool]:
    """Whether each part of a case met its bars."""
    with tempfile.TemporaryDirectory() as folder:
        training = Training(name, Path(folder))
        if "speed" in wanted:
            yield speed(name, training, given.rounds)
        if "memory" in wanted:
            yield memory(name)
        if "loss" in wanted and not CASES[name].large:  # one step from random weights tells nothing
            yield final_loss(name, training, given.seeds)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--part", action="append", choices=["speed", "memory", "loss"])
    given = parser.parse_args()
    try:
        import datasets  # noqa: PLC0415
        import trl  # noqa: PLC0415
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is missing, which this benchmark compares with: pip install trl==1.16.0")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    print(f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}", flush=True)
    wanted = given.part or ["speed", "memory", "loss"]
    met = [one for name in given.case or CASES for one in parts(name, given, wanted)]
    sys.exit(not all(met))


if __name__ == "__main__":
    main()
