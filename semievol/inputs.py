"""The rows of a job's files taken together: how answers are read, what is wrong with them, what is held out. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from semievol import answers as answer_rules
from semievol.answers import Answers
from semievol.errors import DataError, Problem, RecipeError
from semievol.examples import Example, content_id
from semievol.overlaps import Finding
from semievol.recipe import Recipe
from semievol.seeds import seed_of


def decide_answers(labeled: Sequence[Example], recipe: Recipe) -> Answers:
    """How replies are read. Raises RecipeError if labels and recipe do not agree."""
    rules = answer_rules.infer(
        [row.labeled_reply for row in labeled],
        [row.options for row in labeled],
        kind=recipe.answers.kind,
        options=recipe.answers.options,
        tolerance=recipe.answers.tolerance,
    )
    if recipe.generation.answers == "scored" and not (rules.kind == "choice" and rules.bare):
        raise RecipeError("generation.answers is scored, but the labeled replies are not bare options of a choice")
    return rules


def unreadable(rows: Sequence[Example], rules: Answers) -> list[Problem]:
    """Labeled rows whose replies are no answers."""
    hint = f"the reply cannot be read as a {rules.kind}"
    if rules.options:
        hint += "; it is none of the labeled rows' answers (set answers.options to name all classes)"
    wrong = [row for row in rows if rules.parse(row.labeled_reply, row.options) is None]
    return [Problem(row.line, "unknown_answer", hint) for row in wrong]


def unaskable(row: Example, rules: Answers) -> Problem | None:
    """What keeps an unlabeled row from being asked; None if nothing does."""
    if rules.kind != "choice" or rules.options or row.options:
        return None
    hint = "the row has no options, but the labeled rows are a choice among their own options"
    return Problem(row.line, "no_options", hint)


def nothing_left(path: Path, left_out: Sequence[Finding]) -> DataError:
    """The error of a file whose rows were all left out."""
    where = " and ".join(f"{found.rows:,} in the {found.also_in} file" for found in left_out)
    hint = f"no row is left: every one occurs in another file as well ({where}); give rows that no other file holds"
    return DataError(str(path), [Problem(0, "nothing_left", hint)])


def hold_out(rows: Sequence[Example], rules: Answers, share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Split labeled rows into (train, validation): closed answers keep their mix. The rows' order plays no part.

    A row and its duplicates stay together, so that no validation row is trained on.

    Raises RecipeError if there are too few rows for both parts.
    """
    if len(rows) < 2:
        raise RecipeError("one labeled row cannot be both trained on and held out; give more rows or --validation")
    groups: dict[str, list[Example]] = defaultdict(list)
    for row in rows:
        key = rules.parse(row.labeled_reply, row.options) if rules.kind == "choice" else ""
        groups[key or ""].append(row)
    shuffled = [sorted(group, key=lambda row: seed_of(seed, "holdout", row.id)) for _, group in sorted(groups.items())]
    wanted = min(len(rows) - 1, max(1, round(share * len(rows))))
    # Largest remainders: every answer gives its share, rounded so that the total is as wanted.
    counts = [int(share * len(group)) for group in shuffled]
    by_remainder = sorted(
        range(len(shuffled)),
        key=lambda i: (-(share * len(shuffled[i]) % 1), seed_of(seed, "holdout-answer", shuffled[i][0].id)),
    )
    for index in by_remainder[: max(0, wanted - sum(counts))]:
        counts[index] += 1
    held = {content_id(row.id) for group, count in zip(shuffled, counts, strict=True) for row in group[:count]}
    parts = [row for row in rows if content_id(row.id) not in held], [row for row in rows if content_id(row.id) in held]
    if not parts[0]:
        raise RecipeError("the labeled rows all ask the same; there is nothing to hold out; give --validation")
    return parts
