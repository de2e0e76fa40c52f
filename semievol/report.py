"""The report: what was asked, what came of it, and what has to be equal to get it again."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from semievol.recipe import Recipe
from semievol.stages import Prepared, Round, Verdict, flips
from semievol.workdir import Stage

if TYPE_CHECKING:
    from semievol.pipeline import Job


def build(
    job: "Job",
    data: Prepared,
    rounds: Sequence[Round],
    best: Round,
    verdict: Verdict,
    stages: Mapping[str, Stage],
    provenance: Mapping[str, str],
) -> dict[str, Any]:
    """The report as plain values: what `report.json` holds."""
    rows = data.facts["rows"]
    return {
        "accuracy": {
            "base": verdict.base.facts["accuracy"],
            "sft": verdict.sft_test.facts["accuracy"],
            "semievol": verdict.evolved_test.facts["accuracy"],
        },
        "measured_on": "test" if data.test else "validation",
        "validation": {
            "sft": verdict.sft_validation.facts["accuracy"],
            "semievol": verdict.evolved_validation.facts["accuracy"],
            "held_out": data.facts["held_out"],
        },
        "flips": flips(verdict.sft_test, verdict.evolved_test),
        "best": verdict.best,
        "delivered": verdict.delivered_name(job.recipe),
        "deliver": job.recipe.evaluation.deliver,
        "rows": rows,
        "answers": dict(data.facts["answers"]),
        "rounds": [
            {"round": one.number, **one.selected.facts, "validation": one.validation.facts["accuracy"]}
            for one in rounds
        ],
        "best_round": best.number,
        "training": {
            "warmup": dict(verdict.sft.facts),
            "evolution": dict(verdict.evolved.facts),
        },
        "stage_seconds": {name: stage.seconds for name, stage in stages.items()},
        "recipe": job.recipe.model_dump(mode="json"),
        "differs_from_paper": job.recipe.differences(Recipe.resolve({"preset": "paper"})),
        "provenance": {"seed": job.seed, "inputs": job.identity(), **provenance},
    }


def render_html(outcome: Mapping[str, Any]) -> str:
    """One self-contained page."""
    return "<!doctype html><pre>" + html.escape(json.dumps(outcome, indent=2)) + "</pre>"
