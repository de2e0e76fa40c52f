"""From a create request to what runs: method, base model and resolved recipe. Pure but for reading a model's recipe."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from api.errors import BadRequest, Unavailable
from api.schemas.jobs import Hyperparameters, JobCreate, SemievolBlock
from semievol.errors import RecipeError
from semievol.recipe import MODEL_RECIPE, PropagationSettings, Recipe, read_recipe
from store.settings import BaseModelEntry, Settings

METHODS = ("semievol", "supervised")
OPERATORS = ("revision", "device")
"""Settings of the block `model` that only the operator decides."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, understood. `block` is None for plain fine-tuning; `place` is where the block was in the body."""

    method: Literal["semievol", "supervised"]
    block: SemievolBlock | None
    place: str
    hyperparameters: Hyperparameters

    def told(self) -> dict[str, Any]:
        """The job object's `hyperparameters` and `method`."""
        hyperparameters = {name: value or "auto" for name, value in self.hyperparameters.model_dump().items()}
        if self.block is None:
            method: dict[str, Any] = {"hyperparameters": hyperparameters}
        else:
            method = self.block.model_dump(mode="json", exclude_unset=True)
        return {"hyperparameters": hyperparameters, "method": {"type": self.method, self.method: method}}


def understand(body: JobCreate) -> Asked:
    """Which method is asked for, in whichever of the forms. Raises BadRequest."""
    if body.integrations:
        message = "no integrations are offered; leave integrations out"
        raise BadRequest(message, code="unsupported_integration", param="integrations")
    if body.semievol is not None:
        if body.method is not None:
            message = "method and semievol were both given; give one of them"
            raise BadRequest(message, code="ambiguous_method", param="semievol")
        return Asked("semievol", body.semievol, "semievol", body.hyperparameters or Hyperparameters())
    method = body.method
    if method is None:
        return Asked("supervised", None, "method", body.hyperparameters or Hyperparameters())
    if method.type not in METHODS:
        message = f"method.type {method.type!r} is not offered; use one of {', '.join(METHODS)}"
        raise BadRequest(message, code="unsupported_method", param="method.type")
    given = {name for name in ("supervised", "semievol") if getattr(method, name) is not None} | set(
        method.model_extra or {}
    )
    if given - {method.type}:
        message = f"method.type is {method.type}, but {', '.join(sorted(given - {method.type}))} was given too"
        raise BadRequest(message, code="ambiguous_method", param="method")
    if method.type == "supervised":
        inner = method.supervised.hyperparameters if method.supervised else None
        return Asked("supervised", None, "method.supervised", _one(inner, body.hyperparameters))
    if method.semievol is None:
        message = 'method.semievol is missing; write {"type": "semievol", "semievol": {"unlabeled_file": "file-…"}}'
        raise BadRequest(message, code="missing_required_parameter", param="method.semievol")
    return Asked("semievol", method.semievol, "method.semievol", body.hyperparameters or Hyperparameters())


def _one(inner: Hyperparameters | None, outer: Hyperparameters | None) -> Hyperparameters:
    if inner is not None and outer is not None and inner != outer:
        message = "hyperparameters and method.supervised.hyperparameters differ; give one of them"
        raise BadRequest(message, code="ambiguous_method", param="hyperparameters")
    return inner or outer or Hyperparameters()


def find_model(settings: Settings, name: str) -> BaseModelEntry:
    """The allow-list's entry. Raises BadRequest that names what there is."""
    if (entry := settings.models.get(name)) is None:
        allowed = ", ".join(sorted(settings.models)) or "none; the operator has to allow some"
        message = f"there is no base model {name[:200]!r}; the models to fine-tune are: {allowed}"
        raise BadRequest(message, code="model_not_found", param="model")
    return entry


def resolve(settings: Settings, entry: BaseModelEntry, asked: Asked) -> Recipe:
    """The recipe: the model's, the operator's, the request's block and hyperparameters, later ones winning.

    Raises BadRequest.
    """
    block = asked.block.recipe() if asked.block else {}
    operators = _operators(settings, entry)
    _refuse_operators_settings(block, asked.place)
    try:
        recipe = Recipe.resolve(*operators, block)
        trained = _training(recipe, asked.hyperparameters)
        recipe = Recipe.resolve(*operators, block, trained) if trained else recipe
    except RecipeError as error:
        raise BadRequest(str(error), code="invalid_recipe", param=_place(str(error), asked.place)) from None
    _check_retriever(settings, recipe, Recipe.resolve(*operators), asked.place)
    return recipe


def _operators(settings: Settings, entry: BaseModelEntry) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = []
    own = Path(entry.source) / MODEL_RECIPE
    if own.is_file():
        try:
            layers.append(read_recipe(own))
            Recipe.resolve(*layers)
        except RecipeError as error:
            message = f"the recipe of this base model is wrong; tell the operator: {str(error).replace(str(own), '')}"
            raise Unavailable(message, code="model_misconfigured") from None
    if entry.revision:
        layers.append({"model": {"revision": entry.revision}})
    if settings.embedder:
        layers.append({"propagation": {"retriever": settings.embedder}})
    return layers


def _refuse_operators_settings(block: dict[str, Any], place: str) -> None:
    model = block.get("model")
    given = model if isinstance(model, dict) else {}
    for name in OPERATORS:
        if name in given:
            message = f"{place}.model.{name} is decided by the operator; leave it out"
            raise BadRequest(message, code="not_allowed", param=f"{place}.model.{name}")


def _training(recipe: Recipe, asked: Hyperparameters) -> dict[str, Any]:
    """What the hyperparameters change, alike for both trainings: SFT is only comparable if it is trained alike."""
    layer: dict[str, dict[str, Any]] = {"warmup": {}, "evolution": {}}
    for name, values in layer.items():
        settings = getattr(recipe, name)
        if isinstance(asked.n_epochs, (int, float)):
            values |= {"epochs": asked.n_epochs, "steps": None}
        if isinstance(asked.batch_size, int):
            values["batch_size"] = asked.batch_size
            if settings.micro_batch_size:  # what fits into memory stays an upper bound
                values["micro_batch_size"] = math.gcd(asked.batch_size, settings.micro_batch_size)
        if isinstance(asked.learning_rate_multiplier, (int, float)):
            values["learning_rate"] = settings.learning_rate * asked.learning_rate_multiplier
    return layer if layer["warmup"] else {}


def _check_retriever(settings: Settings, recipe: Recipe, operators: Recipe, place: str) -> None:
    """A name in a request must not make a worker load whatever it says."""
    allowed = {
        "hidden",
        "bm25",
        str(PropagationSettings.model_fields["retriever"].default),
        operators.propagation.retriever,
        *settings.retrievers,
    }
    if recipe.propagation.retriever not in allowed:
        message = f"this retriever is not allowed; use one of {', '.join(sorted(allowed))}"
        raise BadRequest(message, code="retriever_not_allowed", param=f"{place}.propagation.retriever")


def _place(message: str, place: str) -> str:
    """The first setting that a RecipeError names, by its path in the body."""
    lines = message.splitlines()
    field = lines[1].strip().partition(":")[0] if len(lines) > 1 else "recipe"
    return place if field == "recipe" else f"{place}.{field}"[:256]
