"""Rows of the Parquet files that stages left in the object store.

Only of small files, such as a shard's: what stands at the end of a Parquet file is 8 MB for a million rows, and reading
that took 0.4 s and 60 MB. pyarrow is imported at the first call, as the service works without.
"""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from store.objects import ObjectStore, open_object

_BATCH_ROWS = 64
"""Rows that are unpacked at once; a shard has 512 by default, and a row may be large."""


class Trials:
    """Reads rows, one call at a time, so that memory does not grow with the number of readers."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._lock = threading.Lock()

    def row(self, sha256: str, size: int, line: int) -> dict[str, Any] | None:
        """The answered row of that line; None if the file has no such line. Raises ObjectMissing."""
        with self._open(sha256, size) as file:
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                lines = batch.column("line").to_pylist()
                if line in lines:
                    found: dict[str, Any] = batch.slice(lines.index(line), 1).to_pylist()[0]
                    return found
        return None

    def examples(self, sha256: str, size: int, ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """The labeled rows of these ids, as far as the file has them, by id. Raises ObjectMissing."""
        found: dict[str, dict[str, Any]] = {}
        if not ids:
            return found
        with self._open(sha256, size) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=["id", "messages", "reply"], use_threads=False):
                for place, name in enumerate(batch.column("id").to_pylist()):
                    if name in ids:
                        found[name] = batch.slice(place, 1).to_pylist()[0]
                if len(found) == len(ids):
                    break
        return found

    @contextmanager
    def _open(self, sha256: str, size: int) -> Iterator[Any]:
        import pyarrow as pa  # noqa: PLC0415  -- 40 MB that the service does without until the first detail
        import pyarrow.parquet as pq  # noqa: PLC0415

        # The system's allocator gives memory back at once, and threads would each keep some.
        with self._lock, open_object(self._objects, sha256, size) as source:
            pa.set_memory_pool(pa.system_memory_pool())
            with pq.ParquetFile(source) as file:
                yield file
