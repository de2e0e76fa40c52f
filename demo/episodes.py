"""Synthetic practice for the base model: reading a topic, copying from worked examples, choosing among candidates.

An episode is a chat whose answers can be found out from the chat itself. Topics are neighbourhoods of MiniLM word
vectors. In most episodes an answer's name means nothing: which topic it stands for changes from episode to episode
and must be read from the worked examples. In the others the options carry their usual meaning and the text holds an
option's name or a near-synonym. No cue word and no answer of a demo task occurs anywhere (`Practice` checks it), so
what the tasks' words stand for is not learned here.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from demo.tasks import DOMAINS
from demo.vocabulary import WordPieces, words_of
from semievol.prompts import Message, Prompt, with_candidates, with_worked_examples

Chat = tuple[Message, ...]

INSTRUCTIONS = (
    "Say which of these the words are about: {options}.",
    "Choose one of these names for the {thing} below: {options}.",
    "Sort the {thing} into one of these {things}: {options}.",
    "Which of these {things} fits best: {options}?",
    "Possible answers: {options}.",
    "Read the {thing} and give the right {things}: {options}.",
    "Answer with one of: {options}.",
    "Pick the {things} that the {thing} belongs to: {options}.",
    "Name the {things} for this {thing}: {options}.",
    "Put each {thing} under one of these headings: {options}.",
)
"""`{thing}` and `{things}` are random words: only their place tells the options from the words around them."""
OPEN_INSTRUCTIONS = ("Give the right name.", "Answer in the same way.", "Which group is it?", "Go on.")
SENTENCES = (
    "They talked about {topic} all day.",
    "She wants to know more about {topic}.",
    "He has never seen {topic} before.",
    "It was mostly {topic} in the end.",
    "Is this really because of {topic}?",
    "I often think of {topic}.",
    "You can find {topic} nearly everywhere.",
    "Some people like {topic} very much.",
    "Last year there was only {topic}.",
    "He came back with {topic} in the evening.",
    "What do you think of {topic}?",
    "The story begins with {topic}.",
    "Most of it had to do with {topic}.",
    "They asked us for {topic}.",
    "Without {topic} it would not have happened.",
    "In the old days {topic} meant everything.",
    "We could hear them speak of {topic}.",
    "A few of them brought {topic}.",
    "{topic}, of course.",
    "First {topic}, then nothing.",
    "Tell me about the {topic}.",
    "The {topic} was not what we hoped.",
    "Where is the {topic} now?",
    "Nothing can be done without the {topic}.",
)
FRAMES = (
    "Good evening, dear friends.",
    "This is what I heard.",
    "So much for today.",
    "Let me tell you this.",
    "Nobody was surprised.",
    "That is all.",
    "I hope this helps.",
    "It was long ago.",
    "See you soon.",
    "Well then.",
)
LETTERS_QUESTION = "Answer with the letter of the right option."
"""What the library's CSV reader puts under a multiple-choice question."""

TOPIC_WORDS = 2600
SPELLED_WORDS = 3000
TOPIC_SIZE = 16
"""Nearest words that make up a topic."""
MAXIMUM_LIKENESS = 0.25
"""Cosine that the first words of two topics of one episode stay below."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A word and its nearest neighbours."""

    name: str
    words: tuple[str, ...]


class Practice:
    """Draws episodes; what they are made of is fixed by the vectors, which ones by the random stream."""

    def __init__(self, minilm: WordPieces, entries: Sequence[str]) -> None:
        """`entries`: the words and pieces that the model knows."""
        held_out = held_out_words()
        known = set(entries)
        words = [word for word in minilm.pieces if re.fullmatch(r"[a-z]{4,}", word) and word not in held_out]
        filler = set(words_of((*INSTRUCTIONS, *OPEN_INSTRUCTIONS, *SENTENCES, *FRAMES, LETTERS_QUESTION)))
        # MiniLM's list begins with some 400 function words, which make poor topics.
        self._words = [word for word in words[300:] if word in known and word not in filler][:TOPIC_WORDS]
        # Names the model knows only in pieces, so that it learns to spell.
        self._spelled = [word for word in words if word not in known][:SPELLED_WORDS]
        rows = {piece: row for row, piece in enumerate(minilm.pieces)}
        vectors = minilm.vectors[[rows[word] for word in self._words]]
        vectors = vectors - vectors.mean(axis=0)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        similarity = vectors @ vectors.T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :TOPIC_SIZE]
        self._similarity = similarity
        self._topics = [Topic(word, tuple(self._words[i] for i in nearest[n])) for n, word in enumerate(self._words)]
        used = {*self._words, *self._spelled, *filler}
        leaked = used & held_out
        if leaked:
            raise AssertionError(f"practice would show words of the tasks: {sorted(leaked)}")

    def draw(self, rng: random.Random, brief: float = 0.0) -> Chat:
        """One episode. Assistant turns of weight 0 cannot be known from what stands before them.

        `brief` is the share of episodes whose texts are bare words: easier ones, for the beginning.
        """
        kinds: tuple[tuple[float, Callable[[random.Random, bool], Chat]], ...] = (
            (0.26, self._named),
            (0.04, self._lettered),
            (0.70, self._worked),
        )
        kind = rng.choices([draw for _, draw in kinds], weights=[weight for weight, _ in kinds])[0]
        return kind(rng, rng.random() < brief)

    def _named(self, rng: random.Random, brief: bool) -> Chat:
        """The options mean what they say; each text has the right one's name or words close to it."""
        topics = self._distinct_topics(rng, rng.randint(2, 12))
        turns = [Message("system", self._instruction(rng, [topic.name for topic in topics]))]
        for _ in range(rng.randint(2, 6) if brief else rng.choice((1, 1, 2, 3))):
            answer = rng.choice(topics)
            text = self._text(rng, answer, brief, others=topics, name_probability=0.35)
            turns += [Message("user", text), Message("assistant", answer.name)]
        return tuple(turns)

    def _lettered(self, rng: random.Random, brief: bool) -> Chat:
        """The same as multiple choice, asked as the library's CSV reader asks it."""
        topics = self._distinct_topics(rng, rng.randint(2, 6))
        number = rng.randrange(len(topics))
        text = self._text(rng, topics[number], brief, others=topics, name_probability=0.3)
        options = "\n".join(f"{'ABCDEF'[n]}. {topic.name}" for n, topic in enumerate(topics))
        question = Message("user", f"{text}\n{options}\n{LETTERS_QUESTION}")
        return (question, Message("assistant", "ABCDEF"[number]))

    def _worked(self, rng: random.Random, brief: bool) -> Chat:
        """What an option stands for is shown only by the worked examples, and is new in every episode."""
        count = rng.randint(3, 9) if brief else rng.randint(1, 6)
        topics = self._distinct_topics(rng, rng.choice((2, 3, 4)))
        options = self._names(rng, max(len(topics), rng.choice((2, 3, 4, 5, 6, 8, 10, 13)) if not brief else 0))
        meanings = dict(zip(topics, options, strict=False))
        rng.shuffle(options)
        shared = [rng.choice(topics) for _ in range(count)]
        target = shared[-1] if rng.random() < 0.6 else rng.choice(shared)
        texts = [self._text(rng, topic, brief, others=topics) for topic in shared]
        source = rng.choice([text for text, topic in zip(texts, shared, strict=True) if topic is target])
        question = self._text(rng, target, brief, others=topics, repeat=source if rng.random() < 0.4 else None)
        prompt: Prompt = (Message("user", question),)
        if rng.random() < (0.3 if brief else 0.8):
            prompt = (Message("system", self._instruction(rng, options)), *prompt)
        elif rng.random() < 0.7:
            prompt = (Message("system", rng.choice(OPEN_INSTRUCTIONS)), *prompt)
        pairs = [(text, meanings[topic]) for text, topic in zip(texts, shared, strict=True)]
        prompt = with_worked_examples(prompt, pairs)
        if rng.random() < 0.2:
            prompt = with_candidates(prompt, _candidates(rng, meanings[target], options))
        return _weigh((*prompt, Message("assistant", meanings[target])))

    def _instruction(self, rng: random.Random, options: Sequence[str]) -> str:
        thing, things = rng.sample(self._words, 2)
        return rng.choice(INSTRUCTIONS).format(options=", ".join(options), thing=thing, things=things)

    def _distinct_topics(self, rng: random.Random, count: int) -> list[Topic]:
        """Topics that have no word in common and whose names are not alike."""
        chosen: list[int] = []
        used: set[str] = set()
        while len(chosen) < count:
            candidate = rng.randrange(len(self._topics))
            words = set(self._topics[candidate].words)
            alike = any(self._similarity[candidate, other] > MAXIMUM_LIKENESS for other in chosen)
            if not alike and not words & used:
                chosen.append(candidate)
                used |= words
        return [self._topics[index] for index in chosen]

    def _names(self, rng: random.Random, count: int) -> list[str]:
        """Different names without meaning: words, spelled words, pairs of words, letters or numbers."""
        style = rng.random()
        if style < 0.04 and count <= 8:
            return rng.sample("ABCDEFGH", count)
        if style < 0.09:
            return [str(number) for number in rng.sample(range(1, 31), count)]
        names: list[str] = rng.sample(self._words, count)
        for index in range(count):
            if rng.random() < 0.06:
                names[index] = rng.choice(self._spelled)
            elif rng.random() < 0.04:
                names[index] = f"{names[index]} {rng.choice(self._words)}"
        return names if len(set(names)) == count else self._names(rng, count)

    def _text(
        self,
        rng: random.Random,
        topic: Topic,
        brief: bool,
        others: Sequence[Topic],
        name_probability: float = 0.0,
        repeat: str | None = None,
    ) -> str:
        """One to three sentences on the topic, now and then one on another; `repeat` lends one of its words."""
        spread = rng.choice((5, 10, TOPIC_SIZE))
        words = rng.sample(topic.words[1:spread], rng.choice((1, 2, 2, 3)))
        if len(words) > 1 and len(others) > 1 and rng.random() < 0.2:
            words[0] = rng.choice(rng.choice([other for other in others if other is not topic]).words[1:])
        if rng.random() < name_probability:
            words[-1] = topic.name
        if repeat is not None:
            common = [word for word in topic.words if re.search(rf"\b{word}\b", repeat)]
            words[-1] = rng.choice(common) if common else words[-1]
        rng.shuffle(words)
        if brief:
            return " ".join(words)
        sentences = [
            sentence.format(topic=word) for sentence, word in zip(rng.sample(SENTENCES, len(words)), words, strict=True)
        ]
        if rng.random() < 0.15:
            sentences.insert(0, rng.choice(FRAMES))
        if rng.random() < 0.15:
            sentences.append(rng.choice(FRAMES))
        return " ".join(sentences)


def held_out_words() -> set[str]:
    """Cue words and answers of every task, and what differs from them only by a common ending."""
    words = {word for domain in DOMAINS.values() for cues in domain.cues.values() for word in cues}
    words |= {answer for domain in DOMAINS.values() for answer in domain.answers}
    words |= {word[:-1] for word in words if word.endswith("s") and len(word) > 4}
    return words | {word + ending for word in words for ending in ("s", "es", "ed", "ing", "er", "ers")}


def _candidates(rng: random.Random, answer: str, options: Sequence[str]) -> list[str]:
    wrong = [option for option in options if option != answer]
    candidates = [answer, *rng.sample(wrong, min(len(wrong), rng.randint(1, 3)))]
    rng.shuffle(candidates)
    return candidates


def _weigh(chat: Chat) -> Chat:
    """Weight 0 for answers whose name was not given to an earlier example: nothing tells them."""
    given: set[str] = set()
    weighed = []
    for index, message in enumerate(chat):
        if message.role == "assistant":
            known = message.content in given or index == len(chat) - 1
            weighed.append(replace(message, weight=int(known)))
            given.add(message.content)
        else:
            weighed.append(message)
    return tuple(weighed)
