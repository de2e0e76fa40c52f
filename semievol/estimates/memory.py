"""GPU memory that a job takes at its peak, in bytes.

Counted: the weights in their number format, or in 4 bits with what their blocks are scaled by, and one matrix that is
computed with; while training the adapter (fp32) with gradient and AdamW's two moments,
what the backward pass keeps of one micro-batch of rows as long as the longest, and its logits where replies are; while
generating with transformers the keys and values of one batch; and `RUNTIME_BYTES`. Not counted: fragments of the
allocator, the retrieval model, and what else runs on the GPU. vLLM takes its share of the GPU whatever the job needs.
"""

import math

from semievol.estimates.sizes import ModelSize
from semievol.estimates.work import Shape
from semievol.recipe import LoraSettings, ModelSettings, Recipe, TrainingSettings

RUNTIME_BYTES = 1024**3
"""CUDA's context and the libraries' workspaces, roughly."""
BATCH_TOKENS = 131_072
"""Tokens (rows times padded length) that transformers holds at once on a GPU."""
_WEIGHT_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "float32": 4}
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in 4 bits: a byte scales each block of 64, and four bytes scale 256 of those bytes."""
_ADAPTER_BYTES = 16
"""Of each weight of an adapter: itself, its gradient and two moments, four bytes each."""
_LOGIT_BYTES = 12
"""Of each logit: in fp32, its logarithm's gradient, and the copy that cross-entropy takes."""


def peak_bytes(size: ModelSize, recipe: Recipe, shape: Shape) -> int:
    """The most that any stage takes."""
    weights = _weights(size, recipe.model)
    stages = [_training(size, settings, recipe, shape) for settings in _trainings(recipe, shape)]
    return RUNTIME_BYTES + weights + max([*stages, _generation(size, recipe, shape)])


def _weights(size: ModelSize, settings: ModelSettings) -> int:
    whole = _WEIGHT_BYTES[settings.dtype]
    if settings.quantization == "none":
        return size.parameters * whole
    matrices = [inputs * outputs for inputs, outputs in size.matrices.values()]
    quantised = size.layers * sum(matrices)
    return math.ceil(quantised * NF4_BYTES) + (size.parameters - quantised + max(matrices)) * whole


def _trainings(recipe: Recipe, shape: Shape) -> list[TrainingSettings]:
    return [recipe.warmup, recipe.evolution] if shape.rows["unlabeled"] else [recipe.warmup]


def _training(size: ModelSize, settings: TrainingSettings, recipe: Recipe, shape: Shape) -> int:
    rows = settings.micro_batch_size or settings.batch_size
    tokens, labels = rows * min(shape.longest, recipe.model.max_length), rows * (shape.longest_reply + 1)
    kept = micro_batch_bytes(size, recipe.model, settings, tokens, labels)
    return size.adapter_parameters(settings.lora) * _ADAPTER_BYTES + kept


def micro_batch_bytes(
    size: ModelSize, model: ModelSettings, settings: TrainingSettings, tokens: int, labels: int
) -> int:
    """What a micro-batch of so many tokens, padding included, and labels leaves for the backward pass."""
    block = kept_of_a_block(size, settings.lora) * _WEIGHT_BYTES[model.dtype]
    kept = block * size.layers
    if settings.gradient_checkpointing:  # the input of each block, and one block that is computed again
        kept = block + size.layers * size.hidden * _WEIGHT_BYTES[model.dtype]
    return tokens * kept + labels * size.vocabulary * _LOGIT_BYTES


def kept_of_a_block(size: ModelSize, lora: LoraSettings) -> int:
    """Numbers of a token that the backward pass needs of a block, in 16 bits; what is kept in fp32 counts twice.

    With dropout each adapted matrix keeps its own copy of the input, in the adapter's fp32.
    """
    norms = 6 * size.hidden
    inputs = 2 * size.hidden + size.query + size.intermediate
    copies = 2 * sum(width for width, _ in size.matrices.values()) if lora.dropout else 0
    attention = 2 * size.query + 2 * size.value
    return norms + inputs + copies + attention + 3 * size.intermediate


def _generation(size: ModelSize, recipe: Recipe, shape: Shape) -> int:
    """Keys and values of a batch that is as full as it gets."""
    longest = recipe.model.max_length
    tokens = min(BATCH_TOKENS, longest * max(shape.rows.values()) * recipe.generation.n)
    return tokens * 2 * size.layers * size.value * _WEIGHT_BYTES[recipe.model.dtype]
