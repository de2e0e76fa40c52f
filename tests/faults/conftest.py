"""The job that faults happen to, and what it ends with when nothing happens."""

from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.faults.runs import arguments, results, run_to_end, server, write_files


@pytest.fixture(scope="session")
def context() -> ForkServerContext:
    return server()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("kills") / "data")


@pytest.fixture(scope="session")
def undisturbed(context: ForkServerContext, data: Path) -> dict[str, str]:
    log, output = data.parent / "log", data.parent / "undisturbed"
    assert run_to_end(context, arguments(data, output), log) == 0, log.read_text()
    assert not (output / "checkpoints").exists()
    return results(output)
