"""Write one draw of a demo task as chat JSONL: `python -m demo.generate --seed N --output DIR`.

Everything is a function of the seed and the options. Each file has its own random stream, so the labeled and test
rows of a seed stay the same whatever the size or the ambiguity of its unlabeled pool.
"""

import argparse
import itertools
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from demo.tasks import DOMAINS, Domain

ZIPF_EXPONENT = 0.7
OWN_CUE_PROBABILITY = 0.9
NAMING_PROBABILITY = 0.1
OPENING_PROBABILITY = 0.3
CLOSING_PROBABILITY = 0.3


@dataclass(frozen=True, slots=True)
class Example:
    """A text and its true answer."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Draw:
    """One data set of a task; no text occurs twice in it."""

    labeled: list[Example]
    unlabeled: list[Example]
    test: list[Example]


def draw(domain: Domain, seed: int, labeled: int, unlabeled: int, test: int, ambiguous: float = 0.0) -> Draw:
    """One data set; `ambiguous` is the share of the unlabeled pool whose cues point to several answers.

    Labeled rows are stratified, with at least one of every answer. Raises ValueError if they are too few for that.
    """
    seen: set[str] = set()

    def fresh(rng: random.Random, answers: Iterable[str], hard: Iterable[bool]) -> list[Example]:
        rows = []
        for answer, is_hard in zip(answers, hard, strict=False):
            text = _text(domain, answer, rng, is_hard)
            while text in seen:
                text = _text(domain, answer, rng, is_hard)
            seen.add(text)
            rows.append(Example(text, answer))
        return rows

    plain = itertools.repeat(False)
    rng = _stream(seed, "labeled")
    labeled_rows = fresh(rng, _stratified(domain, labeled, rng), plain)
    rng = _stream(seed, "test")
    test_rows = fresh(rng, _random_answers(domain, test, rng), plain)
    rng = _stream(seed, "unlabeled")
    hard = [row < round(ambiguous * unlabeled) for row in range(unlabeled)]
    rng.shuffle(hard)
    unlabeled_rows = fresh(rng, _random_answers(domain, unlabeled, rng), hard)
    return Draw(labeled_rows, unlabeled_rows, test_rows)


def _stream(seed: int, name: str) -> random.Random:
    """A generator of its own per file; seeding by text does not depend on PYTHONHASHSEED."""
    return random.Random(f"{seed} {name}")


def _stratified(domain: Domain, count: int, rng: random.Random) -> list[str]:
    """`count` answers in the domain's mix, at least one of each, in random order (largest remainders)."""
    if count < len(domain.answers):
        raise ValueError(f"{count} labeled rows cannot cover {len(domain.answers)} answers")
    total = sum(domain.weights.values())
    shares = {answer: count * weight / total for answer, weight in domain.weights.items()}
    counts = {answer: max(1, int(share)) for answer, share in shares.items()}
    while sum(counts.values()) != count:
        step = 1 if sum(counts.values()) < count else -1
        candidates = [answer for answer in counts if step > 0 or counts[answer] > 1]
        counts[max(candidates, key=lambda answer: step * (shares[answer] - counts[answer]))] += step
    answers = [answer for answer, number in counts.items() for _ in range(number)]
    rng.shuffle(answers)
    return answers


def _random_answers(domain: Domain, count: int, rng: random.Random) -> list[str]:
    return rng.choices(list(domain.weights), weights=list(domain.weights.values()), k=count)


def _text(domain: Domain, answer: str, rng: random.Random, ambiguous: bool) -> str:
    """A text about `answer`; an ambiguous one has one cue of its own among cues of other answers."""
    count = rng.choice(domain.cue_counts)
    others = [other for other in domain.answers if other != answer]
    if ambiguous:
        sources = [answer, *rng.sample(others, count - 1)]
        rng.shuffle(sources)
    else:
        sources = [answer if rng.random() < OWN_CUE_PROBABILITY else rng.choice(others) for _ in range(count)]
    cues: list[str] = []
    for source in sources:
        cues.append(_cue(domain.cues[source], rng, exclude=cues))
    parts = [sentence.format(cue=cue) for sentence, cue in zip(rng.sample(domain.sentences, count), cues, strict=True)]
    if not ambiguous and rng.random() < NAMING_PROBABILITY:
        parts.append(rng.choice(domain.naming).format(answer=answer))
    if rng.random() < OPENING_PROBABILITY:
        parts.insert(0, rng.choice(domain.openings))
    if rng.random() < CLOSING_PROBABILITY:
        parts.append(rng.choice(domain.closings))
    return " ".join(parts)


def _cue(words: tuple[str, ...], rng: random.Random, exclude: list[str]) -> str:
    """A cue by Zipf weight, other than those the text already has."""
    choice = rng.choices(words, weights=[(rank + 1) ** -ZIPF_EXPONENT for rank in range(len(words))])[0]
    return _cue(words, rng, exclude) if choice in exclude else choice


def chat_rows(domain: Domain, examples: Iterable[Example], with_answer: bool) -> Iterator[dict[str, object]]:
    """The rows of a chat JSONL file."""
    for example in examples:
        messages = [{"role": "system", "content": domain.system}, {"role": "user", "content": example.text}]
        if with_answer:
            messages.append({"role": "assistant", "content": example.answer})
        yield {"messages": messages}


def write(folder: Path, domain: Domain, data: Draw, answers: bool = False) -> None:
    """Write `labeled.jsonl`, `unlabeled.jsonl` and `test.jsonl`; `answers` adds the pool's hidden answers."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_jsonl(folder / "labeled.jsonl", chat_rows(domain, data.labeled, with_answer=True))
    _write_jsonl(folder / "unlabeled.jsonl", chat_rows(domain, data.unlabeled, with_answer=False))
    _write_jsonl(folder / "test.jsonl", chat_rows(domain, data.test, with_answer=True))
    if answers:
        _write_jsonl(folder / "unlabeled_answers.jsonl", ({"answer": row.answer} for row in data.unlabeled))


def _write_jsonl(path: Path, rows: Iterable[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("a share is between 0 and 1")
    return value


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.generate", description="Write one draw of a demo task.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--labeled", type=int, default=32, help="rows with answers (default: 32)")
    parser.add_argument("--unlabeled", type=int, default=800, help="rows without answers (default: 800)")
    parser.add_argument("--test", type=int, default=800, help="held-out rows with answers (default: 800)")
    parser.add_argument("--ambiguous", type=_share, default=0.0, metavar="SHARE", help="of the unlabeled rows")
    parser.add_argument("--domain", choices=sorted(DOMAINS), default="helpdesk")
    parser.add_argument("--answers", action="store_true", help="also write unlabeled_answers.jsonl, for benchmarks")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    domain = DOMAINS[options.domain]
    try:
        data = draw(domain, options.seed, options.labeled, options.unlabeled, options.test, ambiguous=options.ambiguous)
    except ValueError as error:
        parser.error(str(error))
    write(options.output, domain, data, answers=options.answers)


if __name__ == "__main__":
    main()
