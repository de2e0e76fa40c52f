"""Rows per second of the `huggingface` generator on the demo, against what a user would write.

    python -m benchmarks.generation

Peers, alternating in one run: `generate` called row by row; static batches under `generate`, which computes a prompt
again for each of its samples; and static batches with a decoding loop written by hand, which computes a prompt once and
repeats its cache. Rows are sorted by length and padded on the left; several batch sizes, of which the fastest counts.
All draw n = 4 samples a row at temperature 1 with the same worked examples and the same limit of new tokens. Prints
medians and ratios.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig

from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol.backends.chat import Chat
from semievol.backends.embedders import build_retriever
from semievol.backends.huggingface import HuggingFaceGenerator, load_model
from semievol.examples import read_labeled, stream_unlabeled
from semievol.ports import Request
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
    retriever = build_retriever(recipe.propagation.retriever, questions, model, recipe.model, chat, rows)
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
    stop_ids = sorted(chat.stop_ids)
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        num_return_sequences=SAMPLES,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=stop_ids,
        pad_token_id=chat.tokenizer.pad_token_id,
    )

    def run_ours() -> int:
        return sum(1 for _ in ours.generate(requests, max_new_tokens=NEW_TOKENS))

    def under_generate(batch: Any) -> torch.Tensor:
        output: torch.Tensor = model.generate(**batch, generation_config=config)
        return output[:, batch["input_ids"].shape[1] :]

    def by_hand(batch: Any) -> torch.Tensor:
        return decode(model, batch["input_ids"], batch["attention_mask"], stop_ids)

    def static(batch_rows: int, rows: int, sample: Callable[[Any], torch.Tensor]) -> Callable[[], int]:
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
                    return_token_type_ids=False,
                )
                with torch.inference_mode():
                    replies = sample(batch)
                chat.tokenizer.batch_decode(replies, skip_special_tokens=True)
            return rows

        return run

    peers: dict[str, Callable[[], int]] = {"semievol": run_ours}
    for size in (4, 8, 16, 32):
        peers[f"static by hand, {size} rows"] = static(size, arguments.rows, by_hand)
    for size in (8, 32):
        peers[f"static generate, {size} rows"] = static(size, arguments.rows, under_generate)
    peers["row by row"] = static(1, arguments.one_by_one_rows, under_generate)
    medians = alternate(peers, arguments.rounds)
    print(f"{arguments.rows} rows, {SAMPLES} samples each, medians of {arguments.rounds} alternating rounds")
    for name, rate in medians.items():
        print(f"  {name:26s} {rate:8.1f} rows/s")
    best = max(rate for name, rate in medians.items() if name.startswith("static"))
    print(f"semievol / row by row: {medians['semievol'] / medians['row by row']:.1f}")
    print(f"semievol / best static batching: {medians['semievol'] / best:.2f}")


def alternate(peers: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Median rows per second of each peer, all of them timed in every round."""
    rates: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, peer in peers.items():
            started = time.perf_counter()
            rows = peer()
            rates[name].append(rows / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in rates.items()}


def decode(model: Any, ids: torch.Tensor, mask: torch.Tensor, stop_ids: list[int]) -> torch.Tensor:
    """SAMPLES replies to each left-padded prompt: (rows, length) becomes (rows * SAMPLES, at most NEW_TOKENS)."""
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
    cache.batch_repeat_interleave(SAMPLES)
    logits = output.logits[:, -1].repeat_interleave(SAMPLES, dim=0)
    mask = mask.repeat_interleave(SAMPLES, dim=0)
    stops = torch.tensor(stop_ids)
    ended = torch.zeros(len(mask), dtype=torch.bool)
    replies = []
    for step in range(NEW_TOKENS):
        token = torch.multinomial(logits.softmax(-1), 1)
        token[ended] = stops[0]
        replies.append(token)
        ended |= torch.isin(token[:, 0], stops)
        if step == NEW_TOKENS - 1 or bool(ended.all()):
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        output = model(
            input_ids=token,
            attention_mask=mask,
            position_ids=mask.sum(-1, keepdim=True) - 1,
            past_key_values=cache,
        )
        logits = output.logits[:, -1]
    return torch.cat(replies, dim=1)


def _turns(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in prompt]


if __name__ == "__main__":
    main()
