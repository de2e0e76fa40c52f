"""Files of a model that say something without its weights: in its folder, or in the hub's cache on this machine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"


def model_file(model: str, revision: str | None, name: str) -> Path | None:
    """A file of a model folder, or of a hub model that was downloaded before; None where it is not at hand."""
    folder = Path(model)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  -- only models of the hub need it
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        found = try_to_load_from_cache(model, name, revision=revision)
    except HFValidationError:  # neither a folder nor the name of a repository
        return None
    return Path(found) if isinstance(found, str) else None


def config_of(model: str, revision: str | None) -> dict[str, Any]:
    """The model's configuration; empty where there is none that can be read."""
    path = model_file(model, revision, CONFIG)
    try:
        told = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def tokenizer_of(model: str, revision: str | None) -> Any:
    """The model's `tokenizers.Tokenizer`, without its chat template; None where it has no file at hand."""
    path = model_file(model, revision, TOKENIZER)
    if path is None:
        return None
    from tokenizers import Tokenizer  # noqa: PLC0415  -- a binary library that only this call needs

    return Tokenizer.from_file(str(path))


def text_counter(tokenizer: Any) -> Callable[[list[str]], list[int]] | None:
    """Tokens of each text by such a tokenizer; None without one."""
    if tokenizer is None:
        return None
    return lambda texts: [len(found.ids) for found in tokenizer.encode_batch(texts, add_special_tokens=False)]
