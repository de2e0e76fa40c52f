"""One label for each row of a round: agreement over a row's trials, and balance over all rows. Pure.

The rows are read twice where answers are scored and never all held, so callers pass what opens them.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from semievol.agreement import Label, balance, label_sampled, label_scored, mean_probabilities
from semievol.answers import Answers
from semievol.generation import Answered
from semievol.recipe import GenerationSettings
from semievol.replies import options_of, scores_options

Reader = Callable[[], Iterator[Answered]]
"""Opens the round's answered rows, in their order, each time it is called."""


def label_rows(
    read: Reader, answers: Answers, mix: Mapping[str, int], settings: GenerationSettings
) -> tuple[list[str], list[Label]]:
    """Every row's id and label. `mix`: how often each answer occurs among the labeled rows.

    By majority, justifications that the trials may hold have no say.
    """
    justified = settings.disagreement == "justify"
    rows = read if justified else lambda: (replace(one, justification=None) for one in read())
    if scores_options(answers, settings):
        return _label_scored(rows, answers, mix if settings.balance == "labeled" else None)
    ids, labels = [], []
    for one in rows():
        ids.append(one.row.id)
        label = label_sampled(one.trials, one.justification, answers, unjustified=None if justified else "majority")
        labels.append(label if one.trials else Label("too_long"))
    return ids, labels


def _label_scored(read: Reader, answers: Answers, mix: Mapping[str, int] | None) -> tuple[list[str], list[Label]]:
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
    ids, labels = [], []
    for place, one in enumerate(read()):
        ids.append(one.row.id)
        if not one.trials:
            labels.append(Label("too_long"))
            continue
        options = options_of(one.row, answers)
        final = [float(table[place, columns[option]]) for option in options]
        labels.append(label_scored(one.trials, one.justification, final, options))
    return ids, labels
