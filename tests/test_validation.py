"""`semievol validate`: it tells what a run would do, with the run's own figures, and starts and writes nothing."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol import cli, stages
from semievol.backends.chat import Chat
from semievol.backends.local import LocalBackend
from semievol.estimates.history import History
from semievol.examples import read_labeled
from semievol.pipeline import Job
from semievol.ports import no_progress
from semievol.prompts import Message
from semievol.recipe import MODEL_RECIPE, Recipe, read_recipe
from semievol.tables import read_examples
from semievol.validation import show
from semievol.validation.lengths import lengths_of
from semievol.workdir import Stage

BASE = Path(__file__).parent.parent / "demo" / "base"
Files = dict[str, Path]


@pytest.fixture(scope="module")
def helpdesk(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A small draw of the demo's task, read only."""
    folder = tmp_path_factory.mktemp("helpdesk")
    write(folder, HELPDESK, draw(HELPDESK, 79, 24, 60, 40))
    return {role: folder / f"{role}.jsonl" for role in ("labeled", "unlabeled", "test")}


def chat_line(*turns: str) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": turn} for place, turn in enumerate(turns)]
    return json.dumps({"messages": messages}) + "\n"


def arguments(files: Files, *more: str, model: Path | str = BASE) -> list[str]:
    return ["validate", f"--model={model}", *(f"--{role}={path}" for role, path in files.items()), *more]


def found(capsys: pytest.CaptureFixture[str], files: Files, *more: str, code: int = 0, **model: Any) -> dict[str, Any]:
    """What `--json` prints."""
    assert cli.main(arguments(files, "--json", *more, **model)) == code
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["valid"] is (code == 0)
    return told


def overlapping(helpdesk: Files, folder: Path) -> Files:
    """Each file also holds rows of others."""
    labeled, unlabeled, test = (path.read_text().splitlines(keepends=True) for path in helpdesk.values())
    asked = json.loads(labeled[2])
    asked["messages"].pop()
    (folder / "labeled.jsonl").write_text("".join([*labeled, test[0], test[1], labeled[0]]))
    (folder / "unlabeled.jsonl").write_text("".join([*unlabeled[:7], json.dumps(asked) + "\n", *unlabeled]))
    return {"labeled": folder / "labeled.jsonl", "unlabeled": folder / "unlabeled.jsonl", "test": helpdesk["test"]}


def job_of(files: Files, seed: int = 0, **layer: Any) -> Job:
    roles: dict[str, Any] = dict(files)
    return Job(str(BASE), recipe=Recipe.resolve(layer), seed=seed, **roles)


def prepare(job: Job, folder: Path) -> Stage:
    """The stage as a run leaves it."""
    (folder / "prepare").mkdir()
    facts = stages.prepare(job)(folder / "prepare", no_progress)
    return Stage(folder / "prepare", json.loads(json.dumps(facts)), 0)


# --- the same as a run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validation", [False, True])
def test_rows_answers_and_overlaps_are_those_that_a_run_prepares(
    helpdesk: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], validation: bool
) -> None:
    files = overlapping(helpdesk, tmp_path)
    if validation:
        text = "".join(helpdesk["test"].read_text().splitlines(keepends=True)[:3])
        files["validation"] = tmp_path / "validation.jsonl"
        files["validation"].write_text(text + helpdesk["labeled"].read_text().splitlines(keepends=True)[4])
    told = found(capsys, files, "--seed=3")
    job = job_of(files, seed=3)
    (tmp_path / "prepared").mkdir()
    facts = json.loads(json.dumps(stages.prepare(job)(tmp_path / "prepared", no_progress)))
    assert {role: one["used"] for role, one in told["files"].items()} | {"validation": told["held_out"] or 1} == facts[
        "rows"
    ]
    assert told["overlaps"] == facts["overlaps"]
    assert sum(one["rows"] for one in told["overlaps"]["left_out"]) == (7 if validation else 3)
    assert told["answers"] == facts["answers"] | {"mix": facts["answer_mix"]}
    assert told["held_out"] == facts["held_out"]


def test_lengths_and_mask_are_those_that_training_sees(helpdesk: Files, capsys: pytest.CaptureFixture[str]) -> None:
    told = found(capsys, helpdesk | {"validation": helpdesk["test"]} | {"test": helpdesk["labeled"]}, code=2)
    assert [fault["problems"][0]["code"] for fault in told["problems"]] == ["nothing_left"]
    files = {"labeled": helpdesk["labeled"], "validation": helpdesk["test"]}
    told = found(capsys, files)
    chat, rows = Chat.load(str(BASE), None), read_labeled(helpdesk["labeled"])
    encoded = [chat.encode((*row.prompt, Message("assistant", row.labeled_reply))) for row in rows]
    lengths = [len(one.input_ids) for one in encoded]
    assert told["lengths"]["labeled"]["max"] == max(lengths)
    assert told["lengths"]["labeled"]["rows"] == len(rows)
    read = sum(lengths) * read_recipe(BASE / MODEL_RECIPE)["warmup"]["epochs"]
    assert told["estimate"]["tokens"]["trained"] == told["estimate"]["stages"]["warm-up"]["tokens"] == round(read)
    mask = told["loss_mask"]["tokens"]
    assert [seen for _, seen in mask] == [label != -100 for label in encoded[0].labels]
    assert "".join(text for text, seen in mask if seen) == f" {rows[0].labeled_reply}</s>"


@pytest.mark.parametrize("retriever", ["bm25", "sentence-transformers/all-MiniLM-L6-v2"])
def test_worked_examples_are_those_that_a_run_finds(
    helpdesk: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], retriever: str
) -> None:
    told = found(capsys, helpdesk, f"--set=propagation.retriever={retriever}")["worked_examples"]
    job = job_of(helpdesk, propagation={"retriever": retriever})
    (tmp_path / "prepare").mkdir()
    prepared = Stage(
        tmp_path / "prepare", json.loads(json.dumps(stages.prepare(job)(tmp_path / "prepare", no_progress))), 0
    )
    data, pending = stages.Prepared.of(prepared), stages.Pending.of(prepared, job.recipe)
    stages.find_neighbours(data, LocalBackend(str(BASE), job.recipe), pending, job)(tmp_path, no_progress)
    lines = [row.line for row in read_examples(data.train)]
    with np.load(tmp_path / "00000.npz") as near:
        assert [one["line"] for one in told["found"]] == [lines[index] for index in near["indices"][0][:3]]
        assert [one["similarity"] for one in told["found"]] == pytest.approx(near["similarities"][0][:3], abs=1e-3)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("propagation.retriever=no/such-model", "needs a download"),
        ("propagation.retriever=hidden", "needs the base model's weights"),
        ("propagation.in_context=false", "propagation.in_context is off"),
    ],
)
def test_worked_examples_that_cannot_be_looked_up_are_explained(
    helpdesk: Files, capsys: pytest.CaptureFixture[str], setting: str, said: str
) -> None:
    assert said in found(capsys, helpdesk, f"--set={setting}")["worked_examples"]["missing"]


def test_weights_are_not_needed(helpdesk: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((BASE / name).read_bytes())
    assert found(capsys, helpdesk, model=model)["lengths"]["test"]["rows"] == 40


def test_rows_that_do_not_fit_are_told_with_what_becomes_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "word " * 60
    rows = [("a", "yes"), ("b", "no"), (long, "yes"), ("c", "no")]
    files = {role: tmp_path / f"{role}.jsonl" for role in ("labeled", "unlabeled", "validation")}
    files["labeled"].write_text("".join(chat_line(*row) for row in rows))
    files["unlabeled"].write_text(chat_line("d") + chat_line("e " + long) + chat_line("f " + long))
    files["validation"].write_text(chat_line("g", "no") + chat_line("h " + long, "yes"))
    told = found(capsys, files, "--set=model.max_length=48")
    assert told["limit"] == 48
    assert told["too_long"] == [
        {"role": "labeled", "fate": "cut", "rows": 1, "lines": [3]},
        {"role": "unlabeled", "fate": "rejected", "rows": 2, "lines": [2, 3]},
        {"role": "validation", "fate": "wrong", "rows": 1, "lines": [2]},
    ]
    assert found(capsys, files, "--set=model.max_length=4096")["limit"] == 2048  # the model's own positions


def test_a_run_expects_what_validate_told(helpdesk: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = found(capsys, helpdesk)["estimate"]
    job = job_of(helpdesk, **read_recipe(BASE / MODEL_RECIPE))
    backend = LocalBackend(str(BASE), job.recipe)
    history = History.of(str(BASE), job.recipe.model, backend.device)
    prepared = prepare(replace(job, estimator=history.estimator(backend.lengths)), tmp_path)
    assert prepared.facts["estimate"] == told
    assert told["seconds"] == pytest.approx(sum(one["seconds"] for one in told["stages"].values()), rel=0.01)
    assert told["gpu_memory_bytes"] > 1024**3


def test_validate_says_what_a_run_takes(
    helpdesk: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where nothing was learned from other tests' runs
    estimate = found(capsys, helpdesk)["estimate"]
    assert cli.main(arguments(helpdesk)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{sum(estimate['tokens'].values()):,} tokens and" in shown
    assert "GPU memory. The time is a guess from the model's size" in shown
    assert f"Generate answers {estimate['stages']['round-1/generate']['tokens']:,}" in shown


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path) -> Files:
    files = {role: tmp_path / f"{role}.jsonl" for role in ("labeled", "unlabeled", "test")}
    files["labeled"].write_text(chat_line("a", "yes") + "nonsense\n" + chat_line("b", "no"))
    files["unlabeled"].write_text(chat_line("c") + chat_line("d", "yes") * 30)
    files["test"].write_text(chat_line("e", "no"))
    return files | {"validation": tmp_path / "nowhere.jsonl"}


def test_everything_that_is_wrong_is_told_before_anything_heavy_is_imported(broken: Files) -> None:
    files = {role: Path(path.name) for role, path in broken.items()}
    command = arguments(files, "--set=selection.thet=1", model="./no-model")
    heavy = ["torch", "transformers", "numpy", "pyarrow"]
    code = f"""
import sys
from semievol.cli import main
code = main({command!r})
assert not set({heavy!r}) & sys.modules.keys()
sys.exit(code)
"""
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False, cwd=broken["labeled"].parent)
    assert (result.returncode, result.stderr) == (2, "")
    for said in (
        "selection.thet: there is no such setting",
        "there is no folder ./no-model",
        "labeled.jsonl cannot be used:\n  line 2: not JSON",
        "unlabeled.jsonl cannot be used:\n  lines 2-21: ",
        "\n  … and 10 more\n",
        "nowhere.jsonl cannot be used:\n  there is no such file\n",
        "34 problems in 5 places. Nothing was started.",
    ):
        assert said in result.stdout


def test_replies_and_rows_that_the_labels_do_not_explain_are_problems_by_line(
    helpdesk: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, validation = tmp_path / "test.jsonl", tmp_path / "validation.jsonl"
    test.write_text(chat_line("x", "billing") + chat_line("y", "gardening"))
    validation.write_text(chat_line("z", "cooking"))
    told = found(capsys, helpdesk | {"test": test, "validation": validation}, code=2)
    assert [(Path(one["where"]).name, one["problems"][0]["line"]) for one in told["problems"]] == [
        ("test.jsonl", 2),
        ("validation.jsonl", 1),
    ]
    assert told["files"]["test"]["rows"] == 2
    assert told["lengths"] == {}


def test_a_recipe_that_does_not_fit_the_labels_is_a_problem(
    helpdesk: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    told = found(capsys, helpdesk, "--set=answers.kind=number", code=2)
    assert [(one["where"], one["problems"][0]["code"]) for one in told["problems"]] == [("recipe", "invalid_recipe")]
    assert "24 of 24 labeled replies cannot be read" in told["problems"][0]["problems"][0]["message"]


def test_a_model_without_a_tokenizer_is_a_problem(
    helpdesk: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes((BASE / "config.json").read_bytes())
    told = found(capsys, helpdesk, code=2, model=tmp_path)
    assert [one["where"] for one in told["problems"]] == ["model"]
    assert told["answers"]["kind"] == "choice"  # what the files say is told all the same


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_it_fits_a_hundred_columns_and_writes_nothing(
    helpdesk: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    files = overlapping(helpdesk, tmp_path / "data")
    assert cli.main(arguments(files, "--set=selection.theta=0.5")) == 0
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\r\b")
    assert max(map(len, printed.splitlines())) <= 100
    for said in (
        "choice, as the labeled rows show",
        "Left out, so that no row",
        "Answer:« ",
        "|</s>»",
        "The most alike first, by sentence-transformers/all-MiniLM-L6-v2.",
        "from --set selection.theta=0.5:",
        "What a run takes",
        "Nothing is wrong.",
    ):
        assert said in printed, said
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_settings_come_with_their_source(helpdesk: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("preset: paper\nwarmup: {epochs: 5, learning_rate: 2e-3}\n")
    told = found(capsys, helpdesk, f"--recipe={recipe}", "--set=warmup.epochs=7", "--set=rounds=1")
    assert told["changed"]["warmup.epochs"] == {"value": 7.0, "default": 2.0, "source": "--set warmup.epochs=7"}
    assert told["changed"]["warmup.learning_rate"]["source"] == str(recipe)
    assert told["changed"]["selection.theta"] == {"value": 0.5, "default": 0.75, "source": "preset paper"}
    assert told["changed"]["evolution.steps"]["source"].endswith("(comes with the model)")
    assert "rounds" not in told["changed"]
    assert told["recipe"]["rounds"] == 1


def test_all_settings_on_request(helpdesk: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments({"labeled": helpdesk["labeled"]}, "--full")) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in Recipe().flat())


def test_colour_stands_beside_the_marks_never_for_them() -> None:
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, color_system="standard", width=100)
    mask = {"line": 1, "tokens": [("Hi ", False), ("there:", False), (" y", True), ("es</s>", True)]}
    show._loss_mask({"loss_mask": mask}, console)
    assert "\x1b[1;32m« y|es</s>»" in drawn.getvalue()
    assert "4 tokens; the loss sees the 2 between" in drawn.getvalue()


def test_the_middle_of_a_long_prompt_is_left_out() -> None:
    tokens = [(f"{number} ", False) for number in range(1000)] + [("yes", True)]
    text = show._chat(tokens).plain
    assert text.startswith("0 1 2 ")
    assert " … " in text
    assert text.endswith("998 999 «yes»")
    assert len(text) < show.PROMPT_CHARACTERS + 20


@pytest.mark.parametrize(
    ("numbers", "told"), [([1], ["1"]), ([1, 2, 3, 5], ["1-3", "5"]), ([4, 9, 10], ["4", "9-10"]), ([], [])]
)
def test_lines_that_follow_one_another_are_a_range(numbers: list[int], told: list[str]) -> None:
    assert show._ranges(numbers) == told


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_quantiles_are_lengths_that_occur() -> None:
    told = lengths_of([*range(1, 101)])
    assert (told.rows, told.p50, told.p90, told.p99, told.max, told.mean) == (100, 51, 91, 100, 100, 50.5)
    assert lengths_of([7]).p50 == lengths_of([7]).p99 == 7
