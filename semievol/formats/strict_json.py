"""JSON from strangers: strict UTF-8, each key once, no NaN, and bounded depth, numbers and size."""

import json
from collections.abc import Callable
from typing import Any, NoReturn

from semievol.formats.problems import RowFault

MAX_LINE_BYTES = 4 * 1024 * 1024
"""Of one row, in every format."""
MAX_DEPTH = 64
MAX_DIGITS = 400
"""Of one number, sign and exponent included."""
MAX_VALUES = 100_000
"""Lists, objects, strings and numbers of one row together."""


def parse(raw: bytes, wanted: str) -> Any:
    """The value. Raises RowFault; where this is no JSON, it says what was wanted."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8"
        raise RowFault("not_utf8", message, offset_bytes=error.start) from None
    value = _loads(text, len(raw), wanted)
    _check_shape(value)
    return value


def _loads(text: str, size_bytes: int, wanted: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        offset = size_bytes - len(text[error.pos :].encode())  # counted from the end, as a byte order mark is no text
        message = f"not JSON at column {error.colno}: {error.msg}; {wanted}"
        raise RowFault("not_json", message, offset_bytes=offset) from None
    except RecursionError:
        raise _too_deep() from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise RowFault("duplicate_key", "a JSON object gives the same key twice; keep one of them")
    return keys


def _reject_constant(name: str) -> NoReturn:
    raise RowFault("not_json", f"{name} is not JSON; use null or a string")


def _bounded(convert: Callable[[str], float]) -> Callable[[str], float]:
    def number(digits: str) -> float:
        if len(digits) > MAX_DIGITS:
            message = f"a number has more than {MAX_DIGITS} digits; write it as a string"
            raise RowFault("too_many_digits", message)
        return convert(digits)

    return number


# One for all rows: making it costs as much as reading a short row.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys,
    parse_constant=_reject_constant,
    parse_int=_bounded(int),
    parse_float=_bounded(float),
)


def _check_shape(value: Any) -> None:
    """Level by level, so that neither depth nor size costs stack."""
    level, seen = [value], 1
    for _ in range(MAX_DEPTH):
        level = [child for item in level if isinstance(item, dict | list) for child in _children(item)]
        seen += len(level)
        if seen > MAX_VALUES:
            raise RowFault(
                "too_many_values", f"the row holds more than {MAX_VALUES:,} values; leave out what is unused"
            )
        if not level:
            return
    raise _too_deep()


def _children(item: dict[str, Any] | list[Any]) -> Any:
    return item.values() if isinstance(item, dict) else item


def _too_deep() -> RowFault:
    return RowFault("too_deep", f"the JSON is nested deeper than {MAX_DEPTH} levels; leave out what is unused")
