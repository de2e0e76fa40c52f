"""vLLM's offline engine, in a process of its own.

The other side is `vllm.py`; they exchange the messages below over a socket: a Start, then lists of queries up to None,
again and again. What is computed together depends on the order of the queries alone, not on when they come, so equal
queries give equal numbers. When this process ends, all of its memory is free.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from multiprocessing.connection import Connection
from typing import Any

from semievol.backends.memory import is_lack_of_memory
from semievol.backends.vllm_loader import register

MAX_SCORED_TOKENS = 128
"""vLLM's limit of tokens whose log-probability one request may ask for."""


@dataclass(frozen=True, slots=True)
class Start:
    """The first message. `engine`: vLLM's EngineArgs. `queue`: queries that its scheduler knows at any time."""

    engine: dict[str, Any]
    queue: int


@dataclass(frozen=True, slots=True)
class Query:
    """One completion of a prompt.

    `scored`: tokens whose log-probability right after the prompt is asked for; then nothing is written.
    """

    prompt: list[int]
    max_tokens: int = 1
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[int, ...] = ()
    scored: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the query at `place`. `logprobs`: nats, of `tokens`, or of the query's `scored` ones."""

    place: int
    tokens: list[int]
    logprobs: list[float]
    finished: bool


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine is loaded."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine cannot be loaded, or went wrong at work; the process ends. `memory`: for lack of it."""

    message: str
    memory: bool


@dataclass(frozen=True, slots=True)
class End:
    """All queries of a message are done. `cached_tokens`: of `prompt_tokens`, those that were not computed again."""

    prompt_tokens: int
    cached_tokens: int


@dataclass(slots=True)
class _Tally:
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def see(self, output: Any) -> None:
        self.prompt_tokens += len(output.prompt_token_ids)
        self.cached_tokens += output.num_cached_tokens or 0


@dataclass(slots=True)
class Engine:
    """A loaded engine that answers lists of queries."""

    start: Start
    engine: Any = field(init=False)

    def __post_init__(self) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        register()
        self.engine = LLMEngine.from_engine_args(EngineArgs(**self.start.engine))

    def answer(self, queries: Iterator[Query]) -> Iterator[list[Written] | End]:
        """What is finished, as it is finished, and the end. Waits for a query where the queue has room for it."""
        self.engine.reset_prefix_cache()  # what earlier queries left must not decide what is computed together
        tally, coming = _Tally(), enumerate(queries)
        under_way: dict[int, Query] = {}
        while True:
            for place, query in islice(coming, self.start.queue - len(under_way)):
                self.engine.add_request(str(place), {"prompt_token_ids": query.prompt}, _sampling(query))
                under_way[place] = query
            if not under_way:
                break
            done = [output for output in self.engine.step() if output.finished]
            for output in done:
                tally.see(output)
            if done:
                yield [_written(output, under_way) for output in done]
        yield End(tally.prompt_tokens, tally.cached_tokens)


def _more(connection: Connection) -> Iterator[Query]:
    """The queries that follow, up to None."""
    while (queries := connection.recv()) is not None:
        yield from queries


def _sampling(query: Query) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    if query.scored:
        asked: dict[str, Any] = {"logprob_token_ids": list(query.scored), "temperature": 0.0}
    else:
        asked = {"logprobs": 0, "temperature": query.temperature}
        if query.temperature:
            asked["seed"] = query.seed
    return SamplingParams(
        **asked,
        max_tokens=query.max_tokens,
        stop_token_ids=list(query.stop),
        ignore_eos=True,  # where a reply ends is the chat template's to say
        detokenize=False,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _written(finished: Any, under_way: dict[int, Query]) -> Written:
    place, output = int(finished.request_id), finished.outputs[0]
    told, tokens = output.logprobs, list(output.token_ids)
    if scored := under_way.pop(place).scored:
        known = dict(zip(told.token_ids, told.logprobs, strict=True))
        return Written(place, [], [float(known[token]) for token in scored], True)
    # the first of each position is the token that was drawn
    logprobs = [float(told.logprobs[start]) for start in told.start_indices]
    return Written(place, tokens, logprobs, output.finish_reason == "stop")


def serve(handle: int) -> None:
    """Load the engine that the first message on the socket asks for, and answer until nobody can ask any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    connection = Connection(handle)
    try:
        engine = Engine(connection.recv())
        connection.send(Ready())
        while True:
            first = connection.recv()
            for message in engine.answer(chain(first or (), _more(connection) if first is not None else ())):
                connection.send(message)
    except (EOFError, BrokenPipeError):
        return  # nobody asks any more
    except Exception as error:
        connection.send(Failed(f"{type(error).__name__}: {error}", is_lack_of_memory(error)))
        raise
