"""KITTI object labels as boxes in the velodyne frame. For evaluation only: no frame source imports this."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lidar.datasets.errors import FrameError, reason
from lidar.datasets.kitti_calib import KittiCalib


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectLabels:
    """Annotated objects of one frame.

    Attributes:
        boxes: [M, 7] float32 in the velodyne frame: centre x, y, z, length, width, height in metres, yaw in
            [-pi, pi) about z from the x axis.
        names: M class names.
    """

    boxes: np.ndarray
    names: tuple[str, ...]


def read_kitti_labels(label_path: str | Path, calib_path: str | Path) -> ObjectLabels:
    """Read label_2/ID.txt. DontCare regions have no box in space and are left out.

    KITTI gives the centre of a box's bottom face in the rectified camera frame and its rotation about the
    camera's y axis (down). The centre is the bottom moved up by half the height; yaw = -(ry + pi/2).

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
            height, width, length, x, y, z, ry = (float(word) for word in words[8:15])
        except ValueError as error:
            raise FrameError(
                label_path,
                f"line {number} is not a KITTI label ({reason(error)})",
                "Expected: type truncated occluded alpha, 4 image numbers, h w l, x y z, ry.",
            ) from error
        names.append(words[0])
        values.append((x, y, z, length, width, height, ry))
    table = np.array(values, np.float64).reshape(-1, 7)
    boxes = table.copy()
    boxes[:, :3] = KittiCalib.read(calib_path).to_velodyne(table[:, :3])
    boxes[:, 2] += table[:, 5] / 2
    boxes[:, 6] = (-table[:, 6] - np.pi / 2 + np.pi) % (2 * np.pi) - np.pi
    return ObjectLabels(boxes=boxes.astype(np.float32), names=tuple(names))
