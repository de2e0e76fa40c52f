"""The whole loop on the real tiny model, through the command line, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from demo.generate import draw, write
from demo.tasks import HELPDESK
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


def test_the_same_command_twice_gives_the_same_bytes(helpdesk: dict[str, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        semievol_run(helpdesk, tmp_path / name, "generation.shard_size=25")
    for file in ("pseudo_labels.parquet", "adapter/adapter_model.safetensors"):
        assert sha256_of(tmp_path / "one" / file) == sha256_of(tmp_path / "two" / file)


def test_rounds_go_on_over_the_rows_not_yet_trusted(helpdesk: dict[str, Path], tmp_path: Path) -> None:
    semievol_run(helpdesk, tmp_path / "run", "rounds=2", "evaluation.deliver=evolved")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    first, second = (report["rounds"] + [None])[:2]
    assert second is None or second["decisions"]["accept"] + second["decisions"]["reject"] == first["pending"]
    labels = pq.read_table(tmp_path / "run" / "pseudo_labels.parquet").to_pylist()
    assert len(labels) == len({label["id"] for label in labels}) == 60


def test_retrieval_needs_no_download(helpdesk: dict[str, Path], tmp_path: Path) -> None:
    semievol_run(helpdesk, tmp_path / "run", "propagation.retriever=hidden", "generation.collaboration=false")
    labels = pq.read_table(tmp_path / "run" / "pseudo_labels.parquet").to_pylist()
    assert all(len(label["trials"][0]["worked_examples"]) == 3 for label in labels)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the paper's FPB and ARC files are not beside this checkout")
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
