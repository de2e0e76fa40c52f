"""Engines behind the ports: the only modules that import torch, transformers, PEFT, vLLM or openai.

transformers and PEFT take along what they find installed, for losses and layers that nobody asks of them here. Without
that importing them takes about 30 % less CPU time. Who needs one of these packages still imports it.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _importing_without(*packages: str) -> Iterator[None]:
    """As if they were not installed; and without looking for garbage, which takes a fifth of the time.

    Once transformers is imported it may have found them, and would miss them: then they are there as always.
    """
    hidden = [name for name in packages if name not in sys.modules and "transformers" not in sys.modules]
    nothing: Any = dict.fromkeys(hidden)
    sys.modules.update(nothing)
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        if collects:
            gc.enable()


with _importing_without("bitsandbytes", "scipy", "sklearn"):
    from peft.import_utils import is_bnb_available  # imports transformers' models too

    is_bnb_available()  # the answer is kept until `quantization` has it asked again
