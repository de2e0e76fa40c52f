"""What a job consists of: stages with what each of them reads and writes, expected of data and recipe, and observed.

Amounts are tokens, or rows where no model of ours reads them (`Work`). The same unit counts on both sides, so that what
finished stages took tells what expected ones will take.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from semievol.answers import Answers
from semievol.recipe import FEW_ROWS, EngineSettings, Recipe, TrainingSettings
from semievol.replies import collaborator_count, scores_options

DIFFERING = 0.25
"""Share of the rows whose collaborators differ, so that they justify themselves: a guess, as it needs the model."""
STOPPED_EARLY = 0.6
"""Share of the answers that `generation.early_stop` still asks for, roughly."""
CANDIDATE_TOKENS = 24
"""What a request for a justification adds to the prompt beside the candidates."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The data of a job in figures, lengths in tokens. `rows`: those that are used, by role; `prompt`: mean by role.

    `trained`: the mean labeled row, as far as training sees it; `reply`: the mean of the labeled ones, the end of the
    turn included; `worked_example`: what one adds to a prompt. `longest`, `longest_reply`: of the labeled rows.
    `reply_room`: the most that a reply of an evaluation may have. `scored`: options are, instead of sampling replies.
    """

    rows: Mapping[str, int]
    prompt: Mapping[str, float]
    trained: float
    reply: float
    worked_example: float
    longest: int
    longest_reply: int
    reply_room: int
    scored: bool


@dataclass(frozen=True, slots=True)
class Work:
    """A stage's work. `starts`: how often a model is loaded for it.

    `kind` and what it counts: `files` and `neighbours` rows; `score`, `sample` and `evaluate` tokens of prompts and,
    but for `score`, of replies; `train` tokens and, as `written`, optimizer steps.
    """

    stage: str
    kind: str
    read: float
    written: float = 0.0
    starts: float = 1.0


@dataclass(frozen=True, slots=True)
class Done:
    """Work that a finished stage did, and what it took."""

    work: Work
    seconds: float


def as_plain(job: Sequence[Done]) -> list[list[Any]]:
    """The stages of a job as JSON values."""
    return [[*astuple(done.work), done.seconds] for done in job]


def plain_jobs(jobs: Sequence[Sequence[Sequence[Any]]]) -> list[list[Done]]:
    """Jobs from JSON values."""
    return [[Done(Work(*work), seconds) for *work, seconds in job] for job in jobs]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of a job: `trained` on (each as often as it was read), `prompts` that were answered, `replies` written.

    A prompt counts once however many replies it got; options that were scored are no replies.
    """

    trained: int
    prompts: int
    replies: int

    @property
    def total(self) -> int:
        """All that the model read and wrote."""
        return self.trained + self.prompts + self.replies


def tokens_of(works: Iterable[Work]) -> Tokens:
    """Summed over the stages of a job."""
    trained = prompts = replies = 0.0
    for work in works:
        match work.kind.removeprefix("vllm "):
            case "train":
                trained += work.read
            case "score" | "sample" | "evaluate":
                prompts += work.read
                replies += work.written
    return Tokens(round(trained), round(prompts), round(replies))


# --- expected ---------------------------------------------------------------------------------------------------------


def expected(shape: Shape, recipe: Recipe, *, vllm: bool) -> list[Work]:
    """The stages of a job, publishing aside.

    `vllm`: it is there for those jobs that would use it. The shards of a round share a loaded model, as if one worker
    did them all.
    """
    return list(_Expected(shape, recipe, vllm and recipe.may_take_vllm).stages())


@dataclass(frozen=True, slots=True)
class _Expected:
    shape: Shape
    recipe: Recipe
    vllm: bool

    def stages(self) -> Iterator[Work]:
        rows = self.shape.rows
        tested = "test" if rows["test"] else "validation"
        yield Work("prepare", "files", sum(rows.values()), starts=1)
        yield self._evaluate("base", tested, self.shape.reply_room)  # it has not learned yet when to stop
        yield self._train("warm-up", self.recipe.warmup, rows["labeled"], self.shape.trained)
        yield self._evaluate("warm-up-validation", "validation", self.shape.reply)
        if rows["unlabeled"]:
            yield from self._rounds()
        yield self._evaluate("sft-test", tested, self.shape.reply)
        if rows["unlabeled"]:
            yield self._evaluate("semievol-test", tested, self.shape.reply)

    def _rounds(self) -> Iterator[Work]:
        """From the third on a round takes place only if the one before helped: each counts half of the one before."""
        pending = float(self.shape.rows["unlabeled"])
        accepted, chance = 0.0, 1.0
        for number in range(1, self.recipe.rounds + 1):
            if pending < 1:
                return
            chance *= 0.5 if number > 2 else 1.0
            taken = pending if self.recipe.selection.rule == "all" else self.recipe.selection.theta * pending
            accepted += taken
            for work in self._round(f"round-{number}", pending, accepted):
                yield Work(work.stage, work.kind, chance * work.read, chance * work.written, chance * work.starts)
            pending -= taken

    def _round(self, name: str, pending: float, accepted: float) -> Iterator[Work]:
        if self.recipe.propagation.in_context:
            labeled = self.shape.rows["labeled"]
            yield Work(f"{name}/neighbours", _retrieval(self.recipe.propagation.retriever), labeled + pending)
        yield self._generate(f"{name}/generate", pending)
        yield Work(f"{name}/select", "files", pending)
        labeled = self.shape.rows["labeled"]
        pseudo = min(self.recipe.model.max_length, self.shape.prompt["unlabeled"] + self.shape.reply)
        mean = (labeled * self.shape.trained + accepted * pseudo) / (labeled + accepted)
        yield self._train(f"{name}/train", self.recipe.evolution, labeled + accepted, mean)
        yield self._evaluate(f"{name}/validation", "validation", self.shape.reply)

    def _train(self, stage: str, settings: TrainingSettings, rows: float, length: float) -> Work:
        an_epoch = math.ceil(rows / settings.batch_size)
        steps = settings.steps or math.ceil(an_epoch * settings.epochs)
        return Work(stage, "train", length * rows * steps / an_epoch, steps)

    def _evaluate(self, stage: str, role: str, reply: float) -> Work:
        rows = self.shape.rows[role]
        kind = "evaluate"
        if self.recipe.engine.name != "huggingface" and self.vllm and rows >= FEW_ROWS:
            kind = "vllm evaluate"
        return Work(stage, kind, rows * self.shape.prompt[role], rows * min(reply, self.shape.reply_room))

    def _generate(self, stage: str, rows: float) -> Work:
        settings, propagation = self.recipe.generation, self.recipe.propagation
        shown = min(propagation.k, self.shape.rows["labeled"]) if propagation.in_context else 0
        prompt = self.shape.prompt["unlabeled"] + shown * self.shape.worked_example
        prompt = min(prompt, self.recipe.model.max_length)
        answers = float(collaborator_count(settings))
        if settings.early_stop and not self.shape.scored:
            answers = max(min(2.0, answers), STOPPED_EARLY * answers)
        asks = self._prompts_of_a_row(answers, shown) if settings.worked_examples == "varied" else 1.0
        differ = settings.collaboration and (asks > 1 or not self.shape.scored)  # one prompt has one score
        justified = DIFFERING if differ and settings.disagreement == "justify" else 0.0
        read = rows * (asks * prompt + justified * (prompt + CANDIDATE_TOKENS))
        written = 0.0 if self.shape.scored else rows * (answers + justified) * self.shape.reply
        return Work(stage, self._engine(self.recipe.engine) + _form(self.shape.scored), read, written)

    def _prompts_of_a_row(self, answers: float, shown: int) -> float:
        """Different prompts among so many collaborators: who draws the same worked examples shares one."""
        if shown < 2:
            return 1.0
        others = min(self.shape.rows["labeled"], 2 * self.recipe.propagation.k - 1) - 1  # all see the nearest
        draws = math.comb(others, shown - 1)
        return draws * (1 - math.pow(1 - 1 / draws, answers))

    def _engine(self, settings: EngineSettings) -> str:
        if settings.name == "vllm":
            return "vllm "
        many = self.shape.rows["unlabeled"] >= FEW_ROWS
        return "vllm " if settings.name == "auto" and many and self.vllm else ""


def _form(scored: bool) -> str:
    return "score" if scored else "sample"


def _retrieval(retriever: str) -> str:
    """Embedding models are taken to be alike; counting words and the base model's own states are not."""
    return f"neighbours {retriever}" if retriever in {"bm25", "hidden"} else "neighbours"


# --- observed ---------------------------------------------------------------------------------------------------------


def observed(stages: Mapping[str, tuple[Mapping[str, Any], float]], recipe: Recipe) -> list[Done]:
    """What finished stages of a job did: {path: (facts, seconds)}, `prepare` among them; those without figures aside.

    The shards of a round, which share a loaded model, count as one stage.
    """
    prepared = stages["prepare"][0] if "prepare" in stages else {}
    if "answers" not in prepared:
        return []
    scored = scores_options(Answers(**prepared["answers"]), recipe.generation)
    found: dict[str, Done] = {}
    for path, (facts, seconds) in stages.items():
        try:
            work = _observed(path, facts, recipe, scored=scored)
        except KeyError:  # an earlier version left it, which did not count as much
            continue
        if work is None:
            continue
        key = path.rpartition("-")[0] if "/generate-" in path else path
        before = found.get(key, Done(replace(work, read=0.0, written=0.0), 0.0))
        read, written = before.work.read + work.read, before.work.written + work.written
        found[key] = Done(replace(work, stage=key, read=read, written=written), before.seconds + seconds)
    return list(found.values())


def _observed(path: str, facts: Mapping[str, Any], recipe: Recipe, *, scored: bool) -> Work | None:
    name = path.rpartition("/")[2].partition("-0")[0]
    if name == "prepare":
        return Work(path, "files", sum(facts["rows"].values()))
    if name == "select":
        return Work(path, "files", sum(facts["decisions"].values()))
    if name in {"warm-up", "train"}:
        settings = recipe.warmup if name == "warm-up" else recipe.evolution
        passes = facts["steps"] / math.ceil(facts["rows"] / settings.batch_size)
        return Work(path, "train", facts["tokens"] * passes, facts["steps"])
    if name == "neighbours":
        return Work(path, _retrieval(facts["retriever"]), facts["rows"]) if facts["pool"] else None
    if "engine" not in facts:
        return None
    engine = "vllm " if facts["engine"] == "vllm" else ""
    kind = _form(scored) if name == "generate" else "evaluate"
    return Work(path, engine + kind, facts["prompt_tokens"], 0 if kind == "score" else facts["tokens"])
