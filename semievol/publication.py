"""The files that a user gets: made in the job's last stage, then put where the user looks."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semievol import page, report
from semievol.outcome import Verdict, final_labels
from semievol.ports import Backend, Progress
from semievol.stages import ADAPTER, Prepared
from semievol.tables import PSEUDO_LABELS, write_rows
from semievol.workdir import Stage, StageWork, write_whole

if TYPE_CHECKING:
    from semievol.pipeline import Job

LABELS = "pseudo_labels.parquet"
PAGE = "report.html"
REPORT = "report.json"


def publish(job: "Job", data: Prepared, backend: Backend, verdict: Verdict, done: Mapping[str, Stage]) -> StageWork:
    """Gather what the user gets: adapter, report and, where rows were labeled, the pseudo-labels."""

    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        told = report.build(job, data, verdict, done, backend.provenance())
        shutil.copytree(verdict.delivered(job.recipe).folder / ADAPTER, folder / ADAPTER)
        if verdict.best_round is not None:
            labels = final_labels(verdict.rounds[: verdict.best_round.number])
            write_rows(folder / LABELS, PSEUDO_LABELS, labels, 1024)
        write_whole(folder / PAGE, page.render_html(told).encode())
        write_whole(folder / REPORT, json.dumps(told, indent=2, ensure_ascii=False).encode())
        return {"delivered": told["delivered"], "accuracies": told["accuracy"]}

    return work


def hand_out(published: Stage, output: Path) -> None:
    """Put what was published where the user looks; each part appears whole or not at all."""
    for name in (ADAPTER, LABELS, PAGE, REPORT):
        source, partial, target = published.folder / name, output / f"{name}.partial", output / name
        if source.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source, partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        elif source.exists():
            shutil.copyfile(source, partial)
            partial.replace(target)
