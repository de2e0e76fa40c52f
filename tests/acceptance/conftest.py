"""Deployments that the tests of a module share."""

from collections.abc import Iterator

import pytest

from tests.deployments import Deployment, one_machine, three_processes


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One machine, one unit at a time."""
    with one_machine(tmp_path_factory.mktemp("small") / "service") as deployment:
        yield deployment


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The three processes."""
    with three_processes(tmp_path_factory.mktemp("large") / "service") as deployment:
        yield deployment
