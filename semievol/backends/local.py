"""The `Backend` port on this machine: Hugging Face models for generation and training."""

import hashlib
import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from semievol.backends.chat import Chat
from semievol.backends.embedders import build_retriever
from semievol.backends.huggingface import device_of, dtype_of, open_generator
from semievol.backends.training import LoraTrainer
from semievol.memory import Halvings
from semievol.ports import Checkpoints, Generator, Progress, Retriever, Trainer, no_progress
from semievol.recipe import Recipe


class LocalBackend:
    """One base model and the recipe that says how to load it.

    `checkpoints`: where a training that stops goes on. `halvings`: what earlier attempts found too large.
    """

    def __init__(
        self, model: str, recipe: Recipe, checkpoints: Checkpoints | None = None, halvings: Halvings | None = None
    ) -> None:
        self.model, self.recipe, self.checkpoints = model, recipe, checkpoints
        self.halvings = halvings or Halvings()
        transformers_logging.disable_progress_bar()  # the run shows its own
        self.chat = Chat.load(model, recipe.model.revision)

    def generator(self, adapter: Path | None) -> AbstractContextManager[Generator]:
        """See `ports.Backend`."""
        return open_generator(self.model, self.recipe.model, self.chat, adapter, halvings=self.halvings.generation)

    def trainer(self) -> Trainer:
        """See `ports.Backend`."""
        return LoraTrainer(self.model, self.recipe.model, self.chat, self.checkpoints, halvings=self.halvings.training)

    def retriever(self, documents: Sequence[str], progress: Progress = no_progress) -> Retriever:
        """See `ports.Backend`."""
        name = self.recipe.propagation.retriever
        return build_retriever(name, documents, self.model, self.recipe.model, self.chat, progress)

    def provenance(self) -> dict[str, str]:
        """See `ports.Backend`."""
        packages = ("semievol", "torch", "transformers", "peft", "tokenizers", "sentence-transformers", "pyarrow")
        device = device_of(self.recipe.model)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        return {
            "engine": "huggingface",
            "device": f"{device.type} ({name})",
            "dtype": str(dtype_of(self.recipe.model)).removeprefix("torch."),
            "threads": str(torch.get_num_threads()),
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
            "base_model": self.model,
            "base_model_sha256": _weights_digest(self.model) or "not a local folder; see model.revision",
        }


def _weights_digest(model: str) -> str | None:
    """SHA-256 over the weights of a model folder."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
