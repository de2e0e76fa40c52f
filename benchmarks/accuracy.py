"""Does SemiEvol help, and which of its parts? Every row of the comparison, over data and training seeds.

    python -m benchmarks.accuracy --model demo/base --seeds 1000 1001 1002 1003 1004 --output DIR

Each seed generates its own demo data, splits and training seeds. All rows of a seed share the files, the held-out rows
and the plain SFT adapter. Finished parts are kept under --output, so a benchmark that was stopped goes on.
`python -m benchmarks.table DIR` prints the table.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks import paper_data
from demo.generate import draw, write
from demo.tasks import DOMAINS
from semievol import outcome, stages
from semievol.backends.local import LocalBackend
from semievol.evaluation import accuracy, predict
from semievol.examples import Example
from semievol.fakes import FakeObserver
from semievol.generation import Neighbours, pool_size
from semievol.pipeline import Job
from semievol.ports import Backend, Progress, TrainingRow
from semievol.prompts import Message, question_of, with_worked_examples
from semievol.recipe import MODEL_RECIPE, Recipe, parse_setting, read_recipe
from semievol.seeds import seed_of
from semievol.tables import read_examples, read_rows
from semievol.workdir import Stage, Workdir

VARIANTS: dict[str, tuple[str, ...]] = {
    "SemiEvol (default)": (),
    "preset paper": ("preset=paper",),
    "no in-weight": ("propagation.in_weight=false",),
    "no in-context": ("propagation.in_context=false",),
    "no collaboration": ("generation.collaboration=false",),
    "no selection (keep all)": ("selection.rule=all",),
    "random rows of equal number": ("selection.rule=random",),
    "majority, no justification": ("generation.disagreement=majority",),
}
"""Rows that are the loop with settings changed."""


@dataclass(frozen=True, slots=True)
class Arena:
    """One seed's data and the parts that all rows share."""

    work: Workdir
    job: Job
    prepared: Stage
    data: stages.Prepared
    backend: Backend
    truth: dict[str, str]
    sft: Stage
    settings: tuple[str, ...]

    def with_settings(self, settings: tuple[str, ...]) -> "Arena":
        """The same data under a changed recipe."""
        recipe = resolve(self.job.model, self.settings + settings)
        return replace(self, job=replace(self.job, recipe=recipe), backend=LocalBackend(self.job.model, recipe))

    def test(self, name: str, trained: Stage | None) -> float:
        """Test accuracy of an adapter, in percent."""
        stage = self.work.stage(name, outcome.test_model(self.data, self.backend, trained, self.job))
        return 100 * float(stage.facts["accuracy"]["value"])


def resolve(model: str, settings: tuple[str, ...]) -> Recipe:
    """The model folder's recipe with settings changed."""
    beside = Path(model) / MODEL_RECIPE
    return Recipe.resolve(read_recipe(beside) if beside.exists() else {}, *map(parse_setting, settings))


def open_arena(model: str, folder: Path, data: Path, seed: int, settings: tuple[str, ...]) -> Arena:
    """Prepare a seed's data and train plain SFT on it."""
    recipe = resolve(model, settings)
    files = {name: data / f"{name}.jsonl" for name in ("labeled", "unlabeled", "test")}
    job = Job(model, files["labeled"], files["unlabeled"], recipe, seed, test=files["test"])
    work = Workdir(folder, {**job.identity(), "benchmark": 1}, FakeObserver())
    stage = work.stage("prepare", stages.prepare(job))
    prepared = stages.Prepared.of(stage)
    backend = LocalBackend(model, recipe)
    with (data / "unlabeled_answers.jsonl").open(encoding="utf-8") as file:
        answers = [json.loads(line)["answer"] for line in file]
    truth = {row.id: answer for row, answer in zip(read_examples(prepared.unlabeled), answers, strict=True)}
    pending = stages.Pending.of(stage, recipe)
    sft = work.stage("warm-up", stages.warm_up(prepared, backend, pending, job))
    return Arena(work, job, stage, prepared, backend, truth, sft, settings)


def run_variant(arena: Arena, name: str, settings: tuple[str, ...]) -> dict[str, float]:
    """One row that is a whole loop: test accuracy, and how right its pseudo-labels are."""
    arena = arena.with_settings(settings)
    data, job, backend, work = arena.data, arena.job, arena.backend, arena.work
    shards = answered(arena)
    selected = work.stage(f"{name}/select", stages.select_labels(data, shards, 1, job))
    trained = work.stage(f"{name}/train", stages.train_round(data, backend, [selected], arena.sft, 1, job))
    records = list(read_rows(selected.folder / stages.DECIDED))
    right = [record["answer"] == arena.truth[record["id"]] for record in records]
    chosen = [ok for ok, record in zip(right, records, strict=True) if record["decision"] == "accept"]
    return {
        "accuracy": arena.test(f"{name}/test", trained),
        "labels right": 100 * sum(right) / len(right),
        "selected right": 100 * sum(chosen) / max(1, len(chosen)),
        "selected": len(chosen),
    }


def answered(arena: Arena, disagreement: Literal["justify", "majority"] = "justify") -> list[Stage]:
    """The pool's answers. Rows of the table that ask the same questions share them, justifications included.

    With an early stop, what is asked depends on what becomes of disagreement.
    """
    recipe = arena.job.recipe
    asked = recipe.generation.model_copy(update={"disagreement": disagreement})
    arena = replace(arena, job=replace(arena.job, recipe=recipe.model_copy(update={"generation": asked})))
    settings = f"{recipe.propagation.model_dump_json()}{asked.model_dump_json()}"
    name = f"answers-{hashlib.blake2b(settings.encode(), digest_size=4).hexdigest()}"
    data, job, backend, work = arena.data, arena.job, arena.backend, arena.work
    pool = pool_size(job.recipe, arena.data.facts["rows"]["labeled"])
    pending = stages.Pending.of(arena.prepared, recipe)
    near = work.stage(f"neighbours-{pool}", stages.find_neighbours(data, backend, pending, job))
    labeled = read_examples(data.train)
    teacher = arena.sft if recipe.propagation.in_weight else None
    with stages.open_lazily(backend, teacher, data.facts["rows"]["unlabeled"]) as generator:
        return [
            work.stage(
                f"{name}/generate-{shard:05d}",
                stages.generate_shard(
                    data, lambda: labeled, generator, pending, near, job, shard=shard, round_number=1
                ),
            )
            for shard in range(pending.shards)
        ]


def _train(arena: Arena, name: str, rows: list[TrainingRow], settings: Any) -> Stage:
    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        trainer = arena.backend.trainer()
        trainer.train(rows, settings, seed=seed_of(arena.job.seed, name), output=folder / stages.ADAPTER)
        return {"rows": len(rows)}

    return arena.work.stage(f"{name}/train", work)


def run_matched(arena: Arena) -> dict[str, float]:
    """SFT on the labels with as many steps, and the same settings, as SemiEvol's last stage."""
    rows = [_row(row, row.labeled_reply) for row in read_examples(arena.data.train)]
    trained = _train(arena, "SFT, matched", rows, arena.job.recipe.evolution)
    return {"accuracy": arena.test("SFT, matched/test", trained)}


def run_all_labels(arena: Arena) -> dict[str, float]:
    """The ceiling: the last stage on the labels and the whole pool with its true answers."""
    rows = [_row(row, row.labeled_reply) for row in read_examples(arena.data.train)]
    rows += [_row(row, arena.truth[row.id]) for row in read_examples(arena.data.unlabeled)]
    trained = _train(arena, "all labels", rows, arena.job.recipe.evolution)
    return {"accuracy": arena.test("all labels/test", trained)}


def run_retrieval(arena: Arena) -> dict[str, float]:
    """SFT's adapter with the k nearest labeled rows in the prompt at test time."""
    train, near = _test_neighbours(arena)
    tests = read_examples(arena.data.test or arena.data.validation)

    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        rows = []
        for row, indices in zip(tests, near.indices, strict=True):
            nearest_last = [train[index] for index in reversed(indices)]
            pairs = [(question_of(one.prompt), one.labeled_reply) for one in nearest_last]
            rows.append(replace(row, prompt=with_worked_examples(row.prompt, pairs)))
        with arena.backend.generator(arena.sft.folder / stages.ADAPTER, "evaluate", len(rows)) as generator:
            measured = accuracy(predict(rows, generator, arena.data.answers, 256, progress))
        return {"accuracy": measured.value}

    return {"accuracy": 100 * float(arena.work.stage("retrieval at test", work).facts["accuracy"])}


def run_nearest(arena: Arena) -> dict[str, float]:
    """No language model: the answer that most of the k nearest labels give, the nearest among equals."""
    train, near = _test_neighbours(arena)
    tests = read_examples(arena.data.test or arena.data.validation)
    correct = 0
    for row, indices in zip(tests, near.indices, strict=True):
        votes = [train[index].labeled_reply for index in indices]
        counts = Counter(votes)
        correct += max(votes, key=lambda vote: (counts[vote], -votes.index(vote))) == row.labeled_reply
    return {"accuracy": 100 * correct / len(tests)}


def _test_neighbours(arena: Arena) -> tuple[list[Example], Neighbours]:
    train = read_examples(arena.data.train)
    tests = read_examples(arena.data.test or arena.data.validation)
    retriever = arena.backend.retriever([question_of(row.prompt) for row in train], len(tests))
    k = arena.job.recipe.propagation.k
    return train, Neighbours(*retriever.nearest([question_of(row.prompt) for row in tests], k))


def _row(row: Example, reply: str) -> TrainingRow:
    return TrainingRow((*row.prompt, Message("assistant", reply)))


def rows_of(arena: Arena, wanted: list[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """Every row of the table, one after the other. `wanted`: parts of names; all if empty."""
    plain: dict[str, Callable[[], dict[str, float]]] = {
        "base": lambda: {"accuracy": arena.test("base", None)},
        "nearest labels, no model": lambda: run_nearest(arena),
        "SFT, tuned": lambda: {"accuracy": arena.test("SFT, tuned", arena.sft)},
        "SFT, as many steps": lambda: run_matched(arena),
        "SFT, retrieval at test": lambda: run_retrieval(arena),
        "all labels": lambda: run_all_labels(arena),
    }
    for name, row in plain.items():
        if not wanted or any(part in name for part in wanted):
            yield name, row()
    for name, settings in VARIANTS.items():
        if not wanted or any(part in name for part in wanted):
            yield name, run_variant(arena, name, settings)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/base")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--domain", choices=sorted(DOMAINS), default="helpdesk")
    parser.add_argument("--ambiguous", type=float, default=0.0, help="share of the pool that is ambiguous")
    parser.add_argument("--labeled", type=int, default=32)
    parser.add_argument("--csv", type=Path, help="split the paper's CSV files in this folder instead of the demo")
    parser.add_argument("--set", action="append", default=[], help="recipe setting for every row")
    parser.add_argument("--rows", nargs="*", default=[], help="only rows whose name has one of these parts")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        data = arguments.output / f"data-{seed}"
        if arguments.csv:
            paper_data.split(arguments.csv, seed, data, labeled=452, unlabeled=900, test=453)
        else:
            domain = DOMAINS[arguments.domain]
            drawn = draw(domain, seed, arguments.labeled, 800, 800, ambiguous=arguments.ambiguous)
            write(data, domain, drawn, answers=True)
        arena = open_arena(arguments.model, arguments.output / f"seed-{seed}", data, seed, tuple(arguments.set))
        results = arguments.output / f"results-{seed}.json"
        known: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
        for name, row in rows_of(arena, arguments.rows):
            known[name] = row
            results.write_text(json.dumps(known, indent=2))
            print(seed, name, {key: round(value, 1) for key, value in row.items()}, flush=True)


if __name__ == "__main__":
    main()
