"""KITTI object labels as boxes in the velodyne frame. No source of frames without labels imports this."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lidar.datasets.errors import FrameError, reason
from lidar.datasets.kitti_calib import KittiCalib
from lidar.datasets.kitti_results import ObjectRows, boxes_of

# Easy, moderate, hard: least height of the image box in pixels, greatest truncation, greatest occlusion.
_LIMITS = ((40, 0.15, 0), (25, 0.3, 1), (25, 0.5, 2))


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectLabels:
    """Annotated objects of one frame.

    Attributes:
        boxes: [M, 7] float32 in the velodyne frame: centre x, y, z, length, width, height in metres, yaw in
            [-pi, pi) about z from the x axis.
        names: M class names.
        difficulty: [M] int64: 0 easy, 1 moderate, 2 hard, -1 none of these, from the image box's height, truncation and
            occlusion; None where the labels were not read from a KITTI file.
    """

    boxes: np.ndarray
    names: tuple[str, ...]
    difficulty: np.ndarray | None = None


def label_paths(frame: Path) -> tuple[Path, Path]:
    """label_2 and calib files of a KITTI object frame training/velodyne/ID.bin."""
    folder = frame.parent.parent
    return folder / "label_2" / f"{frame.stem}.txt", folder / "calib" / f"{frame.stem}.txt"


def read_kitti_labels(label_path: str | Path, calib_path: str | Path) -> ObjectLabels:
    """Read label_2/ID.txt. DontCare regions have no box in space and are left out.

    Data in KITTI's layout may have classes of their own; `kitti_results.read_labels` is strict, for the benchmark.

    Raises:
        FrameError: if a file is missing or a line is malformed.
    """
    label_path = Path(label_path)
    try:
        lines = label_path.read_text(errors="replace").splitlines()
    except FileNotFoundError as error:
        raise FrameError(
            label_path,
            "there is no such label file",
            "Only evaluation needs labels; restore label_2/ for it.",
        ) from error
    names, values = [], []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0] == "DontCare":
            continue
        try:
            if len(words) < 15:
                raise ValueError(f"{len(words)} fields instead of 15")
            numbers = [float(word) for word in words[1:15]]
        except ValueError as error:
            raise FrameError(
                label_path,
                f"line {number} is not a KITTI label ({reason(error)})",
                "Expected: type truncated occluded alpha, 4 image numbers, h w l, x y z, ry.",
            ) from error
        names.append(words[0])
        values.append(numbers)
    rows = ObjectRows(names=np.array(names, dtype=str), values=np.array(values, np.float64).reshape(-1, 14))
    return ObjectLabels(
        boxes=boxes_of(rows, KittiCalib.read(calib_path)).astype(np.float32),
        names=tuple(names),
        difficulty=_difficulty(rows),
    )


def _difficulty(rows: ObjectRows) -> np.ndarray:
    """Difficulty [M] of objects.

    As OpenPCDet has it for ground-truth sampling: a height counts one pixel more than in the evaluation of KITTI, and
    an object on a limit is within it.
    """
    heights = rows.image_boxes[:, 3] - rows.image_boxes[:, 1] + 1
    levels = np.full(len(rows), -1, np.int64)
    for level, (height, truncated, occluded) in reversed(list(enumerate(_LIMITS))):
        within = (heights >= height) & (rows.truncated <= truncated) & (rows.occluded <= occluded)
        levels[within] = level
    return levels
