"""Boxes: periods, corners, nearest axis-aligned overlap, points inside."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lidar.datasets.kitti_labels import read_kitti_labels
from lidar.detection.boxes import (
    bev_corners,
    corners,
    enlarged,
    limit_period,
    nearest_bev_iou,
    points_in_boxes,
)


def box(*values: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor([values], dtype=dtype)


@pytest.mark.parametrize(
    ("value", "offset", "period", "expected"),
    [
        (math.pi, 0.5, 2 * math.pi, -math.pi),
        (-math.pi, 0.5, 2 * math.pi, -math.pi),
        (3.5 * math.pi, 0.5, 2 * math.pi, -0.5 * math.pi),
        (-0.25, 0.0, math.pi, math.pi - 0.25),
        (0.75 * math.pi, 0.5, math.pi, -0.25 * math.pi),
        (100.0, 0.0, 1.0, 0.0),
    ],
)
def test_limit_period(value: float, offset: float, period: float, expected: float) -> None:
    moved = limit_period(torch.tensor(value, dtype=torch.float64), offset=offset, period=period)
    assert float(moved) == pytest.approx(expected, abs=1e-12)


def test_corners_of_a_box_turned_by_a_right_angle() -> None:
    found = corners(box(10, 20, 1, 4, 2, 1.5, math.pi / 2))[0]
    # The length lies along y; the front left corner is ahead in y and at smaller x.
    assert torch.allclose(found[0], torch.tensor([9.0, 22.0, 0.25], dtype=torch.float64))
    assert torch.allclose(found[1], torch.tensor([11.0, 22.0, 0.25], dtype=torch.float64))
    assert torch.allclose(found[4:], found[:4] + torch.tensor([0, 0, 1.5], dtype=torch.float64))
    assert torch.equal(bev_corners(box(10, 20, 1, 4, 2, 1.5, math.pi / 2))[0], found[:4, :2])


def test_corners_ignore_velocity_and_keep_precision() -> None:
    boxes = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)).float()
    assert corners(boxes).dtype == torch.float32
    assert torch.equal(corners(boxes), corners(boxes[:, :7]))


@pytest.mark.parametrize(
    ("heading", "upright"),
    [
        (0.0, False),
        (math.pi / 4 - 1e-6, False),
        (math.pi / 4 + 1e-6, True),
        (math.pi / 2, True),
        (3 * math.pi / 4 + 1e-6, False),
        (math.pi, False),
        (-math.pi / 2, True),
    ],
)
def test_nearest_overlap_turns_boxes_to_the_nearest_axis(heading: float, upright: bool) -> None:
    turned = nearest_bev_iou(box(0, 0, 0, 4, 2, 1, heading), box(0, 0, 5, 4, 2, 1, 0))
    assert float(turned) == pytest.approx(4 / 12 if upright else 1.0)


def test_nearest_overlap_of_hand_computed_rectangles() -> None:
    a = torch.cat([box(0, 0, 0, 4, 2, 1, 0), box(100, 0, 0, 4, 2, 1, 0)])
    b = torch.cat([box(1, 1, 0, 4, 2, 1, 0.1), box(4, 0, 0, 4, 2, 1, 0), box(0, 0, 0, 0, 0, 0, 0)])
    expected = torch.tensor([[3 / 13, 0, 0], [0, 0, 0]], dtype=torch.float64)
    assert torch.allclose(nearest_bev_iou(a, b), expected)


def test_points_on_faces_are_inside() -> None:
    boxes = box(1, 2, 3, 4, 2, 1, 0)
    points = torch.tensor(
        [[3, 3, 3.5], [-1, 1, 2.5], [3.001, 2, 3], [1, 3.001, 3], [1, 2, 3.501], [1, 2, 3]],
        dtype=torch.float64,
    )
    assert points_in_boxes(points, boxes)[0].tolist() == [True, True, False, False, False, True]


def test_points_in_boxes_equals_the_definition_on_random_scenes() -> None:
    generator = torch.Generator().manual_seed(3)
    points = torch.rand(4000, 4, generator=generator, dtype=torch.float64) * 20 - 10
    boxes = torch.rand(30, 9, generator=generator, dtype=torch.float64) * 10 - 5
    boxes[:, 3:6] = boxes[:, 3:6].abs() + 0.1
    offset = points[None, :, :3] - boxes[:, None, :3]
    heading = torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin(), torch.zeros(30, dtype=torch.float64)], dim=1)
    left = torch.stack([-heading[:, 1], heading[:, 0], heading[:, 2]], dim=1)
    inside = (
        ((offset * heading[:, None]).sum(-1).abs() <= boxes[:, None, 3] / 2)
        & ((offset * left[:, None]).sum(-1).abs() <= boxes[:, None, 4] / 2)
        & (offset[..., 2].abs() <= boxes[:, None, 5] / 2)
    )
    found = points_in_boxes(points, boxes)
    assert inside.any(dim=1).sum() > 20
    assert torch.equal(found, inside)
    assert torch.equal(points_in_boxes(points, boxes[:0]), found[:0])
    assert points_in_boxes(points[:0], boxes).shape == (30, 0)


@pytest.mark.parametrize(
    ("frame", "counts"),
    [
        ("000001", [71, 9, 18]),
        ("000002", [1349, 67]),
        ("000007", [182, 20, 5, 25]),
        ("000008", [6035, 1900, 1041, 659, 55, 162]),
    ],
)
def test_points_in_real_boxes(real_data: Callable[[str], Path], frame: str, counts: list[int]) -> None:
    root = real_data("kitti_object") / "training"
    points = np.fromfile(root / f"velodyne/{frame}.bin", np.float32).reshape(-1, 4)
    labels = read_kitti_labels(root / f"label_2/{frame}.txt", root / f"calib/{frame}.txt")
    found = points_in_boxes(torch.from_numpy(points), torch.from_numpy(labels.boxes)).sum(dim=1)
    assert np.abs(found.numpy() - counts).max() <= 1  # float32 at the faces


def test_enlarged_boxes_grow_by_half_on_either_side() -> None:
    grown = enlarged(box(1, 2, 3, 4, 2, 1, 0.5, 7, 8), 0.2)
    assert grown[0].tolist() == pytest.approx([1, 2, 3, 4.2, 2.2, 1.2, 0.5, 7, 8])


@pytest.mark.parametrize("broken", [torch.zeros(3, 6), torch.zeros(7), torch.zeros(2, 7, dtype=torch.int64)])
def test_wrong_boxes_are_refused(broken: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="boxes are"):
        corners(broken)


def test_wrong_points_are_refused() -> None:
    with pytest.raises(ValueError, match="points are"):
        points_in_boxes(torch.zeros(5, 2), torch.zeros(1, 7))
