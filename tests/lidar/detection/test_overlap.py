"""Rotated overlap against boost::geometry, a polygon clipper of its own, and cases that break clippers."""

import gzip
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lidar.detection.boxes import bev_corners
from lidar.detection.overlap import (
    bev_intersection,
    bev_iou,
    iou_3d,
    likely,
    paired_bev_intersection,
    paired_bev_iou,
    paired_iou_3d,
    touching,
)


def random_boxes(count: int, seed: int, *, spread: float = 3.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(-spread, spread, (count, 7))
    boxes[:, 3:6] = rng.uniform(0.3, 5, (count, 3))
    boxes[:, 6] = rng.uniform(-7, 7, count)
    return torch.from_numpy(boxes)


def clipped_area(subject: np.ndarray, clip: np.ndarray) -> float:
    """Sutherland and Hodgman's polygon clipping, float64; clockwise corners [4, 2]."""
    polygon = list(subject)
    for a, b in zip(clip, np.roll(clip, -1, axis=0), strict=True):
        edge, clipped = b - a, []
        for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            at_p, at_q = (edge[0] * (v - a)[1] - edge[1] * (v - a)[0] for v in (p, q))
            if at_p <= 0:
                clipped.append(p)
            if at_p * at_q < 0:
                clipped.append(p + (q - p) * at_p / (at_p - at_q))
        polygon = clipped
        if not polygon:
            return 0.0
    x, y = np.array(polygon).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def test_intersection_equals_a_polygon_clipper() -> None:
    a, b = random_boxes(400, 0), random_boxes(400, 1)
    found = paired_bev_intersection(a, b).numpy()
    # Clipping is done around the first box too: far from the origin both would lose digits.
    expected = [
        clipped_area(p - c, q - c)
        for p, q, c in zip(bev_corners(a).numpy(), bev_corners(b).numpy(), a[:, :2].numpy(), strict=True)
    ]
    assert (np.array(expected) > 0).sum() > 100
    assert np.abs(found - expected).max() < 1e-12


def test_two_thousand_pairs_of_boost_geometry(real_data: Callable[[str], Path]) -> None:
    path = real_data("kitti_eval_fixture") / "rotated_iou_boost.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", skiprows=1)
    ones = np.ones(len(table))
    a, b = (
        torch.from_numpy(
            np.column_stack([table[:, k : k + 2], ones, table[:, k + 2 : k + 4], ones, table[:, k + 4]])
        )
        for k in (0, 5)
    )
    area, iou = paired_bev_intersection(a, b).numpy(), paired_bev_iou(a, b).numpy()
    # The reference rounds coordinates: it is itself 8e-7 away from float64 clipping where edges nearly coincide.
    assert np.abs(area - table[:, 10]).max() < 1e-6
    assert np.abs(iou - table[:, 11]).max() < 2e-7
    disjoint = table[:, 10] == 0
    assert disjoint.sum() == 49
    assert not iou[disjoint].any()
    assert np.abs(paired_bev_iou(a.float(), b.float()).numpy() - iou).max() < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_identical_and_right_angled_boxes(dtype: torch.dtype, tolerance: float) -> None:
    boxes = random_boxes(200, 2, spread=100).to(dtype)
    assert (paired_bev_iou(boxes, boxes) - 1).abs().max() <= tolerance
    assert (paired_iou_3d(boxes, boxes) - 1).abs().max() <= tolerance
    swapped = boxes[:, [0, 1, 2, 4, 3, 5, 6]]
    swapped[:, 6] += math.pi / 2
    assert (paired_bev_iou(boxes, swapped) - 1).abs().max() <= tolerance
    turned = boxes.clone()
    turned[:, 6] += math.pi
    assert (paired_bev_iou(boxes, turned) - 1).abs().max() <= tolerance


@pytest.mark.parametrize("heading", [0.0, 0.3, math.pi / 4, math.pi / 2, 2.0])
def test_shared_edges_nesting_and_touching(heading: float) -> None:
    cos, sin = math.cos(heading), math.sin(heading)

    def at(along: float, across: float, length: float, width: float) -> torch.Tensor:
        place = (50 + along * cos - across * sin, -20 + along * sin + across * cos)
        return torch.tensor([[*place, 0, length, width, 1, heading]], dtype=torch.float64)

    whole = at(0, 0, 4, 2)
    assert float(paired_bev_intersection(whole, at(0, 0, 2, 1))) == pytest.approx(2, abs=1e-12)
    assert float(paired_bev_intersection(whole, at(1, 0, 2, 2))) == pytest.approx(4, abs=1e-12)
    assert float(paired_bev_intersection(whole, at(1, 0.5, 2, 1))) == pytest.approx(2, abs=1e-12)
    assert float(paired_bev_intersection(whole, at(4, 0, 4, 2))) == pytest.approx(0, abs=1e-12)
    assert float(paired_bev_intersection(whole, at(4, 2, 4, 2))) == pytest.approx(0, abs=1e-12)
    assert float(paired_bev_intersection(whole, at(4.01, 0, 4, 2))) == 0
    assert float(paired_bev_intersection(whole, at(0, 0, 0, 0))) == 0


def test_boxes_that_only_their_own_axes_separate_share_exactly_nothing() -> None:
    # Circles and bounding boxes meet; the first is separated along its own diagonal direction.
    a = torch.tensor([[0, 0, 0, 4, 0.5, 1, math.pi / 4]], dtype=torch.float64)
    b = torch.tensor([[0.8, -0.8, 0, 4, 0.5, 1, math.pi / 4]], dtype=torch.float64)
    assert float(paired_bev_intersection(a, b)) == 0


def test_almost_upright_edges_change_the_area_smoothly() -> None:
    a = torch.tensor([[0, 0, 0, 4, 2, 1, 0]], dtype=torch.float64).repeat(60, 1)
    b = torch.tensor([[1, 0.5, 0, 4, 2, 1, 0]], dtype=torch.float64).repeat(60, 1)
    b[:, 6] = torch.logspace(-300, -10, 60, dtype=torch.float64)
    assert (paired_bev_intersection(a, b) - 4.5).abs().max() < 1e-8
    assert torch.isfinite(paired_bev_intersection(a.float(), b.float())).all()


def test_overlap_in_space_is_area_times_shared_height() -> None:
    a = torch.tensor([[0, 0, 0, 2, 2, 2, 0]], dtype=torch.float64)
    b = torch.tensor([[1, 0, 0.5, 2, 2, 2, 0], [0, 0, 2, 2, 2, 2, 0]], dtype=torch.float64)
    assert iou_3d(a, b)[0].tolist() == pytest.approx([3 / 13, 0])


def test_tables_hold_the_paired_values_and_are_symmetric() -> None:
    a, b = random_boxes(40, 4, spread=12), random_boxes(30, 5, spread=12)
    rows, columns = (v.reshape(-1) for v in torch.meshgrid(torch.arange(40), torch.arange(30), indexing="ij"))
    for table, paired in (
        (bev_intersection, paired_bev_intersection),
        (bev_iou, paired_bev_iou),
        (iou_3d, paired_iou_3d),
    ):
        expected = paired(a[rows], b[columns]).reshape(40, 30)
        assert torch.equal(table(a, b), expected)
        assert torch.allclose(table(b, a).T, expected, atol=1e-12)
    assert (bev_iou(a, b) > 0).sum() > 50


def test_turning_and_moving_both_boxes_changes_nothing() -> None:
    a, b = random_boxes(100, 6), random_boxes(100, 7)
    before = paired_bev_iou(a, b)
    turn = torch.tensor(
        [[math.cos(1.1), math.sin(1.1)], [-math.sin(1.1), math.cos(1.1)]], dtype=torch.float64
    )
    for boxes in (a, b):
        boxes[:, :2] = boxes[:, :2] @ turn + 3
        boxes[:, 6] += 1.1
    assert torch.allclose(paired_bev_iou(a, b), before, atol=1e-12)


def test_nothing_to_compare() -> None:
    assert bev_iou(torch.zeros(0, 7), torch.zeros(3, 7)).shape == (0, 3)
    assert iou_3d(torch.zeros(3, 7), torch.zeros(0, 7)).shape == (3, 0)
    assert paired_bev_iou(torch.zeros(0, 7), torch.zeros(0, 7)).shape == (0,)
    assert bev_iou(torch.zeros(2, 7), torch.zeros(2, 7)).tolist() == [[0, 0], [0, 0]]


def test_wrong_shapes_and_types_are_refused() -> None:
    with pytest.raises(ValueError, match="second boxes are"):
        bev_iou(torch.zeros(1, 7), torch.zeros(1, 5))
    with pytest.raises(ValueError, match="one precision"):
        bev_iou(torch.zeros(1, 7), torch.zeros(1, 7, dtype=torch.float64))
    with pytest.raises(ValueError, match="as many first"):
        paired_bev_iou(torch.zeros(1, 7), torch.zeros(2, 7))


@pytest.mark.parametrize("over", [0.0, 0.2, 0.34, 0.5, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("extent", [3.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_pair_above_a_threshold_is_passed_over(over: float, extent: float, dtype: torch.dtype) -> None:
    """Against all pairs; squares, needles and cars, in a crowd (all pairs are looked at) and far apart (windows)."""
    generator = torch.Generator().manual_seed(0)
    count = 300
    boxes = torch.rand(count, 7, dtype=torch.float64, generator=generator)
    boxes[:, :2] *= extent
    shapes = torch.tensor([[2.0, 2.0, 1.0], [8.0, 0.3, 1.0], [3.9, 1.6, 1.5]], dtype=torch.float64)
    boxes[:, 3:6] = shapes[torch.arange(count) % 3] * (0.8 + 0.4 * boxes[:, 3:6])
    boxes[:, 6] *= 6.28
    # Near copies, so that there are pairs of every overlap.
    copies = boxes[: count // 2].clone()
    copies[:, :2] += 0.3 * torch.randn(count // 2, 2, dtype=torch.float64, generator=generator)
    boxes = torch.cat([boxes, copies]).to(dtype)
    rows, columns = (v.flatten() for v in torch.meshgrid(*[torch.arange(len(boxes))] * 2, indexing="ij"))
    overlap = paired_bev_iou(boxes[rows], boxes[columns]).view(len(boxes), -1)
    found = torch.zeros_like(overlap, dtype=torch.bool)
    found[touching(boxes, boxes, over=over)] = True
    assert not bool(((overlap > over) & ~found).any())
    if extent == 300.0:
        assert found.float().mean() < 0.05
    some = found.clone()
    found[:] = False
    found[likely(boxes, boxes, some.nonzero(as_tuple=True), over=over)] = True
    assert not bool(((overlap > over) & ~found).any())
    if extent == 3.0 and 0.5 <= over < 1:  # at 1 there is every box with itself, and no other
        assert found.sum() < 0.7 * some.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("over", [0.0, 0.1, 0.7])
def test_bounds_hold_for_boxes_of_no_size_and_of_almost_none(over: float, dtype: torch.dtype) -> None:
    shapes = [(0, 0), (4, 0), (0, 2), (1e-3, 1e-3), (1e-3, 2e-3), (4, 1e-6), (4, 2)]
    boxes = torch.tensor(
        [(50, 3, 0, *shape, 1, heading) for shape in shapes for heading in (0, 0.4)], dtype=dtype
    )
    rows, columns = (v.flatten() for v in torch.meshgrid(*[torch.arange(len(boxes))] * 2, indexing="ij"))
    overlap = paired_bev_iou(boxes[rows], boxes[columns]).view(len(boxes), -1)
    assert overlap.isfinite().all()
    assert not overlap[:6].any()  # nothing is above any threshold of nothing
    assert (overlap.diag()[6:] - 1).abs().max() < 1e-5
    found = torch.zeros_like(overlap, dtype=torch.bool)
    found[likely(boxes, boxes, touching(boxes, boxes, over=over), over=over)] = True
    assert not bool(((overlap > over) & ~found).any())


def test_a_broken_box_spoils_its_own_column_alone() -> None:
    boxes = random_boxes(3, seed=0)
    spoilt = boxes.clone()
    spoilt[2, 3] = float("nan")
    assert torch.equal(bev_iou(boxes, spoilt)[:, :2], bev_iou(boxes, boxes)[:, :2])
