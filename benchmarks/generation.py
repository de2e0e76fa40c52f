"""Rows per second of the `huggingface` generator on the demo, against what a user would write.

    python -m benchmarks.generation

Peers, alternating in one run: `generate` called row by row, and static batching written by hand (rows sorted by length,
left-padded batches under `generate`, the fastest of several batch sizes). All draw n = 4 samples a row at temperature 1
with the same worked examples and the same limit of new tokens. Prints medians and ratios.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol.backends.chat import Chat
from semievol.backends.embedders import build_retriever
from semievol.backends.huggingface import HuggingFaceGenerator, load_model
from semievol.examples import read_labeled, stream_unlabeled
from semievol.ports import Request, no_progress
from semievol.prompts import Prompt, question_of, with_worked_examples
from semievol.recipe import Recipe
from semievol.seeds import seed_of

SAMPLES = 4
NEW_TOKENS = 8


def demo_prompts(model: str, chat: Chat, rows: int, seed: int) -> list[Prompt]:
    """Prompts of the demo's pool with three worked examples each."""
    recipe = Recipe()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), HELPDESK, draw(HELPDESK, seed, 32, rows, 8))
        labeled = read_labeled(Path(folder, "labeled.jsonl"))
        pool = list(stream_unlabeled(Path(folder, "unlabeled.jsonl")))
    questions = [question_of(row.prompt) for row in labeled]
    retriever = build_retriever(recipe.propagation.retriever, questions, model, recipe.model, chat, no_progress)
    near, _ = retriever.nearest([question_of(row.prompt) for row in pool], 3)
    return [
        with_worked_examples(row.prompt, [(questions[i], labeled[i].labeled_reply) for i in reversed(indices)])
        for row, indices in zip(pool, near, strict=True)
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/base")
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--one-by-one-rows", type=int, default=80, help="row-by-row is timed on fewer rows")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    chat = Chat.load(arguments.model, None)
    model: Any = load_model(arguments.model, Recipe().model)
    prompts = demo_prompts(arguments.model, chat, arguments.rows, seed=1)
    requests = [
        Request(prompt, tuple(seed_of(row, sample) for sample in range(SAMPLES))) for row, prompt in enumerate(prompts)
    ]
    ours = HuggingFaceGenerator(model, chat, 1024)
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        num_return_sequences=SAMPLES,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=sorted(chat.stop_ids),
        pad_token_id=chat.tokenizer.pad_token_id,
    )

    def run_ours() -> int:
        return sum(1 for _ in ours.generate(requests, temperature=1.0, max_new_tokens=NEW_TOKENS))

    def static(batch_rows: int, rows: int) -> Callable[[], int]:
        def run() -> int:
            texts = [chat.tokenizer.apply_chat_template(_turns(p), tokenize=False) for p in prompts[:rows]]
            texts.sort(key=len)
            for start in range(0, rows, batch_rows):
                batch = chat.tokenizer(
                    texts[start : start + batch_rows],
                    add_special_tokens=False,
                    padding=batch_rows > 1,
                    padding_side="left",
                    return_tensors="pt",
                )
                with torch.inference_mode():
                    output = model.generate(
                        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], generation_config=config
                    )
                chat.tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            return rows

        return run

    peers: dict[str, Callable[[], int]] = {"semievol": run_ours}
    for size in (32, 64, 128):
        peers[f"static batches of {size}"] = static(size, arguments.rows)
    peers["row by row"] = static(1, arguments.one_by_one_rows)
    rates: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(arguments.rounds):
        for name, peer in peers.items():
            started = time.perf_counter()
            rows = peer()
            rates[name].append(rows / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{arguments.rows} rows, {SAMPLES} samples each, medians of {arguments.rounds} alternating rounds")
    for name, rate in medians.items():
        print(f"  {name:24s} {rate:8.1f} rows/s")
    best = max(rate for name, rate in medians.items() if name.startswith("static"))
    print(f"semievol / row by row: {medians['semievol'] / medians['row by row']:.1f}")
    print(f"semievol / best static batching: {medians['semievol'] / best:.2f}")


def _turns(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in prompt]


if __name__ == "__main__":
    main()
