"""Parse, normalise and compare answers. What an answer *is* is decided here and nowhere else.

A reply is what the model wrote; its answer is the part that counts. Two replies agree when their answers are equal.
"""

import re
import string
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Literal

from semievol.errors import RecipeError

Kind = Literal["choice", "number", "text", "exact"]

MAX_CLASSES = 100
MAX_DIGITS = 400
_MARKER = re.compile(r"(?:\banswer\s*(?:is\b|[:=])|####)\s*", re.IGNORECASE)
# A sign after a word or a number is a dash ("10-20"). Digits are matched possessively, so no reply takes long to read.
_SIGN = r"(?:(?<![\w.)%])[-+])?"
_NUMBER = re.compile(
    rf"\(?{_SIGN}[$€£¥]?\s?{_SIGN}\(?(?:\d[\d,]*+(?:\.\d*+)?|\.\d++)(?:[eE][-+]?\d{{1,3}}(?!\d))?\s?%?\)?\s?%?"
)
_GROUPED = re.compile(r"\d{1,3}(?:,\d{2,3})*,\d{3}")
_LEADING_LETTER = re.compile(r"\W*+([A-Za-z0-9])(?:[).:](?!\d)|\W*+$)")
_LONE_LETTER = re.compile(r"(?<![\w.,])[A-Z0-9](?!\w|[.,]\d)")
_MINUS = str.maketrans("\u2212\ufe63\uff0d", "---")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))


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
                return _parse_choice(reply, tuple(self.options or options or ()))
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
        options = _classes(replies)
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


def _classes(replies: Sequence[str]) -> tuple[str, ...]:
    """The distinct replies; of spellings that differ in case, spaces or a last full stop, the most frequent one."""
    spellings: dict[str, str] = {}
    for reply, _ in sorted(Counter(reply.strip() for reply in replies).items(), key=lambda item: (-item[1], item[0])):
        spellings.setdefault(_fold_space(reply).rstrip("."), reply)
    return tuple(sorted(spellings.values()))


def _infer_kind(
    replies: Sequence[str], row_options: Sequence[tuple[str, ...] | None], options: tuple[str, ...] | None
) -> Kind:
    if options is not None or (row_options and all(row_options)):
        return "choice"
    distinct = {_fold_space(reply) for reply in replies}
    short = all(len(reply.split()) <= 6 for reply in distinct)
    repeats = short and 2 <= len(distinct) <= min(MAX_CLASSES, len(replies) // 2)
    if all(_is_bare_number(reply) for reply in replies) and (len(distinct) > 5 or not repeats):
        return "number"
    return "choice" if repeats else "text"


def _parse_choice(reply: str, options: tuple[str, ...]) -> str | None:
    """Which option the reply names: as a whole, after 'answer:', as a lone letter, or as the only one mentioned."""
    tail = _after_marker(reply)
    for fold_as in (str.strip, _fold_space, fold_case):
        named = _unambiguous(options, fold_as)
        for text in (reply, tail):
            if (whole := named.get(fold_as(text))) is not None:
                return whole
    if all(len(option) == 1 and option.isascii() and option.isalnum() for option in options):
        return _lone_letter(tail, options)
    return _only_mention(tail, options)


@lru_cache(maxsize=1024)
def _unambiguous(options: tuple[str, ...], fold_as: Callable[[str], str]) -> Mapping[str, str]:
    """Options by what is left of them when folded, without those that then look alike."""
    keys = [fold_as(option) for option in options]
    return {key: option for key, option in zip(keys, options, strict=True) if key and keys.count(key) == 1}


def _lone_letter(tail: str, options: tuple[str, ...]) -> str | None:
    named = _unambiguous(options, _fold_space)
    if (leading := _LEADING_LETTER.match(tail)) and (found := named.get(leading[1].casefold())):
        return found
    standing = {letter for letter in _LONE_LETTER.findall(tail) if letter in options}
    return standing.pop() if len(standing) == 1 else None


def _only_mention(tail: str, options: tuple[str, ...]) -> str | None:
    """The one option whose name occurs; 'very positive' is no mention of 'positive'."""
    named = _unambiguous(options, _fold_space)
    names = "|".join(re.escape(name) for name in sorted(named, key=len, reverse=True))
    mentioned = set(re.findall(rf"(?<!\w)(?:{names})(?!\w|[.,]\d)", _fold_space(tail))) if named else set()
    return named[mentioned.pop()] if len(mentioned) == 1 else None


def _after_marker(reply: str) -> str:
    """What follows the last 'answer is', 'answer:' or '####'; the whole reply where there is no such mark."""
    last = _last(_MARKER, reply)
    if last is None or not reply[last.end() :].strip():
        return reply
    return reply[last.end() :]


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None


def parse_number(text: str) -> Decimal | None:
    """The last number in `text`: 1,234 is 1234, 5 % is 0.05, (3) is -3 in accounts. Never evaluates anything.

    None where there is none, or the last one has more than `MAX_DIGITS` digits.
    """
    last = _last(_NUMBER, text.translate(_MINUS))
    return None if last is None else _decimal(last[0])


def _decimal(found: str) -> Decimal | None:
    digits = re.sub(r"[()$€£¥%\s]", "", found)
    if len(digits) > MAX_DIGITS:
        return None
    whole = re.match(r"[-+]*([\d,]*)", digits)
    if whole is not None and "," in whole[1] and not _GROUPED.fullmatch(whole[1]):
        return _decimal(digits.rstrip(",").rpartition(",")[2])  # "1,2,3" is a list
    value = Decimal(digits.replace(",", ""))
    if "%" in found:
        value /= 100
    return -abs(value) if "(" in found and ")" in found else value


def _is_bare_number(reply: str) -> bool:
    return _NUMBER.fullmatch(reply.strip().translate(_MINUS)) is not None and parse_number(reply) is not None


def _fold_space(text: str) -> str:
    """Case and runs of white space folded."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def fold_case(text: str) -> str:
    """Case, outer punctuation and runs of white space folded: what two names of a class may differ in."""
    folded = _fold_space(text)
    return folded.strip(string.punctuation + " ") or folded


def fold(text: str) -> str:
    """Case, punctuation, articles and white space folded, as SQuAD's exact match does.

    Text that is nothing but articles or punctuation ("A", "+") keeps them: it is an answer too.
    """
    whole = _fold_space(text)
    plain = " ".join(whole.translate(_PUNCTUATION).split())
    return " ".join(_ARTICLE.sub(" ", plain).split()) or plain or whole
