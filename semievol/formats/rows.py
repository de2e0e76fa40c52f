"""What a row is made of: chat turns, a prompt and its completion, an Alpaca-style instruction, or a question.

The keys of a JSON object say which of them it is; where it has the keys of several, the first in FORMS counts. Other
keys are ignored. An unlabeled row's completion, output or answer is never looked at.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from semievol.formats import strict_json
from semievol.formats.problems import RowFault
from semievol.prompts import Message, Prompt

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOICE_INSTRUCTION = "Answer with the letter of the right option."
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Row:
    """What a file says in one place. `reply`: None in an unlabeled file. `options`: the row's own letters, if any."""

    line: int
    prompt: Prompt
    reply: str | None = None
    options: tuple[str, ...] | None = None


def row_of(value: Any, line: int, *, labeled: bool) -> Row:
    """The row of a JSON value. Raises RowFault."""
    if not isinstance(value, dict):
        what = "a list; write each of its rows on a line of its own" if isinstance(value, list) else "something else"
        raise RowFault("not_object", f"each line is one JSON object, this one is {what}")
    form = next((form for key, form in FORMS.items() if key in value), None)
    if form is None:
        message = "a row has messages, prompt and completion, instruction and output, or question and answer"
        raise RowFault("unknown_form", message)
    return form(value, line, labeled)


# --- chat -------------------------------------------------------------------------------------------------------------


def _chat_row(row: dict[str, Any], line: int, labeled: bool) -> Row:
    if not isinstance(row["messages"], list):
        raise RowFault("no_messages", "messages is a list of turns with role and content", "messages")
    messages = [_message(turn, index) for index, turn in enumerate(row["messages"])]
    wanted, whose = ("assistant", "the assistant's reply") if labeled else ("user", "the user's message")
    if not messages or messages[-1].role != wanted:
        kind = "a labeled" if labeled else "an unlabeled"
        raise RowFault("wrong_last_turn", f"{kind} row ends with {whose} (role {wanted!r})", "messages")
    prompt = tuple(messages[:-1] if labeled else messages)
    if not prompt or prompt[-1].role != "user":
        raise RowFault("no_question", "the assistant's reply must follow a user message", "messages")
    if any(turn.role == "system" for turn in prompt[1:]):
        raise RowFault("late_system", "a system message comes first or not at all", "messages")
    if not labeled:
        return Row(line, prompt)
    if messages[-1].weight == 0:
        message = "the last assistant turn has weight 0: it would teach nothing; remove the row"
        raise RowFault("zero_weight", message, f"messages[{len(prompt)}].weight")
    return Row(line, prompt, messages[-1].content)


def _message(turn: Any, index: int) -> Message:
    where, number = f"messages[{index}]", index + 1
    if not isinstance(turn, dict):
        raise RowFault("bad_turn", f"turn {number} is not an object with role and content", where)
    role, content, weight = turn.get("role"), turn.get("content"), turn.get("weight")
    if role == "developer":
        role = "system"
    if role not in ("system", "user", "assistant"):
        raise RowFault("bad_role", f"turn {number}: role is system, user or assistant", f"{where}.role")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise RowFault("bad_weight", f"turn {number}: weight is 0 or 1", f"{where}.weight")
    text = text_of(content, f"turn {number}: content", f"{where}.content")
    return Message(role, text, 1 if weight is None else int(weight))


# --- one text and its answer ------------------------------------------------------------------------------------------


def _completion_row(row: dict[str, Any], line: int, labeled: bool) -> Row:
    prompt = Message("user", _stripped(row["prompt"], "prompt"))
    return Row(line, (prompt,), _stripped(row.get("completion"), "completion") if labeled else None)


def _instruction_row(row: dict[str, Any], line: int, labeled: bool) -> Row:
    turns = [Message("system", system)] if (system := _optional(row, "system")) else []
    parts = [_stripped(row["instruction"], "instruction"), _optional(row, "input")]
    turns.append(Message("user", "\n\n".join(part for part in parts if part)))
    return Row(line, tuple(turns), _stripped(row.get("output"), "output") if labeled else None)


def _question_row(row: dict[str, Any], line: int, labeled: bool) -> Row:
    return question_row(line, row["question"], row.get("options"), row.get("answer"), labeled=labeled)


def question_row(line: int, question: Any, options: Any, answer: Any, *, labeled: bool) -> Row:
    """A question with its own lettered options, or an open one. Raises RowFault."""
    asked, texts = _stripped(question, "question"), _options(options)
    reply = _stripped(answer, "answer") if labeled else None
    if texts is None:
        return Row(line, (Message("user", asked),), reply)
    letters = tuple(LETTERS[: len(texts)])
    lines = [f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True)]
    prompt = (Message("user", "\n".join([asked, *lines, CHOICE_INSTRUCTION])),)
    return Row(line, prompt, None if reply is None else _letter(reply, texts), letters)


def _options(value: Any) -> list[str] | None:
    """Given as a list, or as the JSON of one."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        value = _options_from_json(value)
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise RowFault("bad_options", f"options is a JSON list of 2 to {len(LETTERS)} answers", "options")
    return [text_of(option, f"option {index + 1}", f"options[{index}]").strip() for index, option in enumerate(value)]


def _options_from_json(value: str) -> Any:
    try:
        return strict_json.parse(
            text_of(value, "options", "options").encode(), 'options is a list such as ["yes", "no"]'
        )
    except RowFault as fault:
        raise RowFault(fault.code, f"in options: {fault}", "options") from None


def _letter(answer: str, options: Sequence[str]) -> str:
    letters = LETTERS[: len(options)]
    if len(answer) == 1 and answer.upper() in letters:
        return answer.upper()
    if answer in options:
        return letters[options.index(answer)]
    message = f"answer is one of {letters[0]} to {letters[-1]} or the text of an option"
    raise RowFault("unknown_answer", message, "answer")


FORMS: dict[str, Callable[[dict[str, Any], int, bool], Row]] = {
    "messages": _chat_row,
    "prompt": _completion_row,
    "instruction": _instruction_row,
    "question": _question_row,
}


# --- texts ------------------------------------------------------------------------------------------------------------


def text_of(value: Any, where: str, field: str) -> str:
    """The value as text that training and databases can hold. Raises RowFault."""
    if value is None:
        raise RowFault("not_text", f"{where} is missing; it must be a string", field)
    if not isinstance(value, str):
        raise RowFault("not_text", f"{where} must be a string", field)
    if not value.strip():
        raise RowFault("empty_text", f"{where} is empty; fill it in or remove the row", field)
    if "\0" in value:
        raise RowFault("nul", f"{where} holds a NUL character; remove it", field)
    if has_surrogate(value):
        raise RowFault(
            "lone_surrogate", f"{where} holds half of a surrogate pair, which is not Unicode; remove it", field
        )
    return value


def has_surrogate(value: str) -> bool:
    """Whether the text holds half of a pair: no Unicode, or a byte that was not UTF-8."""
    return _SURROGATE.search(value) is not None


def _stripped(value: Any, field: str) -> str:
    return text_of(value, field, field).strip()


def _optional(row: dict[str, Any], field: str) -> str | None:
    value = row.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return _stripped(value, field)
