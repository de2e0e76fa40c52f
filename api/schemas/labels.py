"""Pseudo-labels on the wire: rows, what led to one, and all of them in a fixed size."""

from typing import Literal

from pydantic import BaseModel, Field


class LabelReview(BaseModel):
    """What a person made of a row."""

    decision: str | None
    answer: str | None
    by: str
    at: int


class LabelView(BaseModel):
    """A pseudo-label. `decision` and `answer` are as a person left them."""

    id: str
    object: Literal["fine_tuning.job.pseudo_label"] = "fine_tuning.job.pseudo_label"
    line: int
    row_id: str
    round: int
    question: str
    answer: str | None
    reply: str | None
    decision: str
    reason: str
    outcome: str
    confidence: float | None
    probability: float | None
    vote_share: float | None
    entropy: float | None
    answer_entropy: float | None
    review: LabelReview | None


# --- what led to one --------------------------------------------------------------------------------------------------


class TurnView(BaseModel):
    """A turn of the row's chat."""

    role: str
    content: str


class TokenView(BaseModel):
    """A token that was written. `logprob`: nats; null if the model held it for impossible."""

    text: str | None = Field(description="U+FFFD for part of a character; null in jobs of versions that kept none.")
    logprob: float | None


class OptionView(BaseModel):
    """What the row might be answered with. `logprob`: nats, among the row's options; null if it is impossible."""

    option: str
    logprob: float | None


class WorkedExample(BaseModel):
    """A labeled row that stood in the prompt."""

    id: str
    similarity: float
    question: str | None
    answer: str | None


class TrialView(BaseModel):
    """One collaborator's reply. `entropy`: nats per token."""

    collaborator: int = Field(description="From 0; -1 is the self-justification.")
    seed: str = Field(description="Digits: it may be larger than the numbers that a browser keeps exactly.")
    reply: str
    answer: str | None
    entropy: float | None
    tokens: list[TokenView]
    options: list[OptionView] | None = Field(description="Null where the reply was sampled.")
    worked_examples: list[WorkedExample] = Field(description="In the order of the prompt, the nearest last.")


class LabelDetail(LabelView):
    """A pseudo-label and all that led to it."""

    messages: list[TurnView]
    options: list[str] | None
    trials: list[TrialView] = Field(description="None if the row is too long for the model.")
    justification: TrialView | None


# --- all of them ------------------------------------------------------------------------------------------------------


class Entropies(BaseModel):
    """Answered rows by the entropy of their replies, in 30 bins; the last also holds what is above."""

    bin_nats: float = 0.1
    outcomes: dict[str, list[int]]


class Certainties(BaseModel):
    """Answered rows by certainty in 20 equal bins from 0 to 1, by outcome and decision."""

    measure: Literal["probability", "vote_share", "token_probability"]
    outcomes: dict[str, dict[str, list[int]]]


class Counts(BaseModel):
    """Rows whose answer a person accepted as it was, and the others that a person decided."""

    kept: int
    changed: int


class Precision(BaseModel):
    """Share of right answers among the rows to train on, with a 95 % interval."""

    value: float
    low: float
    high: float


class ReviewCounts(BaseModel):
    """What people made of rows, by what selection had decided."""

    rows: int
    accept: Counts
    reject: Counts
    precision: Precision | None = Field(
        description="An estimate; null until a row was looked at that selection had accepted."
    )


class LabelSummary(BaseModel):
    """All pseudo-labels of a job as they stand; rows of several rounds count once, as their last round decided them."""

    object: Literal["fine_tuning.job.pseudo_labels.summary"] = "fine_tuning.job.pseudo_labels.summary"
    state: Literal["none", "generating", "decided"]
    round: int = Field(description="The last that is decided, or the one whose answers are generated; 0 before.")
    rows: int = Field(description="That are decided, or generated so far.")
    total: int | None = Field(description="Unlabeled rows; null until the files are checked.")
    outcomes: dict[str, int] = Field(description="While answers are generated: how far collaborators agree by now.")
    decisions: dict[str, int] = Field({}, description="As the stages left them; `review` tells what people do now.")
    reasons: dict[str, int] = {}
    answers: dict[str, int] = Field({}, description="Of accepted rows, the 50 most frequent.")
    entropy: Entropies
    certainty: Certainties | None = None
    curve: list[tuple[float, float, float]] = Field(
        [], description="Share kept, the mean certainty of the kept and the least of them, the surest rows kept first."
    )
    review: ReviewCounts
