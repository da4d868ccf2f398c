"""Demonstrations: what one must be, and reading them from data sets of other programs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.demonstrations import Demonstration, MissingColumn, action_bounds, load_demonstrations


def fields(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "state": np.zeros((5, 4), np.float32),
        "environment": np.zeros((5, 7), np.float32),
        "image": np.zeros((5, 8, 8, 3), np.uint8),
        "action": np.zeros((5, 2), np.float32),
    }
    return {**found, "task": "push", "seed": 3, "success": True, **changes}


def test_lengths_and_optional_parts() -> None:
    assert len(Demonstration(**fields())) == 5
    assert len(Demonstration(**fields(environment=None, image=None))) == 5


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"state": np.zeros((5, 4))}, r"state must be \[T, D\] float32, got \[5, 4\] float64"),
        ({"action": np.zeros(5, np.float32)}, r"action must be \[T, D\] float32"),
        ({"image": np.zeros((5, 3, 8, 8), np.uint8)}, r"image must be \[T, H, W, 3\] uint8"),
        ({"image": np.zeros((5, 8, 8, 3), np.float32)}, "got .* float32"),
        ({"environment": np.zeros((4, 7), np.float32)}, "5 actions need that many rows"),
        ({"image": np.zeros((6, 8, 8, 3), np.uint8)}, "5 actions need that many rows"),
        ({"state": np.full((5, 4), np.nan, np.float32)}, "state holds NaN.*step 0"),
        ({"action": np.array([[0], [0], [np.inf], [0], [0]], np.float32)}, "action holds NaN.*step 2"),
        ({name: np.zeros((0, 2), np.float32) for name in ("state", "action", "environment")} | {"image": None},
         "at least 1"),
    ],
)  # fmt: skip
def test_what_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Demonstration(**fields(**changes))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with other names, types and layouts than a recording of this project."""
    pytest.importorskip("pyarrow")
    from envs.lerobot import Feature, LeRobotWriter

    features = {
        "observation.pose": Feature("float64", (2, 3)),
        "observation.images.top": Feature("image", (1, 4, 6), names=("channels", "height", "width")),
        "action": Feature("float32", (1,)),
    }
    root, rng = tmp_path_factory.mktemp("foreign") / "set", np.random.default_rng(0)
    with LeRobotWriter(root, features=features, fps=10) as writer:
        for index, task in enumerate(("lift", "push", "lift")):
            rows = {
                "observation.pose": rng.normal(size=(4 + index, 2, 3)),
                "observation.images.top": rng.integers(0, 256, (4 + index, 1, 4, 6), np.uint8),
                "action": rng.normal(size=4 + index).astype(np.float32),
            }
            writer.append(rows, task=task)
    return root


def test_a_foreign_data_set(foreign: Path) -> None:
    found = load_demonstrations(
        foreign, state="observation.pose", image="observation.images.top", tasks=["lift"]
    )
    assert [(len(d), d.task, d.seed, d.success) for d in found] == [
        (4, "lift", 0, True),
        (6, "lift", 2, True),
    ]
    assert (found[0].state.shape, found[0].action.shape) == ((4, 6), (4, 1))
    assert found[0].image is not None
    assert found[0].image.shape == (4, 4, 6, 3)
    assert np.array_equal(found[0].image[..., 0], found[0].image[..., 2])
    assert found[0].environment is None
    assert action_bounds(foreign) is None


@pytest.mark.parametrize(
    ("arguments", "kind", "complaint"),
    [
        ({}, MissingColumn, "no column 'observation.state', only observation.pose"),
        (
            {"state": "observation.pose"},
            MissingColumn,
            r"no column 'observation.image'.*observe\.image=false",
        ),
        ({"state": "observation.pose", "environment": "objects"}, MissingColumn, "no column 'objects'"),
        ({"state": "observation.pose", "image": "action"}, ValueError, "holds no pictures"),
        (
            {"state": "observation.pose", "tasks": ["lift", "fly"]},
            ValueError,
            "no task fly; it has lift, push",
        ),
    ],
)
def test_missing_columns_and_tasks_are_named(
    foreign: Path, arguments: dict[str, Any], kind: type[Exception], complaint: str
) -> None:
    with pytest.raises(kind, match=complaint):
        load_demonstrations(foreign, **arguments)


def test_a_folder_that_is_no_data_set(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(FileNotFoundError, match="not a LeRobot data set"):
        load_demonstrations(tmp_path)
