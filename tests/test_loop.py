"""The whole loop on the real tiny model, through the command line, as a user runs it."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol import summary
from semievol.backends.local import LocalBackend
from semievol.examples import stream_unlabeled
from semievol.fakes import FakeObserver
from semievol.pipeline import Job, run
from semievol.prompts import question_of
from semievol.recipe import MODEL_RECIPE, Recipe, parse_setting, read_recipe
from semievol.workdir import sha256_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
BASE = str(ROOT / "demo" / "base")
SHARED = ROOT.parent / "shared" / "data"
QUICK = ("warmup.steps=8", "evolution.steps=8", "generation.n=2", "generation.max_new_tokens=8", "model.device=cpu")


def semievol_run(data: dict[str, Path], output: Path, *settings: str, seed: int = 5) -> None:
    files = [part for role, path in data.items() for part in (f"--{role}", str(path))]
    sets = [part for setting in (*QUICK, *settings) for part in ("--set", setting)]
    command = [sys.executable, "-m", "semievol", "run", "--model", BASE, *files, "--seed", str(seed), *sets]
    done = subprocess.run(
        [*command, "--output", str(output)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def helpdesk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("helpdesk")
    write(folder, HELPDESK, draw(HELPDESK, 79, 24, 60, 40))
    return {name: folder / f"{name}.jsonl" for name in ("labeled", "unlabeled", "test")}


@pytest.mark.long
def test_the_same_command_twice_gives_the_same_bytes(helpdesk: dict[str, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        semievol_run(helpdesk, tmp_path / name, "generation.shard_size=25")
    for file in ("pseudo_labels.parquet", "adapter/adapter_model.safetensors"):
        assert sha256_of(tmp_path / "one" / file) == sha256_of(tmp_path / "two" / file)


@pytest.mark.long
def test_rounds_go_on_over_the_rows_not_yet_trusted(helpdesk: dict[str, Path], tmp_path: Path) -> None:
    semievol_run(helpdesk, tmp_path / "run", "rounds=2", "evaluation.deliver=evolved")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    first, second = (report["rounds"] + [None])[:2]
    assert second is None or second["decisions"]["accept"] + second["decisions"]["reject"] == first["pending"]
    labels = pq.read_table(tmp_path / "run" / "pseudo_labels.parquet").to_pylist()
    assert len(labels) == len({label["id"] for label in labels}) == 60


@pytest.mark.long
def test_retrieval_needs_no_download(helpdesk: dict[str, Path], tmp_path: Path) -> None:
    semievol_run(helpdesk, tmp_path / "run", "propagation.retriever=hidden", "generation.collaboration=false")
    labels = pq.read_table(tmp_path / "run" / "pseudo_labels.parquet").to_pylist()
    assert all(len(label["trials"][0]["worked_examples"]) == 3 for label in labels)


@pytest.mark.long
def test_poisoned_pseudo_labels_do_not_reach_the_user(tmp_path: Path) -> None:
    """Every pseudo-label names the wrong queue, so SemiEvol validates worse: the bytes of SFT are delivered."""
    drawn = draw(HELPDESK, 79, 48, 60, 80)
    write(tmp_path, HELPDESK, drawn)
    rows = (tmp_path / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in (("validation", rows[:40]), ("measured", rows[40:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    queues = HELPDESK.answers
    wrong = {row.text: queues[(queues.index(row.answer) + 1) % len(queues)] for row in drawn.unlabeled}
    poison = [
        {"round": 1, "id": row.id, "answer": wrong[question_of(row.prompt)]}
        for row in stream_unlabeled(tmp_path / "unlabeled.jsonl")
    ]
    (tmp_path / "poison.jsonl").write_text("".join(json.dumps(edit) + "\n" for edit in poison), encoding="utf-8")
    settings = ("warmup.steps=40", "evolution.steps=40", "generation.n=2", "model.device=cpu")
    job = Job(
        model=BASE,
        labeled=tmp_path / "labeled.jsonl",
        unlabeled=tmp_path / "unlabeled.jsonl",
        validation=tmp_path / "validation.jsonl",
        test=tmp_path / "measured.jsonl",
        recipe=Recipe.resolve(read_recipe(Path(BASE) / MODEL_RECIPE), *map(parse_setting, settings)),
        review=True,
        reviewed=tmp_path / "poison.jsonl",
    )
    out = tmp_path / "out"
    report = run(job, LocalBackend(BASE, job.recipe), out, FakeObserver())
    assert report["validation"]["semievol"]["value"] < report["validation"]["sft"]["value"]
    assert report["decisions"]["accept"] == 60
    assert (report["best"], report["delivered"]) == ("sft", "sft")
    weights = "adapter_model.safetensors"
    sft, evolved = (out / "stages" / name / "adapter" / weights for name in ("warm-up", "round-1/train"))
    assert sha256_of(out / "adapter" / weights) == sha256_of(sft) != sha256_of(evolved)
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["delivered"] == "sft"
    printed = io.StringIO()
    summary.show(report, out, Console(file=printed, width=100))
    said = "The SFT adapter is delivered: SemiEvol's validates worse"
    assert said in printed.getvalue()
    assert said.replace("'", "&#39;") in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the paper's FPB and ARC files are not beside this checkout")
@pytest.mark.long
@pytest.mark.parametrize(("task", "preset"), [("fpb", "paper"), ("arc", "default")])
def test_the_papers_own_files_run_as_they_are(task: str, preset: str, tmp_path: Path) -> None:
    data = {name: SHARED / task / f"{name}.csv" for name in ("labeled", "unlabeled", "test")}
    quick = ("generation.worked_examples=shared", "propagation.k=2", "propagation.retriever=bm25")
    semievol_run(data, tmp_path / "run", f"preset={preset}", *quick)
    labels = pq.read_table(tmp_path / "run" / "pseudo_labels.parquet").to_pylist()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert len(labels) == report["rows"]["unlabeled"] == {"fpb": 1357, "arc": 1554}[task]
    left_out = [(one["role"], one["also_in"], one["rows"]) for one in report["overlaps"]["left_out"]]
    assert left_out == {"fpb": [("labeled", "test", 1), ("unlabeled", "labeled", 2)], "arc": []}[task]
    assert {label["decision"] for label in labels} == {"accept", "reject"}
    assert all(label["reason"] for label in labels)
    assert all(len(label["trials"][0]["worked_examples"]) == 2 for label in labels)
    assert report["accuracy"]["semievol"]["n"] == {"fpb": 453, "arc": 518}[task]
