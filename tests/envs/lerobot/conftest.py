"""A small data set with a feature of every kind."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from envs.lerobot import Feature, LeRobotWriter

FEATURES = {
    "observation.image": Feature("image", (6, 8, 3), names=("height", "width", "channels")),
    "observation.gray": Feature("image", (1, 4, 4), names=("channels", "height", "width")),
    "observation.state": Feature("float32", (4,), names=("x", "y", "vx", "vy")),
    "grid": Feature("float32", (2, 3, 5)),
    "matrix": Feature("int64", (2, 3)),
    "action": Feature("float32", (2,)),
    "reward": Feature("float32", (1,)),
    "next.done": Feature("bool", (1,)),
    "note": Feature("string", (1,)),
}


def frames_of(length: int, seed: int) -> dict[str, np.ndarray]:
    """A random episode of FEATURES."""
    rng = np.random.default_rng(seed)
    return {
        "observation.image": rng.integers(0, 256, (length, 6, 8, 3), np.uint8),
        "observation.gray": rng.integers(0, 256, (length, 1, 4, 4), np.uint8),
        "observation.state": rng.normal(size=(length, 4)).astype(np.float32),
        "grid": rng.normal(size=(length, 2, 3, 5)).astype(np.float32),
        "matrix": rng.integers(-9, 9, (length, 2, 3)),
        "action": rng.normal(size=(length, 2)).astype(np.float32),
        "reward": rng.normal(size=length).astype(np.float32),
        "next.done": np.arange(length) == length - 1,
        "note": np.array([f"frame {i}" for i in range(length)]),
    }


LENGTHS = (5, 1, 8, 3)
TASKS = ("go left", "go right", "go left", "stay")


def write(root: Path, *, flush_after: int | None = 1) -> Path:
    """Episodes of LENGTHS, in two files."""
    with LeRobotWriter(root, features=FEATURES, fps=10, robot_type="toy") as writer:
        for seed, (length, task) in enumerate(zip(LENGTHS, TASKS, strict=True)):
            writer.append(frames_of(length, seed), task=task)
            if seed == flush_after:
                writer.flush()
    return root


@pytest.fixture(scope="session", autouse=True)
def _without_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that no test may change."""
    return write(tmp_path_factory.mktemp("lerobot") / "set")


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """A function that writes the data set anew, to be damaged."""
    return lambda: write(tmp_path / "set")
