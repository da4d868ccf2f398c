"""Frames as a torch data set: read, validate, augment, crop, shuffle. All draws follow (index, seed)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from lidar.augment import Augmentation
from lidar.batch import PointCloudBatch
from lidar.datasets.errors import DatasetError, FrameError
from lidar.datasets.sources import FrameRef, FrameSource
from lidar.grid import Range, inside

ON_ERROR = ("raise", "skip")
FrameKey = tuple[int, int]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One cloud, ready to be batched.

    Attributes:
        points: [n, 4] float32: x, y, z in metres, intensity in 0..1; inside the point range.
        frame_id: the frame it was read from.
        seed: the seed of every draw made for it.
        skipped: names of unreadable frames that this one stands in for (only with on_error="skip").
    """

    points: torch.Tensor
    frame_id: str
    seed: int
    skipped: tuple[str, ...] = ()


class LidarFrames(Dataset[Sample]):
    """Map-style data set over frames of a source.

    The key of an item is `(frame_index, draw_seed)`: the sampler draws the seeds, and the same key gives the
    same sample in any process, in any order and after a resume.

    Args:
        source: reads the frames.
        refs: which frames, in which order.
        point_range: x0, y0, z0, x1, y1, z1 in metres; points with lo <= p < hi are kept, after augmentation.
        on_error: "raise" passes a FrameError on; "skip" takes the next readable frame in order in its place
            and names the skipped ones in the sample.
        augment: random view, or None: points as recorded, in recorded order. A view that happens to move
            every point out of the range is not used; the recorded cloud is.
        seed: mixed into every draw.

    Raises:
        DatasetError: if there are no frames.
        ValueError: if on_error is not known.
    """

    def __init__(
        self,
        *,
        source: FrameSource,
        refs: Sequence[FrameRef],
        point_range: Range,
        on_error: str = "raise",
        augment: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"data.on_error is one of {', '.join(ON_ERROR)}, got {on_error!r}")
        if not refs:
            raise DatasetError(f"{source.name}: no frames. Check data.root and the split.")
        self.source = source
        self.refs = tuple(refs)
        self.point_range = point_range
        self.on_error = on_error
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, key: FrameKey) -> Sample:
        """The sample of key (frame_index, draw_seed).

        Raises:
            FrameError: if the frame cannot be used and on_error="raise".
            DatasetError: if no frame can be used and on_error="skip".
        """
        index, draw_seed = checked_key(key, len(self.refs))

        def read(ref: FrameRef) -> np.ndarray:
            points = self.source.read(ref)
            check_range(ref.path, points, self.point_range)
            return points

        points, ref, skipped = first_usable(
            read, self.refs, index, on_error=self.on_error, name=self.source.name
        )
        view = self._view(points, np.random.default_rng((self.seed, draw_seed)))
        return Sample(points=torch.from_numpy(view), frame_id=ref.frame_id, seed=draw_seed, skipped=skipped)

    def _view(self, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.augment is None:
            return points[inside(points, self.point_range)]
        moved = self.augment.transform(points, rng)
        index = np.flatnonzero(inside(moved, self.point_range))
        if len(index) == 0:
            moved, index = points, np.flatnonzero(inside(points, self.point_range))
        return moved[self.augment.order(index, rng)]


def first_usable(
    read: Callable[[FrameRef], T], refs: Sequence[FrameRef], index: int, *, on_error: str, name: str
) -> tuple[T, FrameRef, tuple[str, ...]]:
    """Read the frame at `index`, or with on_error="skip" the next readable one in order in its place.

    Args:
        read: reads a frame, or raises a FrameError.
        name: of the source, for the message.

    Returns:
        What was read, its frame, and the names of unreadable frames that it stands in for.

    Raises:
        FrameError: if the frame cannot be used and on_error="raise".
        DatasetError: if no frame can be used and on_error="skip".
    """
    skipped: list[str] = []
    for step in range(len(refs)):
        ref = refs[(index + step) % len(refs)]
        try:
            return read(ref), ref, tuple(skipped)
        except FrameError:
            if on_error == "raise":
                raise
            skipped.append(ref.frame_id)
    raise DatasetError(
        f"{name}: none of the {len(refs)} frames can be used (first: {skipped[0]}). "
        f"Set data.on_error=raise to see why."
    )


def collate(samples: Sequence[Sample]) -> PointCloudBatch:
    """Concatenate samples into a batch, in order."""
    counts = torch.tensor([len(sample.points) for sample in samples])
    return PointCloudBatch(
        points=torch.cat([sample.points for sample in samples]),
        batch_index=torch.repeat_interleave(torch.arange(len(samples)), counts),
        batch_size=len(samples),
        frame_ids=tuple(sample.frame_id for sample in samples),
        seeds=tuple(sample.seed for sample in samples),
        skipped=tuple(name for sample in samples for name in sample.skipped),
    )


def check_range(path: Path, points: np.ndarray, point_range: Range) -> None:
    """Refuse a cloud without a single point inside the range.

    Raises:
        FrameError: with the cloud's own extent and the range.
    """
    if inside(points, point_range).any():
        return
    low, high = points[:, :3].min(axis=0), points[:, :3].max(axis=0)
    extent = _box_text(low, high)
    wanted = _box_text(point_range[:3], point_range[3:])
    raise FrameError(
        path,
        f"all {len(points)} points lie outside the point range {wanted}; the cloud spans {extent}",
        "Set the point range to cover the cloud: metres, x forward, y left, z up, origin at the sensor.",
    )


def _box_text(low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray) -> str:
    sides = zip("xyz", low, high, strict=True)
    return "(" + ", ".join(f"{axis} {float(a):g} to {float(b):g}" for axis, a, b in sides) + ")"


def checked_key(key: FrameKey, count: int) -> FrameKey:
    """The key (frame_index, draw_seed) as two integers.

    Raises:
        TypeError, IndexError, ValueError: if it is not a pair, the index is not among `count` or the seed negative.
    """
    if not (isinstance(key, tuple) and len(key) == 2):
        raise TypeError(f"an item of LidarFrames is asked for by (frame_index, draw_seed), got {key!r}")
    index, draw_seed = int(key[0]), int(key[1])
    if not 0 <= index < count:
        raise IndexError(f"frame index {index} of {count} frames")
    if draw_seed < 0:
        raise ValueError(f"a draw seed is 0 or more, got {draw_seed}")
    return index, draw_seed
