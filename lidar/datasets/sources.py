"""What a source of LiDAR frames is, and how its frames are split into training and validation."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from lidar.datasets.errors import DatasetError

MAX_GAP = 10  # frames: one second of a spinning LiDAR


@dataclass(frozen=True, slots=True)
class FrameRef:
    """One frame on disk.

    Attributes:
        path: its point file.
        frame_id: its name, unique within the source.
        scene: frames of one scene show the same place; a split never divides a scene.
    """

    path: Path
    frame_id: str
    scene: str


class FrameSource(Protocol):
    """A list of frames and a way to read them. Reading never opens a label."""

    @property
    def name(self) -> str:
        """A short name for logs and reports."""

    @property
    def frames(self) -> tuple[FrameRef, ...]:
        """All frames, in recording order within a scene."""

    def read(self, ref: FrameRef) -> np.ndarray:
        """The frame's points: float32 [N, 4], x, y, z in metres (sensor frame), intensity in 0..1.

        Raises:
            FrameError: if the frame cannot be read or holds nonsense.
        """

    def check_size(self, ref: FrameRef) -> None:
        """Validate what the file's size tells, without reading it.

        Raises:
            FrameError: if the file is missing, empty or not a whole number of points.
        """


def split_scenes(
    source: FrameSource, val_fraction: float, seed: int
) -> tuple[tuple[FrameRef, ...], tuple[FrameRef, ...]]:
    """Split a source into training and validation frames so that no scene is on both sides.

    Whole scenes, in an order drawn from the seed, go to validation until it holds at least `val_fraction` of
    the frames; one scene at least on each side. A source with a single scene is cut by time instead: its last
    `val_fraction` validates and up to MAX_GAP frames before that are dropped, because neighbouring frames
    of a recording are nearly the same; a warning says so.

    Args:
        source: the frames.
        val_fraction: share of frames for validation, in [0, 1); 0 gives no validation frames.
        seed: seed of the order of scenes.

    Returns:
        Training frames and validation frames, each in the source's order.

    Raises:
        ValueError: if val_fraction is not in [0, 1).
        DatasetError: if there are too few frames for two sides.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction is a share of the frames in [0, 1), got {val_fraction}")
    frames = source.frames
    if val_fraction == 0:
        return frames, ()
    sizes: dict[str, int] = {}
    for ref in frames:
        sizes[ref.scene] = sizes.get(ref.scene, 0) + 1
    if len(sizes) == 1:
        return _split_in_time(source.name, frames, val_fraction)
    scenes = np.array(sorted(sizes))
    val_scenes: set[str] = set()
    held = 0
    for scene in np.random.default_rng(seed).permutation(scenes)[:-1]:
        if val_scenes and held >= val_fraction * len(frames):
            break
        val_scenes.add(str(scene))
        held += sizes[str(scene)]
    train = tuple(ref for ref in frames if ref.scene not in val_scenes)
    val = tuple(ref for ref in frames if ref.scene in val_scenes)
    return train, val


def _split_in_time(
    name: str, frames: Sequence[FrameRef], val_fraction: float
) -> tuple[tuple[FrameRef, ...], tuple[FrameRef, ...]]:
    count = len(frames)
    if count < 3:
        raise DatasetError(
            f"{name}: {count} frame(s) of one scene cannot be split into training and validation with a gap "
            f"between. Add frames, or set data.val_fraction=0 to train without validation."
        )
    val = min(max(1, round(val_fraction * count)), count - 2)
    gap = min(MAX_GAP, max(1, count // 10), count - val - 1)
    warnings.warn(
        f"{name} has one scene only: its last {val} frames validate, the {gap} before them are dropped. "
        f"Training and validation then show neighbouring places: validation is optimistic.",
        UserWarning,
        stacklevel=3,
    )
    return tuple(frames[: count - val - gap]), tuple(frames[count - val :])
