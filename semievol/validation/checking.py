"""Reads and checks all files of a run, and gathers everything that is wrong rather than the first thing.

No engine: files and recipe only.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semievol.answers import Answers
from semievol.errors import DataError, Problem, SemiEvolError
from semievol.examples import MAX_PROBLEMS_SHOWN, Example, check_unlabeled, read_labeled, stream_unlabeled
from semievol.inputs import decide_answers, hold_out, nothing_left, unaskable, unreadable
from semievol.overlaps import MEASURED, Apart, contradicting, keep_apart
from semievol.recipe import Recipe

SAMPLE_ROWS = 2000
"""Unlabeled rows that are looked at; all are read and checked."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one file (`where` is its path), or with `recipe` or `model`; `total` problems in all."""

    where: str
    total: int
    problems: list[Problem]

    @classmethod
    def of(cls, where: str, error: SemiEvolError) -> "Fault":
        """From the error that a run would end with."""
        if isinstance(error, DataError):
            return cls(error.path, error.total, error.problems)
        return cls(where, 1, [Problem(0, error.code, str(error))])


@dataclass(slots=True)
class Checked:
    """What the files hold. `rows`: as given; `train` and `validation`: as a run would split them."""

    files: Mapping[str, Path]
    faults: list[Fault] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    rules: Answers | None = None
    mix: dict[str, int] = field(default_factory=dict)
    overlaps: dict[str, Any] | None = None
    train: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)
    pool: list[Example] = field(default_factory=list)
    """The first rows of the unlabeled file that a run would ask, at most `SAMPLE_ROWS`."""


def check(files: Mapping[str, Path], recipe: Recipe | None, seed: int) -> Checked:
    """Look at every file; without a recipe (it was wrong) at each for itself only.

    `files`: by role, `labeled` among them.
    """
    told = Checked(files)
    given = _read(told)
    if recipe is None or "labeled" not in given:
        return told
    try:
        told.rules = decide_answers(given["labeled"], recipe)
    except SemiEvolError as error:
        told.faults.append(Fault.of("recipe", error))
        return told
    for role in MEASURED:
        if problems := unreadable(given.get(role, []), told.rules):
            told.faults.append(Fault(str(files[role]), len(problems), problems[:MAX_PROBLEMS_SHOWN]))
    _split(told, given, told.rules, recipe, seed)
    return told


def _read(told: Checked) -> dict[str, list[Example]]:
    """The rows of the labeled files that can be used."""
    given: dict[str, list[Example]] = {}
    for role, path in told.files.items():
        try:
            if role == "unlabeled":
                told.rows[role] = check_unlabeled(path)
            else:
                given[role] = read_labeled(path)
                told.rows[role] = len(given[role])
        except DataError as error:
            told.faults.append(Fault.of(str(path), error))
    return given


def _split(told: Checked, given: Mapping[str, Sequence[Example]], rules: Answers, recipe: Recipe, seed: int) -> None:
    """Keep the files apart and hold rows out, as a run does."""
    apart = keep_apart(given["labeled"], given.get("validation", []), given.get("test", []))
    told.train, told.validation, told.test = apart.labeled, apart.validation, apart.test
    if rules.kind == "choice":
        mix = Counter(rules.parse(row.labeled_reply, row.options) or "" for row in apart.labeled)
        told.mix = dict(mix.most_common())
    for role, left_out in apart.emptied():
        told.faults.append(Fault.of(role, nothing_left(told.files[role], left_out)))
    if "validation" not in told.files and apart.labeled:
        try:
            told.train, told.validation = hold_out(apart.labeled, rules, recipe.evaluation.holdout, seed)
        except SemiEvolError as error:
            told.faults.append(Fault.of(str(told.files["labeled"]), error))
    if "unlabeled" in told.rows:
        _look_through_pool(told, apart, rules)
    told.used |= {"labeled": len(told.train), "validation": len(told.validation), "test": len(told.test)}
    told.overlaps = apart.facts(contradicting(given["labeled"], rules))


def _look_through_pool(told: Checked, apart: Apart, rules: Answers) -> None:
    path = told.files["unlabeled"]
    problems, total = list[Problem](), 0

    def noting(rows: Iterator[Example]) -> Iterator[Example]:
        nonlocal total
        for row in rows:
            if problem := unaskable(row, rules):
                total += 1
                problems.extend([problem] if total <= MAX_PROBLEMS_SHOWN else [])
            yield row

    kept = 0
    for row in apart.pool.keep(noting(stream_unlabeled(path))):
        kept += 1
        if kept <= SAMPLE_ROWS:
            told.pool.append(row)
    told.used["unlabeled"] = kept
    if problems:
        told.faults.append(Fault(str(path), total, problems))
    if not kept:
        told.faults.append(Fault.of("unlabeled", nothing_left(path, apart.pool.left_out())))
