"""The seams to the outside world: who generates, who trains, who embeds. In-memory doubles are in `fakes.py`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from semievol.prompts import Prompt
from semievol.recipe import TrainingSettings

Floats = npt.NDArray[np.float32]


class Progress(Protocol):
    """Told how work goes on; must be cheap."""

    def __call__(self, done: int, total: int, loss: float | None = None, /) -> None:
        """`done` of `total` rows or steps are finished. `loss`: of a training's step `done`, where one was logged."""
        ...


def do_nothing() -> None:
    """For who has nothing to be called for."""


def no_progress(done: int, total: int, loss: float | None = None, /) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to answer `len(seeds)` times, each sample drawn from its own seed alone. Temperature 0 is greedy."""

    prompt: Prompt
    seeds: tuple[int, ...]
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Response:
    """What the model wrote.

    `logprobs`: nats per generated token, untempered, the end-of-turn token included. `tokens`: their texts, one to one.
    A token that is part of a character is U+FFFD, so the texts joined need not be `text`.
    """

    text: str
    logprobs: tuple[float, ...]
    tokens: tuple[str, ...]
    finished: bool


Then = Callable[[int, list[Response]], Sequence[Request]]
"""Told the responses to a request, once; returns what is to be asked because of them."""


def nothing_more(index: int, responses: list[Response], /) -> Sequence[Request]:
    """No response leads to another request."""
    return ()


class Generator(Protocol):
    """A loaded model that writes and judges. Results do not depend on how requests are batched or ordered."""

    engine: str
    """Its name, for the report."""
    prompt_tokens: int
    """Tokens of the prompts that it was given so far, each prompt once however many samples it gets."""

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, then: Then = nothing_more
    ) -> Iterator[tuple[int, list[Response]]]:
        """Yield (index of the request, one response a seed) in any order.

        What `then` asks for is answered among the others, as soon as there is room; its indices go on after those of
        `requests`, in the order in which it was returned.
        """
        ...

    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[float]]]:
        """Yield (index, log-probability in nats of each of the row's options as the reply) in any order.

        Probabilities are exact and normalised over the row's options (they sum to 1 after exp).
        """
        ...

    def fits(self, prompt: Prompt, max_new_tokens: int) -> bool:
        """Whether prompt and reply stay within the recipe's and the model's length."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A chat that ends with the assistant's reply; `weight` scales its part of the loss."""

    messages: Prompt
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """What training did. `losses`: (optimizer step, mean loss in nats per token) as logged.

    `micro_batch_size`: how many of the longest rows could be in memory at once, of each process.
    """

    steps: int
    rows: int
    tokens: int
    truncated_rows: int
    micro_batch_size: int
    losses: list[tuple[int, float]] = field(default_factory=list)


class Trainer(Protocol):
    """Fine-tunes a LoRA adapter on the base model."""

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
        """Write the adapter (PEFT layout, tokenizer and chat template beside it) into the folder `output`.

        `start_from` is an adapter to train further: the same adapter goes on, none is stacked on it.
        `progress` hears of every step, and once more with the loss (nats per token) where the log has one.
        Raises LossDiverged if the loss stops being finite.
        """
        ...


class Checkpoints(Protocol):
    """Keeps the last checkpoint of one training, so that a later attempt goes on from it."""

    def restore(self, training: str) -> Path | None:
        """Folder of the newest whole checkpoint; None to start at the beginning. The trainer only reads it.

        `training`: SHA-256 over all that decides the training's result. The trainer starts at the beginning too if a
        file is missing or changed, or if it is another training's.
        """
        ...

    def due(self, step: int) -> bool:
        """Asked after every optimizer step, counted from 1; True: write a checkpoint now."""
        ...

    def save(self, folder: Path, step: int) -> None:
        """Takes a whole checkpoint; the folder is gone afterwards. What it raises ends the training."""
        ...

    def finish(self) -> None:
        """The last step is done; the adapter is written after this. What it raises ends the training."""
        ...


class Embedder(Protocol):
    """Turns texts into vectors whose dot product is their similarity."""

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Floats:
        """One unit vector a text: float32, [len(texts), dimensions]."""
        ...


class Retriever(Protocol):
    """Finds the nearest of the texts it was built over."""

    def nearest(self, queries: Sequence[str], k: int) -> tuple[npt.NDArray[np.int64], Floats]:
        """Indices and similarities, [len(queries), k], the nearest first, ties by the lower index."""
        ...


Purpose = Literal["label", "evaluate"]
"""What a generator is for: pseudo-labels, or greedy answers to held-out rows."""


class Backend(Protocol):
    """Builds the parts above for one base model. Only this knows torch."""

    device: str
    """What the model runs on: its type, then which one, such as cpu (x86_64)."""

    def lengths(self, chats: Sequence[Prompt]) -> list[int]:
        """Tokens of each chat: up to the end of its last reply, or to where the reply begins that it asks for."""
        ...

    def generator(self, adapter: Path | None, purpose: Purpose, rows: int) -> AbstractContextManager[Generator]:
        """The base model, with an adapter or without; its memory is given back on leaving.

        `rows`: how many it is for in all, whichever part of them this process does.
        """
        ...

    def trainer(self) -> Trainer:
        """A trainer of adapters for the base model."""
        ...

    def retriever(self, documents: Sequence[str], queries: int) -> Retriever:
        """A retriever over `documents` as the recipe's `propagation.retriever` says, for so many queries in all."""
        ...

    def looking_ahead(
        self, documents: Sequence[str], queries: int, groups: Iterable[Sequence[str]], k: int
    ) -> AbstractContextManager[Callable[[], None]]:
        """Until it is left, idle cores may look up what `retriever(documents, queries)` is asked next.

        They begin when what it yields is called, again and again if need be; not before the base model is loaded, since
        loading changes what all threads of torch see. `groups`: the queries that will be asked for at once, `k`
        neighbours each. Results are the same without it.
        """
        ...

    def provenance(self) -> dict[str, str]:
        """Versions, device, dtype and the base model's digest: what has to be equal for equal bytes."""
        ...


class Observer(Protocol):
    """Told how a run goes on."""

    def stage_started(self, stage: str) -> None:
        """A stage begins; `stage` is its path in the output folder, such as round-1/generate-00003."""
        ...

    def stage_progress(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        """`done` of `total` rows or steps of the stage are finished. `loss`: of a training's step, where logged."""
        ...

    def stage_finished(self, stage: str, facts: dict[str, Any], *, resumed: bool) -> None:
        """The stage is committed; `resumed` says that an earlier run had done it."""
        ...
