"""Fixtures of the worldmodel tests."""

from collections.abc import Iterator

import pytest

from tests.worldmodel.two_processes import TwoProcesses


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoProcesses]:
    """One pair of gloo processes for all two-process tests: starting it costs more than using it."""
    pair = TwoProcesses(tmp_path_factory.mktemp("two_processes"))
    yield pair
    pair.close()
