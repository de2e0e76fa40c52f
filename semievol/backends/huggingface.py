"""Generation with transformers: left-padded batches, shared prefixes, one seed a sample.

A sample is drawn by a race (the Gumbel-max trick): each token of the vocabulary takes an exponential time, the shorter
on average the likelier it is, from a generator that the sample's seed starts, and the first wins. So a batch's make-up,
its order and what else is drawn play no part. Rounding does depend on the batch's shape; in fp32 a race so close that
rounding could decide it is run again with the row computed alone.
"""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from semievol.backends.batches import Queue, cut
from semievol.backends.chat import Chat
from semievol.backends.memory import give_back, memory_told
from semievol.backends.micro_batches import overhead_of
from semievol.backends.quantization import quantised
from semievol.errors import ModelError
from semievol.ports import Request, Response, Then, nothing_more
from semievol.prompts import Prompt
from semievol.recipe import ModelSettings

BATCH_TOKENS = {"cpu": 8_192, "cuda": 131_072}
"""Tokens (rows times padded length) held at once, by device type."""
CLOSE_RACE = 1e-4
"""Nats that may lie between the first two tokens where the row decides alone; rounding in fp32 stays well below it."""


def device_of(settings: ModelSettings) -> torch.device:
    """The device that the recipe asks for."""
    if settings.device != "auto":
        return torch.device(settings.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(settings: ModelSettings) -> str:
    """The device's type, then which one: cpu (x86_64), cuda (NVIDIA H100)."""
    device = device_of(settings)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} ({name})"


def batch_tokens_of(device: torch.device) -> int:
    """Tokens (rows times padded length) that are held at once on the device."""
    return BATCH_TOKENS.get(device.type, 8_192)


def dtype_of(settings: ModelSettings) -> torch.dtype:
    """The weights' number format that the recipe asks for."""
    if settings.dtype == "auto":
        return torch.bfloat16 if device_of(settings).type == "cuda" else torch.float32
    dtype = getattr(torch, settings.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def load_model(model: str, settings: ModelSettings) -> PreTrainedModel:
    """The base model on its device, from safetensors only. Raises ModelError if it cannot be loaded."""
    give_back()
    dtype, device = dtype_of(settings), device_of(settings)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            model,
            revision=settings.revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
            **quantised(settings, dtype, device),
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"the model {model} cannot be loaded: {error}") from error
    assert isinstance(loaded, PreTrainedModel)
    nn.Module.to(loaded, device)
    nn.Module.eval(loaded)
    return loaded


@contextmanager
def open_generator(
    model: str, settings: ModelSettings, chat: Chat, adapter: Path | None, *, halvings: int = 0
) -> "Iterator[HuggingFaceGenerator]":
    """A generator over the base model, the adapter merged into its weights unless these have 4 bits.

    Not to be used after the end. `halvings`: how often its batches are cut in half.
    """
    loaded = load_model(model, settings)
    if adapter is not None:
        adapted: Any = PeftModel.from_pretrained(loaded, str(adapter))
        # Merged, the adapter would be rounded to 4 bits, which is coarser than most of its updates.
        loaded = adapted.merge_and_unload() if settings.quantization == "none" else adapted.get_base_model()
    yield HuggingFaceGenerator(loaded, chat, settings.max_length, batch_tokens_of(loaded.device) >> halvings)


class HuggingFaceGenerator:
    """The `Generator` port over a loaded causal language model."""

    engine = "huggingface"

    def __init__(self, model: PreTrainedModel, chat: Chat, max_length: int, batch_tokens: int | None = None) -> None:
        limit = getattr(model.config, "max_position_embeddings", None) or max_length
        self.model, self.chat, self.max_length = model, chat, min(max_length, limit)
        self.device = model.device
        self.prompt_tokens, self.overhead = 0, overhead_of(model)
        self.batch_tokens = batch_tokens if batch_tokens is not None else batch_tokens_of(self.device)

    def fits(self, prompt: Prompt, max_new_tokens: int) -> bool:
        """See `ports.Generator`."""
        return self.chat.fits(prompt, self.max_length - max_new_tokens)

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, then: Then = nothing_more
    ) -> Iterator[tuple[int, list[Response]]]:
        """See `ports.Generator`."""
        asked = list(requests)
        prompts = self._tokenised([request.prompt for request in asked])
        queue = self._queue(prompts, [len(request.seeds) for request in asked], max_new_tokens)
        while queue:
            batch = queue.take()
            rows = [place for place, index in enumerate(batch) for _ in asked[index].seeds]
            seeds = [seed for index in batch for seed in asked[index].seeds]
            starts = [prompts[batch[place]] for place in rows]
            temperatures = torch.tensor([asked[batch[place]].temperature for place in rows], dtype=torch.float64)
            with memory_told("generation", partial(len, batch)):
                prefilled = self._prefill([prompts[index] for index in batch]).select(torch.tensor(rows))
                drawn = iter(self._decode(prefilled, starts, seeds, temperatures, max_new_tokens))
            for index in batch:
                responses = [next(drawn) for _ in asked[index].seeds]
                more = then(index, responses)
                for request, prompt in zip(more, self._tokenised([one.prompt for one in more]), strict=True):
                    queue.add(prompt, len(request.seeds))
                    prompts.append(prompt)
                asked += more
                yield index, responses

    @torch.inference_mode()
    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[float]]]:
        """See `ports.Generator`. Only the tokens that tell the options apart are computed."""
        ids = self._tokenised(prompts)
        endings = {key: self.chat.distinguishing(key) for key in {tuple(row) for row in options}}
        copies = [1 + sum(len(ending) > 1 for ending in endings[tuple(row)]) for row in options]
        queue = self._queue(ids, copies, 1)
        while queue:
            batch = queue.take()
            with memory_told("generation", partial(len, batch)):
                scores = self._scores([ids[index] for index in batch], [endings[tuple(options[i])] for i in batch])
            for index, row in zip(batch, scores, strict=True):
                yield index, torch.log_softmax(torch.tensor(row, dtype=torch.float64), dim=0).tolist()

    def _tokenised(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        ids = self.chat.prompts_ids(prompts)
        self.prompt_tokens += sum(map(len, ids))
        return ids

    def _queue(self, prompts: Sequence[list[int]], copies: Sequence[int], room: int) -> Queue:
        return Queue(prompts, copies, room=room, most=self.batch_tokens, overhead=self.overhead)

    def _scores(self, prompts: list[list[int]], endings: Sequence[Sequence[list[int]]]) -> list[list[float]]:
        """Log-probability of each row's endings (option tokens) after its prompt, in nats."""
        prefilled = self._prefill(prompts)
        first = prefilled.logprobs.cpu().double()
        scores = [[float(first[place, ending[0]]) for ending in row] for place, row in enumerate(endings)]
        pairs = [
            (place, column, ending)
            for place, row in enumerate(endings)
            for column, ending in enumerate(row)
            if len(ending) > 1
        ]
        for (place, column, _), rest in zip(pairs, self._continue(prefilled, pairs), strict=True):
            scores[place][column] += rest
        return scores

    def _prefill(self, prompts: Sequence[list[int]]) -> "_State":
        """Run the prompts through the model; what several of them begin with only once."""
        found = cut(prompts, self.overhead)
        if found.beginnings:
            state = self._prefill(found.beginnings).select(torch.tensor(found.owners))
            begun = [len(found.beginnings[owner]) for owner in found.owners]
            prompts = [prompt[length:] for prompt, length in zip(prompts, begun, strict=True)]
        else:
            nothing = torch.empty((len(prompts), 0), device=self.device)
            state = _State(DynamicCache(config=self.model.config), nothing.long(), nothing)
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.chat.tokenizer.pad_token_id)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for place, prompt in enumerate(prompts):
            ids[place, width - len(prompt) :] = torch.tensor(prompt)
            mask[place, width - len(prompt) :] = 1
        state.mask = torch.cat([state.mask, mask.to(self.device)], dim=1)
        positions = (state.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -width:]
        return self._step(state, ids.to(self.device), positions)

    def _step(self, state: "_State", ids: Tensor, positions: Tensor, keep: int = 1) -> "_State":
        output = self.model(
            input_ids=ids,
            attention_mask=state.mask,
            position_ids=positions,
            past_key_values=state.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits = output.logits[:, -1] if keep == 1 else output.logits
        return _State(state.cache, state.mask, logits.float().log_softmax(dim=-1))

    def _decode(
        self, state: "_State", prompts: Sequence[list[int]], seeds: Sequence[int], temperatures: Tensor, limit: int
    ) -> list[Response]:
        """Draw one response a row, at `temperatures` [rows]. Finished rows leave the batch once they are half of it."""
        times = _Times(seeds, state.logprobs.shape[-1], self.device)
        stop = torch.tensor(sorted(self.chat.stop_ids))
        rows = torch.arange(len(seeds))
        tokens: list[list[int]] = [[] for _ in seeds]
        logprobs: list[list[float]] = [[] for _ in seeds]
        finished = [False] * len(seeds)
        alive = torch.ones(len(seeds), dtype=torch.bool)
        for step in range(limit):
            taken, tempered = times.next(rows, temperatures), temperatures[rows].to(self.device)
            chosen, close = _first(state.logprobs, tempered, taken)
            if self.model.dtype == torch.float32:
                for place in (close.cpu() & alive).nonzero()[:, 0].tolist():
                    alone = self._alone(prompts[int(rows[place])] + tokens[int(rows[place])])
                    chosen[place] = _first(alone, tempered[place : place + 1], taken[place : place + 1])[0][0]
            logprob = state.logprobs.gather(1, chosen[:, None])[:, 0].cpu().tolist()
            chosen = chosen.cpu()
            for place, (row, token) in enumerate(zip(rows.tolist(), chosen.tolist(), strict=True)):
                if alive[place]:
                    tokens[row].append(token)
                    logprobs[row].append(logprob[place])
            ended = torch.isin(chosen, stop)
            for row in rows[alive & ended].tolist():
                finished[row] = True
            alive &= ~ended
            if step + 1 == limit or not alive.any():
                break
            if alive.sum() * 2 <= len(alive):
                kept = alive.nonzero()[:, 0]
                state, rows, chosen, alive = state.select(kept), rows[kept], chosen[kept], alive[kept]
            state.mask = torch.cat([state.mask, state.mask.new_ones((len(rows), 1))], dim=1)
            positions = state.mask.sum(dim=1, keepdim=True) - 1
            state = self._step(state, chosen[:, None].to(self.device), positions)
        return [
            Response(self.chat.decode(ids), tuple(logs), self.chat.token_texts(ids), done)
            for ids, logs, done in zip(tokens, logprobs, finished, strict=True)
        ]

    def _alone(self, ids: list[int]) -> Tensor:
        """Log-probabilities [1, vocabulary] of the next token, computed the same way whatever else is going on."""
        prompt = torch.tensor([ids], device=self.device)
        logits: Tensor = self.model(input_ids=prompt, logits_to_keep=1, use_cache=False).logits
        return logits[:, -1].float().log_softmax(dim=-1)

    def _continue(self, state: "_State", pairs: Sequence[tuple[int, int, list[int]]]) -> list[float]:
        """Log-probability of each (row, _, option tokens) after the option's first token, in nats."""
        if not pairs:
            return []
        longest = max(len(ending) for *_, ending in pairs) - 1
        ids = torch.full((len(pairs), longest), self.chat.tokenizer.pad_token_id)
        for place, (_, _, ending) in enumerate(pairs):
            ids[place, : len(ending) - 1] = torch.tensor(ending[:-1])
        state = state.select(torch.tensor([row for row, *_ in pairs]))
        length = state.mask.sum(dim=1, keepdim=True)
        state.mask = torch.cat([state.mask, state.mask.new_ones((len(pairs), longest))], dim=1)
        positions = length + torch.arange(longest, device=self.device)
        logprobs = self._step(state, ids.to(self.device), positions, keep=longest).logprobs
        logprobs = logprobs if longest > 1 else logprobs[:, None]
        return [
            sum(float(logprobs[place, at, token]) for at, token in enumerate(ending[1:]))
            for place, (_, _, ending) in enumerate(pairs)
        ]


@dataclass(slots=True)
class _State:
    """Rows in flight: their keys and values, mask [rows, tokens] and last log-probabilities [rows, vocabulary]."""

    cache: DynamicCache
    mask: Tensor
    logprobs: Tensor

    def select(self, rows: Tensor) -> "_State":
        """The given rows, repeated where named twice. The state it is called on must not be used again."""
        rows = rows.to(self.mask.device)
        if len(rows) == len(self.mask) and torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            return self
        self.cache.batch_select_indices(rows)
        return _State(self.cache, self.mask[rows], self.logprobs[rows])


class _Times:
    """How long each token of the vocabulary takes, on a scale of its own: unit exponentials, sample by sample.

    Each sample's come from its seed alone. On a GPU they are made there; the two kinds of devices draw differently.
    """

    def __init__(self, seeds: Sequence[int], vocabulary: int, device: torch.device) -> None:
        self.vocabulary, self.device = vocabulary, device
        self.generators: list[Any] = [
            np.random.Generator(np.random.Philox(key=seed))
            if device.type == "cpu"
            else torch.Generator(device).manual_seed(seed)
            for seed in seeds
        ]

    def next(self, samples: Tensor, temperatures: Tensor) -> Tensor:
        """Of the samples' next step, [len(samples), vocabulary]; all take the same where nothing is drawn."""
        times = torch.ones((len(samples), self.vocabulary), device=self.device)
        for row, sample in zip(times, samples.tolist(), strict=True):
            if temperatures[sample] == 0:
                continue
            if self.device.type == "cpu":
                # Not in fp32, in which one of ten million would be 0, and win whatever its probability.
                row.copy_(torch.from_numpy(self.generators[sample].standard_exponential(self.vocabulary)))
            else:
                row.exponential_(generator=self.generators[sample])
        return times


def _first(logprobs: Tensor, temperatures: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Next tokens [rows], and which of them were a close call: the likeliest where the temperature is 0."""
    scale = torch.where(temperatures == 0, 1.0, temperatures)[:, None]
    best = (logprobs - scale * times.log()).topk(2, dim=-1)
    return best.indices[:, 0], best.values[:, 0] - best.values[:, 1] < CLOSE_RACE
