"""What a run comes to: how good each model is on held-out rows, which adapter is handed out, and the files for it."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semievol.evaluation import Prediction, accuracy, mcnemar, predict, prediction_record
from semievol.ports import Backend, Progress
from semievol.recipe import Recipe
from semievol.stages import ADAPTER, DECIDED, Prepared, Round
from semievol.tables import PSEUDO_LABELS, read_examples, read_rows, write_rows
from semievol.workdir import Stage, StageWork, write_whole

if TYPE_CHECKING:
    from semievol.pipeline import Job

PREDICTIONS = "predictions.json"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The stages that decide what is delivered, and those that measure it on the test rows."""

    base: Stage
    sft: Stage
    evolved: Stage
    sft_validation: Stage
    evolved_validation: Stage
    sft_test: Stage
    evolved_test: Stage

    @property
    def best(self) -> str:
        """Which adapter validates better; a tie is SemiEvol's."""
        sft = self.sft_validation.facts["accuracy"]["value"]
        return "sft" if self.evolved_validation.facts["accuracy"]["value"] < sft else "semievol"

    def delivered_name(self, recipe: Recipe) -> str:
        """What is handed out: `sft` or `semievol`."""
        return self.best if recipe.evaluation.deliver == "best" else "semievol"

    def delivered(self, recipe: Recipe) -> Stage:
        """The stage whose adapter is handed out."""
        return self.sft if self.delivered_name(recipe) == "sft" else self.evolved


def validate_model(data: Prepared, backend: Backend, trained: Stage | None, job: "Job") -> StageWork:
    """Greedy accuracy on the validation rows."""
    return _measure(data.validation, data, backend, trained, job)


def test_model(data: Prepared, backend: Backend, trained: Stage | None, job: "Job") -> StageWork:
    """Greedy accuracy on the test rows, on the validation rows where there is no test file."""
    return _measure(data.test or data.validation, data, backend, trained, job)


def _measure(rows: Path, data: Prepared, backend: Backend, trained: Stage | None, job: "Job") -> StageWork:
    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        with backend.generator(trained.folder / ADAPTER if trained else None) as generator:
            predictions = predict(
                read_examples(rows), generator, data.answers, job.recipe.evaluation.max_new_tokens, progress
            )
        records = [prediction_record(prediction) for prediction in predictions]
        write_whole(folder / PREDICTIONS, json.dumps(records, ensure_ascii=False, indent=0).encode())
        return {"accuracy": asdict(accuracy(predictions))}

    return work


def publish(output: Path, rounds: Sequence[Round], delivered: Stage, documents: Mapping[str, str]) -> None:
    """Put adapter, pseudo-labels and documents (by name) where the user looks; each appears whole or not at all."""
    adapter, fresh = output / ADAPTER, output / "adapter.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(delivered.folder / ADAPTER, fresh)
    shutil.rmtree(adapter, ignore_errors=True)
    fresh.rename(adapter)
    labels = output / "pseudo_labels.parquet.partial"
    write_rows(labels, PSEUDO_LABELS, final_labels(rounds), 1024)
    labels.replace(output / "pseudo_labels.parquet")
    for name, text in documents.items():
        write_whole(output / name, text.encode())


def final_labels(rounds: Sequence[Round]) -> Iterator[dict[str, Any]]:
    """Each unlabeled row once, as its last round decided it."""
    for one in rounds:
        for record in read_rows(one.selected.folder / DECIDED):
            settled = record["decision"] == "accept" or record["reason"] == "too_long"
            if settled or one is rounds[-1]:
                yield record


def flips(before: Stage, after: Stage) -> dict[str, Any]:
    """McNemar's test between two measured stages over the same rows."""
    return mcnemar(read_predictions(before), read_predictions(after))


def read_predictions(stage: Stage) -> list[Prediction]:
    """The predictions of a measured stage."""
    return [Prediction(**record) for record in json.loads((stage.folder / PREDICTIONS).read_text(encoding="utf-8"))]
