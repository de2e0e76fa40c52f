"""Print the table of `benchmarks.accuracy`: mean, sd and paired differences over seeds.

    python -m benchmarks.table DIR [--against "SFT, tuned"] [--markdown]

Intervals are 95 % Student intervals of the mean of the paired differences over seeds.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from scipy.stats import t as student

OURS = "SemiEvol (default)"
SFT_ROWS = ("SFT, tuned", "SFT, as many steps")


def load(folder: Path) -> dict[int, dict[str, dict[str, float]]]:
    """Finished rows by seed."""
    paths = sorted(folder.glob("results-*.json"))
    return {int(path.stem.split("-")[1]): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Mean with its 95 % interval."""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, float("-inf"), float("inf")
    half = student.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return mean, mean - half, mean + half


def difference(results: dict[int, Any], one: str, other: str) -> str:
    """`one` minus `other` in points, paired by seed."""
    pairs = [row[one]["accuracy"] - row[other]["accuracy"] for row in results.values() if one in row and other in row]
    if not pairs:
        return ""
    mean, low, high = interval(pairs)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})" if len(pairs) > 1 else f"{mean:+.1f} (one seed)"


def lines(results: dict[int, Any]) -> list[list[str]]:
    """One line a row: name, accuracy mean (sd), this row minus SemiEvol, label accuracies."""
    names = list(dict.fromkeys(name for row in results.values() for name in row))
    table = [["row", "accuracy", "SemiEvol minus row", "labels right", "selected right"]]
    for name in names:
        values = [row[name] for row in results.values() if name in row]
        found = [value["accuracy"] for value in values]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        line = [name, f"{statistics.fmean(found):.1f} ({spread:.1f})", difference(results, OURS, name)]
        for key in ("labels right", "selected right"):
            known = [value[key] for value in values if key in value]
            line.append(f"{statistics.fmean(known):.1f}" if known else "")
        table.append(line)
    return table


def bars(results: dict[int, Any]) -> list[str]:
    """What the project asks of itself, as sentences."""
    whole = [row for row in results.values() if OURS in row and all(name in row for name in SFT_ROWS)]
    if not whole:
        return []
    gains = [row[OURS]["accuracy"] - max(row[name]["accuracy"] for name in SFT_ROWS) for row in whole]
    mean, low, high = interval(gains)
    gain = f"{mean:+.1f} ({low:+.1f} to {high:+.1f}), smallest {min(gains):+.1f}, {len(gains)} seeds"
    told = [f"SemiEvol over the better SFT row of each seed: {gain}"]
    if all("all labels" in row for row in whole):
        means = {
            name: statistics.fmean(row[name]["accuracy"] for row in whole) for name in (*SFT_ROWS, OURS, "all labels")
        }
        best = max(means[name] for name in SFT_ROWS)
        closed = (means[OURS] - best) / (means["all labels"] - best)
        told.append(f"gap from the better SFT row to all labels closed: {closed:.0%}")
    return told


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    results = load(arguments.folder)
    head, *body = lines(results)
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for line in body:
        print("| " + " | ".join(line) + " |")
    print(f"\nseeds {sorted(results)}; accuracy in %, mean (sd); differences in points with 95 % intervals, paired")
    for sentence in bars(results):
        print(sentence)


if __name__ == "__main__":
    main()
