"""The command: arguments, errors and exit codes, progress, and what it prints at the end."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from demo.__main__ import start_over
from semievol import cli, pipeline, progress, summary, wording
from semievol.errors import ModelError
from semievol.fakes import FakeBackend
from semievol.recipe import Recipe

LABELS = [("the bill is too high", "billing"), ("the parcel is late", "delivery")]


def write_chats(path: Path, rows: list[tuple[str, str | None]]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for question, reply in rows:
            turns = [{"role": "user", "content": question}]
            turns += [{"role": "assistant", "content": reply}] if reply else []
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    labeled = [(f"{question} {number}", reply) for number in range(5) for question, reply in LABELS]
    unlabeled: list[tuple[str, str | None]] = [
        (f"{question} item {n}", None) for n in range(12) for question, _ in LABELS
    ]
    test = [(f"{question} again {number}", reply) for number in range(3) for question, reply in LABELS]
    return {
        "labeled": write_chats(tmp_path / "labeled.jsonl", [*labeled]),
        "unlabeled": write_chats(tmp_path / "unlabeled.jsonl", unlabeled),
        "test": write_chats(tmp_path / "test.jsonl", [*test]),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def fake_backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """The command runs over doubles: no torch."""
    backend = FakeBackend()
    monkeypatch.setattr(cli, "build_backend", lambda *_: backend)
    return backend


def arguments(model: Path, files: dict[str, Path], output: Path, *more: str) -> list[str]:
    given = [f"--{role}={path}" for role, path in files.items()]
    sets = ["--set=generation.shard_size=10", "--set=evaluation.holdout=0.2"]
    return ["run", f"--model={model}", *given, f"--output={output}", *sets, *more]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    heavy = ["torch", "transformers", "numpy", "pyarrow", "scipy", "peft", "jinja2"]
    result = run_python(
        f"import sys; from semievol.cli import main; code = main({command!r}); "
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    assert result.returncode == 0
    assert result.stderr.strip() == "[]"
    assert "semievol" in result.stdout


def test_module_is_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "semievol", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout.split()[0]) == (0, "semievol")


# --- wrong input ------------------------------------------------------------------------------------------------------


def test_wrong_path_is_told_before_anything_heavy_is_imported(model: Path, files: dict[str, Path]) -> None:
    command = arguments(model, files | {"labeled": Path("nowhere.jsonl")}, Path("unused"))
    result = run_python(
        f"import sys; from semievol.cli import main; code = main({command!r}); "
        "assert not {'torch', 'numpy', 'pyarrow'} & sys.modules.keys(); sys.exit(code)"
    )
    assert result.returncode == 2
    assert result.stderr == "semievol: nowhere.jsonl cannot be used:\n  there is no such file\n"
    assert not Path("unused").exists()


def test_problems_come_with_their_lines(
    model: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files["unlabeled"].write_text('{"messages": [{"role": "user", "content": "fine"}]}\n{"messages": []}\n')
    assert cli.main(arguments(model, files, tmp_path / "out")) == 2
    assert "line 2:" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("selection.thet=1", "selection.thet: there is no such setting"),
        ("selection.theta=2", "selection.theta: "),
        ("theta", "key=value"),
    ],
)
def test_wrong_setting_is_named(
    setting: str, message: str, model: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(model, files, tmp_path / "out", f"--set={setting}")) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "two words", "../up", ""])
def test_model_is_a_folder_or_a_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError):
        cli.check_model(name)


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B"])
def test_hub_ids_pass(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli.check_model(name)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_later_layers_win(model: Path, tmp_path: Path) -> None:
    (model / "semievol_recipe.yaml").write_text("rounds: 2\nselection: {theta: 0.1}\nwarmup: {epochs: 9}\n")
    recipe = tmp_path / "mine.json"
    recipe.write_text('{"selection": {"theta": 0.2}, "rounds": 3}')
    layers = cli.read_layers(str(model), recipe, ["selection.theta=0.3"])
    resolved = Recipe.resolve(*layers.values())
    assert (resolved.warmup.epochs, resolved.rounds, resolved.selection.theta) == (9, 3, 0.3)
    assert "comes with the model" in next(iter(layers))


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake_backend")
def test_run_prints_plain_lines_and_the_table(
    model: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert cli.main(arguments(model, files, output)) == 0
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\r\b")
    assert "Generate answers, shard 2 of 3: 20/24 rows" in printed
    assert printed.count("Generate answers ...") == 1
    report = json.loads((output / "report.json").read_text())
    for name in report["accuracy"]:
        assert f"{100 * report['accuracy'][name]['value']:.1f} %" in printed
    assert str(output / "adapter") in printed
    assert "PeftModel.from_pretrained" in printed
    assert "2 validation rows held out of the labeled file" in printed
    assert "Caution: " in printed


@pytest.mark.usefixtures("fake_backend")
def test_second_run_says_what_an_earlier_one_did(
    model: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(model, files, tmp_path / "out")
    cli.main(command)
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "Generate answers: 24 rows, done by an earlier run" in capsys.readouterr().out


@pytest.mark.usefixtures("fake_backend")
def test_quiet_prints_the_result_only(
    model: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(model, files, tmp_path / "out", "--quiet")) == 0
    printed = capsys.readouterr().out
    assert "..." not in printed
    assert "95 % interval" in printed


@pytest.mark.usefixtures("fake_backend")
def test_another_runs_folder_is_refused(
    model: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(arguments(model, files, tmp_path / "out"))
    assert cli.main(arguments(model, files, tmp_path / "out", "--seed=5")) == 2
    assert "seed: 0 there, 5 now" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_with_their_exit_code(
    number: signal.Signals,
    model: Path,
    files: dict[str, Path],
    tmp_path: Path,
    fake_backend: FakeBackend,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), number)
        time.sleep(5)

    command = arguments(model, files, tmp_path / "out")
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(fake_backend.fake_trainer, "train", interrupted)
        assert cli.main(command) == 128 + number
    assert "the same command continues" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    assert cli.main(command) == 0
    assert "Check the files: 8 labeled, 24 unlabeled, 2 validation, 6 test, done" in capsys.readouterr().out


@pytest.mark.usefixtures("fake_backend")
def test_rows_that_were_left_out_are_told(
    model: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files["labeled"].open("a") as labeled:
        labeled.write(files["test"].read_text().splitlines(keepends=True)[0])
    assert cli.main(arguments(model, files, tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert "Check the files: 8 labeled, 24 unlabeled, 2 validation, 6 test, 1 left out" in printed
    assert "1 labeled row (line 11) also in the test file." in printed


# --- progress ---------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def follow(tracker: progress.Tracker, clock: Clock, *, resumed: bool) -> progress.View:
    """1,600 rows in shards of 400: the first is done, the second goes on at 95 rows a second."""
    tracker.started("prepare")
    tracker.finished("prepare", {"rows": {"unlabeled": 1600}}, resumed=False)
    tracker.started("round-1/generate-00000")
    if not resumed:
        tracker.progressed("round-1/generate-00000", 400, 400)
    assert not tracker.finished("round-1/generate-00000", {}, resumed=resumed)
    assert not tracker.started("round-1/generate-00001")
    for step in range(3):
        tracker.progressed("round-1/generate-00001", 95 * step, 400)
        clock.now += 1
    assert tracker.view is not None
    return tracker.view


@pytest.mark.parametrize("resumed", [False, True])
def test_shards_share_a_line(resumed: bool) -> None:
    clock = Clock()
    view = follow(progress.Tracker(400, clock), clock, resumed=resumed)
    assert view.title() == "Generate answers, shard 2 of 4"
    assert view.figures() == "590/1,600 rows, 95 rows/s, 0:11 left"


def test_rows_of_one_batch_make_no_rate() -> None:
    clock = Clock()
    tracker = progress.Tracker(400, clock)
    tracker.started("base")
    clock.now += 10
    for done in range(1, 65):
        tracker.progressed("base", done, 640)
        clock.now += 0.001
    assert tracker.view is not None
    assert tracker.view.figures() == "64/640 rows, 6.4 rows/s, 1:30 left"


def test_rows_of_an_earlier_run_are_told_apart() -> None:
    clock = Clock()
    tracker = progress.Tracker(400, clock)
    view = follow(tracker, clock, resumed=True)
    for shard in (1, 2, 3):
        tracker.started(f"round-1/generate-{shard:05d}")
        last = tracker.finished(f"round-1/generate-{shard:05d}", {}, resumed=False)
    assert last
    said = progress.result("round-1/generate-00003", {}, view, clock.now)
    assert said == "1,600 rows, 400 of them by an earlier run, 3.0 s"


def test_second_round_counts_the_rows_left() -> None:
    tracker = progress.Tracker(400, Clock())
    tracker.started("round-1/select")
    tracker.finished("round-1/select", {"pending": 500}, resumed=False)
    tracker.started("round-2/generate-00000")
    assert tracker.view is not None
    assert (tracker.view.label, tracker.view.total, tracker.view.shards) == ("Round 2: Generate answers", 500, 2)


def test_terminals_get_a_moving_line(files: dict[str, Path], tmp_path: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120, color_system=None, legacy_windows=False)
    job = pipeline.Job("model", files["labeled"], files["unlabeled"], Recipe(), 0, None, files["test"])
    with progress.display(console, 512, quiet=False) as display:
        assert isinstance(display, progress.Bars)
        outcome = pipeline.run(job, FakeBackend(), tmp_path / "out", display)
        display.stage_started("warm-up")
        display.stage_progress("warm-up", 5, 20)
        display.stage_progress("warm-up", 5, 20, 0.4567)
        display.live.refresh()
    summary.show(outcome, tmp_path / "out", console)
    assert "Select pseudo-labels" in text.getvalue()
    assert "5/20 steps, loss 0.457" in text.getvalue()


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("base", "Measure the base model"),
        ("round-1/generate-00003", "Generate answers"),
        ("round-12/train", "Round 12: Fine-tune on labels and pseudo-labels"),
        ("warm-up-validation", "Validate SFT"),
        ("new-stage", "new-stage"),
    ],
)
def test_stage_labels(path: str, label: str) -> None:
    assert wording.stage_label(path) == label
    assert wording.work_label(path) == label


def test_units_have_words_too() -> None:
    names = ("propagate", "round-1/propagate", "round-2/propagate", "round-2/train", "evaluate", "other/propagate")
    assert [wording.work_label(name) for name in names] == [
        "Propagate the labels",
        "Propagate the labels",
        "Round 2: Propagate the labels",
        "Round 2: Fine-tune on labels and pseudo-labels",
        "Measure and publish",
        "other/propagate",
    ]


@pytest.mark.parametrize(
    ("name", "noun"),
    [
        ("prepare", "row"),
        ("warm-up", "step"),
        ("warm-up-validation", "row"),
        ("round-1/generate", "shard"),
        ("round-1/generate-00003", "row"),
        ("round-2/train", "step"),
    ],
)
def test_what_stages_count(name: str, noun: str) -> None:
    assert wording.counted(name) == noun


def test_a_training_shows_its_newest_loss() -> None:
    clock = Clock()
    tracker = progress.Tracker(400, clock)
    tracker.started("warm-up")
    for step in range(1, 5):
        clock.now += 1
        tracker.progressed("warm-up", step, 40)
        if step % 2 == 1:
            tracker.progressed("warm-up", step, 40, 2 / step)
    assert tracker.view is not None
    assert tracker.view.figures() == "4/40 steps, 1.0 steps/s, 0:36 left, loss 0.667"
    tracker.started("warm-up-validation")
    tracker.progressed("warm-up-validation", 4, 40)
    assert tracker.view.figures() == "4/40 rows"


# --- the demo's folder ------------------------------------------------------------------------------------------------


def test_demo_removes_only_what_a_demo_made(tmp_path: Path) -> None:
    output = tmp_path / "demo-output"
    (output / "data").mkdir(parents=True)
    (output / "run" / "stages").mkdir(parents=True)
    (output / "run" / "stages" / "job.json").write_text("{}")
    start_over(output)
    assert not output.exists()


@pytest.mark.parametrize("name", ["thesis.txt", "run/thesis.txt"])
def test_demo_leaves_other_folders_alone(name: str, tmp_path: Path) -> None:
    path = tmp_path / "demo-output" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        start_over(tmp_path / "demo-output")
    assert path.exists()
