"""The `Backend` port on this machine: Hugging Face models for generation and training."""

import hashlib
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from transformers.utils import logging as transformers_logging

from semievol.backends.ahead import RetrieverAhead
from semievol.backends.chat import Chat
from semievol.backends.embedders import WITHOUT_EMBEDDER, build_retriever, retrieval_device
from semievol.backends.huggingface import device_name, device_of, dtype_of, open_generator
from semievol.backends.parallel import check_processes
from semievol.backends.quantization import check_quantization
from semievol.backends.training import LoraTrainer
from semievol.backends.vllm import VllmGenerator, knows, open_vllm, vllm_version
from semievol.backends.vllm import is_installed as vllm_installed
from semievol.errors import EngineDied, ModelError
from semievol.memory import Halvings
from semievol.ports import Checkpoints, Generator, Progress, Purpose, Retriever, Trainer, do_nothing, no_progress
from semievol.prompts import Prompt
from semievol.recipe import FEW_ROWS, Recipe

_log = logging.getLogger(__name__)


class LocalBackend:
    """One base model and the recipe that says how to load it.

    `checkpoints`: where a training that stops goes on. `halvings`: what earlier attempts found too large. Raises
    ModelError if the tokenizer cannot be loaded, or what the recipe needs is not installed, and RecipeError if it asks
    for more processes than there is room for.
    """

    def __init__(
        self, model: str, recipe: Recipe, checkpoints: Checkpoints | None = None, halvings: Halvings | None = None
    ) -> None:
        self.model, self.recipe, self.checkpoints = model, recipe, checkpoints
        self.halvings = halvings or Halvings()
        check_quantization(recipe.model)
        check_processes(recipe.parallel, recipe.model)
        transformers_logging.disable_progress_bar()  # the run shows its own
        self.chat = Chat.load(model, recipe.model.revision)
        self.device = device_name(recipe.model)
        self._ahead: dict[tuple[str, ...], Retriever] = {}

    def lengths(self, chats: Sequence[Prompt]) -> list[int]:
        """See `ports.Backend`."""
        return self.chat.lengths(chats)

    def generator(self, adapter: Path | None, purpose: Purpose, rows: int) -> AbstractContextManager[Generator]:
        """See `ports.Backend`."""
        settings, halvings = self.recipe.model, self.halvings.generation
        transformers = partial(open_generator, self.model, settings, self.chat, adapter, halvings=halvings)
        if self.engine(purpose, rows) == "huggingface":
            return transformers()
        vllm = open_vllm(self.model, settings, self.recipe.engine, self.chat, adapter, halvings=halvings)
        return vllm if self.recipe.engine.name == "vllm" else _first_that_loads(vllm, transformers)

    def engine(self, purpose: Purpose, rows: int) -> Literal["huggingface", "vllm"]:
        """What shall answer so many rows. Raises ModelError if the recipe names an engine that is not here."""
        wanted = self.recipe.engine.name
        if wanted == "vllm":
            if not vllm_installed():
                raise ModelError("engine.name is vllm, which is not installed here: install semievol[vllm]")
            if purpose == "label":
                return "vllm"
        if not self.recipe.may_take_vllm or rows < FEW_ROWS or not vllm_installed():
            return "huggingface"
        return "vllm" if knows(self.model, self.recipe.model.revision) else "huggingface"

    def trainer(self) -> Trainer:
        """See `ports.Backend`."""
        recipe, halvings = self.recipe, self.halvings.training
        return LoraTrainer(
            self.model, recipe.model, self.chat, self.checkpoints, halvings=halvings, parallel=recipe.parallel
        )

    def retriever(self, documents: Sequence[str], queries: int) -> Retriever:
        """See `ports.Backend`."""
        known = self._ahead.pop(tuple(documents), None)
        return self._build_retriever(documents, queries) if known is None else known

    @contextmanager
    def looking_ahead(
        self, documents: Sequence[str], queries: int, groups: Iterable[Sequence[str]], k: int
    ) -> Iterator[Callable[[], None]]:
        """See `ports.Backend`."""
        if not self._cores_idle(queries):
            yield do_nothing
            return
        ahead = RetrieverAhead(lambda progress: self._build_retriever(documents, queries, progress))
        self._ahead = {tuple(documents): ahead}
        with ahead.searching(groups, k) as begin:
            yield begin

    def _build_retriever(self, documents: Sequence[str], queries: int, progress: Progress = no_progress) -> Retriever:
        name, settings = self.recipe.propagation.retriever, self.recipe.model
        return build_retriever(name, documents, self.model, settings, self.chat, queries, progress)

    def _cores_idle(self, queries: int) -> bool:
        """Whether cores that could embed so many queries idle while the base model trains."""
        settings = self.recipe.model
        if self.recipe.propagation.retriever in WITHOUT_EMBEDDER:
            return False
        if device_of(settings).type != "cpu":
            return retrieval_device(settings, queries).type == "cpu"
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return torch.get_num_threads() * self.recipe.parallel.processes < cores

    def provenance(self) -> dict[str, str]:
        """See `ports.Backend`."""
        packages = ["semievol", "torch", "transformers", "peft", "tokenizers", "sentence-transformers", "pyarrow"]
        versions = {package: version(package) for package in packages}
        if vllm_installed():
            versions["vllm"] = vllm_version()
        quantised = {}
        if self.recipe.model.quantization != "none":
            quantised = {"quantization": self.recipe.model.quantization, "bitsandbytes": version("bitsandbytes")}
        return {
            "device": self.device,
            "dtype": str(dtype_of(self.recipe.model)).removeprefix("torch."),
            **quantised,
            "threads": str(torch.get_num_threads()),
            "python": platform.python_version(),
            **versions,
            "base_model": self.model,
            "base_model_sha256": _weights_digest(self.model) or "not a local folder; see model.revision",
        }


@contextmanager
def _first_that_loads(
    vllm: AbstractContextManager[VllmGenerator], transformers: Callable[[], AbstractContextManager[Generator]]
) -> Iterator[Generator]:
    """VLLM if its engine starts, else the other."""
    with ExitStack() as stack:
        engine = stack.enter_context(vllm)
        generator: Generator = engine
        try:
            engine.load()
        except (ModelError, EngineDied) as error:
            _log.warning("transformers takes the place of vLLM, which does not start: %s", error)
            generator = stack.enter_context(transformers())
        yield generator


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
