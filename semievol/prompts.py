"""What the model is asked: the task itself, worked examples before it, and self-justification over candidates.

Everything here is a function of messages. Turning messages into text and tokens is the chat template's work
(`backends/chat.py`); a base model that has no template gets `PLAIN_TEMPLATE`, which is saved with the adapter so
that a server renders the same prompt that training saw.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `weight` 0 keeps an assistant turn out of the loss."""

    role: Role
    content: str
    weight: int = 1


Prompt = tuple[Message, ...]
"""Turns that end with the user's: what the model must answer."""

PLAIN_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}{{ message['content'] }}\nAnswer:"
    "{% else %} {{ message['content'] }}{{ eos_token }}\n\n{% endif %}"
    "{% endfor %}"
)
"""Chat template of models that bring none: instruction, then `text`, `Answer:` and the answer, ended by EOS."""


def with_worked_examples(prompt: Prompt, examples: Iterable[tuple[str, str]]) -> Prompt:
    """Put (question, answer) pairs before the last user turn, as earlier turns of the same chat.

    The pairs come in the order given (callers put the nearest last), after the system message, so that rows with
    the same beginning share it.
    """
    turns: list[Message] = []
    for question, answer in examples:
        turns += [Message("user", question), Message("assistant", answer)]
    return (*prompt[:-1], *turns, prompt[-1])


def with_candidates(prompt: Prompt, candidates: Sequence[str]) -> Prompt:
    """Ask the same question again, showing the distinct candidate answers (with their reasoning) to choose from."""
    listed = "\n".join(f"{number}. {candidate}" for number, candidate in enumerate(candidates, start=1))
    question = f"{prompt[-1].content}\nCandidate answers:\n{listed}\nReply with the right one."
    return (*prompt[:-1], Message("user", question))


def question_of(prompt: Prompt) -> str:
    """The text that retrieval compares: the last user turn."""
    return prompt[-1].content
