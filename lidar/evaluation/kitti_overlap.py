"""Objects and detections of many frames at once, and how much each pair in a frame overlaps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lidar.datasets.kitti_results import ObjectRows
from lidar.detection.overlap import paired_bev_iou, paired_iou_3d

OVERLAPS = ("bbox", "bev", "3d")


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Rows of frames, one frame after the other.

    Attributes:
        rows: all of them, [N].
        frame: [N] place of the frame, ascending.
    """

    rows: ObjectRows
    frame: np.ndarray

    @staticmethod
    def joined(tables: Sequence[ObjectRows]) -> "Rows":
        """Of the tables of frames 0, 1, ...; there is at least one."""
        rows = ObjectRows(
            names=np.concatenate([t.names for t in tables]),
            values=np.concatenate([t.values for t in tables]),
        )
        return Rows(rows=rows, frame=np.repeat(np.arange(len(tables)), [len(t) for t in tables]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of an object and a detection in one frame that overlap.

    Attributes:
        truth: [P] place of the object.
        detection: [P] place of the detection.
        overlap: [P] intersection over union, or over the detection's own area; above 0.
    """

    truth: np.ndarray
    detection: np.ndarray
    overlap: np.ndarray


def overlapping(truth: Rows, detections: Rows, kind: str) -> Pairs:
    """Pairs that overlap in the image ("bbox"), seen from above ("bev") or in space ("3d").

    Image boxes are plain rectangles, without a pixel added. Seen from above, the camera's x and z axes are the plane
    and ry turns clockwise in it. Everything is float64.
    """
    i, j = same_frame(truth.frame, detections.frame)
    if kind == "bbox":
        shared = _image_intersection(truth.rows, detections.rows, i, j)
        areas = (_image_areas(truth.rows)[i], _image_areas(detections.rows)[j])
        return _positive(i, j, shared, areas[0] + areas[1] - shared)
    a, b = _boxes(truth.rows), _boxes(detections.rows)
    reach = (np.hypot(a[:, 3], a[:, 4])[i] + np.hypot(b[:, 3], b[:, 4])[j]) / 2 * 1.001
    near = np.hypot(a[i, 0] - b[j, 0], a[i, 1] - b[j, 1]) <= reach
    i, j = i[near], j[near]
    paired = paired_bev_iou if kind == "bev" else paired_iou_3d
    overlap = paired(torch.from_numpy(a[i]), torch.from_numpy(b[j])).numpy()
    return _positive(i, j, overlap, np.ones(len(i)))


def covered(regions: Rows, detections: Rows) -> Pairs:
    """Detections whose image box lies in a region, by the share of their own area."""
    i, j = same_frame(regions.frame, detections.frame)
    shared = _image_intersection(regions.rows, detections.rows, i, j)
    return _positive(i, j, shared, _image_areas(detections.rows)[j])


def same_frame(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (i in a, j in b) of all pairs with a[i] == b[j]; both ascending."""
    first, last = np.searchsorted(b, a, side="left"), np.searchsorted(b, a, side="right")
    counts = last - first
    i = np.repeat(np.arange(len(a)), counts)
    return i, np.arange(len(i)) + np.repeat(first - (np.cumsum(counts) - counts), counts)


def _image_areas(rows: ObjectRows) -> np.ndarray:
    left, top, right, bottom = rows.image_boxes.T
    return (right - left) * (bottom - top)


def _image_intersection(a: ObjectRows, b: ObjectRows, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    low = np.maximum(a.image_boxes[i, :2], b.image_boxes[j, :2])
    high = np.minimum(a.image_boxes[i, 2:], b.image_boxes[j, 2:])
    return np.maximum(high - low, 0).prod(axis=1)


def _boxes(rows: ObjectRows) -> np.ndarray:
    """Boxes [N, 7] in the frame (camera x, camera z, camera y), in which ry counts backwards."""
    height, width, length = rows.sizes.T
    x, y, z = rows.locations.T
    return np.column_stack([x, z, y - height / 2, length, width, height, -rows.rotations])


def _positive(i: np.ndarray, j: np.ndarray, shared: np.ndarray, whole: np.ndarray) -> Pairs:
    there = shared > 0
    return Pairs(truth=i[there], detection=j[there], overlap=shared[there] / whole[there])
