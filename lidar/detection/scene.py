"""One labelled scan, as augmentation sees it."""

from dataclasses import dataclass

import numpy as np
import torch

from lidar.detection.boxes import points_in_boxes


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A cloud and its objects, all of them: also those of classes that are not learned occupy their place.

    Attributes:
        points: [N, C] float32: x, y, z, intensity and further features.
        boxes: [M, 7 or 9] float32.
        labels: [M] int64: place of the class, -1 for other objects.
        road: [4] float64 plane a x + b y + c z + d = 0 in the sensor frame, None where it is not known.
    """

    points: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    road: np.ndarray | None = None


def membership(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which points [N, >=3] lie in which boxes [M, >=7], faces included: bool [M, N]."""
    return points_in_boxes(torch.from_numpy(points[:, :3]), torch.from_numpy(boxes[:, :7])).numpy()
