"""Demonstrations: what an expert saw and did, for policies to imitate."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from envs.lerobot import LeRobotDataset

# Columns of a recording, by LeRobot's names where it has one.
STATE, ENVIRONMENT, IMAGE = "observation.state", "observation.environment_state", "observation.image"
ACTION, SUCCESS, SEED = "action", "next.success", "seed"


class MissingColumn(ValueError):
    """A data set lacks a column that is to be read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Demonstration:
    """T steps of an expert. `action[t]` was chosen on seeing what row t of the others holds.

    Attributes:
        state: [T, Ds] float32, proprioception.
        environment: [T, De] float32, the low-dimensional rest of the observation (objects, goal), or None.
        image: [T, H, W, 3] uint8, or None.
        points: T LiDAR sweeps [P, 4] float32 (x, y, z in metres in the sensor's frame, intensity 0..1), or None.
        action: [T, Da] float32, the expert's choice without noise, within the bounds of the environment.
        task: what was done; of recordings of this project the name that `envs.manipulation.make_env` takes.
        seed: of the environment's reset.
        success: whether the task was solved at any time.

    Raises:
        ValueError: on a wrong shape or type, unequal lengths, NaN or infinite numbers.
    """

    state: np.ndarray
    environment: np.ndarray | None
    image: np.ndarray | None
    action: np.ndarray
    task: str
    seed: int
    success: bool
    points: tuple[np.ndarray, ...] | None = None

    def __post_init__(self) -> None:
        named = f"demonstration of {self.task!r}, seed {self.seed}"
        for name, rows in (
            ("state", self.state),
            ("environment", self.environment),
            ("action", self.action),
        ):
            if rows is None:
                continue
            if rows.ndim != 2 or rows.dtype != np.float32:
                raise ValueError(
                    f"{named}: {name} must be [T, D] float32, got {list(rows.shape)} {rows.dtype}"
                )
            if not np.isfinite(rows).all():
                step = int(np.argwhere(~np.isfinite(rows))[0][0])
                raise ValueError(f"{named}: {name} holds NaN or infinite numbers, first in step {step}")
        image = self.image
        if image is not None and (image.ndim != 4 or image.shape[3] != 3 or image.dtype != np.uint8):
            raise ValueError(
                f"{named}: image must be [T, H, W, 3] uint8, got {list(image.shape)} {image.dtype}"
            )
        for step, sweep in enumerate(self.points or ()):
            if sweep.ndim != 2 or sweep.shape[1] != 4 or sweep.dtype != np.float32:
                raise ValueError(
                    f"{named}: points must be [P, 4] float32, got {list(sweep.shape)} {sweep.dtype} in step {step}"
                )
            if not np.isfinite(sweep).all():
                raise ValueError(f"{named}: points hold NaN or infinite numbers, first in step {step}")
        rows_of = {
            "state": self.state,
            "environment": self.environment,
            "image": image,
            "points": self.points,
        }
        lengths = {name: len(rows) for name, rows in rows_of.items() if rows is not None}
        if set(lengths.values()) != {len(self.action)} or not len(self.action):
            raise ValueError(
                f"{named}: {len(self.action)} actions need that many rows, at least 1: {lengths}"
            )

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self.action)


def load_demonstrations(
    root: str | Path,
    *,
    tasks: Collection[str] | None = None,
    image: bool | str = True,
    state: str = STATE,
    environment: str | None = ENVIRONMENT,
    action: str = ACTION,
) -> list[Demonstration]:
    """All episodes of a LeRobot data set, decoded into memory.

    Data sets of other programs may lack `next.success` and `seed`: their episodes then count as successes, and their
    index stands for the seed. The task is the first that an episode has.

    Args:
        root: folder that holds meta/info.json.
        tasks: those to load; all if None.
        image: the column of the pictures; True for `IMAGE`, False for none.
        state, action: their columns.
        environment: its column; None for none, and a data set may lack the default one.

    Raises:
        MissingColumn: naming those it has.
        ValueError: if it lacks a task, naming those it has, or the columns are no demonstration.
        FileNotFoundError: if `root` is no data set.
        envs.lerobot.DatasetFormatError: if the data set is damaged.
    """
    from envs.lerobot import LeRobotDataset

    dataset = LeRobotDataset(root)
    if unknown := sorted(set(tasks or ()) - set(dataset.tasks)):
        raise ValueError(f"{root} has no task {', '.join(unknown)}; it has {', '.join(dataset.tasks)}")
    columns = {"state": state, "action": action}
    if environment is not None and (environment != ENVIRONMENT or ENVIRONMENT in dataset.features):
        columns["environment"] = environment
    picture = IMAGE if image is True else image or None
    for key in [*columns.values(), *([picture] if picture else [])]:
        if key not in dataset.features:
            without = "; without pictures: image=False (observe.image=false)" if key == picture else ""
            raise MissingColumn(
                f"{root} has no column {key!r}, only {', '.join(dataset.features)}: name another one{without}"
            )
    if picture is not None and not dataset.feature(picture).visual:
        raise ValueError(
            f"{root}: {picture!r} holds no pictures; name their column, or load with image=False"
        )
    seeded, judged = (key in dataset.features for key in (SEED, SUCCESS))
    found = []
    for entry in dataset.episodes:
        task = entry.tasks[0] if entry.tasks else ""
        if tasks is not None and task not in tasks:
            continue
        rows = {name: _vectors(dataset.frames(key, episode=entry.index)) for name, key in columns.items()}
        found.append(
            Demonstration(
                state=rows["state"],
                environment=rows.get("environment"),
                image=None if picture is None else _pictures(dataset, picture, entry.index),
                action=rows["action"],
                task=task,
                seed=int(dataset.frames(SEED, episode=entry.index, stop=1)[0]) if seeded else entry.index,
                success=not judged or bool(dataset.frames(SUCCESS, episode=entry.index).any()),
            )
        )
    return found


def action_bounds(root: str | Path, *, action: str = ACTION) -> tuple[np.ndarray, np.ndarray] | None:
    """Lowest and highest action [Da] that a recording of this project stores with its actions, None if there are none.

    Raises:
        FileNotFoundError: if `root` is no data set.
    """
    from envs.lerobot import LeRobotDataset

    info = LeRobotDataset(root).features[action].info
    if not {"low", "high"} <= info.keys():
        return None
    return np.asarray(info["low"], np.float32), np.asarray(info["high"], np.float32)


def _vectors(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows.reshape(len(rows), -1), dtype=np.float32)


def _pictures(dataset: "LeRobotDataset", key: str, episode: int) -> np.ndarray:
    """[T, H, W, 3] of whatever layout and number of channels is stored."""
    from envs.lerobot.pixels import to_pixels

    pixels = to_pixels(dataset.frames(key, episode=episode), dataset.feature(key))
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:3], 3)))
