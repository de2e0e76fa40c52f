"""The frozen base model in 4 bits, by bitsandbytes: QLoRA (Dettmers et al., arXiv 2305.14314)."""

from importlib.util import find_spec
from typing import Any

import torch
from peft.import_utils import is_bnb_4bit_available, is_bnb_available
from transformers import BitsAndBytesConfig

from semievol.errors import ModelError
from semievol.recipe import ModelSettings


def check_quantization(settings: ModelSettings) -> None:
    """Raises ModelError if the recipe asks for a quantised model and what quantises it is not installed."""
    if settings.quantization != "none" and find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization is {settings.quantization}, which needs bitsandbytes: install semievol[qlora]"
        )


def quantised(settings: ModelSettings, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told to quantise matrix by matrix on the device; nothing to leave the model whole.

    Embeddings, norms and the output layer stay in `dtype`, in which all is computed. Raises ModelError: see
    `check_quantization`.
    """
    check_quantization(settings)
    if settings.quantization == "none":
        return {}
    for asked in (is_bnb_available, is_bnb_4bit_available):
        asked.cache_clear()  # until now PEFT was told that it is not installed
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}
