"""One frozen recipe says everything about a run. It validates a request, is stored on a job and saved with the adapter.

Nothing heavy is imported here. Each field's meaning lives in its description, once.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from semievol.errors import RecipeError

MODEL_RECIPE = "semievol_recipe.yaml"
"""A model folder may hold settings that suit it under this name, as generation_config.json does for sampling."""
FEW_ROWS = 2000
"""Fewer are answered sooner by transformers, which loads in seconds, than vLLM starts (`engine.name=auto`)."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSettings(_Settings):
    """How the base model is loaded."""

    revision: str | None = Field(None, description="Revision of a hub model; a commit hash makes runs repeatable.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of the weights; auto is bfloat16 on a GPU and float32 on a CPU."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    quantization: Literal["none", "nf4"] = Field(
        "none",
        description="nf4: the base model's matrices in 4 bits (QLoRA) wherever transformers holds it, for a GPU that "
        "is small for the model; needs the extra qlora. vLLM then answers only if engine.name is vllm, in full.",
    )
    max_length: int = Field(1024, ge=16, description="Longest prompt and reply together, in tokens.")


class EngineSettings(_Settings):
    """What samples replies, scores options and answers the rows of an evaluation."""

    name: Literal["auto", "huggingface", "vllm"] = Field(
        "auto",
        description="auto: vLLM from 2,000 rows on where it is installed and knows the model's architecture, else "
        "huggingface (transformers), which starts sooner; vllm: for pseudo-labels in any number.",
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, lt=1, description="Share of the GPU's memory that vLLM takes.")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs over which vLLM splits the model.")


class ParallelSettings(_Settings):
    """Fine-tuning on several GPUs of one machine."""

    processes: int = Field(
        1, ge=1, description="GPUs that a fine-tuning runs on, each with a process; on a CPU, processes."
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="ddp: every GPU holds the whole model; fsdp: the GPUs share its frozen weights out among them, "
        "which takes longer and fits models that one GPU does not hold.",
    )


class AnswerSettings(_Settings):
    """What an answer is."""

    kind: Literal["auto", "choice", "number", "text", "exact"] = Field(
        "auto", description="How replies are read and compared; auto decides from the labeled rows and says which."
    )
    options: tuple[str, ...] | None = Field(
        None, min_length=2, description="The classes of a closed task; by default those among the labeled replies."
    )
    tolerance: float = Field(0.01, ge=0, lt=1, description="Relative difference at which two numbers are still equal.")


class PropagationSettings(_Settings):
    """How what the labels know reaches the unlabeled rows."""

    in_weight: bool = Field(True, description="Warm-up fine-tuning on the labeled rows; off: the base model labels.")
    in_context: bool = Field(True, description="Nearest labeled rows as worked examples in the prompt.")
    k: int = Field(3, ge=1, le=64, description="Worked examples in a prompt.")
    retriever: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        description="A sentence-transformers model (hub id or folder), `hidden` (the base model's own states), `bm25`.",
    )


class GenerationSettings(_Settings):
    """Collaborative learning: several answers a row, and what happens when they differ."""

    collaboration: bool = Field(True, description="Off: one answer a row, no justification.")
    n: int = Field(4, ge=2, le=64, description="Collaborators, each giving one answer.")
    answers: Literal["auto", "sampled", "scored"] = Field(
        "auto",
        description="sampled: replies are drawn; scored: closed options get their exact probability; auto: scored "
        "where every labeled reply is one of the options and nothing more, else sampled.",
    )
    worked_examples: Literal["shared", "varied"] = Field(
        "varied", description="shared: all collaborators see the same worked examples; varied: each sees others."
    )
    temperature: float = Field(1.0, gt=0, le=5, description="Of sampled replies; entropies are always untempered.")
    disagreement: Literal["justify", "majority"] = Field(
        "justify", description="When answers differ: self-justification over the candidates, or the largest group."
    )
    balance: Literal["labeled", "none"] = Field(
        "labeled", description="Scored answers: scale the mean probabilities to the labeled mix of answers (Sinkhorn)."
    )
    early_stop: bool = Field(
        False,
        description="Sampled replies: ask a row's further collaborators only as long as they may change its outcome; "
        "where those before agree, with a likelihood of more than 5 %.",
    )
    max_new_tokens: int = Field(256, ge=1, description="Longest reply in tokens.")
    shard_size: int = Field(512, ge=1, description="Rows of one unit of work; part of the result's identity.")


class SelectionSettings(_Settings):
    """Which pseudo-labels are trained on."""

    rule: Literal["quantile", "random", "all"] = Field(
        "quantile", description="quantile: the most confident share; random: as many at random; all: no selection."
    )
    theta: float = Field(0.75, gt=0, le=1, description="Share of parsed rows that is kept.")
    confidence: Literal["answer", "entropy"] = Field(
        "answer",
        description="answer: the answer's probability (scored) or vote share and then entropy (sampled); entropy: of "
        "the response's tokens.",
    )
    per_answer: bool = Field(True, description="Closed answers: take the share within each answer, keeping the mix.")


class LoraSettings(_Settings):
    """Shape of the adapter."""

    rank: int = Field(16, ge=1, le=1024, description="Rank of each update; more holds more and costs memory.")
    alpha: int = Field(32, ge=1, description="The update is scaled by alpha / rank.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Share of the adapter's inputs left out while training.")
    target_modules: str | tuple[str, ...] = Field("all-linear", description="As in PEFT's LoraConfig.")


class TrainingSettings(_Settings):
    """One fine-tuning."""

    learning_rate: float = Field(1e-4, gt=0, description="At its peak; lower it if the loss diverges.")
    epochs: float = Field(2, gt=0, description="Passes over the rows.")
    steps: int | None = Field(None, ge=1, description="Optimizer steps; overrides epochs.")
    batch_size: int = Field(8, ge=1, description="Rows of one optimizer step.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Longest rows in memory at once, or their tokens in shorter rows; by default the batch, or a GPU's "
        "share of it.",
    )
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="How it falls after that.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's pull of the weights towards 0.")
    max_grad_norm: float = Field(1.0, gt=0, description="Longer gradients are shortened to this.")
    gradient_checkpointing: bool = Field(False, description="Less memory for about a third more time.")
    lora: LoraSettings = LoraSettings()

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size must be a multiple of micro_batch_size")
        return self


class EvolutionSettings(TrainingSettings):
    """The last fine-tuning of a round, on labels and pseudo-labels."""

    start: Literal["fresh", "continue"] = Field(
        "fresh", description="fresh: a new adapter on the base; continue: the warm adapter is trained further."
    )
    weights: Literal["none", "confidence"] = Field(
        "none", description="confidence: a pseudo-label's loss is scaled by its probability or vote share."
    )


class EvaluationSettings(_Settings):
    """How the outcome is measured and what is handed out."""

    holdout: float = Field(0.1, gt=0, le=0.5, description="Share of labeled rows held out without a validation file.")
    deliver: Literal["best", "evolved"] = Field(
        "best", description="best: SFT's adapter if SemiEvol's validates worse; evolved: SemiEvol's whatever it scores."
    )
    max_new_tokens: int = Field(256, ge=1, description="Longest reply in tokens; a longer one is cut.")


class Recipe(_Settings):
    """Everything that decides a run's result besides its files and its seed."""

    preset: Literal["default", "paper"] = Field("default", description="Where unset fields come from.")
    rounds: int = Field(1, ge=1, le=10, description="At most; stops before when validation stops improving.")
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    parallel: ParallelSettings = ParallelSettings()
    answers: AnswerSettings = AnswerSettings()
    propagation: PropagationSettings = PropagationSettings()
    generation: GenerationSettings = GenerationSettings()
    selection: SelectionSettings = SelectionSettings()
    warmup: TrainingSettings = TrainingSettings()
    evolution: EvolutionSettings = EvolutionSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _whole_weights_are_shared_out(self) -> Self:
        if self.model.quantization != "none" and self.parallel.processes > 1 and self.parallel.strategy == "fsdp":
            raise ValueError("fsdp shares out whole weights: set parallel.strategy=ddp, or model.quantization=none")
        return self

    @classmethod
    def resolve(cls, *layers: Mapping[str, Any]) -> Self:
        """Merge layers, later ones winning, over the preset that the last of them names.

        Raises RecipeError with every unknown or invalid field named.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            merged = _merge(merged, layer)
        preset = merged.get("preset", "default")
        base = PAPER if preset == "paper" else {}
        try:
            return cls.model_validate(_merge(base, merged))
        except ValidationError as error:
            lines = [f"  {'.'.join(map(str, e['loc'])) or 'recipe'}: {_reason(e['msg'])}" for e in error.errors()]
            raise RecipeError("\n".join(["the recipe cannot be used:", *lines])) from None

    @property
    def may_take_vllm(self) -> bool:
        """Whether vLLM may answer. It holds no model in 4 bits: where one is asked for, only if it is named."""
        return self.engine.name == "vllm" or (self.engine.name == "auto" and self.model.quantization == "none")

    def flat(self) -> dict[str, Any]:
        """Every setting under its dotted name."""
        return dict(_flatten(self.model_dump(mode="json")))

    def differences(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """Settings that differ, by dotted name: (this, other)."""
        ours, theirs = self.flat(), other.flat()
        return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}


_PAPER_TRAINING: dict[str, Any] = {
    "learning_rate": 1e-4,
    "epochs": 2,
    "steps": None,
    "batch_size": 8,
    "warmup_ratio": 0.1,
    "schedule": "cosine",
    "lora": {"rank": 16, "target_modules": "all-linear"},
}

PAPER: dict[str, Any] = {
    "preset": "paper",
    "rounds": 1,
    "model": {"max_length": 1024},
    "propagation": {"in_weight": True, "in_context": True, "k": 3},
    "generation": {
        "collaboration": True,
        "n": 4,
        "answers": "sampled",
        "worked_examples": "shared",
        "temperature": 1.0,
        "disagreement": "justify",
        "balance": "none",
    },
    "selection": {"rule": "quantile", "theta": 0.5, "confidence": "entropy", "per_answer": False},
    "warmup": _PAPER_TRAINING,
    "evolution": _PAPER_TRAINING | {"start": "fresh", "weights": "none"},
}
"""The paper to the letter; this never changes. The default recipe is the class defaults above."""


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe file's values (YAML; JSON is YAML). Raises RecipeError if it is not one mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError(f"the recipe {path} must be a mapping of settings, such as `rounds: 1`")
    return values


def parse_setting(text: str) -> dict[str, Any]:
    """`selection.theta=0.5` as a nested mapping; the value is read as YAML."""
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        raise RecipeError(f"a setting is written key=value, for example selection.theta=0.5; got {text!r}")
    try:
        setting: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"the value of {name} cannot be read: {value!r}") from None
    for key in reversed(name.strip().split(".")):
        setting = {key: setting}
    return dict(setting)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _reason(message: str) -> str:
    return (
        "there is no such setting"
        if message == "Extra inputs are not permitted"
        else message.removeprefix("Value error, ")
    )
