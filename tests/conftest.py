"""Fixtures that every test may use."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from the name of a real data set to its folder, unpacked once per run; skips where there is none.

    The data lie beside the repository, in ../shared/data; their licences keep them out of it.
    """
    destination = tmp_path_factory.mktemp("real_data")

    def unpacked(name: str) -> Path:
        source, target = SHARED_DATA / name, destination / name
        unpacker = SHARED_DATA / "unpack.py"
        if not source.is_dir() or not unpacker.is_file():
            pytest.skip(
                f"real data set {name} is not there (looked for ../shared/data/{name} beside the repository)"
            )
        if not target.exists():
            spec = importlib.util.spec_from_file_location("shared_data_unpack", unpacker)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            module.unpack(source, target)
        return target

    return unpacked
