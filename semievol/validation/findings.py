"""What was found as plain values: what `semievol validate --json` prints, and what `show.py` draws. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from semievol.recipe import Recipe
from semievol.validation.checking import Checked, Fault

Findings = Mapping[str, Any]


def findings(
    model: str,
    checked: Checked,
    recipe: Recipe | None,
    layers: Mapping[str, Mapping[str, Any]],
    looked: Mapping[str, Any],
    faults: Sequence[Fault],
) -> Findings:
    """Everything together. `faults`: all of them; `looked`: what the tokenizer said, empty where it was not asked."""
    rules = checked.rules
    return {
        "valid": not faults,
        "problems": [asdict(fault) for fault in faults],
        "model": model,
        "files": {
            role: {
                "path": str(path),
                "rows": checked.rows.get(role),
                "used": checked.used.get(role) if role in checked.rows else None,
            }
            for role, path in checked.files.items()
        },
        "held_out": checked.used.get("validation", 0) if "validation" not in checked.files else 0,
        "answers": asdict(rules) | {"mix": checked.mix} if rules else None,
        "overlaps": checked.overlaps,
        "limit": None,
        "lengths": {},
        "too_long": [],
        "loss_mask": None,
        "worked_examples": None,
        "estimate": None,
        **looked,
        "recipe": recipe.model_dump(mode="json") if recipe else None,
        "changed": changed(recipe, layers) if recipe else {},
    }


def changed(recipe: Recipe, layers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings that differ from the defaults: {dotted name: {"value", "default", "source"}}."""
    preset = f"preset {recipe.preset}"
    sources = {name: layer for layer, values in layers.items() for name in _names(values)}
    return {
        name: {"value": value, "default": default, "source": sources.get(name, preset)}
        for name, (value, default) in recipe.differences(Recipe()).items()
    }


def _names(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of a layer's settings."""
    found: list[str] = []
    for key, value in values.items():
        found += _names(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return found
