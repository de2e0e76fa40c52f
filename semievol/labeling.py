"""One label for each row of a round: agreement over a row's trials, and balance over all rows. Pure.

The rows are read twice where answers are scored and never all held, so callers pass what opens them.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import overload

import numpy as np

from semievol.agreement import Label, Outcome, balance, label_sampled, label_scored, mean_probabilities
from semievol.answers import Answers
from semievol.generation import Answered
from semievol.recipe import GenerationSettings
from semievol.replies import options_of, scores_options

Reader = Callable[[], Iterator[Answered]]
"""Opens the round's answered rows, in their order, each time it is called."""


class Labels(Sequence[Label]):
    """Labels of rows, kept in columns and made anew when they are asked for.

    Ten objects a row would be gigabytes for millions of rows, and slow all that is done beside them.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._outcomes: list[Outcome] = []
        self._answers: list[str | None] = []
        self._replies: list[str | None] = []
        self._numbers = array("d")

    def append(self, row_id: str, label: Label) -> None:
        """Keep the label of one more row."""
        self.ids.append(row_id)
        self._outcomes.append(label.outcome)
        self._answers.append(label.answer)
        self._replies.append(label.reply)
        self._numbers.extend((label.vote_share, label.entropy, label.answer_entropy, label.probability))

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> Label: ...
    @overload
    def __getitem__(self, place: slice) -> list[Label]: ...
    def __getitem__(self, place: int | slice) -> Label | list[Label]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        numbers = self._numbers[4 * place : 4 * place + 4]
        return Label(self._outcomes[place], self._answers[place], self._replies[place], *numbers)


def label_rows(read: Reader, answers: Answers, mix: Mapping[str, int], settings: GenerationSettings) -> Labels:
    """Every row's label. `mix`: how often each answer occurs among the labeled rows.

    By majority, justifications that the trials may hold have no say.
    """
    justified = settings.disagreement == "justify"
    rows = read if justified else lambda: (replace(one, justification=None) for one in read())
    if scores_options(answers, settings):
        return _label_scored(rows, answers, mix if settings.balance == "labeled" else None)
    labels = Labels()
    for one in rows():
        label = label_sampled(one.trials, one.justification, answers, unjustified=None if justified else "majority")
        labels.append(one.row.id, label if one.trials else Label("too_long"))
    return labels


def _label_scored(read: Reader, answers: Answers, mix: Mapping[str, int] | None) -> Labels:
    """Scored answers; with `mix`, balanced to it over all rows at once."""
    columns: dict[str, int] = {}
    values, places, widths = array("d"), array("q"), array("q")  # of all rows: a million lists would take gigabytes
    for one in read():
        options = options_of(one.row, answers)
        probabilities = mean_probabilities(one.trials, one.justification) if one.trials else []
        values.extend(probabilities)
        places.extend(columns.setdefault(option, len(columns)) for option in options[: len(probabilities)])
        widths.append(len(probabilities))
    table = np.zeros((len(widths), len(columns)))
    table[np.repeat(np.arange(len(widths)), widths), places] = values
    scored = np.flatnonzero(widths)
    if mix is not None and len(scored):
        # One more of each answer: a class that few labels happen to show is rare, not impossible.
        share = np.array([mix.get(option, 0) + 1 for option in columns], dtype=np.float64)
        table[scored] = balance(table[scored], share / share.sum())
    labels = Labels()
    for place, one in enumerate(read()):
        if not one.trials:
            labels.append(one.row.id, Label("too_long"))
            continue
        options = options_of(one.row, answers)
        final = [float(table[place, columns[option]]) for option in options]
        labels.append(one.row.id, label_scored(one.trials, one.justification, final, options))
    return labels
