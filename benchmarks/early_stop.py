"""What `generation.early_stop` saves and what it costs, on the demo: tokens, and how right the selected labels are.

    python -m benchmarks.early_stop [--seeds N ...] [--output DIR]

For each seed of data, splits and SFT the pool is answered by sampled replies with the stop and without, from the same
adapter and with the same seeds, under the preset `paper` and under the default recipe with sampled replies; the same
share of the rows is kept. Tokens are those of all replies, justifications included. Differences are paired by seed.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.accuracy import Arena, answered, open_arena
from benchmarks.table import interval
from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol import stages
from semievol.tables import read_rows

RECIPES = {
    "preset paper": ("preset=paper",),
    "preset paper, majority": ("preset=paper", "generation.disagreement=majority"),
    "default, sampled": ("generation.answers=sampled",),
}
MOST_TOKENS = 0.75


def one(arena: Arena, name: str, settings: tuple[str, ...]) -> tuple[int, float, int]:
    """Tokens, share of the selected labels that are right in %, and how many are selected."""
    arena = arena.with_settings(settings)
    shards = answered(arena, arena.job.recipe.generation.disagreement)
    selected = arena.work.stage(f"{name}/select", stages.select_labels(arena.data, shards, 1, arena.job))
    tokens = 0
    for shard in shards:
        for row in read_rows(shard.folder / stages.ANSWERS):
            replies = row["trials"] + ([row["justification"]] if row["justification"] else [])
            tokens += sum(len(reply["logprobs"]) for reply in replies)
    accepted = [row for row in read_rows(selected.folder / stages.DECIDED) if row["decision"] == "accept"]
    right = [row["answer"] == arena.truth[row["id"]] for row in accepted]
    return tokens, 100 * sum(right) / len(right), len(right)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/base")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2400, 2401, 2402, 2403, 2404])
    parser.add_argument("--output", type=Path, default=Path("runs/early-stop"))
    given = parser.parse_args()
    found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in RECIPES}
    for seed in given.seeds:
        data = given.output / f"data-{seed}"
        write(data, HELPDESK, draw(HELPDESK, seed, 32, 800, 8), answers=True)
        arena = open_arena(given.model, given.output / f"seed-{seed}", data, seed, ())
        for name, settings in RECIPES.items():
            every, precise, kept = one(arena, name, settings)
            stopped, still, as_many = one(arena, f"{name}, stopped", (*settings, "generation.early_stop=true"))
            found[name].append((stopped / every, still - precise, precise, still))
            print(f"{seed} {name}: {every:,} and {stopped:,} tokens, {kept} and {as_many} rows kept", flush=True)
    met = True
    for name, rows in found.items():
        ratio = float(np.mean([row[0] for row in rows]))
        mean, low, high = interval([row[1] for row in rows])
        before, after = (float(np.mean([row[place] for row in rows])) for place in (2, 3))
        unchanged = low <= 0 <= high
        met = met and ratio <= MOST_TOKENS and unchanged
        print(
            f"{name}: {ratio:.2f} of the tokens (at most {MOST_TOKENS}{'' if ratio <= MOST_TOKENS else ', missed'}); "
            f"selected right {before:.1f} and {after:.1f} %, {mean:+.1f} ({low:+.1f} to {high:+.1f})"
            f"{'' if unchanged else ', not unchanged'}"
        )
    sys.exit(not met)


if __name__ == "__main__":
    main()
