"""What finished runs of the library took, by base model and device, in a file of the user's cache folder.

The service needs none: its database has every stage of every job.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from semievol.estimates.costs import JOBS_LEARNED_FROM
from semievol.estimates.estimate import Count, Estimator
from semievol.estimates.work import Done, plain_jobs
from semievol.model_files import CONFIG, config_of, model_file
from semievol.recipe import ModelSettings
from semievol.workdir import write_whole


@dataclass(frozen=True, slots=True)
class History:
    """The finished runs of one base model on one kind of device, the newest first; `device` as `Backend` tells it."""

    path: Path
    model: str
    revision: str | None
    device: str

    @classmethod
    def of(cls, model: str, settings: ModelSettings, device: str) -> Self:
        """In `$XDG_CACHE_HOME/semievol/measured.json`, by default under ~/.cache."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(cache / "semievol" / "measured.json", model, settings.revision, device)

    def jobs(self) -> list[list[Done]]:
        """What each run did and took; none if there is no file or it is not ours."""
        try:
            return plain_jobs(self._load().get(self._key(), []))
        except (TypeError, ValueError):
            return []

    def add(self, job: Sequence[Sequence[Any]]) -> None:
        """Put a finished run (as `as_plain` tells it) first; those that nobody would learn from are forgotten.

        Where the cache cannot be written nothing is learned: that is no reason for a run to fail.
        """
        known, key = self._load(), self._key()
        known[key] = [list(job), *known.get(key, [])][:JOBS_LEARNED_FROM]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(known).encode())
        except OSError:
            return

    def estimator(self, count: Count) -> Estimator:
        """What estimates the next run from these."""
        return Estimator.of(
            config_of(self.model, self.revision),
            self.jobs(),
            count,
            device=self.device.partition(" ")[0],
            vllm=find_spec("vllm") is not None,
        )

    def _key(self) -> str:
        """Models of the same shape take the same time, whatever their weights and folder."""
        config = model_file(self.model, self.revision, CONFIG)
        shape = hashlib.sha256(config.read_bytes()).hexdigest()[:16] if config else self.model
        return f"{shape} on {self.device}"

    def _load(self) -> dict[str, Any]:
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return dict(known) if isinstance(known, Mapping) else {}
