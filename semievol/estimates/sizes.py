"""How large a model is, from its `config.json` alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from semievol.recipe import LoraSettings


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Shape of a decoder with gated MLPs. `query`, `value`: widths of all heads that ask, and of all keys or values."""

    layers: int
    hidden: int
    intermediate: int
    query: int
    value: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self | None:
        """From a configuration; None where it does not name these figures, or names experts, which are not counted."""
        told = config.get("text_config") or config
        try:
            hidden, heads = int(told["hidden_size"]), int(told["num_attention_heads"])
            width = int(told.get("head_dim") or hidden // heads)
            size = cls(
                layers=int(told["num_hidden_layers"]),
                hidden=hidden,
                intermediate=int(told["intermediate_size"]),
                query=heads * width,
                value=int(told.get("num_key_value_heads") or heads) * width,
                vocabulary=int(told["vocab_size"]),
                tied=bool(told.get("tie_word_embeddings", False)),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None
        return None if any("experts" in name for name in told) else size

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """The linear layers of a block: (inputs, outputs) by name."""
        hidden, inner = self.hidden, self.intermediate
        return {
            "q_proj": (hidden, self.query),
            "k_proj": (hidden, self.value),
            "v_proj": (hidden, self.value),
            "o_proj": (self.query, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def parameters(self) -> int:
        """Weights of the whole model."""
        block = sum(inputs * outputs for inputs, outputs in self.matrices.values()) + 2 * self.hidden
        return self.layers * block + self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    def adapter_parameters(self, lora: LoraSettings) -> int:
        """Weights of a LoRA adapter; `target_modules` that name no matrix of ours count as all of them."""
        wanted = {lora.target_modules} if isinstance(lora.target_modules, str) else set(lora.target_modules)
        shapes = [shape for name, shape in self.matrices.items() if name in wanted] or self.matrices.values()
        return self.layers * lora.rank * sum(inputs + outputs for inputs, outputs in shapes)
