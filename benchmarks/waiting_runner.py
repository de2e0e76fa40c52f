"""A runner whose engine only waits: each reply costs time and no processor, as if a GPU made it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from semievol.fakes import FakeBackend
from semievol.pipeline import Job
from semievol.ports import Backend, Generator, Purpose, Request, Response
from semievol.prompts import Prompt
from worker import runner

SECONDS_PER_ROW = 0.025
CLASSES = 8


class WaitingGenerator:
    """The `Generator` port: a reply depends on its seed alone. Rows are answered one after the other."""

    engine = "waiting"
    prompt_tokens = 0

    def generate(
        self, requests: Sequence[Request], *, temperature: float, max_new_tokens: int
    ) -> Iterator[tuple[int, list[Response]]]:
        """See `ports.Generator`."""
        for place, request in enumerate(requests):
            time.sleep(SECONDS_PER_ROW)
            yield place, [_reply(f"class-{seed % CLASSES}") for seed in request.seeds]

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
