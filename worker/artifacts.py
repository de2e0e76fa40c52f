"""The files that a client downloads, made from what the pipeline published. The same job gives the same bytes."""

import csv
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from semievol.ports import Progress
from semievol.publication import LABELS, PAGE, REPORT
from semievol.stages import ADAPTER
from semievol.tables import read_rows, row_count
from semievol.workdir import Stage, StageWork

ADAPTER_ZIP = "adapter.zip"
LABEL_LINES = "pseudo_labels.jsonl"
STEP_METRICS = "step_metrics.csv"
RESULTS = (ADAPTER_ZIP, STEP_METRICS, LABEL_LINES, PAGE)
"""Result files of a job, in order; plain fine-tuning has no labels."""
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def export(published: Stage) -> StageWork:
    """Pack the adapter, write the labels as JSON lines and the losses as CSV."""

    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        pack(published.folder / ADAPTER, folder / ADAPTER_ZIP)
        report = json.loads((published.folder / REPORT).read_text(encoding="utf-8"))
        write_step_metrics(report["training"], folder / STEP_METRICS)
        labels = published.folder / LABELS
        if labels.exists():
            write_lines(labels, folder / LABEL_LINES, progress)
        shutil.copyfile(published.folder / PAGE, folder / PAGE)
        return {"trained_tokens": sum(training["tokens"] for training in report["training"].values())}

    return work


def pack(folder: Path, target: Path) -> None:
    """A zip of the folder's files with neither times nor owners. Stored, not deflated: weights do not shrink."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), ZIP_EPOCH)
            entry.external_attr = 0o644 << 16
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as sink:
                shutil.copyfileobj(source, sink, 1024 * 1024)


def write_step_metrics(trainings: dict[str, Any], target: Path) -> None:
    """One line per logged step: stage, step, train_loss."""
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["stage", "step", "train_loss"])
        for stage, training in trainings.items():
            writer.writerows([stage, step, loss] for step, loss in training["losses"])


def write_lines(source: Path, target: Path, progress: Progress) -> None:
    """Pseudo-labels as JSON lines, a row a line, in the order of the Parquet file."""
    total = row_count(source)
    with target.open("w", encoding="utf-8") as file:
        for done, record in enumerate(read_rows(source), start=1):
            file.write(json.dumps(_without_nan(record), ensure_ascii=False) + "\n")
            if done % 1000 == 0:
                progress(done, total)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN; what has no value is null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value  # noqa: PLR0124
