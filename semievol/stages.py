"""What each stage of the loop does. A function here returns the work that `Workdir.stage` runs in a folder.

Stages hand each other files only: rows and labels as Parquet, adapters as PEFT folders, everything else as facts in
the manifest.
"""

import heapq
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from semievol.agreement import provisional
from semievol.answers import Answers
from semievol.errors import DataError, Problem
from semievol.examples import (
    MAX_PROBLEMS_SHOWN,
    Example,
    check_unlabeled,
    read_labeled,
    stream_unlabeled,
)
from semievol.generation import (
    Neighbours,
    answer_shard,
    pool_size,
    views_differ,
)
from semievol.histograms import Agreement, RoundSummary, so_far
from semievol.inputs import decide_answers, hold_out, nothing_left, unaskable, unreadable
from semievol.labeling import label_rows
from semievol.overlaps import Apart, contradicting, keep_apart
from semievol.ports import Backend, Generator, Progress, TrainingRow, do_nothing
from semievol.prompts import Message, question_of
from semievol.propagation import alike
from semievol.recipe import Recipe
from semievol.seeds import seed_of
from semievol.selection import measure_of, select
from semievol.tables import (
    ANSWERED,
    EXAMPLES,
    PSEUDO_LABELS,
    answered_of,
    answered_record,
    example_of,
    example_record,
    pseudo_label_record,
    read_examples,
    read_rows,
    row_count,
    take_rows,
    write_examples,
    write_rows,
)
from semievol.workdir import Stage, StageWork, write_whole

if TYPE_CHECKING:
    from semievol.pipeline import Job

PENDING = "pending.parquet"
DECIDED = "decided.parquet"
SUMMARY = "summary.json"
ANSWERS = "answered.parquet"
ADAPTER = "adapter"
WINDOW_ROWS = 16_384
"""So many rows of the file are shared out among shards together."""
REVIEWED = "reviewed"
"""Reason of a decision that a person made."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The files as the stages see them: checked, split, and without any answer among the unlabeled."""

    train: Path
    validation: Path
    test: Path | None
    unlabeled: Path
    answers: Answers
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, stage: Stage) -> Self:
        """From the committed stage `prepare`."""
        rules = dict(stage.facts["answers"])
        rules["options"] = tuple(rules["options"]) if rules["options"] else None
        return cls(
            train=stage.folder / "train.parquet",
            validation=stage.folder / "validation.parquet",
            test=stage.folder / "test.parquet" if stage.facts["rows"]["test"] else None,
            unlabeled=stage.folder / "unlabeled.parquet",
            answers=Answers(**rules),
            facts=stage.facts,
        )


@dataclass(frozen=True, slots=True)
class Pending:
    """Unlabeled rows that wait for a label: a Parquet file whose row groups are as long as shards."""

    path: Path
    shards: int

    @classmethod
    def of(cls, source: Stage, recipe: Recipe) -> Self:
        """What the stage `prepare`, or the selection of the round before, left to label."""
        size = recipe.generation.shard_size
        if "pending" in source.facts:
            return cls(source.folder / PENDING, math.ceil(source.facts["pending"] / size))
        return cls(source.folder / "unlabeled.parquet", math.ceil(source.facts["rows"]["unlabeled"] / size))

    def questions(self, group: int) -> list[str]:
        """What retrieval compares of each row of a row group."""
        return _questions(read_examples(self.path, group))


@dataclass(frozen=True, slots=True)
class Round:
    """One finished round."""

    number: int
    shards: list[Stage]
    selected: Stage
    trained: Stage
    validation: Stage

    @property
    def validation_accuracy(self) -> float:
        """Accuracy on the validation rows."""
        return float(self.validation.facts["accuracy"]["value"])


def existing(path: Path) -> Path:
    """The path itself. Raises DataError if it is no file."""
    if not path.is_file():
        what = "this is a folder; give one file" if path.is_dir() else "there is no such file"
        raise DataError(str(path), [Problem(0, "no_such_file", what)])
    return path


# --- before the rounds ------------------------------------------------------------------------------------------------


def prepare(job: "Job") -> StageWork:
    """Read and check all files, decide how answers are read, hold rows out, write the unlabeled rows in shards."""

    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        recipe = job.recipe
        labeled = read_labeled(job.labeled)
        total = check_unlabeled(job.unlabeled) if job.unlabeled is not None else 0
        rules = decide_answers(labeled, recipe)
        given = {role: _readable(path, rules) for role, path in (("validation", job.validation), ("test", job.test))}
        apart = keep_apart(labeled, given["validation"], given["test"])
        for role, left_out in apart.emptied():
            raise nothing_left(job.files()[role], left_out)
        if job.validation is not None:
            train, validation = apart.labeled, apart.validation
        else:
            train, validation = hold_out(apart.labeled, rules, recipe.evaluation.holdout, job.seed)
        write_examples(folder / "train.parquet", train)
        write_examples(folder / "validation.parquet", validation)
        if apart.test:
            write_examples(folder / "test.parquet", apart.test)
        pool = _write_pool(folder / "unlabeled.parquet", job, apart, rules, total, progress)
        mix = Counter(rules.parse(row.labeled_reply, row.options) for row in apart.labeled)
        rows = {"labeled": len(train), "unlabeled": pool, "validation": len(validation), "test": len(apart.test)}
        estimate = None
        if job.estimator is not None:
            asked = read_examples(folder / "unlabeled.parquet", 0) if pool else []
            samples = {"labeled": train, "unlabeled": asked, "validation": validation, "test": apart.test}
            estimate = job.estimator.estimate(recipe, rules, rows, samples)
        return {
            "inputs": job.identity(),
            "estimate": estimate,
            "answers": asdict(rules),
            "answer_mix": dict(mix.most_common()) if rules.kind == "choice" else {},
            "rows": rows,
            "held_out": len(validation) if job.validation is None else 0,
            "overlaps": apart.facts(contradicting(labeled, rules)),
        }

    return work


def _write_pool(path: Path, job: "Job", apart: Apart, rules: Answers, total: int, progress: Progress) -> int:
    """Write the unlabeled rows that no other file holds, in shards; returns how many there are."""
    if job.unlabeled is None:
        return 0
    rows = apart.pool.keep(_askable(job.unlabeled, total, rules, progress))
    written = write_rows(path, EXAMPLES, map(example_record, rows), job.recipe.generation.shard_size)
    if not written:
        raise nothing_left(job.unlabeled, apart.pool.left_out())
    return written


def _askable(path: Path, total: int, rules: Answers, progress: Progress) -> Iterator[Example]:
    """Unlabeled rows that the labels say how to answer. Raises DataError at the first that they do not."""
    for done, row in enumerate(stream_unlabeled(path), start=1):
        if problem := unaskable(row, rules):
            raise DataError(str(path), [problem])
        progress(done, total)
        yield row


def _readable(path: Path | None, rules: Answers) -> list[Example]:
    """Labeled rows whose replies are answers; none without a file. Raises DataError with the lines of the others."""
    rows = read_labeled(path) if path is not None else []
    if problems := unreadable(rows, rules):
        raise DataError(str(path), problems[:MAX_PROBLEMS_SHOWN], len(problems))
    return rows


def warm_up(data: Prepared, backend: Backend, pending: Pending, job: "Job") -> StageWork:
    """In-weight propagation: fine-tune on the labeled rows. This is plain SFT, which SemiEvol is measured against.

    Meanwhile idle cores look for the neighbours of the pending rows.
    """

    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        labeled = read_examples(data.train)
        rows = [_training_row(row) for row in labeled]
        seed, output = seed_of(job.seed, "warm-up"), folder / ADAPTER
        with _looking_ahead(labeled, backend, pending, job) as look_ahead:

            def trains(done: int, total: int, loss: float | None = None, /) -> None:
                look_ahead()
                progress(done, total, loss)

            log = backend.trainer().train(rows, job.recipe.warmup, seed=seed, output=output, progress=trains)
        return asdict(log)

    return work


def _looking_ahead(
    labeled: Sequence[Example], backend: Backend, pending: Pending, job: "Job"
) -> AbstractContextManager[Callable[[], None]]:
    """What it yields begins to look up what `find_neighbours` will ask for, if there are cores to do it."""
    pool = pool_size(job.recipe, len(labeled))
    if not pool or not pending.shards:
        return nullcontext(do_nothing)
    groups = (pending.questions(shard) for shard in range(pending.shards))
    return backend.looking_ahead(_questions(labeled), row_count(pending.path), groups, pool)


def _questions(rows: Iterable[Example]) -> list[str]:
    return [question_of(row.prompt) for row in rows]


# --- one round --------------------------------------------------------------------------------------------------------


def find_neighbours(data: Prepared, backend: Backend, pending: Pending, job: "Job") -> StageWork:
    """In-context propagation: the nearest labeled rows of every pending row."""

    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        labeled = read_examples(data.train)
        pool = pool_size(job.recipe, len(labeled))
        if not pool:
            return {"pool": 0}
        done, total = 0, row_count(pending.path)
        retriever = backend.retriever(_questions(labeled), total)
        for window in _windows(pending.shards, job.recipe):
            found = []
            for group in window:
                texts = pending.questions(group)
                found.append(retriever.nearest(texts, pool))
                done += len(texts)
                progress(done, total)
            _write_neighbours(folder, window, found, job.recipe)
        return {"rows": len(labeled) + total, "pool": pool, "retriever": job.recipe.propagation.retriever}

    return work


def _windows(shards: int, recipe: Recipe) -> Iterator[range]:
    """Shards that share their rows out among them by what these have in common."""
    size = max(1, WINDOW_ROWS // recipe.generation.shard_size)
    return (range(start, min(start + size, shards)) for start in range(0, shards, size))


def _write_neighbours(folder: Path, window: range, found: Sequence[tuple[Any, Any]], recipe: Recipe) -> None:
    """A file for each shard of the window: its rows, by their place among all, in ascending order, and neighbours."""
    size = recipe.generation.shard_size
    indices, similarities = (np.concatenate(part) for part in zip(*found, strict=True))
    order = alike(indices, farthest_first=not views_differ(recipe))
    for shard in window:
        start = (shard - window.start) * size
        rows = np.sort(order[start : start + size])
        np.savez(
            folder / _neighbours_file(shard),
            rows=rows + window.start * size,
            indices=indices[rows],
            similarities=similarities[rows],
        )


def _neighbours_file(shard: int) -> str:
    return f"{shard:05d}.npz"


@contextmanager
def open_lazily(backend: Backend, teacher: Stage | None, rows: int) -> Iterator[Callable[[], Generator]]:
    """The labeling model, loaded at its first use: a round whose shards are all done needs none.

    `rows`: the unlabeled ones of the whole job, so that every round and shard is answered by the same engine.
    """
    with ExitStack() as stack:
        opened: list[Generator] = []

        def generator() -> Generator:
            if not opened:
                adapter = teacher.folder / ADAPTER if teacher else None
                opened.append(stack.enter_context(backend.generator(adapter, "label", rows)))
            return opened[0]

        yield generator


def generate_shard(
    data: Prepared,
    labeled: Callable[[], Sequence[Example]],
    generator: Callable[[], Generator],
    pending: Pending,
    neighbours: Stage,
    job: "Job",
    *,
    shard: int,
    round_number: int,
) -> StageWork:
    """Collaborative learning over one shard. `labeled` and the generator are shared by all shards of a process."""

    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        engine = generator()
        read_before = engine.prompt_tokens
        rows, near = _rows_of(shard, pending, neighbours, job.recipe)
        answered = answer_shard(
            rows,
            near,
            labeled(),
            engine,
            data.answers,
            job.recipe,
            seed=job.seed,
            round_number=round_number,
            progress=progress,
        )
        write_rows(folder / ANSWERS, ANSWERED, map(answered_record, answered), max(1, len(answered)))
        trials, agreement = [trial for one in answered for trial in one.trials], Agreement()
        for one in answered:
            agreement.see(*provisional(one.trials, data.answers))
        return {
            "rows": len(rows),
            "replies": len(trials),
            "justified": sum(one.justification is not None for one in answered),
            "tokens": sum(len(trial.logprobs) for trial in trials),
            "prompt_tokens": engine.prompt_tokens - read_before,
            "engine": engine.engine,
            **agreement.told(),
        }

    return work


def _rows_of(
    shard: int, pending: Pending, neighbours: Stage, recipe: Recipe
) -> tuple[list[Example], Neighbours | None]:
    """The rows of a shard, in the order of the file, and their neighbours, if they have any."""
    if not neighbours.facts["pool"]:
        return read_examples(pending.path, shard), None
    with np.load(neighbours.folder / _neighbours_file(shard)) as arrays:
        records = take_rows(pending.path, arrays["rows"].tolist(), recipe.generation.shard_size)
        return list(map(example_of, records)), Neighbours(arrays["indices"], arrays["similarities"])


def select_labels(data: Prepared, shards: Sequence[Stage], round_number: int, job: "Job") -> StageWork:
    """Decide every row: label, confidence, selection. Rows that were not taken wait for the next round."""

    def of_shard(number: int) -> Iterator[dict[str, Any]]:
        return (record | {"shard": number} for record in read_rows(shards[number].folder / ANSWERS))

    def answered() -> Iterator[dict[str, Any]]:
        """In the order of the file."""
        for window in _windows(len(shards), job.recipe):
            yield from heapq.merge(*map(of_shard, window), key=itemgetter("line"))

    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        mix = data.facts["answer_mix"]
        labels = label_rows(lambda: map(answered_of, answered()), data.answers, mix, job.recipe.generation)
        closed = data.answers.kind == "choice"
        decisions = select(
            labels.ids, labels, job.recipe.selection, closed=closed, seed=seed_of(job.seed, round_number)
        )

        def decided() -> Iterator[dict[str, Any]]:
            decided_rows = zip(answered(), labels, decisions, strict=True)
            for done, (record, label, decision) in enumerate(decided_rows, start=1):
                progress(done, len(labels))
                yield pseudo_label_record(round_number, record, label, decision)

        return _write_decided(folder, decided(), RoundSummary(measure_of(data.answers, job.recipe)), job.recipe)

    return work


def apply_review(data: Prepared, selected: Stage, round_number: int, job: "Job") -> StageWork:
    """The decided rows as a person left them. `job.reviewed`: JSON lines with round, id, and decision, answer or both.

    A corrected answer is accepted unless the person rejects the row too.
    """

    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        edits: dict[str, dict[str, Any]] = {}
        if job.reviewed is not None:
            with job.reviewed.open(encoding="utf-8") as lines:
                edits = {edit["id"]: edit for edit in map(json.loads, lines) if edit["round"] == round_number}
        judged = {decision: {"kept": 0, "changed": 0} for decision in ("accept", "reject")}

        def reviewed() -> Iterator[dict[str, Any]]:
            for record in read_rows(selected.folder / DECIDED):
                after = _reviewed(record, edits.get(record["id"]))
                if after["reason"] == REVIEWED:
                    agrees = after["decision"] == "accept" and after["answer"] == record["answer"]
                    judged[record["decision"]]["kept" if agrees else "changed"] += 1
                yield after

        summary = RoundSummary(measure_of(data.answers, job.recipe))
        facts = _write_decided(folder, reviewed(), summary, job.recipe)
        return facts | {"reviewed": len(edits), "judged": judged}

    return work


def _reviewed(record: dict[str, Any], edit: Mapping[str, Any] | None) -> dict[str, Any]:
    if edit is None:
        return record
    answer = edit.get("answer")
    corrected = {"answer": answer, "reply": answer} if answer is not None else {}
    return record | corrected | {"decision": edit.get("decision") or "accept", "reason": REVIEWED}


def _write_decided(
    folder: Path, records: Iterator[dict[str, Any]], summary: RoundSummary, recipe: Recipe
) -> dict[str, Any]:
    """Write the decided rows, those that wait for the next round, and the summary of all; returns their counts."""

    def counted() -> Iterator[dict[str, Any]]:
        for record in records:
            summary.see(record, settled=settled(record))
            yield record

    shard_size = recipe.generation.shard_size
    write_rows(folder / DECIDED, PSEUDO_LABELS, counted(), shard_size)
    waiting = (
        {**{key: record[key] for key in ("id", "line", "messages", "options")}, "reply": None}
        for record in read_rows(folder / DECIDED)
        if not settled(record)
    )
    pending = write_rows(folder / PENDING, EXAMPLES, waiting, shard_size)
    write_whole(folder / SUMMARY, json.dumps(summary.told(), ensure_ascii=False).encode())
    return so_far([summary]).facts() | {"pending": pending}


def settled(record: Mapping[str, Any]) -> bool:
    """Whether no later round asks the row again."""
    return record["decision"] == "accept" or record["reason"] in ("too_long", REVIEWED)


def train_round(
    data: Prepared, backend: Backend, selected: Sequence[Stage], sft: Stage, round_number: int, job: "Job"
) -> StageWork:
    """Evolution: fine-tune on the labeled rows and every pseudo-label accepted so far."""

    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        settings = job.recipe.evolution
        rows = [_training_row(row) for row in read_examples(data.train)]
        for stage in selected:
            for record in read_rows(stage.folder / DECIDED):
                if record["decision"] == "accept":
                    weight = _weight(record) if settings.weights == "confidence" else 1.0
                    rows.append(_training_row(example_of(record), weight))
        log = backend.trainer().train(
            rows,
            settings,
            seed=seed_of(job.seed, "evolution", round_number),
            output=folder / ADAPTER,
            start_from=sft.folder / ADAPTER if settings.start == "continue" else None,
            progress=progress,
        )
        return asdict(log)

    return work


def _training_row(row: Example, weight: float = 1.0) -> TrainingRow:
    return TrainingRow((*row.prompt, Message("assistant", row.labeled_reply)), weight)


def _weight(record: Mapping[str, Any]) -> float:
    probability = float(record["probability"])
    return float(record["vote_share"]) if math.isnan(probability) else probability


def goes_on(rounds: Sequence[Round], job: "Job") -> bool:
    """Whether another round is worth it: rows are left, and the last round validated better than the one before."""
    if not rounds:
        return job.unlabeled is not None
    if len(rounds) == job.recipe.rounds or not rounds[-1].selected.facts["pending"]:
        return False
    return len(rounds) == 1 or rounds[-1].validation_accuracy > rounds[-2].validation_accuracy


def best_round(rounds: Sequence[Round]) -> Round:
    """The round that validates best, the earlier one among equals."""
    return max(rounds, key=lambda one: (one.validation_accuracy, -one.number))
