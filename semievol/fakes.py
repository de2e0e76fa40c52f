"""In-memory doubles of the ports, for tests and for trying out the loop without a model. Deterministic and small.

The model is word counting: an adapter is the list of chats it was trained on, worked examples in a prompt count like
training, and a reply's probability is that of naive Bayes over the words of the question. So training, retrieval and
wrong pseudo-labels have the effects they have on a real model, in microseconds.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from semievol.ports import (
    Floats,
    Generator,
    Progress,
    Purpose,
    Request,
    Response,
    Retriever,
    Then,
    Trainer,
    TrainingLog,
    TrainingRow,
    do_nothing,
    no_progress,
    nothing_more,
)
from semievol.prompts import Prompt, question_of
from semievol.recipe import TrainingSettings

Distribution = Callable[[Prompt], Mapping[str, float]]
"""Probability of each reply to a prompt."""

UNKNOWN = "?"
"""What a model that was taught nothing replies."""
END = "<end>"
"""The token that ends a turn."""
_MEMORY = "memory.json"
_SMOOTHING = 0.1


def knowing(truth: Mapping[str, str], error_rate: float = 0.0) -> Distribution:
    """A model that knows the answers of `truth` by question; the others share `error_rate`."""
    replies = sorted(set(truth.values()))

    def distribution(prompt: Prompt) -> dict[str, float]:
        right = truth[question_of(prompt).partition("\nCandidate answers:")[0]]
        wrong = error_rate / max(1, len(replies) - 1)
        return {reply: 1 - error_rate if reply == right else wrong for reply in replies}

    return distribution


class FakeGenerator:
    """The `Generator` port over a distribution of replies. A token is a word; the end of turn is one more."""

    engine = "fake"

    def __init__(self, distribution: Distribution, max_words: int = 1_000_000) -> None:
        self.distribution, self.max_words = distribution, max_words
        self.prompts: list[Prompt] = []
        self.prompt_tokens = 0

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, then: Then = nothing_more
    ) -> Iterator[tuple[int, list[Response]]]:
        """See `ports.Generator`. The last request is answered first, as callers must not care."""
        waiting = dict(enumerate(requests))
        known = len(waiting)
        while waiting:
            index, request = waiting.popitem()
            self._see(request.prompt)
            probabilities = self.distribution(request.prompt)
            drawn = [_draw(probabilities, seed, request.temperature, max_new_tokens) for seed in request.seeds]
            more = then(index, drawn)
            waiting.update(enumerate(more, start=known))
            known += len(more)
            yield index, drawn

    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[float]]]:
        """See `ports.Generator`."""
        for index in reversed(range(len(prompts))):
            self._see(prompts[index])
            known = self.distribution(prompts[index])
            weights = [known.get(option, 0.0) + 1e-9 for option in options[index]]
            yield index, [math.log(weight / math.fsum(weights)) for weight in weights]

    def fits(self, prompt: Prompt, max_new_tokens: int) -> bool:
        """See `ports.Generator`."""
        return _length(prompt) + max_new_tokens <= self.max_words

    def _see(self, prompt: Prompt) -> None:
        self.prompts.append(prompt)
        self.prompt_tokens += _length(prompt)


def _length(prompt: Prompt) -> int:
    return sum(len(message.content.split()) for message in prompt)


def _draw(probabilities: Mapping[str, float], seed: int, temperature: float, max_new_tokens: int) -> Response:
    replies = sorted(probabilities)
    values = np.array([probabilities[reply] for reply in replies])
    if temperature == 0:
        chosen = int(np.argmax(values))
    else:
        tempered = values ** (1 / temperature)
        chosen = int(np.random.default_rng(seed).choice(len(replies), p=tempered / tempered.sum()))
    tokens, log_probability = (*replies[chosen].split(), END), math.log(values[chosen])
    written, finished = tokens[:max_new_tokens], len(tokens) <= max_new_tokens
    text = replies[chosen] if finished else " ".join(written)
    return Response(text, (log_probability / len(tokens),) * len(written), written, finished)


def counting_words(memory: Sequence[tuple[str, str, float]]) -> Distribution:
    """Naive Bayes over (question, reply, weight) and over the worked examples in the prompt."""

    def distribution(prompt: Prompt) -> dict[str, float]:
        turns = [message.content for message in prompt if message.role != "system"]
        shown = [(question, reply, 1.0) for question, reply in zip(turns[:-1:2], turns[1::2], strict=False)]
        counts: dict[str, dict[str, float]] = {}
        for question, reply, weight in [*memory, *shown]:
            words = counts.setdefault(reply, {})
            for word in _words(question):
                words[word] = words.get(word, 0.0) + weight
        if not counts:
            return {UNKNOWN: 1.0}
        vocabulary = len({word for words in counts.values() for word in words}) + 1
        scores = {
            reply: math.fsum(
                math.log((words.get(word, 0.0) + _SMOOTHING) / (math.fsum(words.values()) + _SMOOTHING * vocabulary))
                for word in _words(turns[-1])
            )
            for reply, words in counts.items()
        }
        top = max(scores.values())
        weights = {reply: math.exp(max(score - top, -50.0)) for reply, score in scores.items()}
        total = math.fsum(weights.values())
        return {reply: weight / total for reply, weight in weights.items()}

    return distribution


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


class FakeTrainer:
    """The `Trainer` port that remembers what it is shown."""

    def __init__(self) -> None:
        self.trained: list[list[TrainingRow]] = []

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
        self.trained.append(list(rows))
        memory = [(question_of(row.messages[:-1]), row.messages[-1].content, row.weight) for row in rows]
        if start_from is not None:
            memory = [*read_memory(start_from), *memory]
        output.mkdir(parents=True)
        content = {"seed": seed, "settings": settings.model_dump(mode="json"), "memory": memory}
        (output / _MEMORY).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        progress(len(rows), len(rows))
        progress(len(rows), len(rows), 0.5)
        return TrainingLog(
            steps=len(rows),
            rows=len(rows),
            tokens=len(rows),
            truncated_rows=0,
            micro_batch_size=1,
            losses=[(len(rows), 0.5)],
        )


def read_memory(adapter: Path) -> list[tuple[str, str, float]]:
    """What a fake adapter was trained on: (question, reply, weight)."""
    content = json.loads((adapter / _MEMORY).read_text(encoding="utf-8"))
    return [(question, reply, weight) for question, reply, weight in content["memory"]]


@dataclass
class FakeCheckpoints:
    """The `Checkpoints` port: a folder with a copy of the newest. `stop_at`: the step to stop the training after."""

    folder: Path
    every: int = 1
    stop_at: int | None = None
    saved: list[int] = field(default_factory=list)

    def restore(self, training: str) -> Path | None:
        """See `ports.Checkpoints`."""
        return self.folder if self.folder.exists() else None

    def due(self, step: int) -> bool:
        """See `ports.Checkpoints`."""
        return step % self.every == 0 or step == self.stop_at

    def save(self, folder: Path, step: int) -> None:
        """See `ports.Checkpoints`. Raises KeyboardInterrupt at `stop_at`."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(folder, self.folder)
        self.saved.append(step)
        if step == self.stop_at:
            raise KeyboardInterrupt

    def finish(self) -> None:
        """See `ports.Checkpoints`."""


class FakeEmbedder:
    """The `Embedder` port as hashed bags of words: unit vectors of `dimensions` word counts."""

    def __init__(self, dimensions: int = 64) -> None:
        self.dimensions = dimensions

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Floats:
        """See `ports.Embedder`."""
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for index, text in enumerate(texts):
            for word in _words(text):
                vectors[index, sum(word.encode()) % self.dimensions] += 1
            progress(index + 1, len(texts))
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, 1e-9), dtype=np.float32)


class FakeRetriever:
    """The `Retriever` port by the share of words in common."""

    def __init__(self, documents: Sequence[str]) -> None:
        self.documents = [set(_words(document)) for document in documents]

    def nearest(self, queries: Sequence[str], k: int) -> tuple[npt.NDArray[np.int64], Floats]:
        """See `ports.Retriever`."""
        scores = np.zeros((len(queries), len(self.documents)), dtype=np.float32)
        for row, query in enumerate(queries):
            words = set(_words(query))
            for column, document in enumerate(self.documents):
                scores[row, column] = len(words & document) / max(1, len(words | document))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return best, np.take_along_axis(scores, best, axis=1)


@dataclass
class FakeBackend:
    """The `Backend` port. `base`: what the untrained model knows; `loaded`: the adapters asked for, in order."""

    base: Sequence[tuple[str, str, float]] = ()
    max_words: int = 1_000_000
    loaded: list[Path | None] = field(default_factory=list)
    generators: list[FakeGenerator] = field(default_factory=list)
    fake_trainer: FakeTrainer = field(default_factory=FakeTrainer)
    device: str = "none"

    def lengths(self, chats: Sequence[Prompt]) -> list[int]:
        """See `ports.Backend`."""
        return [_length(chat) for chat in chats]

    @contextmanager
    def generator(self, adapter: Path | None, purpose: Purpose, rows: int) -> Iterator[Generator]:
        """See `ports.Backend`."""
        self.loaded.append(adapter)
        memory = [*self.base, *(read_memory(adapter) if adapter else [])]
        self.generators.append(FakeGenerator(counting_words(memory), self.max_words))
        yield self.generators[-1]

    def trainer(self) -> Trainer:
        """See `ports.Backend`."""
        return self.fake_trainer

    def retriever(self, documents: Sequence[str], queries: int) -> Retriever:
        """See `ports.Backend`."""
        return FakeRetriever(documents)

    def looking_ahead(
        self, documents: Sequence[str], queries: int, groups: Iterable[Sequence[str]], k: int
    ) -> AbstractContextManager[Callable[[], None]]:
        """See `ports.Backend`. No core is idle."""
        return nullcontext(do_nothing)

    def provenance(self) -> dict[str, str]:
        """See `ports.Backend`."""
        return {"device": self.device}


@dataclass
class FakeObserver:
    """The `Observer` port that writes down what it is told."""

    started: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)
    losses: list[tuple[str, int, float]] = field(default_factory=list)

    def stage_started(self, stage: str) -> None:
        """See `ports.Observer`."""
        self.started.append(stage)

    def stage_progress(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        """See `ports.Observer`."""
        if loss is None:
            self.progress.append((stage, done, total))
        else:
            self.losses.append((stage, done, loss))

    def stage_finished(self, stage: str, facts: dict[str, Any], *, resumed: bool) -> None:
        """See `ports.Observer`."""
        (self.resumed if resumed else self.finished).append(stage)
