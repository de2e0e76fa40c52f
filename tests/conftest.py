"""What all tests share: no deadlines, the same examples in every run, Ctrl-C that is heard, slow files first."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

gc.disable()  # until all is imported, of which it would take a fifth of the time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell that runs the tests in the background has them ignore SIGINT, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The machine may be shared, so time is no criterion; derandomised, a failure is the same in every run.
settings.register_profile(
    "default", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")

KEPT = Path(__file__).parent.parent / ".cache"
"""Of this checkout; what a run leaves there makes the next one faster."""


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What runs of the tests took is nothing to estimate other runs by. Models that were downloaded stay at hand.

    So does what vLLM learned of its models, which takes a process and several seconds.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    with pytest.MonkeyPatch.context() as changes:
        changes.setenv("HF_HOME", os.environ.get("HF_HOME") or f"{cache}/huggingface")
        changes.setenv("VLLM_CACHE_ROOT", os.environ.get("VLLM_CACHE_ROOT") or str(KEPT / "vllm"))
        changes.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first: begun last, they would leave the other processes without work."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What is imported by now is no garbage. Every training has garbage collected, which need not look at it."""
    gc.freeze()
    gc.enable()
