"""`report.html`: one self-contained page, drawn from the report by a template. Whatever users wrote is escaped."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from semievol import charts, wording
from semievol.recipe import Recipe
from semievol.wording import Report

FOLDED = 240
"""Characters from which a text is folded."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that differs from the default or from the preset `paper`."""

    name: str
    value: Any
    default: Any
    paper: Any


def render_html(report: Report) -> str:
    """The page of a report."""
    evolves = wording.evolves(report)
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            wording=wording,
            charts=charts,
            evolves=evolves,
            folded=FOLDED,
            costs=wording.stage_costs(report),
            settings=differing_settings(report),
            all_settings=Recipe.model_validate(report["recipe"]).flat(),
            provenance=provenance(report),
            **wording.commands(report),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("semievol"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda share: _whole(wording.percent(share)),
        "interval": wording.interval,
        "duration": wording.duration,
        "setting": _setting,
        "breakable": _breakable,
        "whole": _whole,
        "count": wording.count,
        "number": "{:,}".format,
    }
    return environment


def differing_settings(report: Report) -> list[Setting]:
    """The settings that differ from the default, from the preset `paper` or from both, by name."""
    default, paper = report["differs_from_default"], report.get("differs_from_paper", {})
    names = sorted((default.keys() | paper.keys()) - {"preset"})
    found = []
    for name in names:
        value = (default.get(name) or paper[name])[0]
        found.append(Setting(name, value, default.get(name, (0, value))[1], paper.get(name, (0, value))[1]))
    return found


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


def _whole(text: str) -> str:
    """Percent signs stay with their number."""
    return text.replace(" %", "\u00a0%")


def _breakable(name: str) -> Markup:
    """A dotted name that may break after its dots and underscores only."""
    return Markup("<wbr>").join(re.findall(r"[^._]+[._]?", name))
