"""`docs/recipe.md`, drawn from the recipe class: `python -m semievol.recipe_reference > docs/recipe.md`."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from semievol.recipe import MODEL_RECIPE, EvolutionSettings, Recipe, TrainingSettings

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_HEAD = (
    "# The recipe\n\nEvery setting of a run, drawn from the class that checks them "
    "(`python -m semievol.recipe_reference`). A recipe file is YAML or JSON; on the command line a setting is "
    "`--set selection.theta=0.5`, over HTTP it is a key of the block `semievol`. Settings of "
    f"`{MODEL_RECIPE}` in the model's folder come first, then the recipe file, then `--set`; later ones win. An "
    "unknown key is an error. `preset: paper` takes the paper's value for all that is not set; the last column names "
    "it where it differs.\n"
)


def render() -> str:
    """The page."""
    return "\n".join([_HEAD, *_section("", "", Recipe, Recipe.resolve({"preset": "paper"}).flat())])


def _section(name: str, meaning: str, settings: type[BaseModel], paper: dict[str, Any]) -> Iterator[str]:
    """A table of one group of settings, and those of the groups in it."""
    prefix = f"{name}." if name else ""
    told = TrainingSettings.model_fields if settings is EvolutionSettings else {}
    fields = {key: field for key, field in settings.model_fields.items() if key not in told}
    groups = {key: field for key, field in fields.items() if _is_group(field)}
    if name:
        yield from [f"## `{name}`", "", meaning + (" All settings of `warmup`, and:" if told else ""), ""]
    yield "| setting | default | values | meaning | paper |"
    yield "|---|---|---|---|---|"
    for key, field in fields.items():
        if key not in groups:
            yield _line(f"{prefix}{key}", field, paper)
    yield ""
    for key, field in groups.items():
        group: Any = field.annotation
        yield from _section(f"{prefix}{key}", (group.__doc__ or "").partition("\n")[0], group, paper)


def _is_group(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _line(name: str, field: FieldInfo, paper: dict[str, Any]) -> str:
    different = f"`{_shown(paper[name])}`" if paper[name] != _plain(field.default) and name != "preset" else ""
    cells = [f"`{name}`", f"`{_shown(field.default)}`", _values(field), field.description or "", different]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _values(field: FieldInfo) -> str:
    """What is allowed: the words, or the type with its limits."""
    kinds = get_args(field.annotation) if get_origin(field.annotation) not in {None, Literal, tuple} else ()
    kinds = kinds or (field.annotation,)
    names = [_kind(kind) for kind in kinds if kind is not type(None)]
    limits = [
        f"{sign} {getattr(limit, key):g}"
        for limit in field.metadata
        for key, sign in _SIGNS.items()
        if getattr(limit, key, None) is not None
    ]
    return ", ".join([" or ".join(names), *limits])


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of texts"
    names = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text"}
    return names[kind]


if __name__ == "__main__":
    print(render(), end="")
