"""The report: what was asked, what came of it, and what has to be equal to get it again."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from semievol.outcome import Verdict, flips
from semievol.recipe import Recipe
from semievol.stages import REVIEWED, Prepared, Round
from semievol.workdir import Stage

if TYPE_CHECKING:
    from semievol.pipeline import Job

_SETTLED = ("confident", "drawn", "kept_all", "too_long", REVIEWED)
"""Reasons that no later round changes."""


def build(
    job: "Job", data: Prepared, verdict: Verdict, stages: Mapping[str, Stage], provenance: Mapping[str, str]
) -> dict[str, Any]:
    """The report as plain values: what `report.json` holds. Plain fine-tuning has nothing to say of SemiEvol."""
    told = {
        "accuracy": {"base": verdict.base.facts["accuracy"], "sft": verdict.sft_test.facts["accuracy"]},
        "measured_on": "test" if data.test else "validation",
        "validation": {"sft": verdict.sft_validation.facts["accuracy"], "held_out": data.facts["held_out"]},
        "best": verdict.best,
        "delivered": verdict.delivered_name(job.recipe),
        "rows": data.facts["rows"],
        "answers": dict(data.facts["answers"]),
        "answer_mix": dict(data.facts["answer_mix"]),
        "training": {"warmup": dict(verdict.sft.facts)},
        "stage_seconds": {name: stage.seconds for name, stage in stages.items()},
        "recipe": job.recipe.model_dump(mode="json"),
        "provenance": {"seed": job.seed, "inputs": data.facts["inputs"], **provenance},
    }
    if verdict.best_round is not None and verdict.evolved_test is not None:
        _add_rounds(told, job, verdict, verdict.best_round, verdict.evolved_test)
    return told


def _add_rounds(told: dict[str, Any], job: "Job", verdict: Verdict, best: Round, evolved_test: Stage) -> None:
    told["accuracy"]["semievol"] = evolved_test.facts["accuracy"]
    told["validation"]["semievol"] = best.validation.facts["accuracy"]
    told["validation"]["flips"] = flips(verdict.sft_validation, best.validation)
    told["training"]["evolution"] = dict(best.trained.facts)
    told |= {
        "flips": flips(verdict.sft_test, evolved_test),
        "deliver": job.recipe.evaluation.deliver,
        **_totals(verdict.rounds[: best.number]),
        "rounds": [
            {"round": one.number, **one.selected.facts, "validation": one.validation.facts["accuracy"]}
            for one in verdict.rounds
        ],
        "best_round": best.number,
        "differs_from_paper": job.recipe.differences(Recipe.resolve({"preset": "paper"})),
    }


def _totals(rounds: Sequence[Round]) -> dict[str, dict[str, int]]:
    """Decisions and reasons over the unlabeled rows, each counted once: as its last round decided it."""
    decisions, reasons = Counter[str](), Counter[str]()
    for one in rounds:
        facts = one.selected.facts
        last = one is rounds[-1]
        decisions["accept"] += facts["decisions"]["accept"]
        decisions["reject"] += facts["decisions"]["reject"] if last else facts["reasons"].get("too_long", 0)
        reasons.update({reason: number for reason, number in facts["reasons"].items() if last or reason in _SETTLED})
    return {"decisions": dict(decisions), "reasons": dict(reasons.most_common())}
