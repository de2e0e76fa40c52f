"""The recipe: one frozen, validated set of settings."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from semievol import recipe_reference
from semievol.errors import RecipeError
from semievol.recipe import PAPER, EvolutionSettings, Recipe, parse_setting, read_recipe

PAPER_SETTINGS = {
    "preset": "paper",
    "rounds": 1,
    "model.max_length": 1024,
    "propagation.in_weight": True,
    "propagation.in_context": True,
    "propagation.k": 3,
    "generation.collaboration": True,
    "generation.n": 4,
    "generation.answers": "sampled",
    "generation.worked_examples": "shared",
    "generation.temperature": 1.0,
    "generation.disagreement": "justify",
    "generation.balance": "none",
    "selection.rule": "quantile",
    "selection.theta": 0.5,
    "selection.confidence": "entropy",
    "selection.per_answer": False,
    "evolution.start": "fresh",
    "evolution.weights": "none",
    **{
        f"{stage}.{name}": value
        for stage in ("warmup", "evolution")
        for name, value in {
            "learning_rate": 1e-4,
            "epochs": 2,
            "steps": None,
            "batch_size": 8,
            "warmup_ratio": 0.1,
            "schedule": "cosine",
            "lora.rank": 16,
            "lora.target_modules": "all-linear",
        }.items()
    },
}
"""ALGORITHM.md, defaults and steps: written out again, so that nothing can change the preset unnoticed."""


def test_the_preset_paper_is_the_paper_to_the_letter() -> None:
    settings = Recipe.resolve({"preset": "paper"}).flat()
    assert {name: settings[name] for name in PAPER_SETTINGS} == PAPER_SETTINGS


@pytest.mark.parametrize("stage", ["warmup", "evolution"])
def test_the_preset_paper_names_its_adapter_itself_whatever_the_defaults_are(stage: str) -> None:
    assert PAPER[stage]["lora"]["rank"] == 16
    assert PAPER[stage]["lora"]["target_modules"] == "all-linear"


def test_all_mechanisms_are_on_by_default() -> None:
    recipe = Recipe()
    assert recipe.propagation.in_weight
    assert recipe.propagation.in_context
    assert recipe.generation.collaboration
    assert recipe.generation.disagreement == "justify"
    assert recipe.selection.rule == "quantile"
    assert recipe.evaluation.deliver == "best"


def test_later_layers_win_setting_by_setting() -> None:
    recipe = Recipe.resolve(
        {"generation": {"n": 8, "temperature": 0.5}}, {"generation": {"n": 2}}, {"warmup": {"lora": {"rank": 4}}}
    )
    assert (recipe.generation.n, recipe.generation.temperature) == (2, 0.5)
    assert (recipe.warmup.lora.rank, recipe.warmup.lora.alpha) == (4, Recipe().warmup.lora.alpha)


def test_a_preset_fills_only_what_no_layer_sets() -> None:
    recipe = Recipe.resolve({"selection": {"theta": 0.9}}, {"preset": "paper"})
    assert (recipe.selection.theta, recipe.selection.confidence) == (0.9, "entropy")


def test_the_last_preset_named_counts() -> None:
    assert Recipe.resolve({"preset": "paper"}, {"preset": "default"}) == Recipe()


def test_resolving_changes_no_layer_and_no_preset() -> None:
    before = json.dumps(PAPER)
    layer = {"preset": "paper", "generation": {"n": 9}}
    Recipe.resolve(layer, {"generation": {"n": 3}})
    assert json.dumps(PAPER) == before
    assert layer == {"preset": "paper", "generation": {"n": 9}}


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        ({"thetta": 1}, "thetta: there is no such setting"),
        ({"selection": {"thetta": 1}}, "selection.thetta: there is no such setting"),
        ({"warmup": {"start": "continue"}}, "warmup.start: there is no such setting"),
        ({"selection": {"theta": 0}}, "selection.theta"),
        ({"selection": {"theta": 1.5}}, "selection.theta"),
        ({"selection": {"theta": None}}, "selection.theta"),
        ({"selection": {"theta": float("nan")}}, "selection.theta"),
        ({"selection": None}, "selection"),
        ({"selection": []}, "selection"),
        ({"generation": {"n": 1}}, "generation.n"),
        ({"generation": {"n": 2.5}}, "generation.n"),
        ({"generation": {"temperature": 0}}, "generation.temperature"),
        ({"generation": {"answers": "guessed"}}, "generation.answers"),
        ({"preset": "papers"}, "preset"),
        ({"preset": ["paper"]}, "preset"),
        ({"rounds": 0}, "rounds"),
        ({"answers": {"options": ["one"]}}, "answers.options"),
        ({"answers": {"tolerance": 1}}, "answers.tolerance"),
        ({"warmup": {"learning_rate": float("inf")}}, "warmup.learning_rate"),
        ({"evolution": {"epochs": float("inf")}}, "evolution.epochs"),
        ({"warmup": {"batch_size": 8, "micro_batch_size": 3}}, "warmup: batch_size must be a multiple"),
        ({1: 2}, "1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(layer: dict[Any, Any], named: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.resolve(layer)
    assert f"\n  {named}" in str(caught.value)


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.resolve({"rounds": 0, "x": 1, "selection": {"theta": 7}})
    assert all(name in str(caught.value) for name in ("rounds", "x", "selection.theta"))


def test_frozen_weights_in_4_bits_are_not_shared_out() -> None:
    asked: dict[str, Any] = {"model": {"quantization": "nf4"}, "parallel": {"processes": 2, "strategy": "fsdp"}}
    with pytest.raises(RecipeError, match=r"parallel.strategy=ddp"):
        Recipe.resolve(asked)
    assert Recipe.resolve({**asked, "parallel": {"processes": 2}}).parallel.strategy == "ddp"


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Recipe().rounds = 2  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Recipe().selection.theta = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe.resolve({"preset": "paper"}),
        Recipe.resolve(
            {
                "answers": {"options": ["a", "b"]},
                "warmup": {"lora": {"target_modules": ["q_proj"]}, "learning_rate": 3e-5},
                "evolution": {"start": "continue", "steps": 7},
            }
        ),
    ],
    ids=["default", "paper", "changed"],
)
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert Recipe.resolve(json.loads(json.dumps(recipe.model_dump(mode="json")))) == recipe


def test_differences_name_each_setting_with_both_values() -> None:
    ours = Recipe.resolve({"selection": {"theta": 0.25}})
    assert ours.differences(Recipe()) == {"selection.theta": (0.25, Recipe().selection.theta)}
    assert ours.differences(ours) == {}
    assert "generation.balance" in Recipe().differences(Recipe.resolve({"preset": "paper"}))


def test_every_section_of_a_round_describes_its_settings() -> None:
    undescribed = {"learning_rate", "epochs", "warmup_ratio", "schedule", "weight_decay", "max_grad_norm", "lora"}
    undescribed |= {"gradient_checkpointing"}
    fields = EvolutionSettings.model_fields
    assert {name for name, field in fields.items() if not field.description} <= undescribed


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("rounds=2", {"rounds": 2}),
        ("selection.theta=0.5", {"selection": {"theta": 0.5}}),
        ("warmup.lora.rank = 4", {"warmup": {"lora": {"rank": 4}}}),
        ("answers.options=[yes please, no]", {"answers": {"options": ["yes please", False]}}),
        ("propagation.retriever=a=b", {"propagation": {"retriever": "a=b"}}),
        ("warmup.steps=null", {"warmup": {"steps": None}}),
    ],
)
def test_a_setting_on_the_command_line_is_a_path_and_a_yaml_value(text: str, setting: dict[str, Any]) -> None:
    assert parse_setting(text) == setting


@pytest.mark.parametrize("text", ["", "rounds", "=2", " =2", "rounds=[1", "rounds={", "rounds=\t- x: :"])
def test_a_setting_that_cannot_be_read_is_a_recipe_error(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_setting(text)


@pytest.mark.parametrize("value", ["1e-4", "0.0001", "1.0e-04"])
def test_a_learning_rate_may_be_written_as_people_write_it(value: str) -> None:
    assert Recipe.resolve(parse_setting(f"warmup.learning_rate={value}")).warmup.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"", {}),
        (b"# nothing\n", {}),
        (b"rounds: 2\n", {"rounds": 2}),
        (b'{"rounds": 2, "selection": {"theta": 0.5}}', {"rounds": 2, "selection": {"theta": 0.5}}),
        ("preset: paper # ü\n".encode(), {"preset": "paper"}),
    ],
)
def test_a_recipe_file_is_yaml_or_json(tmp_path: Path, content: bytes, values: dict[str, Any]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    assert read_recipe(path) == values


@pytest.mark.parametrize("content", [b"- 1\n", b"text", b"a: [", b"\xff\xfe", b"!!python/object/apply:os.getcwd []"])
def test_a_recipe_file_that_is_no_mapping_is_a_recipe_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError):
        read_recipe(path)


def test_a_missing_recipe_file_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")


# --- the reference ----------------------------------------------------------------------------------------------------


def test_the_reference_is_up_to_date() -> None:
    path = Path(__file__).parent.parent / "docs" / "recipe.md"
    assert path.read_text(encoding="utf-8") == recipe_reference.render(), (
        "python -m semievol.recipe_reference > docs/recipe.md"
    )


def test_every_setting_is_explained() -> None:
    rows = [line.split(" | ") for line in recipe_reference.render().splitlines() if line.startswith("| `")]
    names = {row[0].strip("|` ") for row in rows}
    wanted = {name for name in Recipe().flat() if not name.startswith("evolution.")}
    assert names == wanted | {"evolution.start", "evolution.weights"}
    assert all(row[3].strip() for row in rows)
