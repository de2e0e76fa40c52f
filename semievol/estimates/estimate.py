"""The estimate of a job as plain values: what is shown before a start, kept by the stage `prepare`, and compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Self

from semievol.answers import Answers
from semievol.estimates.costs import Costs, likely_device
from semievol.estimates.memory import peak_bytes
from semievol.estimates.sizes import ModelSize
from semievol.estimates.work import Done, Shape, Work, as_plain, expected, observed, tokens_of
from semievol.examples import Example
from semievol.prompts import Message, Prompt, question_of, with_worked_examples
from semievol.recipe import Recipe
from semievol.replies import reply_limit, scores_options

SAMPLE_ROWS = 500
"""Of each file; their lengths stand for the others'."""
FRAME_TOKENS = 4
"""What a chat template puts around a turn, roughly, where there is only the text to count."""
BYTES_PER_TOKEN = 4
"""Of text, roughly, where there is no tokenizer."""

Count = Callable[[Sequence[Prompt]], list[int]]
"""Tokens of each chat: up to the end of its last reply, or to where the reply begins that it asks for."""


def counting(text_tokens: Callable[[list[str]], list[int]] | None) -> Count:
    """Counts chats by their text alone. `text_tokens`: tokens of each text; None: there is no tokenizer."""

    def count(chats: Sequence[Prompt]) -> list[int]:
        texts = [turn.content for chat in chats for turn in chat]
        lengths = iter(text_tokens(texts) if text_tokens else [len(text.encode()) // BYTES_PER_TOKEN for text in texts])
        return [sum(next(lengths) + FRAME_TOKENS for _ in chat) for chat in chats]

    return count


@dataclass(frozen=True, slots=True)
class Estimator:
    """Estimates jobs of one base model. `vllm`: see `work.expected`."""

    costs: Costs
    count: Count
    vllm: bool

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        jobs: Sequence[Sequence[Done]],
        count: Count,
        *,
        device: str | None = None,
        vllm: bool = False,
    ) -> Self:
        """From the model's configuration and what finished jobs took, the newest first.

        `device`: its type; None: a GPU, but for models that are small enough for a CPU.
        """
        size = ModelSize.of(config)
        measured = any(done.work.kind.startswith("vllm ") for job in jobs for done in job)
        return cls(Costs.learn(jobs, size, device or likely_device(size)), count, vllm or measured)

    def estimate(
        self, recipe: Recipe, rules: Answers, rows: Mapping[str, int], samples: Mapping[str, Sequence[Example]]
    ) -> dict[str, Any]:
        """Everything, as JSON values. `rows`: used ones by role, 0 where there are none; `samples`: some of each.

        `tokens` {trained, prompts, replies}; `seconds` of all stages together, publishing aside, and by stage in
        `stages`, None where neither the model's size nor a finished job tells; `gpu_memory_bytes` as `memory` counts
        them, None without the size; `gpu_memory_share`: of the GPU, where vLLM takes it; `learned_from`: finished jobs.
        """
        shape = self._shape(recipe, rules, rows, samples)
        works = expected(shape, recipe, vllm=self.vllm)
        size, known = self.costs.size, self.costs.size is not None or self.costs.jobs > 0
        takes_share = any(work.kind.startswith("vllm ") for work in works)
        return {
            "tokens": asdict(tokens_of(works)),
            "seconds": round(sum(self.costs.seconds(work) for work in works), 1) if known else None,
            "stages": {work.stage: self._stage(work, known=known) for work in works},
            "gpu_memory_bytes": peak_bytes(size, recipe, shape) if size else None,
            "gpu_memory_share": recipe.engine.gpu_memory_utilization if takes_share else None,
            "learned_from": self.costs.jobs,
        }

    def _stage(self, work: Work, *, known: bool) -> dict[str, Any]:
        told = tokens_of([work]).total
        return {"tokens": told, "seconds": round(self.costs.seconds(work), 2) if known else None}

    def _shape(
        self, recipe: Recipe, rules: Answers, rows: Mapping[str, int], samples: Mapping[str, Sequence[Example]]
    ) -> Shape:
        some = {role: samples.get(role, [])[:SAMPLE_ROWS] for role in rows}
        prompts = {role: self.count([row.prompt for row in found]) for role, found in some.items()}
        labeled = some["labeled"]
        chats = self.count([(*row.prompt, Message("assistant", row.labeled_reply)) for row in labeled])
        shown = self.count(
            [with_worked_examples(row.prompt, [(question_of(row.prompt), row.labeled_reply)]) for row in labeled]
        )
        replies = [whole - prompt for whole, prompt in zip(chats, prompts["labeled"], strict=True)]
        return Shape(
            rows=rows,
            prompt={role: fmean(found) if found else 0.0 for role, found in prompts.items()},
            trained=fmean(min(length, recipe.model.max_length) for length in chats),
            reply=fmean(replies),
            worked_example=fmean(with_one - alone for with_one, alone in zip(shown, prompts["labeled"], strict=True)),
            longest=max(chats),
            longest_reply=max(replies),
            reply_room=reply_limit(rules, some["test"] or some["validation"], recipe.evaluation.max_new_tokens),
            scored=scores_options(rules, recipe.generation),
        )


def compared(
    estimate: Mapping[str, Any] | None, stages: Mapping[str, tuple[Mapping[str, Any], float]], recipe: Recipe
) -> dict[str, Any] | None:
    """The estimate with what came of it under `actual`: {"tokens", "seconds", "work"}; None where none was made.

    `stages`: the finished ones by path, facts and seconds. `work`: what later estimates of this machine learn from.
    """
    if estimate is None:
        return None
    done = observed(stages, recipe)
    tokens = tokens_of(one.work for one in done)
    seconds = round(sum(taken for _, taken in stages.values()), 3)
    return {**estimate, "actual": {"tokens": asdict(tokens), "seconds": seconds, "work": as_plain(done)}}
