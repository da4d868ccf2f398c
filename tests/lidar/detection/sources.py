"""Labelled frames in memory, for tests."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lidar.datasets.errors import FrameError
from lidar.datasets.sources import FrameRef
from lidar.detection.labels import BoxLabels, LabelledSource

RANGE = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A `LabelledSource` of given clouds and labels; a cloud that is None cannot be read."""

    clouds: tuple[np.ndarray | None, ...]
    found: tuple[BoxLabels, ...]
    plane: np.ndarray | None = None
    columns: int = 4
    velocities: bool = False
    frames: tuple[FrameRef, ...] = field(init=False)

    name = "memory"

    def __post_init__(self) -> None:
        refs = (FrameRef(Path(f"{i:06d}.bin"), f"{i:06d}", f"scene{i}") for i in range(len(self.clouds)))
        object.__setattr__(self, "frames", tuple(refs))

    def read(self, ref: FrameRef) -> np.ndarray:
        cloud = self.clouds[self.frames.index(ref)]
        if cloud is None:
            raise FrameError(ref.path, "unreadable", "Repair it.")
        return cloud.copy()

    def labels(self, ref: FrameRef) -> BoxLabels:
        return self.found[self.frames.index(ref)]

    def road(self, ref: FrameRef) -> np.ndarray | None:
        return self.plane


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """Another source with its boxes written otherwise."""

    source: LabelledSource
    boxes: Callable[[np.ndarray], np.ndarray]
    points: Callable[[np.ndarray], np.ndarray] = lambda points: points
    velocities: bool = False

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def frames(self) -> tuple[FrameRef, ...]:
        return self.source.frames

    @property
    def columns(self) -> int:
        return self.source.columns

    def read(self, ref: FrameRef) -> np.ndarray:
        return self.points(self.source.read(ref))

    def labels(self, ref: FrameRef) -> BoxLabels:
        labels = self.source.labels(ref)
        return replace(labels, boxes=self.boxes(labels.boxes.copy()))

    def road(self, ref: FrameRef) -> np.ndarray | None:
        return self.source.road(ref)


def random_boxes(count: int, *, seed: int, velocity: bool = False) -> np.ndarray:
    """float32 [count, 7 or 9] anywhere in the range."""
    rng = np.random.default_rng(seed)
    low, high = [5, -30, -1.5, 0.5, 0.4, 1, -np.pi], [60, 30, -0.5, 5, 2.5, 2, np.pi]
    boxes = rng.uniform(low, high, (count, 7))
    if velocity:
        boxes = np.column_stack([boxes, rng.normal(0, 5, (count, 2))])
    return boxes.astype(np.float32)


def filled(boxes: np.ndarray, *, seed: int, each: int = 20, columns: int = 4) -> np.ndarray:
    """Points strictly inside boxes, `each` per box and box after box: float32 [len(boxes) * each, columns]."""
    rng = np.random.default_rng(seed)
    offset = rng.uniform(-0.45, 0.45, (len(boxes), each, 3)) * boxes[:, None, 3:6]
    cos, sin = np.cos(boxes[:, None, 6]), np.sin(boxes[:, None, 6])
    x = offset[..., 0] * cos - offset[..., 1] * sin
    y = offset[..., 0] * sin + offset[..., 1] * cos
    xyz = np.stack([x, y, offset[..., 2]], axis=-1) + boxes[:, None, :3]
    rest = rng.uniform(0, 1, (len(boxes), each, columns - 3))
    return np.concatenate([xyz, rest], axis=-1).reshape(-1, columns).astype(np.float32)


def row_of_boxes(count: int, *, y: float = 0.0, spacing: float = 6.0, velocity: bool = False) -> np.ndarray:
    """Cars one behind another along x, from x = 8 on, that do not touch: float32 [count, 7 or 9]."""
    boxes = np.zeros((count, 9 if velocity else 7), np.float32)
    boxes[:, 0] = 8 + spacing * np.arange(count)
    boxes[:, 1] = y
    boxes[:, 2] = -1
    boxes[:, 3:6] = (4, 1.8, 1.6)
    return boxes


def memory(
    boxes: list[np.ndarray], names: list[tuple[str, ...]], *, each: int = 20, **options: object
) -> Memory:
    """Frames whose boxes are filled with points, on a floor."""
    rng = np.random.default_rng(99)
    columns = int(options.get("columns", 4))  # type: ignore[call-overload]
    floor = rng.uniform((1, -35, -2.2, 0), (65, 35, -2.0, 1), (300, 4))
    floor = np.column_stack([floor, np.zeros((300, columns - 4))]).astype(np.float32)
    clouds = tuple(
        np.concatenate([filled(b, seed=i, each=each, columns=columns), floor]) for i, b in enumerate(boxes)
    )
    found = tuple(BoxLabels(boxes=b, names=n) for b, n in zip(boxes, names, strict=True))
    return Memory(clouds=clouds, found=found, **options)  # type: ignore[arg-type]
