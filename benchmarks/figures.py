"""Reads figures out of benchmarks/README.md: sections, tables, printed blocks."""

import re
from dataclasses import dataclass


class FiguresMissing(ValueError):
    """Figures are not in the README, or in another form than expected."""

    def __init__(self, heading: str, expected: str) -> None:
        super().__init__(f"benchmarks/README.md, section {heading!r}: expected {expected}")


@dataclass(frozen=True, slots=True)
class Section:
    """What stands below a heading of the second level."""

    heading: str
    text: str

    def table(self, *columns: str) -> tuple[list[str], list[list[str]]]:
        """Head and rows, without emphasis, of the table whose first columns are these."""
        expected = f"a table with the columns | {' | '.join(columns)} |"
        for lines in re.findall(r"(?:^\|.*\|\n)+", self.text, re.MULTILINE):
            head, _, *rows = [_cells(line) for line in lines.splitlines()]
            if tuple(head[: len(columns)]) == columns:
                if not rows or any(len(row) != len(head) for row in rows):
                    raise FiguresMissing(self.heading, f"{expected} and rows of as many cells")
                return head, rows
        raise FiguresMissing(self.heading, expected)

    def printed(self) -> list[list[str]]:
        """The lines of all printed blocks, in cells that two spaces or more divide."""
        blocks = re.findall(r"^```\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        return [re.split(r"\s{2,}", line.strip()) for block in blocks for line in block.splitlines()]

    def numbers(self, cell: str, count: int) -> list[float]:
        """The numbers of a cell, which has so many."""
        found = [float(one.replace(",", "")) for one in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", cell)]
        if len(found) != count:
            raise FiguresMissing(self.heading, f"{count} number{'s' * (count > 1)} in the cell {cell!r}")
        return found

    def number(self, cell: str) -> float:
        """The only number of a cell."""
        return self.numbers(cell, 1)[0]

    def told(self, expected: str, *patterns: str) -> float:
        """The number in the first of these patterns that the text has. `expected`: how the error names it."""
        for pattern in patterns:
            if found := re.search(pattern, self.text):
                return float(found[1])
        raise FiguresMissing(self.heading, expected)


def section_of(readme: str, heading: str) -> Section:
    """The README's section with this heading."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    if not found:
        raise FiguresMissing(heading, "the section itself")
    return Section(heading, found[1])


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("**", "") for cell in line[1:-1].split("|")]
