"""Rows that ask the same, within a file and between the files of a job. Pure.

Two rows are the same where their prompts are (`content_id`). No row that is measured on may be trained on or answer as
a worked example, and no row whose answer is known needs a pseudo-label, so such rows are left out. Only prompts of the
small files are held (labeled, validation, test); a pool of a million rows goes through as a stream.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

from semievol.answers import Answers
from semievol.examples import Example, content_id

LINES_TOLD = 5
"""How many line numbers stand beside a count."""
MEASURED = ("test", "validation")
"""Files that nothing may be trained on; a row that both hold is the test file's."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Rows of the file `role`, with the lines of the first; `also_in` names the file that holds them too."""

    role: str
    rows: int
    lines: tuple[int, ...]
    also_in: str | None = None


class Sieve:
    """Lets the rows of one file through that no other file holds, and counts the rest.

    `others`: prompts by file. A row that several hold counts for the first of them.
    """

    def __init__(self, role: str, others: Mapping[str, Set[str]]) -> None:
        self.role, self.others = role, others
        self._counts = Counter[str | None]()
        self._lines: dict[str | None, list[int]] = defaultdict(list)

    def keep(self, rows: Iterable[Example]) -> Iterator[Example]:
        """The rows that stay, one at a time and as they are."""
        for row in rows:
            content = content_id(row.id)
            if content != row.id:  # readers number the rows that a file repeats
                self._note(None, row.line)
            holder = next((other for other, prompts in self.others.items() if content in prompts), None)
            if holder is None:
                yield row
            else:
                self._note(holder, row.line)

    def left_out(self) -> list[Finding]:
        """What was held back so far, by the file that holds it too."""
        return [self._finding(other) for other in self.others if self._counts[other]]

    def repeated(self) -> list[Finding]:
        """Rows so far that repeat another row of their own file; they stay."""
        return [self._finding(None)] if self._counts[None] else []

    def _note(self, holder: str | None, line: int) -> None:
        self._counts[holder] += 1
        if len(self._lines[holder]) < LINES_TOLD:
            self._lines[holder].append(line)

    def _finding(self, holder: str | None) -> Finding:
        return Finding(self.role, self._counts[holder], tuple(self._lines[holder]), holder)


@dataclass(frozen=True, slots=True)
class Apart:
    """The files with answers without what another of them holds, and the sieve for the unlabeled file."""

    labeled: list[Example]
    validation: list[Example]
    test: list[Example]
    pool: Sieve
    sieves: tuple[Sieve, ...]

    def emptied(self) -> list[tuple[str, list[Finding]]]:
        """The files with answers of which no row is left, with what was left out."""
        kept = {"labeled": self.labeled, "validation": self.validation, "test": self.test}
        return [(one.role, one.left_out()) for one in self.sieves if kept.get(one.role) == [] and one.left_out()]

    def facts(self, contradicting: Finding | None) -> dict[str, Any]:
        """All findings as plain values, once the unlabeled rows have gone through `pool`."""
        return {
            "left_out": [asdict(found) for sieve in self.sieves for found in sieve.left_out()],
            "repeated": [asdict(found) for sieve in self.sieves for found in sieve.repeated()],
            "contradicting": asdict(contradicting) if contradicting else None,
        }


def keep_apart(labeled: Sequence[Example], validation: Sequence[Example], test: Sequence[Example]) -> Apart:
    """Leave out what is measured on: test rows from the other files, validation rows from those trained on."""
    prompts = {role: prompts_of(rows) for role, rows in zip(MEASURED, (test, validation), strict=True)}
    sieves = {
        "labeled": Sieve("labeled", prompts),
        "unlabeled": Sieve("unlabeled", prompts | {"labeled": prompts_of(labeled)}),
        "validation": Sieve("validation", {"test": prompts["test"]}),
        "test": Sieve("test", {}),
    }
    return Apart(
        labeled=list(sieves["labeled"].keep(labeled)),
        validation=list(sieves["validation"].keep(validation)),
        test=list(sieves["test"].keep(test)),
        pool=sieves["unlabeled"],
        sieves=tuple(sieves.values()),
    )


def prompts_of(rows: Iterable[Example]) -> frozenset[str]:
    """The prompts of a small file, as the content part of the rows' ids."""
    return frozenset(content_id(row.id) for row in rows)


def contradicting(labeled: Iterable[Example], answers: Answers) -> Finding | None:
    """Labeled rows that ask the same and are answered differently; None where there are none. They stay."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for row in labeled:
        groups[content_id(row.id)].append(row)
    lines = sorted(
        row.line
        for rows in groups.values()
        if len(answers.group([answers.parse(row.labeled_reply, row.options) for row in rows])) > 1
        for row in rows
    )
    return Finding("labeled", len(lines), tuple(lines[:LINES_TOLD])) if lines else None
