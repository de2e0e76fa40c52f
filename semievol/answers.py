"""Parse, normalise and compare answers. What an answer *is* is decided here and nowhere else.

A reply is what the model wrote; its answer is the part that counts. Two replies agree when their answers are equal.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

from semievol.errors import RecipeError

Kind = Literal["choice", "number", "text", "exact"]

MAX_CLASSES = 100
_MARKER = re.compile(r"(?:\banswer\s*(?:is|:|=)|####)\s*", re.IGNORECASE)
_NUMBER = re.compile(r"\(?[-+]?[$€£¥]?\s?[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?\)?\s?%?")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans({character: " " for character in string.punctuation})


@dataclass(frozen=True, slots=True)
class Answers:
    """How replies of one task are read.

    `options` holds the classes of a closed task (None: the rows bring their own letters, or the task is open).
    `bare` says that every labeled reply is nothing but its answer, so options can be scored directly as replies.
    """

    kind: Kind
    options: tuple[str, ...] | None = None
    tolerance: float = 0.01
    bare: bool = True

    def parse(self, reply: str, options: Sequence[str] | None = None) -> str | None:
        """The answer in `reply` in canonical form, or None where there is none. `options`: the row's own, if any."""
        match self.kind:
            case "choice":
                return _parse_choice(reply, self.options or options or ())
            case "number":
                value = parse_number(_after_marker(reply))
                return None if value is None else format(value.normalize(), "f")
            case "text":
                return fold(_after_marker(reply)) or None
            case "exact":
                return reply.strip() or None

    def equal(self, left: str, right: str) -> bool:
        """Whether two parsed answers are the same answer."""
        if self.kind != "number":
            return left == right
        a, b = Decimal(left), Decimal(right)
        return abs(a - b) <= Decimal(str(self.tolerance)) * max(abs(a), abs(b))

    def group(self, parsed: Sequence[str | None]) -> list[list[int]]:
        """Indices of equal answers, the largest group first, ties in order of first appearance; None is no vote."""
        groups: list[list[int]] = []
        for index, answer in enumerate(parsed):
            if answer is None:
                continue
            for group in groups:
                first = parsed[group[0]]
                if first is not None and self.equal(first, answer):
                    group.append(index)
                    break
            else:
                groups.append([index])
        return sorted(groups, key=len, reverse=True)


def infer(
    replies: Sequence[str],
    row_options: Sequence[tuple[str, ...] | None],
    *,
    kind: Kind | Literal["auto"] = "auto",
    options: tuple[str, ...] | None = None,
    tolerance: float = 0.01,
) -> Answers:
    """Decide from the labeled set how replies are read. `kind` and `options` of the recipe win over what is seen.

    Raises RecipeError if a labeled reply cannot be read that way: then no prediction could ever be right.
    """
    decided = kind if kind != "auto" else _infer_kind(replies, row_options, options)
    if decided == "choice" and options is None and not all(row_options):
        options = tuple(sorted({reply.strip() for reply in replies}))
        if len({fold_case(option) for option in options}) != len(options):
            options = tuple({fold_case(option): option for option in options}.values())
    answers = Answers(decided, options if decided == "choice" else None, tolerance)
    parsed = [answers.parse(reply, own) for reply, own in zip(replies, row_options, strict=True)]
    unread = [index for index, answer in enumerate(parsed) if answer is None]
    if unread:
        raise RecipeError(
            f"answers.kind is {decided!r}, but {len(unread)} of {len(replies)} labeled replies cannot be read that way "
            f"(the first is labeled row {unread[0] + 1}); set answers.kind or answers.options to fit the data"
        )
    bare = all(answer == reply.strip() for answer, reply in zip(parsed, replies, strict=True))
    return Answers(decided, answers.options, tolerance, bare)


def _infer_kind(
    replies: Sequence[str], row_options: Sequence[tuple[str, ...] | None], options: tuple[str, ...] | None
) -> Kind:
    if options is not None or (row_options and all(row_options)):
        return "choice"
    distinct = Counter(fold_case(reply) for reply in replies)
    if all(parse_number(reply) is not None and _is_bare_number(reply) for reply in replies) and len(distinct) > 5:
        return "number"
    short = all(len(reply.split()) <= 6 for reply in distinct)
    if short and 2 <= len(distinct) <= min(MAX_CLASSES, len(replies) // 2):
        return "choice"
    return "text"


def _parse_choice(reply: str, options: Sequence[str]) -> str | None:
    """Which option the reply names: as a whole, after 'answer:', as a lone letter, or as the only one mentioned."""
    folded = {fold_case(option): option for option in options}
    tail = _after_marker(reply)
    for text in (reply, tail):
        if (whole := folded.get(fold_case(text))) is not None:
            return whole
    if all(len(option) == 1 for option in options):
        leading = re.match(r"\W*([A-Za-z0-9])(?:[).:]|\W*$)", tail)
        if leading and (found := folded.get(leading[1].casefold())):
            return found
        standing = {letter for letter in re.findall(r"\b[A-Z]\b", tail) if letter in options}
        return standing.pop() if len(standing) == 1 else None
    text = f" {fold_case(tail)} "
    mentioned = [option for key, option in folded.items() if f" {key} " in text]
    longest = [
        option
        for option in mentioned
        if not any(other != option and fold_case(option) in fold_case(other) for other in mentioned)
    ]
    return longest[0] if len(longest) == 1 else None


def _after_marker(reply: str) -> str:
    """What follows the last 'answer is', 'answer:' or '####'; the whole reply where there is no such mark."""
    last = None
    for last in _MARKER.finditer(reply):
        pass
    if last is None or not reply[last.end() :].strip():
        return reply
    return reply[last.end() :]


def parse_number(text: str) -> Decimal | None:
    """The last number in `text`: 1,234 is 1234, 5 % is 0.05, (3) is -3 in accounts. Never evaluates anything."""
    for match in reversed(list(_NUMBER.finditer(text))):
        if (value := _decimal(match[0])) is not None:
            return value
    return None


def _decimal(found: str) -> Decimal | None:
    percent = found.endswith("%")
    negative = found.startswith("(") and ")" in found
    digits = re.sub(r"[()$€£¥,%\s]", "", found)
    try:
        value = Decimal(digits)
    except InvalidOperation:
        return None
    if percent:
        value /= 100
    return -value if negative else value


def _is_bare_number(reply: str) -> bool:
    return _NUMBER.fullmatch(reply.strip()) is not None


def fold_case(text: str) -> str:
    """Case, outer punctuation and runs of white space folded: what two names of a class may differ in."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.strip(string.punctuation + " ") or folded


def fold(text: str) -> str:
    """Case, punctuation, articles and white space folded, as SQuAD's exact match does."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", plain).split())
