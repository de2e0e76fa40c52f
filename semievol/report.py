"""The report: what was asked, what came of it, and what has to be equal to get it again."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from semievol.estimates.estimate import compared
from semievol.evaluation import share
from semievol.evidence import Watched, confusion, held_out_examples
from semievol.outcome import Verdict, flips, read_predictions
from semievol.recipe import Recipe
from semievol.stages import REVIEWED, Prepared, Round
from semievol.wording import commands
from semievol.workdir import Stage

if TYPE_CHECKING:
    from semievol.pipeline import Job

_SETTLED = ("confident", "drawn", "kept_all", "too_long", REVIEWED)
"""Reasons that no later round changes."""


def build(
    job: "Job",
    data: Prepared,
    verdict: Verdict,
    watched: Watched,
    stages: Mapping[str, Stage],
    provenance: Mapping[str, str],
) -> dict[str, Any]:
    """The report as plain values: what `report.json` holds. Plain fine-tuning has nothing to say of SemiEvol.

    `watched`: what passed by while the pseudo-labels were written.
    """
    told = {
        "accuracy": {"base": verdict.base.facts["accuracy"], "sft": verdict.sft_test.facts["accuracy"]},
        "measured_on": "test" if data.test else "validation",
        "validation": {"sft": verdict.sft_validation.facts["accuracy"], "held_out": data.facts["held_out"]},
        "best": verdict.best,
        "delivered": verdict.delivered_name(job.recipe),
        "rows": data.facts["rows"],
        "answers": dict(data.facts["answers"]),
        "answer_mix": dict(data.facts["answer_mix"]),
        "overlaps": data.facts.get("overlaps"),  # None: prepared before there was any looking for them
        "training": {"warmup": dict(verdict.sft.facts)},
        "stage_seconds": {name: stage.seconds for name, stage in stages.items()},
        "stage_tokens": {name: stage.facts["tokens"] for name, stage in stages.items() if "tokens" in stage.facts},
        "estimate": _compared(data, job.recipe, stages),
        "recipe": job.recipe.model_dump(mode="json"),
        "differs_from_default": job.recipe.differences(Recipe()),
        "provenance": {
            "seed": job.seed,
            "inputs": data.facts["inputs"],
            "engine": _engines(stages.values()),
            **provenance,
        },
    }
    if verdict.best_round is not None and verdict.evolved_test is not None:
        _add_rounds(told, job, verdict, verdict.best_round, verdict.evolved_test)
        told["pseudo_labels"] = watched.told()
    _add_held_out(told, data, verdict)
    told["commands"] = commands(told)
    return told


def _compared(data: Prepared, recipe: Recipe, stages: Mapping[str, Stage]) -> dict[str, Any] | None:
    """What was expected, with what came of it; None where nothing was."""
    finished = {name: (stage.facts, stage.seconds) for name, stage in stages.items()}
    return compared(data.facts.get("estimate"), finished, recipe)


def _engines(stages: Iterable[Stage]) -> str:
    """What answered: mostly one engine, two where one is for pseudo-labels and one for evaluations."""
    return " and ".join(sorted({stage.facts["engine"] for stage in stages if "engine" in stage.facts}))


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
            {
                "round": one.number,
                **one.selected.facts,
                "validation": one.validation.facts["accuracy"],
                "training": dict(one.trained.facts),
            }
            for one in verdict.rounds
        ],
        "best_round": best.number,
        **_reviewed(verdict.rounds[: best.number]),
        "differs_from_paper": job.recipe.differences(Recipe.resolve({"preset": "paper"})),
    }


def _add_held_out(told: dict[str, Any], data: Prepared, verdict: Verdict) -> None:
    measured = {"base": verdict.base, "sft": verdict.sft_test}
    if verdict.evolved_test is not None:
        measured["semievol"] = verdict.evolved_test
    predictions = {name: read_predictions(stage) for name, stage in measured.items()}
    told["examples"] = held_out_examples(data.test or data.validation, predictions)
    if data.answers.kind == "choice":
        told["confusion"] = {name: confusion(ones) for name, ones in predictions.items()}


def _reviewed(rounds: Sequence[Round]) -> dict[str, Any]:
    """`review`: how many of the pseudo-labels that a person decided were left as they were, by what selection said."""
    judged = [one.selected.facts["judged"] for one in rounds if "judged" in one.selected.facts]
    counts = {side: Counter[str]() for side in ("accept", "reject")}
    for one in judged:
        for side, count in counts.items():
            count.update(one[side])
    told = {side: asdict(share(count["kept"], count.total())) for side, count in counts.items() if count.total()}
    return {"review": told} if told else {}


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
