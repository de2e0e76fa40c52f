"""In-context propagation: the nearest labeled rows of every row, by exact search.

Labeled sets are small, so a matrix product over chunks of queries is all it takes.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from semievol.examples import content_id
from semievol.ports import Embedder, Floats, Progress, Retriever, no_progress

CHUNK_ROWS = 4096
Ints = npt.NDArray[np.int64]


class DenseRetriever:
    """Cosine search over embedded documents (the `Retriever` port)."""

    def __init__(self, embedder: Embedder, documents: Sequence[str], progress: Progress = no_progress) -> None:
        self.embedder, self.progress = embedder, progress
        self.documents = embedder.embed(documents)

    def nearest(self, queries: Sequence[str], k: int) -> tuple[npt.NDArray[np.int64], Floats]:
        """See `ports.Retriever`."""
        return top_k(self.embedder.embed(queries, self.progress), self.documents, k)


def top_k(queries: Floats, documents: Floats, k: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Indices and dot products of the k best documents of each query, [queries, k], best first, ties by index."""
    k = min(k, len(documents))
    indices = np.empty((len(queries), k), dtype=np.int64)
    similarities = np.empty((len(queries), k), dtype=np.float32)
    for start in range(0, len(queries), CHUNK_ROWS):
        scores = queries[start : start + CHUNK_ROWS] @ documents.T
        best = _best(scores, k)
        indices[start : start + CHUNK_ROWS] = best
        similarities[start : start + CHUNK_ROWS] = np.take_along_axis(scores, best, axis=1)
    return indices, similarities


def _best(scores: Floats, k: int) -> npt.NDArray[np.int64]:
    """Columns of the k highest scores of each row, the highest first, ties by column."""
    columns = scores.shape[1]
    best = np.sort(np.argpartition(scores, columns - k, axis=1)[:, columns - k :], axis=1)
    values = np.take_along_axis(scores, best, axis=1)
    best = np.take_along_axis(best, np.argsort(-values, axis=1, kind="stable"), axis=1)
    # Which of several equal scores at the border a partition takes is its own affair: such rows are sorted whole.
    tied = np.count_nonzero(scores >= values.min(axis=1, keepdims=True), axis=1) > k
    best[tied] = np.argsort(-scores[tied], axis=1, kind="stable")[:, :k]
    return best


def alike(neighbours: Ints, *, farthest_first: bool) -> Ints:
    """Places of the rows in an order in which those with the same neighbours follow one another.

    `neighbours`: [rows, k], the nearest first. By the farthest first, which prompts begin with, if that is how all of a
    row's prompts begin; otherwise by the nearest.
    """
    columns = neighbours if farthest_first else neighbours[:, ::-1]
    order: Ints = np.lexsort(columns.T)  # which goes by the last of its keys first
    return order


def nearest_others(
    retriever: Retriever, queries: Sequence[str], query_ids: Sequence[str], document_ids: Sequence[str], k: int
) -> tuple[npt.NDArray[np.int64], Floats]:
    """The same for queries that are documents too: a row never retrieves itself or its duplicate.

    Rows are the same where their ids are, up to the counter that tells duplicates apart. Where fewer than k others
    exist the last one repeats.
    """
    content = np.array([content_id(document_id) for document_id in document_ids])
    own = np.array([content_id(query_id) for query_id in query_ids])
    most = int(max((np.sum(content == identity) for identity in set(own)), default=0))
    indices, similarities = retriever.nearest(queries, min(k + most, len(document_ids)))
    picked, values = [], []
    for row, identity in enumerate(own):
        others = np.flatnonzero(content[indices[row]] != identity)[:k]
        if len(others) == 0:
            raise ValueError(f"row {query_ids[row]} has no labeled row other than itself")
        others = np.pad(others, (0, k - len(others)), mode="edge")
        picked.append(indices[row, others])
        values.append(similarities[row, others])
    return np.stack(picked), np.stack(values)
