"""Retrieval: the nearest labeled rows, exactly, and never the row itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.fakes import FakeEmbedder, FakeRetriever
from semievol.propagation import CHUNK_ROWS, DenseRetriever, alike, nearest_others, top_k


@given(st.integers(1, 20), st.integers(1, 15), st.integers(1, 20), st.integers(0, 99))
def test_top_k_is_the_exact_order_of_all_similarities(queries: int, documents: int, k: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    asked = draw.integers(-3, 4, (queries, 4)).astype(np.float32)
    stored = draw.integers(-3, 4, (documents, 4)).astype(np.float32)
    indices, similarities = top_k(asked, stored, k)
    for row in range(queries):
        scores = [float(asked[row] @ document) for document in stored]
        best = sorted(range(documents), key=lambda index: (-scores[index], index))[:k]
        assert list(indices[row]) == best
        assert list(similarities[row]) == [scores[index] for index in best]


def test_queries_beyond_one_chunk_are_all_answered() -> None:
    documents = np.eye(4, dtype=np.float32)
    queries = np.resize(documents, (CHUNK_ROWS + 3, 4))
    indices, _ = top_k(queries, documents, 1)
    assert list(indices[:, 0]) == [index % 4 for index in range(CHUNK_ROWS + 3)]


@pytest.mark.parametrize("k", [1, 2, 9])
def test_a_dense_retriever_finds_the_text_itself_first(k: int) -> None:
    texts = ["red apple", "green pear", "blue plum"]
    indices, similarities = DenseRetriever(FakeEmbedder(), texts).nearest(texts, k)
    assert list(indices[:, 0]) == [0, 1, 2]
    assert similarities[:, 0] == pytest.approx(1)
    assert indices.shape == (3, min(k, 3))


def test_a_row_never_retrieves_itself_or_its_duplicate() -> None:
    texts, ids = ["a b", "a b", "a b", "a c", "d"], ["x", "x-2", "x-3", "y", "z"]
    indices, _ = nearest_others(FakeRetriever(texts), texts, ids, ids, 2)
    assert [set(row) for row in indices] == [{3, 4}, {3, 4}, {3, 4}, {0, 1}, {0, 1}]


def test_where_fewer_others_exist_the_last_one_repeats() -> None:
    indices, similarities = nearest_others(FakeRetriever(["a", "a b"]), ["a", "a b"], ["x", "y"], ["x", "y"], 3)
    assert indices.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert similarities.shape == (2, 3)


def test_a_row_without_others_is_an_error() -> None:
    with pytest.raises(ValueError, match="other than itself"):
        nearest_others(FakeRetriever(["a", "a"]), ["a", "a"], ["x", "x-2"], ["x", "x-2"], 1)


@given(st.integers(0, 60), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_rows_with_the_same_neighbours_follow_one_another(rows: int, k: int, farthest_first: bool, seed: int) -> None:
    neighbours = np.random.default_rng(seed).integers(0, 3, (rows, k))
    order = alike(neighbours, farthest_first=farthest_first)
    assert sorted(order) == list(range(rows))
    prompts = neighbours[:, ::-1] if farthest_first else neighbours
    keys = [(*map(int, prompts[row]), row) for row in order]
    assert keys == sorted(keys)
