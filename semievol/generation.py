"""Collaborative learning: n independent answers a row, and self-justification where they differ. One shard at a time.

A shard's result is a function of its rows, the labeled rows, the model, the recipe, the job's seed and the round. It
does not depend on other shards, so any number of workers can take them.
"""

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from semievol.agreement import JUSTIFICATION, Trial, candidates, is_decided, is_unanimous
from semievol.answers import Answers
from semievol.examples import Example
from semievol.ports import Generator, Progress, Request, no_progress
from semievol.prompts import Prompt, question_of, with_candidates, with_worked_examples
from semievol.recipe import Recipe
from semievol.replies import collaborator_count, options_of, reply_room, scores_options
from semievol.seeds import seed_of


@dataclass(frozen=True, slots=True)
class Answered:
    """A row with its trials; none where even the bare prompt is too long for the model."""

    row: Example
    trials: tuple[Trial, ...]
    justification: Trial | None


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Nearest labeled rows of a shard's rows, the nearest first: indices and similarities, [rows, pool]."""

    indices: npt.NDArray[np.int64]
    similarities: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Ask:
    """One prompt of one row, for one or several collaborators."""

    row: int
    collaborators: tuple[int, ...]
    prompt: Prompt
    examples: tuple[str, ...]
    similarities: tuple[float, ...]


def _among(ask: _Ask, collaborators: Container[int]) -> _Ask:
    """The ask for those of its collaborators alone."""
    return replace(ask, collaborators=tuple(who for who in ask.collaborators if who in collaborators))


def pool_size(recipe: Recipe, labeled: int) -> int:
    """How many neighbours of each row the collaborators choose their worked examples from; 0 without any."""
    if not recipe.propagation.in_context:
        return 0
    collaborators = collaborator_count(recipe.generation)
    varied = recipe.generation.worked_examples == "varied" and collaborators > 1
    return min(labeled, 2 * recipe.propagation.k - 1 if varied else recipe.propagation.k)


def answer_shard(
    rows: Sequence[Example],
    neighbours: Neighbours | None,
    labeled: Sequence[Example],
    generator: Generator,
    answers: Answers,
    recipe: Recipe,
    *,
    seed: int,
    round_number: int,
    progress: Progress = no_progress,
) -> list[Answered]:
    """Answer every row of a shard. `neighbours` index into `labeled`; None: no worked examples."""
    shard = _Shard(rows, neighbours, labeled, generator, answers, recipe, seed, round_number)
    return shard.run(progress)


@dataclass(frozen=True, slots=True)
class _Shard:
    rows: Sequence[Example]
    neighbours: Neighbours | None
    labeled: Sequence[Example]
    generator: Generator
    answers: Answers
    recipe: Recipe
    seed: int
    round_number: int

    def run(self, progress: Progress) -> list[Answered]:
        asks = [ask for index in range(len(self.rows)) for ask in self._asks(index)]
        trials: list[list[Trial]] = [[] for _ in self.rows]
        waves = self._waves()
        done = len(self.rows) - len({ask.row for ask in asks})
        for wave in waves:
            asked = [ask for ask in (_among(ask, wave) for ask in asks) if ask.collaborators]
            asked = [ask for ask in asked if not self._is_decided(trials[ask.row])]
            unanswered = Counter(ask.row for ask in asked)
            for ask, new in self._answer(asked):
                trials[ask.row] += new
                unanswered[ask.row] -= 1
                if not unanswered[ask.row] and (wave is waves[-1] or self._is_decided(trials[ask.row])):
                    done += 1
                    progress(done, len(self.rows))
            for row_trials in trials:
                row_trials.sort(key=lambda trial: trial.collaborator)
        justified = self._justify(trials)
        return [Answered(row, tuple(trials[index]), justified.get(index)) for index, row in enumerate(self.rows)]

    def _waves(self) -> list[range]:
        """Collaborators that are asked together: all, or with an early stop two and then one after the other."""
        n = collaborator_count(self.recipe.generation)
        if self._scored or not self.recipe.generation.early_stop:
            return [range(n)]
        return [range(min(2, n)), *(range(other, other + 1) for other in range(2, n))]

    def _is_decided(self, trials: Sequence[Trial]) -> bool:
        settings = self.recipe.generation
        return is_decided(trials, self.answers, collaborator_count(settings), settings.disagreement)

    def _asks(self, index: int) -> list[_Ask]:
        """The row's prompts: one for all collaborators who see the same worked examples."""
        collaborators = range(collaborator_count(self.recipe.generation))
        by_examples: dict[tuple[int, ...], list[int]] = {}
        for collaborator in collaborators:
            by_examples.setdefault(self._example_ranks(index, collaborator), []).append(collaborator)
        asks = [self._ask(index, tuple(who), ranks) for ranks, who in by_examples.items()]
        return [ask for ask in asks if ask is not None]

    def _example_ranks(self, index: int, collaborator: int) -> tuple[int, ...]:
        """Which neighbours (0 is the nearest) a collaborator sees, the nearest last.

        The first collaborator sees the k nearest. With `varied` each other sees the nearest and its own draw of k - 1
        among the next 2(k - 1): leaving the nearest out cost more accuracy than the difference of views brought
        (docs/decisions/0003).
        """
        if self.neighbours is None:
            return ()
        pool, k = self.neighbours.indices.shape[1], self.recipe.propagation.k
        ranks = list(range(min(k, pool)))
        if self.recipe.generation.worked_examples == "varied" and collaborator > 0:
            draw = np.random.default_rng(self._seed(index, f"examples-{collaborator}"))
            others = draw.choice(np.arange(1, pool), size=len(ranks) - 1, replace=False)
            ranks = [0, *sorted(int(rank) for rank in others)]
        return tuple(reversed(ranks))

    def _ask(
        self, index: int, collaborators: tuple[int, ...], ranks: tuple[int, ...], named: Sequence[str] = ()
    ) -> _Ask | None:
        """The prompt with its worked examples, and with the candidates `named` if it asks for a justification.

        The farthest examples are left out until it fits; None if it never does.
        """
        row = self.rows[index]
        for skipped in range(len(ranks) + 1):
            used = ranks[skipped:]
            examples = [self.labeled[self.neighbours.indices[index, rank]] for rank in used] if self.neighbours else []
            pairs = [(question_of(example.prompt), example.labeled_reply) for example in examples]
            prompt = with_worked_examples(with_candidates(row.prompt, named) if named else row.prompt, pairs)
            if self.generator.fits(prompt, self._room(index)):
                ids = tuple(example.id for example in examples)
                near = (
                    tuple(float(self.neighbours.similarities[index, rank]) for rank in used) if self.neighbours else ()
                )
                return _Ask(index, collaborators, prompt, ids, near)
        return None

    def _answer(self, asks: Sequence[_Ask]) -> Iterator[tuple[_Ask, list[Trial]]]:
        if self._scored:
            options = [self._options(ask.row) for ask in asks]
            for position, logprobs in self.generator.score([ask.prompt for ask in asks], options):
                ask = asks[position]
                trial = self._scored_trial(ask, options[position], logprobs)
                yield ask, [replace(trial, collaborator=c, seed=self._seed(ask.row, c)) for c in ask.collaborators]
            return
        yield from self._sample(asks, self.recipe.generation.temperature)

    def _sample(self, asks: Sequence[_Ask], temperature: float) -> Iterator[tuple[_Ask, list[Trial]]]:
        requests = [Request(ask.prompt, tuple(self._seed(ask.row, c) for c in ask.collaborators)) for ask in asks]
        responses = self.generator.generate(
            requests, temperature=temperature, max_new_tokens=self.recipe.generation.max_new_tokens
        )
        for position, drawn in responses:
            ask, request = asks[position], requests[position]
            row_options = self.rows[ask.row].options
            yield (
                ask,
                [
                    Trial(
                        collaborator=collaborator,
                        seed=seed,
                        worked_examples=ask.examples,
                        similarities=ask.similarities,
                        reply=response.text,
                        answer=self.answers.parse(response.text, row_options) if response.finished else None,
                        logprobs=response.logprobs,
                        tokens=response.tokens,
                    )
                    for collaborator, seed, response in zip(ask.collaborators, request.seeds, drawn, strict=True)
                ],
            )

    def _justify(self, trials: Sequence[Sequence[Trial]]) -> dict[int, Trial]:
        """Self-justification of the rows whose collaborators differ and named at least one candidate."""
        settings = self.recipe.generation
        if not settings.collaboration or settings.disagreement != "justify":
            return {}
        asks = []
        for index, row_trials in enumerate(trials):
            named = candidates(row_trials, self.answers)
            if not named or is_unanimous(row_trials, self.answers):
                continue
            ask = self._ask(index, (JUSTIFICATION,), self._example_ranks(index, 0), named)
            if ask is not None:
                asks.append(ask)
        answered = self._answer(asks) if self._scored else self._sample(asks, temperature=0.0)
        return {ask.row: trial for ask, (trial,) in answered}

    @property
    def _scored(self) -> bool:
        return scores_options(self.answers, self.recipe.generation)

    def _room(self, index: int) -> int:
        return reply_room(self.rows[index], self.answers, self.recipe.generation)

    def _options(self, index: int) -> tuple[str, ...]:
        return options_of(self.rows[index], self.answers)

    def _scored_trial(self, ask: _Ask, options: Sequence[str], logprobs: Sequence[float]) -> Trial:
        best = int(np.argmax(logprobs))
        return Trial(
            collaborator=0,
            seed=0,
            worked_examples=ask.examples,
            similarities=ask.similarities,
            reply=options[best],
            answer=options[best],
            logprobs=(logprobs[best],),
            tokens=(options[best],),
            option_logprobs=tuple(logprobs),
        )

    def _seed(self, index: int, collaborator: int | str) -> int:
        return seed_of(self.seed, self.rows[index].id, collaborator, self.round_number)
