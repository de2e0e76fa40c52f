"""Fuzz the readers of input files with atheris: any bytes are rows or problems, and soon.

    pip install atheris
    python tests/fuzz/fuzz_formats.py --form jsonl CORPUS -max_total_time=600 -rss_limit_mb=4096

A development tool, not part of `make test`. What follows `--form` goes to libFuzzer. `jsonl` and `csv` are read in this
process. `packed` gives each input to the process that unpacks, as gzip, Zstandard and Parquet (`unpacker.unpack`, here
without its limits but the one on output); a crash there ends the fuzzer, in the product only that process.
"""

import argparse
import gzip
import io
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris
import pyarrow.parquet
import zstandard

with atheris.instrument_imports(include=["semievol", "json", "csv"]):
    from semievol.formats import unpacker
    from semievol.formats.jsonl import jsonl_rows
    from semievol.formats.problems import FileFault
    from semievol.formats.separated import csv_rows

SLOW_SECONDS = 1.0
MAX_OUTPUT_BYTES = 1024**2
SEEDS = {
    "jsonl": [
        b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 1}]}\n',
        b'{"prompt": "p", "completion": "\\ud83d\\ude00"}\n{"instruction": "i", "input": "", "output": "o"}\n',
        b'\xef\xbb\xbf{"question": "q", "options": ["x", "y"], "answer": "A"}\r\n\n[1e9, NaN, -Infinity, null]\n',
    ],
    "csv": [b'question,options,answer\n"q\nr","[""x"", ""y""]",A\n', b"\xef\xbb\xbfanswer,Question\r\na,q\r\n"],
}
SEEDS["packed"] = [gzip.compress(SEEDS["csv"][0]), zstandard.compress(SEEDS["csv"][0])]


def parquet_seed() -> bytes:
    """A small table."""
    sink = io.BytesIO()
    columns = {"question": ["q", "r"], "options": [["x", "y"], None], "answer": ["A", "s"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), sink, compression="none")
    return sink.getvalue()


def read_text(data: bytes, form: str) -> None:
    """As a labeled and as an unlabeled file."""
    reader = jsonl_rows if form == "jsonl" else csv_rows
    for labeled in (True, False):
        with suppress(FileFault):
            for _ in reader(io.BytesIO(data), labeled=labeled):
                pass


def read_packed(data: bytes) -> None:
    """As what its first bytes say; Parquet also packed."""
    kinds = {b"\x1f\x8b": ("csv", "gz"), b"\x28\xb5": ("csv", "zst"), b"PA": ("parquet", "")}
    form, packing = kinds.get(data[:2], ("csv", "gz"))
    order = {"form": form, "packing": packing, "labeled": True, "limit_bytes": MAX_OUTPUT_BYTES}
    with suppress(unpacker.Fault, MemoryError):
        unpacker.unpack(io.BytesIO(data), io.BytesIO(), order)


def timed(read: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Fail on inputs that take long."""

    def one(data: bytes) -> None:
        started = time.perf_counter()
        read(data)
        seconds = time.perf_counter() - started
        if seconds > SLOW_SECONDS:
            raise RuntimeError(f"{len(data)} bytes took {seconds:.2f} s")

    return one


def main() -> None:
    """Runs until libFuzzer ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=SEEDS, default="jsonl")
    parser.add_argument("corpus", type=Path)
    known, rest = parser.parse_known_args()
    known.corpus.mkdir(parents=True, exist_ok=True)
    seeds = [*SEEDS[known.form], *([parquet_seed()] if known.form == "packed" else [])]
    for number, seed in enumerate(seeds):
        (known.corpus / f"seed-{number}").write_bytes(seed)
    read = read_packed if known.form == "packed" else lambda data: read_text(data, known.form)
    atheris.Setup([sys.argv[0], str(known.corpus), *rest], timed(read))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
