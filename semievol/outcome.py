"""What a run comes to: how good each model is on held-out rows, and which adapter is handed out."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semievol.evaluation import Prediction, accuracy, mcnemar, predict, prediction_record
from semievol.ports import Backend, Progress
from semievol.recipe import Recipe
from semievol.stages import ADAPTER, DECIDED, Prepared, Round, settled
from semievol.tables import read_examples, read_rows
from semievol.workdir import Stage, StageWork, write_whole

if TYPE_CHECKING:
    from semievol.pipeline import Job

PREDICTIONS = "predictions.json"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The stages that decide what is delivered, and those that measure it on the test rows.

    Plain fine-tuning has no rounds: its adapter is delivered.
    """

    base: Stage
    sft: Stage
    sft_validation: Stage
    sft_test: Stage
    rounds: Sequence[Round] = ()
    best_round: Round | None = None
    evolved_test: Stage | None = None

    @property
    def best(self) -> str:
        """Which adapter validates better; a tie is SemiEvol's."""
        if self.best_round is None:
            return "sft"
        sft = self.sft_validation.facts["accuracy"]["value"]
        return "sft" if self.best_round.validation_accuracy < sft else "semievol"

    def delivered_name(self, recipe: Recipe) -> str:
        """What is handed out: `sft` or `semievol`."""
        return self.best if recipe.evaluation.deliver == "best" or not self.rounds else "semievol"

    def delivered(self, recipe: Recipe) -> Stage:
        """The stage whose adapter is handed out."""
        if self.best_round is None or self.delivered_name(recipe) == "sft":
            return self.sft
        return self.best_round.trained

    def read(self) -> list[Stage]:
        """The stages whose files publishing reads."""
        measured = [self.base, self.sft, self.sft_validation, self.sft_test]
        if self.evolved_test is not None:
            measured.append(self.evolved_test)
        return measured + [stage for one in self.rounds for stage in (one.selected, one.trained, one.validation)]


def validate_model(data: Prepared, backend: Backend, trained: Stage | None, job: "Job") -> StageWork:
    """Greedy accuracy on the validation rows."""
    return _measure(data.validation, data, backend, trained, job)


def test_model(data: Prepared, backend: Backend, trained: Stage | None, job: "Job") -> StageWork:
    """Greedy accuracy on the test rows, on the validation rows where there is no test file."""
    return _measure(data.test or data.validation, data, backend, trained, job)


def _measure(rows: Path, data: Prepared, backend: Backend, trained: Stage | None, job: "Job") -> StageWork:
    def work(folder: Path, progress: Progress) -> dict[str, Any]:
        asked = read_examples(rows)
        with backend.generator(trained.folder / ADAPTER if trained else None, "evaluate", len(asked)) as generator:
            predictions = predict(asked, generator, data.answers, job.recipe.evaluation.max_new_tokens, progress)
            engine, prompt_tokens = generator.engine, generator.prompt_tokens
        records = [prediction_record(prediction) for prediction in predictions]
        write_whole(folder / PREDICTIONS, json.dumps(records, ensure_ascii=False, indent=0).encode())
        tokens = sum(prediction.tokens for prediction in predictions)
        measured = {"accuracy": asdict(accuracy(predictions)), "tokens": tokens}
        return measured | {"prompt_tokens": prompt_tokens, "engine": engine}

    return work


def final_labels(rounds: Sequence[Round]) -> Iterator[dict[str, Any]]:
    """Each unlabeled row once, as its last round decided it."""
    for one in rounds:
        for record in read_rows(one.selected.folder / DECIDED):
            if settled(record) or one is rounds[-1]:
                yield record


def flips(before: Stage, after: Stage) -> dict[str, Any]:
    """McNemar's test between two measured stages over the same rows."""
    return mcnemar(read_predictions(before), read_predictions(after))


def read_predictions(stage: Stage) -> list[Prediction]:
    """The predictions of a measured stage."""
    return [Prediction(**record) for record in json.loads((stage.folder / PREDICTIONS).read_text(encoding="utf-8"))]
