"""The schedule of the published SemiEvol pipeline behind this project's ports: prompts, votes and choice are the same.

As there, every pass of a collaborator starts an engine, serves the adapter unmerged and shares no prefixes; the
justification starts one more; and each fine-tuning is a process with padded batches of one row.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from semievol.backends.chat import Chat
from semievol.backends.local import LocalBackend
from semievol.backends.vllm import VllmGenerator, start_of
from semievol.backends.vllm_engine import Start, Written
from semievol.ports import (
    Generator,
    Progress,
    Purpose,
    Request,
    Response,
    Then,
    Trainer,
    TrainingLog,
    TrainingRow,
    no_progress,
    nothing_more,
)
from semievol.prompts import Prompt
from semievol.recipe import ModelSettings, TrainingSettings

_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
_ENVIRONMENT = {**_QUIET, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # one process for an engine, as ours


class PublishedBackend(LocalBackend):
    """The `Backend` port. Retrieval and greedy answers to held-out rows are this project's own."""

    def generator(self, adapter: Path | None, purpose: Purpose, rows: int) -> AbstractContextManager[Generator]:
        """See `ports.Backend`."""
        if purpose != "label":
            return super().generator(adapter, purpose, rows)
        start = start_of(self.model, self.recipe.model, self.recipe.engine, None)
        lora = {"enable_lora": True, "max_lora_rank": max(8, self.recipe.warmup.lora.rank)} if adapter else {}
        plain = {"load_format": "safetensors", "model_loader_extra_config": {}, "enable_prefix_caching": False}
        start = replace(start, engine={**start.engine, **plain, **lora})
        return nullcontext(PassByPass(start, self.chat, adapter))

    def trainer(self) -> Trainer:
        """See `ports.Backend`."""
        return RowByRow(self.model, self.recipe.model)


class PassByPass(VllmGenerator):
    """The `Generator` port whose every pass over the rows is a process with an engine that it starts."""

    def __init__(self, start: Start, chat: Chat, adapter: Path | None) -> None:
        super().__init__(start, chat)
        self.adapter = adapter

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, then: Then = nothing_more
    ) -> Iterator[tuple[int, list[Response]]]:
        """See `ports.Generator`. The nth pass draws the nth seed of every request; what follows comes after them."""
        known = 0
        while requests:
            passes = []
            for seeds in zip(*(request.seeds for request in requests), strict=True):
                asked = {
                    "engine": self.start.engine,
                    "adapter": str(self.adapter) if self.adapter else None,
                    "prompts": [_plain(request.prompt) for request in requests],
                    "seeds": seeds,
                    "temperatures": [request.temperature for request in requests],
                    "max_new_tokens": max_new_tokens,
                }
                told = _run("benchmarks.published_pass", asked)
                passes.append([self.response(Written((0, 0), **one)) for one in told])
            following: list[Request] = []
            for index, responses in enumerate(map(list, zip(*passes, strict=True)), start=known):
                following += then(index, responses)
                yield index, responses
            known += len(requests)
            requests = following


class RowByRow:
    """The `Trainer` port that fine-tunes in a process of its own, one row at a time."""

    def __init__(self, model: str, settings: ModelSettings) -> None:
        self.model, self.settings = model, settings

    def train(
        self,
        rows: Sequence[TrainingRow],
        settings: TrainingSettings,
        *,
        seed: int,
        output: Path,
        start_from: Path | None = None,
        progress: Progress = no_progress,
    ) -> TrainingLog:
        """See `ports.Trainer`. Always a fresh adapter, all rows with the same weight."""
        asked = {
            "model": self.model,
            "revision": self.settings.revision,
            "settings": settings.model_dump(mode="json", include=set(TrainingSettings.model_fields)),
            "rows": [_plain(row.messages) for row in rows],
            "seed": seed,
            "output": str(output),
        }
        told = _run("benchmarks.published_training", asked)
        return TrainingLog(
            steps=told["steps"], rows=len(rows), tokens=told["tokens"], truncated_rows=0, micro_batch_size=1
        )


def _plain(messages: Prompt) -> list[tuple[str, str, int]]:
    return [(message.role, message.content, message.weight) for message in messages]


def _run(module: str, asked: dict[str, Any]) -> Any:
    """What a module of these benchmarks answers in a process of its own. Raises CalledProcessError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder, "asked.json"), Path(folder, "answered.json")
        question.write_text(json.dumps(asked), encoding="utf-8")
        command = [sys.executable, "-m", module, str(question), str(answer)]
        done = subprocess.run(command, check=False, env={**os.environ, **_ENVIRONMENT}, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr[-4000:], file=sys.stderr)
        done.check_returncode()
        return json.loads(answer.read_text(encoding="utf-8"))
