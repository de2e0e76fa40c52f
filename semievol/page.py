"""`report.html`: one self-contained page, drawn from the report by a template. Whatever users wrote is escaped."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from semievol import wording
from semievol.wording import Report

MAX_ANSWERS = 20
"""Answers shown one by one; the rarer ones are summed."""
TRAININGS = {"warmup": "SFT", "evolution": "SemiEvol"}


@dataclass(frozen=True, slots=True)
class AnswerShare:
    """How often an answer occurs among the labels and among the accepted pseudo-labels, as shares of each."""

    answer: str
    labeled: float
    accepted: float
    accepted_rows: int


@dataclass(frozen=True, slots=True)
class LossCurve:
    """One training's losses. `points`: x and y from 0 to 100, y downwards, as SVG wants them."""

    name: str
    key: str
    points: list[tuple[float, float]]
    last: float


@dataclass(frozen=True, slots=True)
class LossChart:
    """Curves over the same axes: steps from 0 to `steps`, losses from 0 to `top`."""

    curves: list[LossCurve]
    steps: int
    top: float


def render_html(report: Report) -> str:
    """The page of a report."""
    environment = Environment(
        loader=PackageLoader("semievol"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "interval": wording.interval,
        "duration": wording.duration,
        "setting": _setting,
        "breakable": _breakable,
        "whole": lambda text: text.replace(" %", "\u00a0%"),
    }
    base = report["provenance"]["inputs"]["model"]
    differing = report.get("differs_from_paper", {})
    return environment.get_template("report.html").render(
        report=report,
        wording=wording,
        evolves=wording.evolves(report),
        answers=answer_shares(report),
        losses=loss_chart(report),
        seconds=wording.stage_seconds(report),
        differences={name: pair for name, pair in differing.items() if name != "preset"},
        provenance=provenance(report),
        load="\n".join(wording.load_lines(base, "adapter")),
        serve=" \\\n  ".join(wording.serve_command(report, base, "adapter")),
    )


def answer_shares(report: Report) -> list[AnswerShare]:
    """The labeled mix of answers beside that of the accepted rows; empty without both or where the task is open."""
    labeled = Counter[str](report["answer_mix"])
    if not labeled or not wording.evolves(report):
        return []
    accepted = Counter[str]()
    for one in report["rounds"][: report["best_round"]]:
        accepted.update(one["answers"])
    order = sorted(labeled.keys() | accepted.keys(), key=lambda answer: (-labeled[answer], -accepted[answer], answer))
    groups = [(answer, [answer]) for answer in order[:MAX_ANSWERS]]
    if rest := order[MAX_ANSWERS:]:
        groups.append((f"{len(rest):,} more", rest))
    return [
        AnswerShare(
            answer=name,
            labeled=sum(labeled[one] for one in members) / labeled.total(),
            accepted=sum(accepted[one] for one in members) / max(1, accepted.total()),
            accepted_rows=sum(accepted[one] for one in members),
        )
        for name, members in groups
    ]


def loss_chart(report: Report) -> LossChart | None:
    """The trainings over the same axes; None where no loss was logged."""
    trainings = {key: one for key, one in report["training"].items() if one.get("losses")}
    if not trainings:
        return None
    steps = max(step for one in trainings.values() for step, _ in one["losses"])
    top = max(loss for one in trainings.values() for _, loss in one["losses"]) or 1.0
    curves = [
        LossCurve(
            name=TRAININGS[key],
            key=key,
            points=[(round(100 * step / steps, 2), round(100 - 100 * loss / top, 2)) for step, loss in one["losses"]],
            last=one["losses"][-1][1],
        )
        for key, one in trainings.items()
    ]
    return LossChart(curves, steps, top)


def provenance(report: Report) -> dict[str, Any]:
    """What has to be equal to get the same again, without the recipe, which the page shows by itself."""
    facts = dict(report["provenance"])
    inputs = facts.pop("inputs")
    files = {key: value for key, value in inputs.items() if key.endswith("(SHA-256)")}
    return {"model": inputs["model"], **files, **facts}


def _setting(value: Any) -> str:
    """A setting's value as it is written in a recipe."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value)


def _breakable(name: str) -> Markup:
    """A dotted name that may break after its dots and underscores only."""
    return Markup("<wbr>").join(re.findall(r"[^._]+[._]?", name))
