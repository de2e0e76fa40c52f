"""The whole loop on fakes: what every run promises, whatever is switched on or off."""

import io
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from semievol import stages, summary, wording
from semievol.errors import DataError, ModelError, RecipeError, WorkdirError
from semievol.fakes import FakeBackend, FakeObserver, read_memory
from semievol.pipeline import Job, run
from semievol.ports import Purpose
from semievol.recipe import Recipe
from semievol.tables import read_examples, read_rows
from tests.tickets import WORDS, Row, tickets, write_csv, write_labeled, write_unlabeled

pytestmark = pytest.mark.slow

ROWS = 40


def job_in(folder: Path, *, labeled: list[Row] | None = None, unlabeled: list[Row] | None = None, **layer: Any) -> Job:
    """A job over small files; `layer` is the recipe."""
    unlabeled = tickets(ROWS, seed=2) if unlabeled is None else unlabeled
    recipe = Recipe.resolve({"generation": {"shard_size": 16}}, layer)
    return Job(
        model="fake",
        labeled=write_labeled(folder / "labeled.jsonl", tickets(12, seed=1, known=3) if labeled is None else labeled),
        unlabeled=write_unlabeled(folder / "unlabeled.jsonl", [question for question, _ in unlabeled]),
        validation=write_labeled(folder / "validation.jsonl", tickets(30, seed=3)),
        test=write_labeled(folder / "test.jsonl", tickets(60, seed=4)),
        recipe=recipe,
    )


def labels(output: Path) -> list[dict[str, Any]]:
    return list(read_rows(output / "pseudo_labels.parquet"))


def summary_of(outcome: dict[str, Any], output: Path) -> str:
    """What is printed when the run is done."""
    printed = io.StringIO()
    summary.show(outcome, output, Console(file=printed, width=100))
    return printed.getvalue()


def test_a_run_beats_plain_fine_tuning_where_unlabeled_rows_connect_words(tmp_path: Path) -> None:
    job = job_in(tmp_path, labeled=tickets(6, seed=1, known=1))
    outcome = run(job, FakeBackend(), tmp_path / "out", FakeObserver())
    accuracy = {name: measured["value"] for name, measured in outcome["accuracy"].items()}
    assert accuracy["base"] == 0
    assert accuracy["sft"] + 0.1 < accuracy["semievol"]
    assert (outcome["best"], outcome["delivered"], outcome["measured_on"]) == ("semievol", "semievol", "test")
    assert {measured["n"] for measured in outcome["accuracy"].values()} == {60}


def test_the_output_holds_adapter_labels_and_report(tmp_path: Path) -> None:
    outcome = run(job_in(tmp_path), FakeBackend(), tmp_path / "out", FakeObserver())
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "adapter",
        "pseudo_labels.parquet",
        "report.html",
        "report.json",
        "stages",
    ]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report == json.loads(json.dumps(outcome))
    assert report["provenance"]["engine"] == "fake"
    assert not list(out.rglob("*.partial"))


SWITCHES: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"preset": "paper"},
    "no in-weight": {"propagation": {"in_weight": False}},
    "no in-context": {"propagation": {"in_context": False}},
    "neither": {"propagation": {"in_weight": False, "in_context": False}},
    "no collaboration": {"generation": {"collaboration": False}},
    "no collaboration, sampled": {"generation": {"collaboration": False, "answers": "sampled"}},
    "no selection": {"selection": {"rule": "all"}},
    "random": {"selection": {"rule": "random"}},
    "sampled": {"generation": {"answers": "sampled"}},
    "sampled, majority": {"generation": {"answers": "sampled", "disagreement": "majority"}},
    "scored, majority, unbalanced": {
        "generation": {"answers": "scored", "disagreement": "majority", "balance": "none"}
    },
    "shared": {"generation": {"worked_examples": "shared"}},
    "over all answers": {"selection": {"per_answer": False, "confidence": "entropy"}},
    "continue, weighted": {"evolution": {"start": "continue", "weights": "confidence"}},
    "continue without in-weight": {"evolution": {"start": "continue"}, "propagation": {"in_weight": False}},
    "two rounds": {"rounds": 2},
    "many neighbours": {"propagation": {"k": 64}},
    "no room": {"generation": {"max_new_tokens": 1, "answers": "sampled"}},
    "one row a shard": {"generation": {"shard_size": 1}},
}


@pytest.mark.parametrize("layer", SWITCHES.values(), ids=SWITCHES)
def test_every_row_has_one_decision_and_a_reason(tmp_path: Path, layer: dict[str, Any]) -> None:
    outcome = run(job_in(tmp_path, **layer), FakeBackend(), tmp_path / "out", FakeObserver())
    rows = labels(tmp_path / "out")
    assert len({row["id"] for row in rows}) == len(rows) == ROWS
    assert {row["decision"] for row in rows} <= {"accept", "reject"}
    for row in rows:
        assert row["reason"]
        assert row["outcome"]
        if row["decision"] == "accept":
            assert row["answer"] in WORDS
            assert row["reply"] == row["answer"]
            assert row["trials"]
        assert (row["answer"] is None) == math.isnan(row["confidence"])
    assert sum(measured["n"] for measured in outcome["accuracy"].values()) == 180
    json.dumps(outcome, allow_nan=False)


@pytest.mark.parametrize("worked_examples", ["varied", "shared"])
@pytest.mark.parametrize("window", [16, 30, stages.WINDOW_ROWS])
def test_rows_with_the_same_worked_examples_are_asked_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worked_examples: str, window: int
) -> None:
    """Within a window of the file; what comes out is in the order of the file again."""
    monkeypatch.setattr(stages, "WINDOW_ROWS", window)
    size = 8
    job = job_in(tmp_path, generation={"shard_size": size, "worked_examples": worked_examples})
    run(job, FakeBackend(), tmp_path / "out", FakeObserver())
    folder = tmp_path / "out" / "stages"
    names = [row.id for row in read_examples(folder / "prepare" / "train.parquet")]
    decided = labels(tmp_path / "out")
    assert [row["line"] for row in decided] == list(range(1, ROWS + 1))
    together, shards = window // size, list[list[list[int]]]()
    for shard in range(ROWS // size):
        asked = list(read_rows(folder / "round-1" / f"generate-{shard:05d}" / stages.ANSWERS))
        assert [row["line"] for row in asked] == [row["line"] for row in decided if row["shard"] == shard]
        first = [[names.index(one) for one in row["trials"][0]["worked_examples"]] for row in asked]
        shards.append([seen if worked_examples == "shared" else seen[::-1] for seen in first])
        assert len(asked) == size
        assert {(row["line"] - 1) // size // together for row in asked} == {shard // together}
    for start in range(0, len(shards), together):
        for before, after in pairwise(shards[start : start + together]):
            assert max(before) <= min(after)


@pytest.mark.parametrize("layer", [SWITCHES["default"], SWITCHES["sampled"], SWITCHES["two rounds"]])
def test_the_report_counts_what_the_pseudo_labels_hold(tmp_path: Path, layer: dict[str, Any]) -> None:
    outcome = run(job_in(tmp_path, **layer), FakeBackend(), tmp_path / "out", FakeObserver())
    first = list(read_rows(tmp_path / "out" / "stages" / "round-1" / "select" / "decided.parquet"))
    assert outcome["rounds"][0]["reasons"] == dict(Counter(row["reason"] for row in first))
    decisions = Counter(row["decision"] for row in first)
    assert outcome["rounds"][0]["decisions"] == {key: decisions[key] for key in ("accept", "reject")}
    assert outcome["rows"] == {"labeled": 12, "unlabeled": ROWS, "validation": 30, "test": 60}


def test_a_switched_off_mechanism_leaves_no_trace(tmp_path: Path) -> None:
    layer: dict[str, Any] = {
        "propagation": {"in_weight": False, "in_context": False},
        "generation": {"collaboration": False},
        "selection": {"rule": "all"},
    }
    backend = FakeBackend(base=[(" ".join(words), answer, 1.0) for answer, words in WORDS.items()])
    run(job_in(tmp_path, **layer), backend, tmp_path / "out", FakeObserver())
    for row in labels(tmp_path / "out"):
        (trial,) = row["trials"]
        assert (row["justification"], trial["worked_examples"], row["reason"]) == (None, [], "kept_all")
    assert backend.loaded[0] is None  # base on the test rows
    assert [adapter for adapter in backend.loaded if adapter is None] == [None, None]  # and as the labeling model


def test_training_sees_labels_and_accepted_pseudo_labels_and_nothing_else(tmp_path: Path) -> None:
    backend = FakeBackend()
    job = job_in(tmp_path)
    run(job, backend, tmp_path / "out", FakeObserver())
    warm, evolved = backend.fake_trainer.trained
    labeled = tickets(12, seed=1, known=3)
    accepted = [row for row in labels(tmp_path / "out") if row["decision"] == "accept"]
    pairs = [(row["messages"][-1]["content"], row["reply"]) for row in accepted]
    assert [(row.messages[0].content, row.messages[1].content) for row in warm] == labeled
    assert [(row.messages[0].content, row.messages[1].content) for row in evolved] == labeled + pairs
    assert {row.weight for row in evolved} == {1.0}


def test_weights_scale_pseudo_labels_only(tmp_path: Path) -> None:
    backend = FakeBackend()
    run(job_in(tmp_path, evolution={"weights": "confidence"}), backend, tmp_path / "out", FakeObserver())
    weights = [row.weight for row in backend.fake_trainer.trained[1]]
    accepted = [row["probability"] for row in labels(tmp_path / "out") if row["decision"] == "accept"]
    assert weights == [1.0] * 12 + accepted


def test_continue_trains_the_warm_adapter_further(tmp_path: Path) -> None:
    run(job_in(tmp_path, evolution={"start": "continue"}), FakeBackend(), tmp_path / "out", FakeObserver())
    stages = tmp_path / "out" / "stages"
    warm, evolved = (read_memory(stages / name / "adapter") for name in ("warm-up", "round-1/train"))
    assert evolved[: len(warm)] == warm


# --- rows that several files hold -------------------------------------------------------------------------------------


def overlapping_job(folder: Path, **layer: Any) -> Job:
    """Each file also holds the first rows of others; the unlabeled file repeats a row of its own."""
    job = job_in(folder, **layer)
    labeled, pool, validation, test = tickets(12, 1, known=3), tickets(ROWS, 2), tickets(30, 3), tickets(60, 4)
    write_labeled(job.labeled, [validation[0], *labeled, (labeled[0][0], "access"), test[0], test[1]])
    unlabeled = [question for question, _ in (pool[0], labeled[0], validation[1], *pool, test[2], labeled[1])]
    assert job.unlabeled
    assert job.validation
    write_unlabeled(job.unlabeled, unlabeled)
    write_labeled(job.validation, [*validation, test[3]])
    return job


def test_nothing_is_learned_from_what_is_measured_on_and_nothing_known_is_asked(tmp_path: Path) -> None:
    backend = FakeBackend()
    outcome = run(overlapping_job(tmp_path), backend, tmp_path / "out", FakeObserver())
    assert outcome["rows"] == {"labeled": 13, "unlabeled": ROWS + 1, "validation": 30, "test": 60}
    asked = [row["messages"][-1]["content"] for row in labels(tmp_path / "out")]
    assert sorted(asked) == sorted(question for question, _ in (tickets(1, 2) + tickets(ROWS, 2)))
    measured = {question for question, _ in (*tickets(30, 3), *tickets(60, 4))}
    learned = {row.messages[-2].content for rows in backend.fake_trainer.trained for row in rows}
    shown = {turn.content for g in backend.generators for prompt in g.prompts for turn in prompt[:-1]}
    assert shown
    assert not measured & (learned | shown)


def test_what_was_left_out_is_told_in_manifest_report_and_summary(tmp_path: Path) -> None:
    outcome = run(overlapping_job(tmp_path), FakeBackend(), tmp_path / "out", FakeObserver())
    manifest = json.loads((tmp_path / "out/stages/prepare/manifest.json").read_text(encoding="utf-8"))
    assert outcome["overlaps"] == manifest["facts"]["overlaps"]
    assert {(one["role"], one["also_in"]): one["lines"] for one in outcome["overlaps"]["left_out"]} == {
        ("labeled", "test"): [15, 16],
        ("labeled", "validation"): [1],
        ("unlabeled", "test"): [44],
        ("unlabeled", "validation"): [3],
        ("unlabeled", "labeled"): [2, 45],
        ("validation", "test"): [31],
    }
    assert [(one["role"], one["rows"]) for one in outcome["overlaps"]["repeated"]] == [("labeled", 1), ("unlabeled", 1)]
    assert (outcome["overlaps"]["contradicting"]["rows"], outcome["overlaps"]["contradicting"]["lines"]) == (2, [2, 14])
    printed = summary_of(outcome, tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    for said in ("2 labeled rows (lines 15 and 16) also in the test file", "(lines 2 and 14) asking the same"):
        assert said in printed
        assert said in page


def test_the_rows_that_stay_keep_their_labels(tmp_path: Path) -> None:
    """Beside rows that are left out, the same rows have the same ids, seeds and answers."""
    found = []
    for name, make in (("plain", job_in), ("overlapping", overlapping_job)):
        (tmp_path / name).mkdir()
        job = make(tmp_path / name, propagation={"in_context": False, "in_weight": False}, selection={"rule": "all"})
        run(job, FakeBackend(base=[("invoice", "billing", 1.0)]), tmp_path / name / "out", FakeObserver())
        found.append({row["id"]: row["trials"] for row in labels(tmp_path / name / "out")})
    plain, overlapping = found
    assert overlapping.keys() - plain.keys() == {next(iter(plain)) + "-2"}
    assert {key: overlapping[key] for key in plain} == plain


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unlabeled": "labeled"}, "12 in the labeled file"),
        ({"labeled": "validation"}, "30 in the validation file"),
        ({"test": "validation"}, "30 in the test file"),
    ],
)
def test_a_file_of_which_no_row_is_left_is_refused(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    job = job_in(tmp_path, labeled=tickets(12, 1))
    if "unlabeled" in changes:
        job = replace(job, unlabeled=write_unlabeled(tmp_path / "same.jsonl", [q for q, _ in tickets(12, 1)]))
    else:
        ((role, other),) = changes.items()
        job = replace(job, **{role: getattr(job, other)})
    with pytest.raises(DataError, match=said) as refused:
        run(job, FakeBackend(), tmp_path / "out", FakeObserver())
    assert [problem.code for problem in refused.value.problems] == ["nothing_left"]


# --- what is handed out -----------------------------------------------------------------------------------------------

POISON = [
    (f"{word} {unseen} {unseen}", "")
    for words, other in zip(WORDS.values(), [*list(WORDS.values())[1:], WORDS["billing"]], strict=True)
    for word in words[:3]
    for unseen in other[3:]
]
"""Unlabeled rows in which the words that only the validation rows know stand beside another answer's words."""


@pytest.mark.parametrize(("deliver", "delivered"), [("best", "sft"), ("evolved", "semievol")])
def test_an_adapter_that_validates_worse_than_sft_is_not_handed_out_unless_asked_for(
    tmp_path: Path, deliver: str, delivered: str
) -> None:
    job = job_in(tmp_path, unlabeled=POISON, evaluation={"deliver": deliver}, selection={"rule": "all"})
    outcome = run(job, FakeBackend(), tmp_path / "out", FakeObserver())
    assert outcome["validation"]["semievol"]["value"] < outcome["validation"]["sft"]["value"]
    assert (outcome["best"], outcome["delivered"], outcome["deliver"]) == ("sft", delivered, deliver)
    stages = tmp_path / "out" / "stages"
    sft, evolved = file_bytes(stages / "warm-up/adapter"), file_bytes(stages / "round-1/train/adapter")
    assert sft != evolved
    assert file_bytes(tmp_path / "out" / "adapter").items() >= (sft if delivered == "sft" else evolved).items()
    assert outcome["flips"]["lost"] > outcome["flips"]["gained"]
    said = wording.delivered(outcome)
    assert "validates worse" in said
    assert said.startswith("The SFT adapter" if delivered == "sft" else "SemiEvol's adapter")
    printed = summary_of(outcome, tmp_path / "out")
    assert said in printed
    assert said.partition(":")[0].replace("'", "&#39;") in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_a_validation_file_rows_are_held_out_and_trained_on_by_nobody(tmp_path: Path) -> None:
    backend = FakeBackend()
    labeled = tickets(30, seed=1)
    job = replace(job_in(tmp_path, labeled=labeled, evaluation={"holdout": 0.2}), validation=None, test=None)
    outcome = run(job, backend, tmp_path / "out", FakeObserver())
    assert outcome["rows"] == {"labeled": 24, "unlabeled": ROWS, "validation": 6, "test": 0}
    assert (outcome["validation"]["held_out"], outcome["measured_on"]) == (6, "validation")
    held = {row["messages"][-1]["content"] for row in read_rows(tmp_path / "out/stages/prepare/validation.parquet")}
    seen = {row.messages[-2].content for rows in backend.fake_trainer.trained for row in rows}
    assert len(held) == 6
    assert not held & seen
    assert Counter(answer for question, answer in labeled if question in held) == dict.fromkeys(WORDS, 2)
    shown = {text.content for g in backend.generators for prompt in g.prompts for text in prompt[:-1]}
    assert not held & shown


def test_the_held_out_rows_do_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    held = []
    for name, order in (("a", 1), ("b", -1)):
        folder = tmp_path / name
        folder.mkdir()
        job = replace(job_in(folder, labeled=tickets(30, seed=1)[::order]), validation=None)
        run(job, FakeBackend(), folder / "out", FakeObserver())
        rows = read_rows(folder / "out/stages/prepare/validation.parquet")
        held.append({row["messages"][-1]["content"] for row in rows})
    assert held[0] == held[1]


# --- rounds -----------------------------------------------------------------------------------------------------------


def test_further_rounds_label_only_what_is_not_yet_trusted_with_the_evolved_model(tmp_path: Path) -> None:
    backend = FakeBackend()
    outcome = run(job_in(tmp_path, rounds=2, selection={"theta": 0.5}), backend, tmp_path / "out", FakeObserver())
    stages = tmp_path / "out" / "stages"
    first = list(read_rows(stages / "round-1" / "select" / "decided.parquet"))
    second = list(read_rows(stages / "round-2" / "select" / "decided.parquet"))
    waiting = {row["id"] for row in first if row["decision"] == "reject"}
    assert {row["id"] for row in second} == waiting
    assert {row["round"] for row in second} == {2}
    assert stages / "round-1" / "train" / "adapter" in backend.loaded
    final = {row["id"]: row for row in labels(tmp_path / "out")}
    assert len(final) == ROWS
    if outcome["best_round"] == 2:
        assert {key for key, row in final.items() if row["round"] == 2} == waiting
    both = [row for row in (*first, *second) if row["decision"] == "accept"]
    assert len(backend.fake_trainer.trained[2]) == 12 + len(both)


def test_rounds_stop_when_validation_stops_improving(tmp_path: Path) -> None:
    outcome = run(job_in(tmp_path, rounds=10), FakeBackend(), tmp_path / "out", FakeObserver())
    values = [one["validation"]["value"] for one in outcome["rounds"]]
    assert 2 <= len(values) < 10
    assert all(later > earlier for earlier, later in pairwise(values[:-1]))
    assert values[outcome["best_round"] - 1] == max(values)


def test_rounds_stop_when_no_row_is_left(tmp_path: Path) -> None:
    job = job_in(tmp_path, rounds=5, selection={"rule": "all"})
    assert len(run(job, FakeBackend(), tmp_path / "out", FakeObserver())["rounds"]) == 1


# --- review -----------------------------------------------------------------------------------------------------------


def write_edits(path: Path, edits: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(edit) + "\n" for edit in edits), encoding="utf-8")
    return path


def decided_in(output: Path, stage: str) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in read_rows(output / "stages" / stage / "decided.parquet")}


def test_a_person_decides_and_no_later_round_asks_again(tmp_path: Path) -> None:
    """One row of each kind: accepted and thrown out, turned down and corrected, turned down and left so."""
    job = replace(job_in(tmp_path, rounds=2, selection={"theta": 0.5}), review=True)
    run(job, FakeBackend(), tmp_path / "first", FakeObserver())
    before = decided_in(tmp_path / "first", "round-1/select")
    taken = [key for key, row in before.items() if row["decision"] == "accept"]
    waiting = [key for key, row in before.items() if row["decision"] == "reject"]
    assert len(taken) > 2
    assert len(waiting) > 3
    rejected, corrected, added, left_out = taken[0], taken[1], waiting[0], waiting[1]
    other = next(answer for answer in WORDS if answer != before[corrected]["answer"])
    edits = [
        {"round": 1, "id": rejected, "decision": "reject"},
        {"round": 1, "id": corrected, "answer": other},
        {"round": 1, "id": added, "answer": "access"},
        {"round": 1, "id": left_out, "decision": "reject"},
        {"round": 2, "id": waiting[2], "decision": "accept", "answer": "billing"},
    ]
    backend = FakeBackend()
    job = replace(job, reviewed=write_edits(tmp_path / "reviewed.jsonl", edits))
    outcome = run(job, backend, tmp_path / "out", FakeObserver())

    first, second = (decided_in(tmp_path / "out", f"round-{number}/review") for number in (1, 2))
    assert {key for key, row in first.items() if row["reason"] == "reviewed"} == {rejected, corrected, added, left_out}
    assert {key: row for key, row in first.items() if row["reason"] != "reviewed"} == {
        key: row for key, row in before.items() if key not in {rejected, corrected, added, left_out}
    }
    assert second.keys() == {key for key, row in first.items() if row["decision"] == "reject"} - {rejected, left_out}
    assert {key for key, row in second.items() if row["reason"] == "reviewed"} == {waiting[2]}

    expected = [(first[key]["messages"][-1]["content"], first[key]["reply"]) for key in first]
    evolved = [(row.messages[0].content, row.messages[1].content) for row in backend.fake_trainer.trained[1]]
    accepted = [pair for pair, row in zip(expected, first.values(), strict=True) if row["decision"] == "accept"]
    assert evolved == tickets(12, seed=1, known=3) + accepted
    answer_of = dict(evolved)
    assert answer_of[before[corrected]["messages"][-1]["content"]] == other
    assert answer_of[before[added]["messages"][-1]["content"]] == "access"
    assert not {before[key]["messages"][-1]["content"] for key in (rejected, left_out)} & answer_of.keys()
    last = {row.messages[0].content: row.messages[1].content for row in backend.fake_trainer.trained[2]}
    assert last[before[waiting[2]]["messages"][-1]["content"]] == "billing"

    assert [one["reviewed"] for one in outcome["rounds"]] == [4, 1]
    judged = [one["judged"] for one in outcome["rounds"]]
    agreed = int(before[added]["answer"] == "access")
    assert judged[0] == {"accept": {"kept": 0, "changed": 2}, "reject": {"kept": agreed, "changed": 2 - agreed}}
    assert sum(judged[1]["accept"].values()) + sum(judged[1]["reject"].values()) == 1
    assert outcome["reasons"]["reviewed"] == (4 if outcome["best_round"] == 1 else 5)
    assert len({row["id"] for row in labels(tmp_path / "out")}) == len(labels(tmp_path / "out")) == ROWS
    assert sum(outcome["decisions"].values()) == sum(outcome["reasons"].values()) == ROWS


@pytest.mark.parametrize("layer", [{}, {"rounds": 2, "selection": {"theta": 0.5}}], ids=["one", "two rounds"])
def test_a_review_that_changes_nothing_adds_its_stage_and_nothing_else(tmp_path: Path, layer: dict[str, Any]) -> None:
    job = job_in(tmp_path, **layer)
    wanted = without_seconds(run(job, FakeBackend(), tmp_path / "plain", FakeObserver()))
    found = without_seconds(run(replace(job, review=True), FakeBackend(), tmp_path / "reviewed", FakeObserver()))
    assert [one.pop("reviewed") for one in found["rounds"]] == [0] * len(wanted["rounds"])
    nobody = {"kept": 0, "changed": 0}
    assert all(one.pop("judged") == {"accept": nobody, "reject": nobody} for one in found["rounds"])
    assert found == wanted
    expected, files = fingerprint(tmp_path / "plain"), fingerprint(tmp_path / "reviewed")
    extra = files.keys() - expected.keys()
    assert extra == {
        f"stages/round-{n + 1}/review/{file}" for n in range(len(wanted["rounds"])) for file in REVIEW_FILES
    }
    assert {name: content for name, content in files.items() if name not in extra} == expected
    for name in extra:
        assert files[name] == expected[name.replace("/review/", "/select/")]


REVIEW_FILES = ("decided.parquet", "pending.parquet", "summary.json")


# --- other kinds of answers -------------------------------------------------------------------------------------------


def lettered(count: int, seed: int) -> list[dict[str, Any]]:
    rows = []
    for index, (question, answer) in enumerate(tickets(count, seed)):
        options = [*WORDS, "other"] if index % 5 == 4 else [*WORDS]
        options = options[index % 3 :] + options[: index % 3]
        rows.append({"question": question, "options": options, "answer": "ABCD"[options.index(answer)]})
    return rows


def csv_job(folder: Path, unlabeled: list[dict[str, Any]], columns: tuple[str, ...], **layer: Any) -> Job:
    names = ("question", "answer", "options")
    return Job(
        model="fake",
        labeled=write_csv(folder / "labeled.csv", lettered(15, 1), names),
        unlabeled=write_csv(folder / "unlabeled.csv", unlabeled, columns),
        test=write_csv(folder / "test.csv", lettered(20, 3), names),
        recipe=Recipe.resolve({"generation": {"shard_size": 8}}, layer),
    )


@pytest.mark.parametrize("layer", [{}, {"generation": {"answers": "sampled"}}, {"preset": "paper"}])
def test_rows_with_their_own_options_are_answered_among_those(tmp_path: Path, layer: dict[str, Any]) -> None:
    job = csv_job(tmp_path, lettered(30, 2), ("question", "answer", "options"), **layer)
    outcome = run(job, FakeBackend(), tmp_path / "out", FakeObserver())
    assert (outcome["answers"]["kind"], outcome["answers"]["options"]) == ("choice", None)
    for row in labels(tmp_path / "out"):
        assert len(row["options"]) in {3, 4}
        assert row["answer"] is None or row["answer"] in row["options"]


COLUMNS = ("question", "answer", "options")


@pytest.mark.parametrize("layer", [{}, {"preset": "paper"}], ids=["default", "paper"])
def test_the_answers_of_an_unlabeled_file_are_never_read(tmp_path: Path, layer: dict[str, Any]) -> None:
    """Scrambled, spoilt or taken away: not a byte of what the run computes changes."""
    rows = lettered(30, 2)
    scrambled = [row | {"answer": rows[-index]["answer"]} for index, row in enumerate(rows)]
    spoilt = [row | {"answer": '\0 not an answer, "quoted"\nand broken'} for row in rows]
    variants = {"given": (rows, COLUMNS), "scrambled": (scrambled, COLUMNS), "none": (rows, ("question", "options"))}
    found: dict[str, dict[str, bytes]] = {}
    for name, (unlabeled, columns) in variants.items():
        folder = tmp_path / name
        folder.mkdir()
        run(csv_job(folder, unlabeled, columns, **layer), FakeBackend(), folder / "out", FakeObserver())
        out = folder / "out"
        kept = [*out.glob("stages/prepare/*.parquet"), *out.glob("stages/round-1/**/*.parquet")]
        kept += [out / "pseudo_labels.parquet", *out.glob("adapter/*")]
        found[name] = {path.relative_to(out).as_posix(): path.read_bytes() for path in kept}
    assert len(found["given"]) > 8
    assert found["given"] == found["scrambled"] == found["none"]
    folder = tmp_path / "spoilt"
    folder.mkdir()
    run(csv_job(folder, spoilt, COLUMNS, **layer), FakeBackend(), folder / "out", FakeObserver())

    # Answers of several lines move the later rows down the file; nothing else may differ.
    assert repr(by_question(folder / "out")) == repr(by_question(tmp_path / "given" / "out"))


@pytest.mark.parametrize("layer", [{}, {"preset": "paper"}, {"generation": {"collaboration": False}}])
@pytest.mark.parametrize(
    ("kind", "replies"),
    [
        ("number", dict(zip(WORDS, ("1,200", "5%", "-7"), strict=True))),
        ("text", dict(zip(WORDS, ("The finance team, of course", "Ann", "A van!"), strict=True))),
    ],
)
def test_numbers_and_free_text_run_through(
    tmp_path: Path, kind: str, replies: dict[str, str], layer: dict[str, Any]
) -> None:
    def told(rows: list[Row]) -> list[Row]:
        return [(question, replies[answer]) for question, answer in rows]

    job = job_in(tmp_path, labeled=told(tickets(12, 1, known=3)), **(layer | {"answers": {"kind": kind}}))
    job = replace(
        job,
        validation=write_labeled(tmp_path / "validation.jsonl", told(tickets(30, 3))),
        test=write_labeled(tmp_path / "test.jsonl", told(tickets(60, 4))),
    )
    outcome = run(job, FakeBackend(), tmp_path / "out", FakeObserver())
    assert outcome["answers"]["kind"] == kind
    assert outcome["accuracy"]["semievol"]["value"] > 0.5
    accepted = [row for row in labels(tmp_path / "out") if row["decision"] == "accept"]
    assert accepted
    assert {row["reply"] for row in accepted} <= set(replies.values())
    assert not {row["answer"] for row in accepted} & set(replies.values()) - {"-7"}


# --- rows that are too long, files and recipes that make no sense -----------------------------------------------------


@pytest.mark.parametrize("layer", [{}, {"generation": {"answers": "sampled"}}, {"rounds": 3}])
def test_a_row_that_is_too_long_is_rejected_with_that_reason_and_once(tmp_path: Path, layer: dict[str, Any]) -> None:
    long = ("invoice " * 500, "")
    job = job_in(tmp_path, unlabeled=[*tickets(9, 2), long, *tickets(9, 5)], **layer)
    run(job, FakeBackend(max_words=400), tmp_path / "out", FakeObserver())
    rows = labels(tmp_path / "out")
    assert len(rows) == 19
    (found,) = (row for row in rows if row["reason"] == "too_long")
    assert (found["decision"], found["trials"], found["round"]) == ("reject", [], 1)
    assert found["messages"][0]["content"] == long[0]


def test_rows_that_are_all_too_long_leave_the_labels(tmp_path: Path) -> None:
    backend = FakeBackend(max_words=2)
    run(job_in(tmp_path), backend, tmp_path / "out", FakeObserver())
    assert {row["reason"] for row in labels(tmp_path / "out")} == {"too_long"}
    assert [len(rows) for rows in backend.fake_trainer.trained] == [12, 12]


@pytest.mark.parametrize("role", ["labeled", "unlabeled", "validation", "test"])
def test_a_missing_file_is_named_before_anything_is_written(tmp_path: Path, role: str) -> None:
    missing = tmp_path / "nowhere.jsonl"
    changes: dict[str, Any] = {role: missing}
    with pytest.raises(DataError, match="nowhere"):
        run(replace(job_in(tmp_path), **changes), FakeBackend(), tmp_path / "out", FakeObserver())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("role", ["validation", "test"])
def test_a_reply_that_is_no_known_answer_is_a_problem_with_its_line(tmp_path: Path, role: str) -> None:
    job = job_in(tmp_path)
    path = write_labeled(tmp_path / f"{role}.jsonl", [*tickets(3, 8), ("q", "unheard of")])
    with pytest.raises(DataError, match="line 4"):
        run(job, FakeBackend(), tmp_path / "out", FakeObserver())
    assert path.exists()


def test_lettered_labels_and_unlabeled_rows_without_options_are_a_problem(tmp_path: Path) -> None:
    unlabeled = lettered(3, 2)
    unlabeled[1]["options"] = ""
    with pytest.raises(DataError, match="line 3"):
        run(csv_job(tmp_path, unlabeled, COLUMNS), FakeBackend(), tmp_path / "out", FakeObserver())


def test_one_labeled_row_cannot_be_split(tmp_path: Path) -> None:
    job = replace(job_in(tmp_path, labeled=[("q", "a")]), validation=None)
    with pytest.raises(RecipeError):
        run(job, FakeBackend(), tmp_path / "out", FakeObserver())


def test_scoring_needs_bare_options(tmp_path: Path) -> None:
    job = job_in(tmp_path, answers={"kind": "text"}, generation={"answers": "scored"})
    with pytest.raises(RecipeError):
        run(job, FakeBackend(), tmp_path / "out", FakeObserver())


def test_another_job_does_not_go_on_in_the_same_folder(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    run(job, FakeBackend(), tmp_path / "out", FakeObserver())
    before = (tmp_path / "out" / "report.json").read_bytes()
    with pytest.raises(WorkdirError, match="seed"):
        run(replace(job, seed=1), FakeBackend(), tmp_path / "out", FakeObserver())
    assert (tmp_path / "out" / "report.json").read_bytes() == before


# --- again, and after an interruption ---------------------------------------------------------------------------------


def fingerprint(output: Path) -> dict[str, bytes]:
    """Every file of an output but the seconds that stages took."""
    files = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in files.items()
        if path.name not in {"manifest.json", "report.json", "report.html"}
    }


def without_seconds(outcome: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in outcome.items() if "seconds" not in key}


@dataclass
class StoppingObserver(FakeObserver):
    """Raises at one moment, as Ctrl-C would."""

    at: tuple[str, str] = ("", "")
    moments: list[tuple[str, str]] = field(default_factory=list)

    def _pass(self, moment: tuple[str, str]) -> None:
        self.moments.append(moment)
        if moment == self.at:
            raise KeyboardInterrupt

    def stage_started(self, stage: str) -> None:
        self._pass(("started", stage))

    def stage_progress(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        self._pass(("amid", stage))

    def stage_finished(self, stage: str, facts: dict[str, Any], *, resumed: bool) -> None:
        self._pass(("finished", stage))


@pytest.mark.parametrize(
    "layer",
    [{}, pytest.param({"rounds": 2, "generation": {"answers": "sampled"}}, marks=pytest.mark.long)],
    ids=["one", "two rounds"],
)
def test_a_run_stopped_at_any_moment_ends_as_the_undisturbed_one(tmp_path: Path, layer: dict[str, Any]) -> None:
    job = job_in(tmp_path, unlabeled=tickets(20, 2), **layer)
    whole = StoppingObserver()
    wanted = without_seconds(run(job, FakeBackend(), tmp_path / "whole", whole))
    expected = fingerprint(tmp_path / "whole")
    moments = list(dict.fromkeys(whole.moments))
    assert {kind for kind, _ in moments} == {"started", "amid", "finished"}
    for number, moment in enumerate(moments):
        out = tmp_path / f"stopped-{number}"
        with pytest.raises(KeyboardInterrupt):
            run(job, FakeBackend(), out, StoppingObserver(at=moment))
        observer = FakeObserver()
        assert without_seconds(run(job, FakeBackend(), out, observer)) == wanted, moment
        assert fingerprint(out) == expected, moment
        finished_before = [name for kind, name in moments[: number + 1] if kind == "finished"]
        assert set(finished_before) <= set(observer.resumed), moment


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    first = run(job, FakeBackend(), tmp_path / "out", FakeObserver())
    backend, observer = FakeBackend(), FakeObserver()
    assert run(job, backend, tmp_path / "out", observer) == first
    assert (observer.finished, backend.loaded, backend.fake_trainer.trained) == ([], [], [])


@pytest.mark.parametrize("layer", [{}, {"preset": "paper"}], ids=["default", "paper"])
def test_the_same_job_twice_gives_the_same_bytes(tmp_path: Path, layer: dict[str, Any]) -> None:
    job = job_in(tmp_path, **layer)
    for name in ("a", "b"):
        run(job, FakeBackend(), tmp_path / name, FakeObserver())
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")


def by_question(output: Path) -> dict[str, dict[str, Any]]:
    return {row["messages"][-1]["content"]: row | {"line": 0} for row in labels(output)}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda rows: rows[::-1], id="order"),
        pytest.param(lambda rows: rows[7:] + rows[:7], id="shards"),
    ],
)
def test_the_order_of_unlabeled_rows_changes_no_label_but_rounding(
    tmp_path: Path, change: Callable[[list[Row]], list[Row]]
) -> None:
    found = []
    for name, rows in (("a", tickets(ROWS, 2)), ("b", change(tickets(ROWS, 2)))):
        folder = tmp_path / name
        folder.mkdir()
        job = job_in(folder, unlabeled=rows, generation={"answers": "sampled"})
        run(job, FakeBackend(), folder / "out", FakeObserver())
        found.append(by_question(folder / "out"))
    assert {key: value["trials"] for key, value in found[0].items()} == {k: v["trials"] for k, v in found[1].items()}
    assert {k: v["decision"] for k, v in found[0].items()} == {k: v["decision"] for k, v in found[1].items()}


def test_an_error_of_the_backend_reaches_the_caller(tmp_path: Path) -> None:
    class Broken(FakeBackend):
        def generator(self, adapter: Path | None, purpose: Purpose, rows: int) -> Any:
            raise ModelError("no such model")

    with pytest.raises(ModelError, match="no such model"):
        run(job_in(tmp_path), Broken(), tmp_path / "out", FakeObserver())


def test_progress_never_runs_past_its_total(tmp_path: Path) -> None:
    observer = FakeObserver()
    run(job_in(tmp_path, rounds=2, generation={"answers": "sampled"}), FakeBackend(), tmp_path / "out", observer)
    last = {stage: (done, total) for stage, done, total in observer.progress}
    assert all(done == total for done, total in last.values()), last
    assert all(done <= total for _, done, total in observer.progress)
