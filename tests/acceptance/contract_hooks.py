"""Schemathesis's hooks for test_contract.py: generated ids become, half of the time, ids of things that there are.

Loaded by the `schemathesis` command (SCHEMATHESIS_HOOKS); the ids come in CONTRACT_IDS, JSON by parameter's name.
"""

import json
import os
import re
import zlib
from typing import Any

import schemathesis

IDS: dict[str, list[Any]] = json.loads(os.environ.get("CONTRACT_IDS", "{}"))
_REAL = re.compile(r"(file-|upload_|ftjob-|we_)[0-9a-f]{24}")


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: Any, kwargs: dict[str, Any]) -> None:
    """Change a request just before it is sent."""
    _real_ids(case.path_parameters)
    _real_ids(case.body)
    if isinstance(case.body, dict):
        _real_ids(case.body.get("semievol"))
    if isinstance(case.query, dict):
        case.query.pop("stream", None)  # a stream lasts as long as its job


def _real_ids(values: Any) -> None:
    if not isinstance(values, dict):
        return
    for name in values.keys() & IDS.keys():
        number = zlib.crc32(repr(values[name]).encode("utf-8", "replace"))
        if number % 2 and not _REAL.fullmatch(str(values[name])):
            values[name] = IDS[name][number // 2 % len(IDS[name])]
