"""vLLM's offline engine, in a process of its own.

The other side is `vllm.py`; they exchange the messages below over a socket: a Start, then lists of queries up to None,
again and again. To each list of what was written it answers with the queries that follow from it. What is computed
together depends on the queries and their order alone, not on when they come, so equal queries give equal numbers. When
this process ends, all of its memory is free.
"""

import signal
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from semievol.backends.memory import is_lack_of_memory
from semievol.backends.vllm_loader import register

MAX_SCORED_TOKENS = 128
"""vLLM's limit of tokens whose log-probability one request may ask for."""
LAG = 4
"""Lists of written completions that the engine goes on after, before it waits for what follows from the first."""


@dataclass(frozen=True, slots=True)
class Start:
    """The first message. `engine`: vLLM's EngineArgs. `queue`: queries that its scheduler knows at any time."""

    engine: dict[str, Any]
    queue: int


@dataclass(frozen=True, slots=True)
class Query:
    """One completion of a prompt. `place`: whose it is, to who asks.

    `scored`: tokens whose log-probability right after the prompt is asked for; then nothing is written.
    """

    place: tuple[int, int]
    prompt: list[int]
    max_tokens: int = 1
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[int, ...] = ()
    scored: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Following:
    """The queries that follow from one list of written completions. They go before others that wait."""

    queries: list[Query]


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the query of `place`. `logprobs`: nats, of `tokens`, or of the query's `scored` ones."""

    place: tuple[int, int]
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
class _Inbox:
    """What is asked: queries up to None, and between and after them what follows from each list that was written."""

    connection: Connection
    asked: deque[Query] = field(default_factory=deque)
    answers: deque[list[Query]] = field(default_factory=deque)
    ended: bool = False

    def begin(self) -> None:
        """Wait for the first queries of the next question."""
        self.asked, self.answers, self.ended = deque(), deque(), False
        self._hear()

    def next(self) -> Query | None:
        """The query that is next in line; None if there is none for now. Waits where more were announced."""
        while not self.asked and not self.ended:
            self._hear()
        return self.asked.popleft() if self.asked else None

    def follow(self) -> None:
        """Put first in line what follows from the oldest list that was not answered yet."""
        while not self.answers:
            self._hear()
        self.asked.extendleft(reversed(self.answers.popleft()))

    def _hear(self) -> None:
        message = self.connection.recv()
        if isinstance(message, Following):
            self.answers.append(message.queries)
        elif message is None:
            self.ended = True
        else:
            self.asked.extend(message)


@dataclass(slots=True)
class Engine:
    """A loaded engine that answers queries."""

    start: Start
    engine: Any = field(init=False)

    def __post_init__(self) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        register()
        self.engine = LLMEngine.from_engine_args(EngineArgs(**self.start.engine))

    def answer(self, inbox: _Inbox) -> Iterator[list[Written] | End]:
        """What is finished, as it is finished, and the end. Waits for a query where the queue has room for it."""
        self.engine.reset_prefix_cache()  # what earlier queries left must not decide what is computed together
        tally, unanswered, added = _Tally(), 0, 0
        under_way: dict[int, Query] = {}
        while True:
            while unanswered > (LAG if under_way else 0):
                inbox.follow()
                unanswered -= 1
            while len(under_way) < self.start.queue and (query := inbox.next()):
                self.engine.add_request(str(added), {"prompt_token_ids": query.prompt}, _sampling(query))
                under_way[added] = query
                added += 1
            if not under_way:
                break
            done = [output for output in self.engine.step() if output.finished]
            for output in done:
                tally.see(output)
            if done:
                yield [_written(output, under_way.pop(int(output.request_id))) for output in done]
                unanswered += 1
        yield End(tally.prompt_tokens, tally.cached_tokens)


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


def _written(finished: Any, query: Query) -> Written:
    output = finished.outputs[0]
    told, tokens = output.logprobs, list(output.token_ids)
    if query.scored:
        known = dict(zip(told.token_ids, told.logprobs, strict=True))
        return Written(query.place, [], [float(known[token]) for token in query.scored], True)
    # the first of each position is the token that was drawn
    logprobs = [float(told.logprobs[start]) for start in told.start_indices]
    return Written(query.place, tokens, logprobs, output.finish_reason == "stop")


def serve(handle: int) -> None:
    """Load the engine that the first message on the socket asks for, and answer until nobody can ask any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    connection = Connection(handle)
    try:
        engine = Engine(connection.recv())
        connection.send(Ready())
        inbox = _Inbox(connection)
        while True:
            inbox.begin()
            for message in engine.answer(inbox):
                connection.send(message)
    except (EOFError, BrokenPipeError):
        return  # nobody asks any more
    except Exception as error:
        connection.send(Failed(f"{type(error).__name__}: {error}", is_lack_of_memory(error)))
        raise
