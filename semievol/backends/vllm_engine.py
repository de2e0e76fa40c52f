"""vLLM's offline engine, in a process of its own.

The other side is `vllm.py`; they exchange the messages below over a socket: a Start, then lists of queries up to None,
again and again. To each list of what was written it answers with the queries that follow from it. What is computed
together depends on the queries and their order alone, not on when they come, so equal queries give equal numbers. When
this process ends, all of its memory is free.
"""

import signal
from collections import deque
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
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
class _UnderWay:
    """A query that is being computed, and what it has come to so far."""

    query: Query
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def see(self, output: Any) -> Written | None:
        """Take what a step of the engine gave it; what became of it, if that was the end."""
        told = output.new_logprobs  # of each position the token that was drawn comes first
        if self.query.scored:
            known = dict(zip(told.logprob_token_ids[0].tolist(), told.logprobs[0].tolist(), strict=True))
            return Written(self.query.place, [], [known[token] for token in self.query.scored], True)
        self.tokens += output.new_token_ids
        self.logprobs += told.logprobs[:, 0].tolist()
        if output.finish_reason is None:
            return None
        return Written(self.query.place, self.tokens, self.logprobs, str(output.finish_reason) == "stop")


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
    """A loaded engine that answers queries.

    It is asked through the client of vLLM's core. What lies before and after that in vLLM (rendering, copies of the
    parameters, detokenisation, outputs as users see them) is of no use for tokens that go in and come out, and took as
    long as a small model itself.
    """

    start: Start
    engine: Any = field(init=False)

    def __post_init__(self) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        register()
        self.engine = LLMEngine.from_engine_args(EngineArgs(**self.start.engine))

    def answer(self, inbox: _Inbox) -> Iterator[list[Written] | End]:
        """What is finished, as it is finished, and the end. Waits for a query where the queue has room for it."""
        core = self.engine.engine_core
        core.reset_prefix_cache()  # what earlier queries left must not decide what is computed together
        prompt_tokens, cached_tokens, unanswered, added = 0, 0, 0, 0
        under_way: dict[str, _UnderWay] = {}
        while True:
            while unanswered > (LAG if under_way else 0):
                inbox.follow()
                unanswered -= 1
            while len(under_way) < self.start.queue and (query := inbox.next()):
                core.add_request(_request(str(added), query))
                under_way[str(added)] = _UnderWay(query)
                prompt_tokens += len(query.prompt)
                added += 1
            if not under_way:
                break
            done: list[Written] = []
            for output in core.get_output().outputs:
                if output.prefill_stats is not None:
                    cached_tokens += output.prefill_stats.num_cached_tokens
                if written := under_way[output.request_id].see(output):
                    del under_way[output.request_id]
                    done.append(written)
            if done:
                yield done
                unanswered += 1
        yield End(prompt_tokens, cached_tokens)


def _request(name: str, query: Query) -> Any:
    from vllm.v1.engine import EngineCoreRequest

    parameters = copy(_parameters(query.scored, query.max_tokens, query.temperature, query.stop))
    if query.temperature:
        parameters.seed = query.seed
    return EngineCoreRequest(
        request_id=name,
        prompt_token_ids=query.prompt,
        mm_features=None,
        sampling_params=parameters,
        pooling_params=None,
        arrival_time=0.0,  # requests of the same priority are taken in the order in which they were added
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


@lru_cache(maxsize=256)
def _parameters(scored: tuple[int, ...], max_tokens: int, temperature: float, stop: tuple[int, ...]) -> Any:
    """Checked once for all queries that have them in common."""
    from vllm import SamplingParams

    asked: dict[str, Any] = {"logprobs": 0, "temperature": temperature}
    if scored:
        asked = {"logprob_token_ids": list(scored), "temperature": 0.0}
    # Where a reply ends is the chat template's to say.
    return SamplingParams(**asked, max_tokens=max_tokens, stop_token_ids=list(stop), ignore_eos=True, detokenize=False)


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
