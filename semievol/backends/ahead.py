"""Retrieval that begins before it is asked for, on cores that would idle meanwhile.

The thread only computes: the retrieval model is built by who starts it, since imports of large libraries do not mix
with others.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import numpy.typing as npt

from semievol.ports import Floats, Progress, Retriever

Found = tuple[npt.NDArray[np.int64], Floats]


class _Over(Exception):
    pass


class RetrieverAhead:
    """The `Retriever` port over another, which can be asked ahead of time.

    Answers are those that the other would give when asked: the same queries at once, on the same device. What was not
    found in time, or could not be, is looked up when it is asked for.
    """

    def __init__(self, build: Callable[[Progress], Retriever]) -> None:
        """`build`: makes the other, which tells its progress."""
        self._over = threading.Event()
        self._found: dict[bytes, Found] = {}
        self.retriever = build(self._go_on)

    def nearest(self, queries: Sequence[str], k: int) -> Found:
        """See `ports.Retriever`."""
        found = self._found.pop(_key(queries, k), None)
        return self.retriever.nearest(queries, k) if found is None else found

    @contextmanager
    def searching(self, groups: Iterable[Sequence[str]], k: int) -> Iterator[Callable[[], None]]:
        """Another thread looks up one group of queries after the other, from the call of what it yields to the end."""
        thread = threading.Thread(target=self._search, args=(groups, k), name="retrieval-ahead", daemon=True)

        def begin() -> None:
            if thread.ident is None:
                thread.start()

        try:
            yield begin
        finally:
            self._over.set()
            if thread.ident is not None:
                thread.join()
            self._over.clear()

    def _search(self, groups: Iterable[Sequence[str]], k: int) -> None:
        with suppress(Exception):  # it is told by who looks them up again
            for queries in groups:
                self._found[_key(queries, k)] = self.retriever.nearest(queries, k)
                self._go_on()

    def _go_on(self, done: int = 0, total: int = 0, loss: float | None = None) -> None:
        if self._over.is_set():
            raise _Over


def _key(queries: Sequence[str], k: int) -> bytes:
    digest = hashlib.sha256(str(k).encode())
    for query in queries:
        digest.update(len(query).to_bytes(8) + query.encode(errors="surrogatepass"))
    return digest.digest()
