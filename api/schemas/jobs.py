"""Fine-tuning jobs on the wire: OpenAI's shapes, and beside them the block `semievol`."""

from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.schemas.common import Body

MAX_DEPTH = 20
"""Of a request's JSON; a recipe needs five."""
Auto = Literal["auto"]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
JobLimit = Annotated[int, Query(ge=1, le=100, description="Most items of the page.")]


# --- requests ---------------------------------------------------------------------------------------------------------


class Hyperparameters(Body):
    """How training differs from the recipe. They are applied last, to every training of the job."""

    n_epochs: Annotated[float, Field(gt=0, le=1000)] | Auto | None = Field(
        None, description="Epochs of each training; replaces `steps`."
    )
    batch_size: Annotated[int, Field(ge=1, le=65536)] | Auto | None = Field(
        None, description="Rows of one optimizer step."
    )
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | Auto | None = Field(
        None, description="Scales the recipe's learning rates."
    )


class SupervisedBlock(Body):
    """Plain LoRA fine-tuning."""

    hyperparameters: Hyperparameters | None = None


class SemievolBlock(BaseModel):
    """Files and switches of a SemiEvol job; every other key is a block of the recipe."""

    model_config = ConfigDict(extra="allow")

    unlabeled_file: str = Field(max_length=200, description="Rows to learn from without labels.")
    test_file: str | None = Field(None, max_length=200, description="Labeled rows that only measure the outcome.")
    review: bool = Field(False, description="Wait after selection until a person completes the review.")

    def recipe(self) -> dict[str, Any]:
        """What is the recipe's."""
        return dict(self.model_extra or {})


class Method(BaseModel):
    """How to fine-tune. Blocks of methods that are not offered are accepted by shape, to be refused by name."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(max_length=64, description="`semievol` or `supervised`.")
    semievol: SemievolBlock | None = None
    supervised: SupervisedBlock | None = None


class JobCreate(Body):
    """A new fine-tuning job."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "semievol-demo",
                    "training_file": "file-0123456789abcdef01234567",
                    "method": {
                        "type": "semievol",
                        "semievol": {
                            "unlabeled_file": "file-76543210fedcba9876543210",
                            "selection": {"theta": 0.5},
                        },
                    },
                    "suffix": "tickets",
                    "seed": 1,
                }
            ]
        }
    )

    model: str = Field(max_length=200, description="Public name of a base model; `GET /v1/models` lists them.")
    training_file: str = Field(max_length=200, description="Labeled rows.")
    validation_file: str | None = Field(
        None,
        max_length=200,
        description="Labeled rows to choose by; by default some of the training rows are held out.",
    )
    suffix: str | None = Field(None, min_length=1, max_length=64, description="Part of the model's name.")
    seed: int | None = Field(None, ge=0, le=2**31 - 1, description="By default random; the job tells it.")
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    method: Method | None = None
    semievol: SemievolBlock | None = Field(None, description="The same as `method.semievol`; what `extra_body` sends.")
    hyperparameters: Hyperparameters | None = None
    integrations: list[dict[str, Any]] | None = Field(None, description="None are offered; null or empty.")

    @model_validator(mode="before")
    @classmethod
    def _shallow(cls, given: Any) -> Any:
        """Blocks are free in form until the recipe is resolved; pydantic and json give up on deep ones."""
        level, depth = [given], 0
        while level:
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"the JSON is nested more than {MAX_DEPTH} deep")
            nested = [item for item in level if isinstance(item, (dict, list))]
            level = [child for item in nested for child in (item.values() if isinstance(item, dict) else item)]
        return given


class LabelEdit(Body):
    """What a person decides of a row. A corrected answer is accepted unless the decision says else."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"decision": "reject"}, {"answer": "B"}]})

    decision: Literal["accept", "reject"] | None = None
    answer: str | None = Field(None, min_length=1, max_length=100_000)


# --- answers ----------------------------------------------------------------------------------------------------------


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class StageView(BaseModel):
    """A stage that is done or waits; a round's generation is one."""

    name: str
    label: str = Field(description="The stage in words, as the command line shows it.")
    unit: str
    state: str
    done: int
    total: int
    unit_of_count: Literal["rows", "steps", "shards"] | None = Field(
        description="What `done` and `total` count; null where they are 1 of 1, the stage itself, which is done."
    )
    started_at: int | None
    finished_at: int | None
    seconds: float | None
    facts: dict[str, Any]


class ReviewView(BaseModel):
    """Whether a person is asked, and whether the job waits for that now."""

    needed: bool
    waiting: bool


class SemievolView(BaseModel):
    """What OpenAI's job object has no place for."""

    stage: str | None
    round: int
    progress: float
    stages: list[StageView]
    estimated_finish: int | None
    metrics: dict[str, Any]
    unlabeled_file: str | None
    test_file: str | None
    review: ReviewView
    recipe: dict[str, Any]


class JobView(BaseModel):
    """A fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobError | None
    fine_tuned_model: str | None
    finished_at: int | None
    estimated_finish: int | None
    hyperparameters: dict[str, Any]
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: str
    trained_tokens: int | None
    training_file: str
    user_provided_suffix: str | None
    validation_file: str | None
    integrations: list[Any]
    metadata: dict[str, str] | None
    method: dict[str, Any]
    semievol: SemievolView


class EventView(BaseModel):
    """A line of a job's log."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any] | None


class CheckpointView(BaseModel):
    """An adapter that a training of the job left."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int


class FileProblem(BaseModel):
    """What keeps a job from starting."""

    message: str
    param: str | None
    code: str


class CheckedFile(BaseModel):
    """What the service knows of a file that a job would read."""

    id: str
    filename: str
    kind: str | None
    rows: int | None
    problems: list[Any]


class Quantiles(BaseModel):
    """Lengths in tokens of the rows' text, without the chat template's own tokens."""

    rows: int
    p50: int
    p90: int
    p99: int
    max: int
    mean: float


class Finding(BaseModel):
    """Rows of one file, with the lines of the first; `also_in` names another file that holds them."""

    role: str
    rows: int
    lines: list[int]
    also_in: str | None


class Overlaps(BaseModel):
    """Rows that ask the same. A job leaves `left_out` out of training and pool; the others stay."""

    left_out: list[Finding]
    repeated: list[Finding]
    contradicting: Finding | None


class AnswersView(BaseModel):
    """How replies would be read, and how often each class is labeled."""

    kind: str
    options: list[str] | None
    mix: dict[str, int]


class Segment(BaseModel):
    """A turn, and whether the loss counts it.

    `tokens`: the text as the model's tokenizer cuts it, null where that is not at hand. A character of several tokens
    is one piece, and what no token covers is part of the next.
    """

    role: str
    text: str
    trained: bool
    tokens: list[str] | None


class EstimatedTokens(BaseModel):
    """Tokens that a job reads and writes."""

    trained: int = Field(description="Of the rows trained on, each time that one is read.")
    prompts: int = Field(description="Of prompts, worked examples included; once however many replies a prompt gets.")
    replies: int = Field(description="Of replies; options that are scored are none.")


class EstimatedStage(BaseModel):
    """One stage of a job."""

    tokens: int
    seconds: float | None


class Estimate(BaseModel):
    """What the job would take, from its recipe, the lengths of a sample of its rows, and what finished jobs took."""

    tokens: EstimatedTokens
    seconds: float | None = Field(
        description="Work of all stages, one after the other: neither waiting nor packing the results. Null where the "
        "model's size is not at hand and none of its jobs has finished."
    )
    stages: dict[str, EstimatedStage] = Field(
        description="By the stage's name; the shards of a round's generation are one. A round after the second counts "
        "half of the one before, as it may not take place."
    )
    gpu_memory_bytes: int | None = Field(
        description="The peak on a GPU: weights, adapter with optimizer, what a micro-batch leaves for the backward "
        "pass, or the keys and values of a batch. Null where the model's size is not at hand."
    )
    gpu_memory_share: float | None = Field(description="Of the GPU's memory, where vLLM takes so much of it.")
    learned_from: int = Field(
        description="Finished jobs of the base model that the seconds were learned from, the last 10 at most; 0: they "
        "are guessed from the model's size."
    )


class ValidationView(BaseModel):
    """What a create with the same body would do. Nothing was started or stored."""

    object: Literal["fine_tuning.job.validation"] = "fine_tuning.job.validation"
    valid: bool
    errors: list[FileProblem]
    model: str
    method: str | None
    recipe: dict[str, Any] | None
    files: dict[str, CheckedFile]
    answers: AnswersView | None
    overlaps: Overlaps | None
    token_lengths: dict[str, Quantiles] | None
    loss_mask: list[list[Segment]] | None
    estimate: Estimate | None
    notes: list[str]
