"""How a file is read, decided from its name and its first bytes: for the command line, the service and its workers."""

import re
from dataclasses import dataclass
from typing import Literal

Form = Literal["jsonl", "csv", "parquet"]
Packing = Literal["", "gz", "zst"]

HEAD_BYTES = 4096
"""How much of a file's start is enough."""
ENDINGS = "JSON lines (.jsonl, .ndjson), CSV (.csv) and Parquet (.parquet) are read, each also as .gz or .zst"
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
PARQUET_MAGIC = b"PAR1"
_ENDING = re.compile(r"\.(jsonl|ndjson|csv|parquet)(?:\.(gz|zst))?$", re.IGNORECASE)
_FORMS: dict[str, Form] = {"jsonl": "jsonl", "ndjson": "jsonl", "csv": "csv", "parquet": "parquet"}
_PACKINGS: dict[str, Packing] = {"gz": "gz", "zst": "zst"}


@dataclass(frozen=True, slots=True)
class Format:
    """What the rows are written as, and what that is packed in."""

    form: Form
    packing: Packing = ""

    @property
    def ending(self) -> str:
        """The ending of a file's name that says so, such as `.csv.gz`."""
        return f".{self.form}.{self.packing}" if self.packing else f".{self.form}"


def format_of(name: str, head: bytes) -> Format | None:
    """By the name's ending; packed bytes are known even if the name keeps quiet. None if the ending says nothing."""
    found = _ENDING.search(name)
    if found is None:
        return None
    return Format(_FORMS[found[1].lower()], _PACKINGS.get((found[2] or "").lower()) or _packing_of(head))


def guessed_format(name: str, head: bytes) -> Format:
    """As `format_of`; where the name says nothing, what the first bytes look like. Packed rows are then JSON lines."""
    return format_of(name, head) or Format(_form_of(head), _packing_of(head))


def _packing_of(head: bytes) -> Packing:
    if head.startswith(GZIP_MAGIC):
        return "gz"
    return "zst" if head.startswith(ZSTD_MAGIC) else ""


def _form_of(head: bytes) -> Form:
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    if _packing_of(head):
        return "jsonl"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return "jsonl" if start.startswith((b"{", b"[")) else "csv"
