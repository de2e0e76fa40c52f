"""Collaborative learning: n independent answers a row, and self-justification where they differ. One shard at a time.

A shard's result is a function of its rows, the labeled rows, the model, the recipe, the job's seed and the round. It
does not depend on other shards, so any number of workers can take them.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from semievol.agreement import JUSTIFICATION, Trial, candidates, is_decided, is_unanimous
from semievol.answers import Answers
from semievol.examples import Example
from semievol.ports import Generator, Progress, Request, Response, no_progress
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
    k = recipe.propagation.k
    return min(labeled, 2 * k - 1 if views_differ(recipe) else k)


def views_differ(recipe: Recipe) -> bool:
    """Whether the collaborators of a row see different worked examples."""
    return recipe.generation.worked_examples == "varied" and collaborator_count(recipe.generation) > 1


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


Hear = Callable[[_Ask, Sequence[Trial]], list[_Ask]]
"""Told what was answered; returns what is asked because of it."""


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
        """Progress counts the answers, as so many rows: those of one row may come far apart."""
        courses = [_Course(self, index) for index in range(len(self.rows))]
        asked = heard = told = 0

        def go_on(course: _Course) -> list[_Ask]:
            nonlocal asked
            asks = course.next()
            asked += len(asks)
            return asks

        def hear(ask: _Ask, trials: Sequence[Trial]) -> list[_Ask]:
            nonlocal heard, told
            course = courses[ask.row]
            asks = go_on(course) if course.hear(trials) else []
            heard += 1
            done = len(self.rows) * heard // asked
            if done > told:
                told = done
                progress(done, len(self.rows))
            return asks

        asks = [ask for course in courses for ask in go_on(course)]
        (self._score if self._scored else self._sample)(asks, hear)
        return [
            Answered(row, tuple(course.trials), course.justification)
            for row, course in zip(self.rows, courses, strict=True)
        ]

    def waves(self) -> list[range]:
        """Collaborators that are asked together: all, or with an early stop two and then one after the other."""
        n = collaborator_count(self.recipe.generation)
        if self._scored or not self.recipe.generation.early_stop:
            return [range(n)]
        return [range(min(2, n)), *(range(other, other + 1) for other in range(2, n))]

    def is_decided(self, trials: Sequence[Trial]) -> bool:
        """Whether further collaborators will hardly change what becomes of a row."""
        settings = self.recipe.generation
        n, temperature = collaborator_count(settings), settings.temperature
        return is_decided(trials, self.answers, n, disagreement=settings.disagreement, temperature=temperature)

    def asks(self, index: int) -> list[_Ask]:
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

    def justification(self, index: int, trials: Sequence[Trial]) -> _Ask | None:
        """The prompt for a self-justification, if the row's collaborators differ and named at least one candidate."""
        settings = self.recipe.generation
        if not settings.collaboration or settings.disagreement != "justify" or is_unanimous(trials, self.answers):
            return None
        named = candidates(trials, self.answers)
        return self._ask(index, (JUSTIFICATION,), self._example_ranks(index, 0), named) if named else None

    def _score(self, asks: list[_Ask], hear: Hear) -> None:
        """Answer what is asked, and what is asked because of that, by the probabilities of the options."""
        while asks:
            options = [self._options(ask.row) for ask in asks]
            following: list[_Ask] = []
            for position, logprobs in self.generator.score([ask.prompt for ask in asks], options):
                ask = asks[position]
                trial = self._scored_trial(ask, options[position], logprobs)
                trials = [replace(trial, collaborator=c, seed=self._seed(ask.row, c)) for c in ask.collaborators]
                following += hear(ask, trials)
            asks = following

    def _sample(self, asks: list[_Ask], hear: Hear) -> None:
        """Answer what is asked, and what is asked because of that, by replies. A justification is greedy."""

        def request(ask: _Ask) -> Request:
            temperature = 0.0 if ask.collaborators == (JUSTIFICATION,) else self.recipe.generation.temperature
            return Request(ask.prompt, tuple(self._seed(ask.row, c) for c in ask.collaborators), temperature)

        def then(position: int, responses: list[Response]) -> list[Request]:
            following = hear(asks[position], self._sampled_trials(asks[position], responses))
            asks.extend(following)
            return [request(ask) for ask in following]

        limit = self.recipe.generation.max_new_tokens
        for _ in self.generator.generate([request(ask) for ask in asks], max_new_tokens=limit, then=then):
            pass

    def _sampled_trials(self, ask: _Ask, responses: Sequence[Response]) -> list[Trial]:
        row_options = self.rows[ask.row].options
        return [
            Trial(
                collaborator=collaborator,
                seed=self._seed(ask.row, collaborator),
                worked_examples=ask.examples,
                similarities=ask.similarities,
                reply=response.text,
                answer=self.answers.parse(response.text, row_options) if response.finished else None,
                logprobs=response.logprobs,
                tokens=response.tokens,
            )
            for collaborator, response in zip(ask.collaborators, responses, strict=True)
        ]

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


class _Course:
    """One row on its way: the trials so far, and what is to be asked next."""

    def __init__(self, shard: _Shard, index: int) -> None:
        self.shard, self.index = shard, index
        self.trials: list[Trial] = []
        self.justification: Trial | None = None
        self._asks = shard.asks(index)
        self._waves = shard.waves()
        self._justifies = False
        self._unanswered = 0

    def next(self) -> list[_Ask]:
        """What is asked once all that was asked before is answered; nothing if the row is done."""
        asks: list[_Ask] = []
        while self._waves and not asks and not self.shard.is_decided(self.trials):
            wave = self._waves.pop(0)
            asks = [ask for ask in (_among(ask, wave) for ask in self._asks) if ask.collaborators]
        if not asks and not self._justifies:
            self._justifies = True
            ask = self.shard.justification(self.index, self.trials)
            asks = [ask] if ask is not None else []
        self._unanswered = len(asks)
        return asks

    def hear(self, trials: Sequence[Trial]) -> bool:
        """Takes an answer to one of the asks; whether it was the last."""
        if self._justifies:
            (self.justification,) = trials
        else:
            self.trials = sorted([*self.trials, *trials], key=lambda trial: trial.collaborator)
        self._unanswered -= 1
        return not self._unanswered
