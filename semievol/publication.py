"""The files that a user gets: made in the job's last stage, then put where the user looks."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semievol import page, report
from semievol.evidence import Watched
from semievol.outcome import Verdict, final_labels
from semievol.ports import Backend, Progress
from semievol.selection import measure_of
from semievol.stages import ADAPTER, Prepared
from semievol.tables import PSEUDO_LABELS, write_rows
from semievol.workdir import Stage, StageWork, partial_of, write_whole

if TYPE_CHECKING:
    from semievol.pipeline import Job

LABELS = "pseudo_labels.parquet"
PAGE = "report.html"
REPORT = "report.json"


def publish(job: "Job", data: Prepared, backend: Backend, verdict: Verdict, done: Mapping[str, Stage]) -> StageWork:
    """Gather what the user gets: adapter, report and, where rows were labeled, the pseudo-labels."""

    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        watched = Watched(measure_of(data.answers, job.recipe))
        shutil.copytree(verdict.delivered(job.recipe).folder / ADAPTER, folder / ADAPTER)
        if verdict.best_round is not None:
            labels = final_labels(verdict.rounds[: verdict.best_round.number])
            write_rows(folder / LABELS, PSEUDO_LABELS, watched.watch(labels), 1024)
        told = report.build(job, data, verdict, watched, done, backend.provenance())
        write_whole(folder / PAGE, page.render_html(told).encode())
        write_whole(folder / REPORT, json.dumps(told, indent=2, ensure_ascii=False).encode())
        return {"delivered": told["delivered"], "accuracies": told["accuracy"]}

    return work


def hand_out(published: Stage, output: Path) -> None:
    """Put what was published where the user looks: nothing appears before all of it is there to be renamed."""
    names = [name for name in (ADAPTER, LABELS, PAGE, REPORT) if (published.folder / name).exists()]
    partials = {name: partial_of(output / name) for name in names}
    try:
        for name, partial in partials.items():
            _remove(partial)
            _copy(published.folder / name, partial)
        for name, partial in partials.items():
            _remove(output / name)
            partial.rename(output / name)
    except BaseException:
        for partial in partials.values():
            _remove(partial)
        raise


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
