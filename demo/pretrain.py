"""Train the demo's base model from nothing: `python -m demo.pretrain --seed 0 --output demo/base`.

A Llama of about 1.4 M parameters over MiniLM's word-piece vectors (frozen), trained on the episodes of
`demo/episodes.py`. The prompts go through the library's own functions and template, so the model meets the same
format later. Fixed seeds, a fixed number of threads and deterministic algorithms: the same kind of processor gives the
same bytes again. Another kind rounds differently in the last bits and ends at other weights of the same quality.
"""

import argparse
import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.episodes import Chat, Practice
from demo.model_card import model_card
from demo.vocabulary import (
    END,
    MINIMUM_COUNT,
    PAD,
    UNKNOWN,
    build_tokenizer,
    choose,
    embeddings,
    load_minilm,
    words_of,
)
from semievol.prompts import PLAIN_TEMPLATE

STEPS = 2200
BATCH = 32
LEARNING_RATE = 2e-3
WARMUP_STEPS = 100
DECAY_SHARE = 0.4
"""Last part of the steps, over which the learning rate falls to zero."""
WEIGHT_DECAY = 0.01
BRIEF_SHARE = 0.6
"""Part of the steps over which episodes of bare words give way to sentences."""
BRIEF_AT_END = 0.1
POOL = 16
"""Batches drawn at a time and sorted by length, so that little is padding."""
HIDDEN_SIZE = 128
EMBEDDING_DEVIATION = 0.08
RESIDUAL_SCALE = 0.05
"""Factor on the initial output weights of each layer, so that at the start the frozen word vectors pass through: with
it the loss falls about twice as fast over the first few hundred steps."""
MAXIMUM_LENGTH = 320
"""Longer episodes are dropped: they are rare and slow."""
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of an episode, and the same with everything but the answers to learn ignored."""

    ids: list[int]
    labels: list[int]


def encode(chat: Chat, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """Tokens of the rendered chat; labels on assistant turns of weight 1, the end token included."""
    messages = [{"role": message.role, "content": message.content} for message in chat]
    texts = [_render(messages[:count], tokenizer) for count in range(1, len(chat) + 1)]
    ids: list[int] = []
    labels: list[int] = []
    before = ""
    for message, text in zip(chat, texts, strict=True):
        part = tokenizer.encode(text.removeprefix(before), add_special_tokens=False)
        ids += part
        learned = message.role == "assistant" and message.weight == 1
        labels += part if learned else [IGNORED] * len(part)
        before = text
    return Encoded(ids, labels)


def _render(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast) -> str:
    text = tokenizer.apply_chat_template(messages, chat_template=PLAIN_TEMPLATE, tokenize=False)
    assert isinstance(text, str)
    return text


def batches(practice: Practice, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int) -> Iterator[list[Encoded]]:
    """Batches of episodes of similar length; bare words at first, sentences more and more."""
    rng = random.Random(f"{seed} episodes")
    for step in itertools.count(step=POOL):
        brief = max(BRIEF_AT_END, 1 - (1 - BRIEF_AT_END) * step / (steps * BRIEF_SHARE))
        pool: list[Encoded] = []
        while len(pool) < POOL * BATCH:
            episode = encode(practice.draw(rng, brief), tokenizer)
            if len(episode.ids) <= MAXIMUM_LENGTH:
                pool.append(episode)
        pool.sort(key=lambda episode: len(episode.ids))
        groups = [pool[start : start + BATCH] for start in range(0, len(pool), BATCH)]
        rng.shuffle(groups)
        yield from groups


def fast_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The form that `AutoTokenizer.from_pretrained` loads; no chat template, as base models come."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_model(vectors: torch.Tensor, pad: int, end: int) -> LlamaForCausalLM:
    """A fresh model around frozen, tied embeddings."""
    config = LlamaConfig(
        vocab_size=len(vectors),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(vectors)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(RESIDUAL_SCALE)
            layer.mlp.down_proj.weight.mul_(RESIDUAL_SCALE)
    model.model.embed_tokens.weight.requires_grad_(False)
    return model


def loss_of(model: LlamaForCausalLM, batch: Sequence[Encoded], pad: int) -> torch.Tensor:
    """Mean cross-entropy over the answers' tokens.

    Padding stands on the right, where causal attention never looks at it from a token that counts. Logits are made
    only where they are needed: with 4,000 words they would cost more than the layers.
    """
    width = max(len(episode.ids) for episode in batch)
    ids = torch.tensor([episode.ids + [pad] * (width - len(episode.ids)) for episode in batch])
    labels = torch.tensor([episode.labels + [IGNORED] * (width - len(episode.labels)) for episode in batch])
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    counted = labels[:, 1:] != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[counted]), labels[:, 1:][counted])


def learning_rate(step: int, steps: int) -> float:
    """Share of the full rate: linear rise, level, cosine fall to zero."""
    fall = steps * DECAY_SHARE
    left = steps - step
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 1.0 if left > fall else 0.5 - 0.5 * math.cos(math.pi * left / fall)


def train(model: LlamaForCausalLM, episodes: Iterator[list[Encoded]], pad: int, steps: int) -> None:
    """AdamW over `steps` batches, printing progress."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    model.train()
    started = time.monotonic()
    recent = 0.0
    for step in range(1, steps + 1):
        loss = loss_of(model, next(episodes), pad)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        recent += loss.item()
        if step % 100 == 0:
            print(f"step {step} of {steps}  loss {recent / 100:.3f}  {time.monotonic() - started:.0f} s", flush=True)
            recent = 0.0


def pretrain(seed: int, output: Path, word_files: Sequence[Path], steps: int, threads: int) -> None:
    """Build, train and save model, tokenizer and model card."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    minilm = load_minilm()
    counts = words_of(path.read_text(encoding="utf-8") for path in word_files)
    entries = choose(minilm, (word for word, count in counts.items() if count >= MINIMUM_COUNT))
    tokenizer = fast_tokenizer(build_tokenizer(entries))
    with threadpool_limits(threads):  # numpy's own threads, which torch does not set
        vectors = torch.from_numpy(embeddings(minilm, entries, HIDDEN_SIZE, EMBEDDING_DEVIATION))
    pad, end = entries.index(PAD), entries.index(END)
    model = build_model(vectors, pad, end)
    train(model, batches(Practice(minilm, entries), tokenizer, seed, steps), pad, steps)
    model.eval()
    settings = GenerationConfig(eos_token_id=end, pad_token_id=pad, do_sample=False)
    model.generation_config = settings
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    names = [path.name for path in word_files]
    card = model_card(seed, parameters, len(entries), steps, MAXIMUM_LENGTH, END, names)
    (output / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.pretrain", description="Train the demo's base model.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--words", type=Path, nargs="+", default=[], metavar="FILE", help="add their frequent words")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1, help="part of the result's identity (default: 1)")
    options = parser.parse_args()
    pretrain(options.seed, options.output, options.words, options.steps, options.threads)


if __name__ == "__main__":
    main()
