"""Loads a base model into vLLM with a LoRA adapter added to its weights on the way, without a merged copy on disk.

vLLM finds `register` by the entry point `vllm.general_plugins`, in its own processes too.
"""

import dataclasses
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file

from semievol.errors import ModelError

LOAD_FORMAT = "semievol"
ADAPTER = "adapter"
"""In vLLM's `model_loader_extra_config`: the adapter's folder."""
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Merging:
    """The updates of one adapter by the name of the weight that they are added to: (A, B, scale)."""

    updates: dict[str, tuple[torch.Tensor, torch.Tensor, float]]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From a PEFT folder. Raises ModelError if it holds more than plain LoRA updates of linear layers."""
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
        names = {name.rpartition(".lora_")[0] for name in tensors}
        pairs = {f"{name}.lora_{part}.weight" for name in names for part in "AB"}
        plain = not any(config.get(key) for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"))
        if config.get("peft_type") != "LORA" or not plain or set(tensors) != pairs:
            raise ModelError(
                f"the adapter {folder} holds more than LoRA updates of linear layers, which cannot be added to vLLM's "
                "weights; set engine.name to huggingface"
            )
        rank = config["r"]
        scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
        updates = {}
        for name in names:
            a, b = (tensors[f"{name}.lora_{part}.weight"] for part in "AB")
            updates[f"{name.removeprefix(_PREFIX)}.weight"] = (a, b, scale)
        return cls(updates)

    def merged(self, weights: Iterator[tuple[str, torch.Tensor]]) -> Generator[tuple[str, torch.Tensor], None, None]:
        """The weights with their updates added. Raises ModelError if an update has no weight to go to."""
        left = set(self.updates)
        for name, weight in weights:
            if name not in self.updates:
                yield name, weight
                continue
            left.discard(name)
            a, b, scale = self.updates[name]
            update = (b.float() @ a.float()) * scale
            yield name, (weight.to(torch.float32) + update.to(weight.device)).to(weight.dtype)
        if left:
            raise ModelError(f"the adapter updates weights that the model does not have: {', '.join(sorted(left)[:3])}")


@cache
def register() -> None:
    """Make the load format known to vLLM; again is a no-op."""
    loaders: Any = import_module("vllm.model_executor.model_loader")

    @loaders.register_model_loader(LOAD_FORMAT)
    class MergingLoader(loaders.DefaultModelLoader):  # type: ignore[misc]
        """vLLM's own loader, from safetensors only, with the adapter's updates added."""

        def __init__(self, load_config: Any) -> None:
            folder = load_config.model_loader_extra_config.get(ADAPTER)
            super().__init__(dataclasses.replace(load_config, load_format="safetensors", model_loader_extra_config={}))
            self.merging = Merging.read(Path(folder)) if folder else None

        def get_all_weights(self, model_config: Any, model: Any) -> Generator[tuple[str, torch.Tensor], None, None]:
            weights = super().get_all_weights(model_config, model)
            yield from self.merging.merged(weights) if self.merging else weights
