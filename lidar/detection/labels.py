"""Labelled frames: what a source of them is, what its labels hold, and which names are which classes."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from lidar.datasets.errors import DatasetError, FrameError
from lidar.datasets.sources import FrameRef

OTHER = -1  # label of objects that the detector does not learn
NO_DIFFICULTY = -1
EASY, MODERATE, HARD = 0, 1, 2
LARGEST_HEADING = 4 * np.pi  # radians; two turns either way are odd, but possible


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxLabels:
    """Labelled objects of one frame, in the sensor frame.

    Attributes:
        boxes: [M, 7] float32: centre, length, width, height, heading; or [M, 9] with the velocity, NaN where unknown.
        names: M class names, as in the file.
        difficulty: [M] int64: 0 easy, 1 moderate, 2 hard, -1 none of these; None where the data set has no such
            notion (then `difficulty_by_points` tells).
        counts: [M] int64 LiDAR points in each box as annotated, None where the data set does not say.
    """

    boxes: np.ndarray
    names: tuple[str, ...]
    difficulty: np.ndarray | None = None
    counts: np.ndarray | None = None


class LabelledSource(Protocol):
    """A list of labelled frames and ways to read them. Picklable: loader processes read through copies."""

    @property
    def name(self) -> str:
        """A short name for logs and errors."""

    @property
    def frames(self) -> tuple[FrameRef, ...]:
        """All labelled frames, in recording order within a scene."""

    @property
    def columns(self) -> int:
        """Numbers per point: 4 (x, y, z, intensity), or 5 with the time lag of accumulated sweeps."""

    @property
    def velocities(self) -> bool:
        """Whether boxes have velocities: 9 numbers instead of 7."""

    def read(self, ref: FrameRef) -> np.ndarray:
        """The frame's points, float32 [N, columns], intensity in 0..1.

        Raises:
            FrameError: if the frame cannot be read or holds nonsense.
        """

    def labels(self, ref: FrameRef) -> BoxLabels:
        """The frame's objects.

        Raises:
            FrameError: if the labels are missing or malformed.
        """

    def road(self, ref: FrameRef) -> np.ndarray | None:
        """The road as a plane a x + b y + c z + d = 0 in the sensor frame, float64 [4], or None."""


@dataclass(frozen=True, kw_only=True)
class ClassNames:
    """The classes of a detector and what they are called in the labels.

    Args:
        names: the classes; the place is the label.
        aliases: name in the labels to class, for names that differ, e.g. {"Van": "Car"}.

    Raises:
        ValueError: if there is no class, one is there twice, or an alias names a class that is not there.
    """

    names: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"classes are one or more different names, got {self.names}")
        strange = sorted(set(self.aliases.values()) - set(self.names))
        if strange:
            raise ValueError(f"aliases lead to {', '.join(strange)}, but the classes are {self.names}")

    def labels(self, names: Sequence[str]) -> np.ndarray:
        """Label [M] int64 of each name, -1 for those that belong to no class."""
        place = {name: label for label, name in enumerate(self.names)}
        return np.array([place.get(self.aliases.get(n, n), OTHER) for n in names], np.int64).reshape(-1)


def difficulty_by_points(counts: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Difficulty of objects where no image tells it.

    Empty boxes have none (-1). Up to 5 points is hard, as in Waymo's level 2; else it follows the ranges of ONCE: easy
    up to 30 m, moderate up to 50 m, hard beyond.

    Args:
        counts: [M] points in each box.
        boxes: [M, >=7].

    Returns:
        [M] int64.
    """
    distance = np.hypot(boxes[:, 0], boxes[:, 1])
    by_range = np.where(distance <= 30, EASY, np.where(distance <= 50, MODERATE, HARD))
    return np.where(counts == 0, NO_DIFFICULTY, np.where(counts <= 5, HARD, by_range)).astype(np.int64)


def checked_labels(path: Path, labels: BoxLabels) -> BoxLabels:
    """The same labels.

    Args:
        path: the frame's point file, for the message.

    Raises:
        FrameError: if a box holds NaN or infinite numbers, a size is not positive, or a heading can only be in degrees.
    """
    boxes = labels.boxes
    if not np.isfinite(boxes[:, :7]).all():
        row = int(np.flatnonzero(~np.isfinite(boxes[:, :7]).all(axis=1))[0])
        raise FrameError(
            path,
            f"box {row} ({labels.names[row]}) of its labels holds NaN or infinite numbers",
            "Correct or remove that label.",
        )
    if not (boxes[:, 3:6] > 0).all():
        row = int(np.flatnonzero((boxes[:, 3:6] <= 0).any(axis=1))[0])
        size = ", ".join(f"{v:g}" for v in boxes[row, 3:6])
        raise FrameError(
            path,
            f"box {row} ({labels.names[row]}) of its labels has the size {size}",
            "Length, width and height are above 0; leave out regions without a box.",
        )
    if (np.abs(boxes[:, 6]) > LARGEST_HEADING).any():
        row = int(np.abs(boxes[:, 6]).argmax())
        raise FrameError(
            path,
            f"box {row} ({labels.names[row]}) of its labels has the heading {boxes[row, 6]:g}",
            "Headings are in radians: multiply degrees by pi / 180.",
        )
    return labels


def check_classes(
    source: LabelledSource, classes: ClassNames, refs: Sequence[FrameRef] | None = None
) -> None:
    """Make sure that every class occurs: a misspelt one would otherwise silently never be learned.

    Frames are read in order until all classes were met, so this is quick unless a class is missing or rare.

    Args:
        refs: frames to look at, by default all of the source.

    Raises:
        DatasetError: naming the classes that never occur and the names that do.
        FrameError: if labels cannot be read.
    """
    missing, found = set(classes.names), Counter[str]()
    for ref in source.frames if refs is None else refs:
        names = source.labels(ref).names
        found.update(names)
        missing -= {classes.aliases.get(name, name) for name in names}
        if not missing:
            return
    hints = [_hint(name, found) for name in sorted(missing)]
    there = ", ".join(f"{name} {count}" for name, count in found.most_common(20)) or "none at all"
    raise DatasetError(
        f"{source.name}: no object of class {', '.join(hints)} in the labels (they hold: {there}). Correct the class "
        f"names, or map names of the labels to classes with aliases."
    )


def label_fraction(refs: Sequence[FrameRef], fraction: float, *, seed: int) -> tuple[FrameRef, ...]:
    """Whole scenes, in an order drawn from the seed, that hold at least this share of the frames.

    A larger fraction of the same seed holds the smaller one. At least one scene is taken.

    Args:
        fraction: share in (0, 1].

    Returns:
        Frames in the order given.

    Raises:
        ValueError: if fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"label fraction is a share of the frames in (0, 1], got {fraction}")
    sizes = Counter(ref.scene for ref in refs)
    taken: set[str] = set()
    held = 0
    for scene in np.random.default_rng(seed).permutation(np.array(sorted(sizes))):
        if held >= fraction * len(refs):
            break
        taken.add(str(scene))
        held += sizes[str(scene)]
    return tuple(ref for ref in refs if ref.scene in taken)


def _hint(name: str, found: Counter[str]) -> str:
    close = difflib.get_close_matches(name.lower(), [n.lower() for n in found], n=1, cutoff=0.75)
    like = next((n for n in found if close and n.lower() == close[0]), None)
    return f"{name} (did you mean {like}?)" if like else name
