"""What several answers to one row amount to: votes, agreement, entropies, and balanced probabilities. Pure.

Two forms share the vocabulary. *Sampled* replies are parsed and grouped; *scored* options carry their exact
probability per collaborator. Entropies are in nats.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from semievol.answers import Answers

JUSTIFICATION = -1
"""Collaborator number of the self-justification."""

DOUBT = 0.05
"""With an early stop: how likely it may be that a row's collaborators who are not asked would have disagreed."""
_LEAST_SUM = 1e-250
"""A column that all rows together give less than this is left empty: scaling it up would overflow."""

Outcome = Literal[
    "consistent",  # all collaborators gave this answer
    "justified",  # they differed, and self-justification took part in the decision
    "majority",  # they differed, and the largest group or mean probability decided
    "balanced",  # they agreed, but on an answer that the labeled mix made less likely than this one
    "unparsable",
    "justification_unparsable",
    "too_long",
]

Agreed = Literal["consistent", "differed", "unparsable", "too_long"]
"""How far collaborators agree on a row, before anything is decided."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One collaborator's reply to one row, with what is needed to draw it again.

    `logprobs`: nats per response token (scored: one value, the option's log-probability); `tokens`: the text that each
    of them is of (scored: the option), none in files of versions that did not keep it; `option_logprobs`: nats for each
    of the row's options, None for sampled replies.
    """

    collaborator: int
    seed: int
    worked_examples: tuple[str, ...]
    similarities: tuple[float, ...]
    reply: str
    answer: str | None
    logprobs: tuple[float, ...]
    tokens: tuple[str, ...]
    option_logprobs: tuple[float, ...] | None = None

    @property
    def entropy(self) -> float:
        """Response entropy -(1/T) sum log p(y_t), nats per token (ALGORITHM.md, step 5)."""
        return -math.fsum(self.logprobs) / len(self.logprobs) if self.logprobs else math.inf


@dataclass(frozen=True, slots=True)
class Label:
    """What a row's trials amount to, before selection. Numbers are NaN where there is no answer.

    `vote_share`: of the n collaborators, the part that gave the final answer. `entropy`: of the response, nats per
    token. `answer_entropy`: over the answer groups, nats. `probability`: of the answer, scored rows only.
    """

    outcome: Outcome
    answer: str | None = None
    reply: str | None = None
    vote_share: float = math.nan
    entropy: float = math.nan
    answer_entropy: float = math.nan
    probability: float = math.nan


def is_unanimous(trials: Sequence[Trial], answers: Answers) -> bool:
    """All n collaborators gave an answer, and the same one. A reply that cannot be read is no vote."""
    parsed = [trial.answer for trial in trials]
    return None not in parsed and len(answers.group(parsed)) == 1


def is_decided(
    trials: Sequence[Trial],
    answers: Answers,
    n: int,
    *,
    disagreement: Literal["justify", "majority"],
    temperature: float,
) -> bool:
    """Whether the collaborators of n that were not asked yet will hardly change what becomes of the row.

    Where differing rows are justified, two that differ settle that; by majority the largest group has to be out of
    reach as well. Where all agree, it is settled if the others do too with a probability of 1 - `DOUBT`, taking each of
    them for no less likely to give the reply than the least sure so far. A reply that likely is made of likeliest
    tokens, which a temperature below 1 makes likelier still; nothing is said about a higher one.
    """
    if not trials:
        return False
    if is_unanimous(trials, answers):
        surest = min(math.fsum(trial.logprobs) for trial in trials)
        others_agree = math.exp((n - len(trials)) * surest)
        return len(trials) >= n or (len(trials) > 1 and temperature <= 1 and others_agree >= 1 - DOUBT)
    if disagreement == "justify":
        return True
    sizes = [len(group) for group in answers.group([trial.answer for trial in trials])] + [0, 0]
    return sizes[0] - sizes[1] > n - len(trials)


def provisional(trials: Sequence[Trial], answers: Answers) -> tuple[Agreed, float]:
    """How far a row's collaborators agree, and the mean entropy of the replies with the most votes (NaN without any).

    What can be told of a row alone, before labels are decided over all of them.
    """
    if not trials:
        return "too_long", math.nan
    groups = answers.group([trial.answer for trial in trials])
    if not groups:
        return "unparsable", math.nan
    outcome: Agreed = "consistent" if len(groups[0]) == len(trials) else "differed"
    return outcome, _mean_entropy(trials, groups[0])


def candidates(trials: Sequence[Trial], answers: Answers) -> list[str]:
    """One reply for each distinct answer, the most voted first: the surest reply of its group."""
    groups = answers.group([trial.answer for trial in trials])
    return [min((trials[index] for index in group), key=lambda trial: trial.entropy).reply for group in groups]


def label_sampled(
    trials: Sequence[Trial], justification: Trial | None, answers: Answers, *, unjustified: Literal["majority"] | None
) -> Label:
    """Steps 4 and 5 of a round for sampled replies.

    `unjustified="majority"` takes the largest group where the collaborators differ (ties: the surer group);
    otherwise the justification decides and the row is lost if it cannot be read.
    """
    parsed = [trial.answer for trial in trials]
    groups = answers.group(parsed)
    if not groups:
        return Label("unparsable")
    spread = answer_entropy([len(group) for group in groups])
    if is_unanimous(trials, answers) or unjustified == "majority":
        outcome: Outcome = "consistent" if is_unanimous(trials, answers) else "majority"
        winners = min(groups, key=lambda group: (-len(group), _mean_entropy(trials, group)))
        best = min((trials[index] for index in winners), key=lambda trial: trial.entropy)
        share = len(winners) / len(trials)
        return Label(outcome, best.answer, best.reply, share, _mean_entropy(trials, winners), spread)
    if justification is None or justification.answer is None:
        return Label("justification_unparsable", answer_entropy=spread)
    final = justification.answer
    share = sum(answer is not None and answers.equal(answer, final) for answer in parsed) / len(trials)
    return Label("justified", final, justification.reply, share, justification.entropy, spread)


def label_scored(
    trials: Sequence[Trial], justification: Trial | None, probabilities: Sequence[float], options: Sequence[str]
) -> Label:
    """The same for scored options, from the row's final probabilities (mean over trials, perhaps balanced)."""
    winner = int(np.argmax(probabilities))
    votes = [trial.answer == options[winner] for trial in trials]
    if len({trial.answer for trial in trials}) == 1:
        outcome: Outcome = "consistent" if votes[0] else "balanced"
    else:
        outcome = "justified" if justification is not None else "majority"
    used = [trial for trial, vote in zip(trials, votes, strict=True) if vote] or list(trials)
    chosen = [trial.option_logprobs[winner] for trial in used if trial.option_logprobs is not None]
    return Label(
        outcome=outcome,
        answer=options[winner],
        reply=options[winner],
        vote_share=sum(votes) / len(votes),
        entropy=-math.fsum(chosen) / len(chosen),
        answer_entropy=answer_entropy(probabilities),
        probability=float(probabilities[winner]),
    )


def mean_probabilities(trials: Sequence[Trial], justification: Trial | None) -> list[float]:
    """Mean of the collaborators' distributions over the row's options; a justification counts as one more voice."""
    voices = [*trials, justification] if justification is not None else trials
    logprobs = np.array([voice.option_logprobs for voice in voices], dtype=np.float64)
    return [float(p) for p in np.exp(logprobs).mean(axis=0)]


def balance(
    probabilities: npt.NDArray[np.float64], mix: npt.NDArray[np.float64], iterations: int = 50
) -> npt.NDArray[np.float64]:
    """Scale a [rows, answers] table of probabilities so that its column sums follow `mix` (Sinkhorn).

    Columns and rows are scaled in turn, rows last, so each row still sums to 1. Keeps a class that the model
    over-uses from swallowing others (FineSSL, arXiv 2405.11756). `mix` is the share of each answer, summing to 1.
    """
    table = probabilities.copy()
    wanted = mix * len(table)
    for _ in range(iterations):
        sums = table.sum(axis=0)
        table *= np.divide(wanted, sums, out=np.zeros_like(sums), where=sums > _LEAST_SUM)
        table /= np.maximum(table.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return table


def answer_entropy(weights: Sequence[float]) -> float:
    """Entropy over answer groups in nats; `weights` are counts or probabilities."""
    total = math.fsum(weights)
    return max(0.0, -math.fsum(w / total * math.log(w / total) for w in weights if w > 0))


def _mean_entropy(trials: Sequence[Trial], group: Sequence[int]) -> float:
    return math.fsum(trials[index].entropy for index in group) / len(group)
