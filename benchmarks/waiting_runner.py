"""A runner whose engine only waits: each reply costs time and no processor, as if a GPU made it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from semievol.fakes import FakeBackend
from semievol.pipeline import Job
from semievol.ports import Backend, Generator, Purpose, Request, Response, Then, nothing_more
from semievol.prompts import Prompt
from worker import runner

SECONDS_PER_PROMPT = 0.025
CLASSES = 8


class WaitingGenerator:
    """The `Generator` port: a reply depends on its seed alone. Prompts are answered one after the other."""

    engine = "waiting"
    prompt_tokens = 0

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, then: Then = nothing_more
    ) -> Iterator[tuple[int, list[Response]]]:
        """See `ports.Generator`."""
        waiting = list(requests)
        for place, request in enumerate(waiting):
            time.sleep(SECONDS_PER_PROMPT)
            replies = [_reply(f"class-{seed % CLASSES}") for seed in request.seeds]
            waiting += then(place, replies)
            yield place, replies

    def score(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[float]]]:
        """See `ports.Generator`. Not asked for by a recipe that samples."""
        raise NotImplementedError

    def fits(self, prompt: Prompt, max_new_tokens: int) -> bool:
        """See `ports.Generator`."""
        return True


def _reply(text: str) -> Response:
    return Response(text, (-0.1, -0.1), (text, "<end>"), True)


class _Backend(FakeBackend):
    @contextmanager
    def generator(self, adapter: Path | None, purpose: Purpose, rows: int) -> Iterator[Generator]:
        if purpose == "label":
            yield WaitingGenerator()
        else:
            with super().generator(adapter, purpose, rows) as other:
                yield other


class _Runner(runner.Runner):
    def _backend(self, job: Job) -> Backend:
        return _Backend()


def main(spec_path: str) -> int:
    """See `worker.runner`."""
    return runner.main(spec_path, _Runner)
