"""What the model is asked for: how many answers a row, in which form, and with how much room. Pure."""

from collections.abc import Sequence

from semievol.answers import Answers
from semievol.examples import Example
from semievol.recipe import GenerationSettings


def collaborator_count(settings: GenerationSettings) -> int:
    """Answers drawn for a row."""
    return settings.n if settings.collaboration else 1


def scores_options(answers: Answers, settings: GenerationSettings) -> bool:
    """Whether options are scored directly rather than replies sampled."""
    if settings.answers == "auto":
        return answers.kind == "choice" and answers.bare
    return settings.answers == "scored"


def reply_room(row: Example, answers: Answers, settings: GenerationSettings) -> int:
    """Tokens that the reply may need: a token covers at least one byte, and each reply ends with one more."""
    if not scores_options(answers, settings):
        return settings.max_new_tokens
    return min(settings.max_new_tokens, 1 + max(len(option.encode()) for option in options_of(row, answers)))


def options_of(row: Example, answers: Answers) -> tuple[str, ...]:
    """What a closed row may be answered with."""
    options = answers.options or row.options
    assert options, f"row {row.id} has no options"
    return options


def reply_limit(answers: Answers, rows: Sequence[Example], max_new_tokens: int) -> int:
    """Room for a reply: where replies are bare options, no more than the longest takes with some words around it."""
    if answers.kind != "choice" or not answers.bare:
        return max_new_tokens
    options = {option for row in rows for option in (answers.options or row.options or ())}
    return min(max_new_tokens, 32 + max((len(option.encode()) for option in options), default=0))
