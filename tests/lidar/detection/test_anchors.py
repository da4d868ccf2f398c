"""Anchors: positions, residual codes, directions, and the assignment against its definition."""

import math

import pytest
import torch

from lidar.detection.anchors import (
    IGNORED,
    NEGATIVE,
    AnchorClass,
    anchor_grid,
    assign,
    assign_batch,
    decode,
    direction_bin,
    encode,
    with_direction,
)
from lidar.detection.boxes import nearest_bev_iou
from lidar.detection.models import KITTI_ANCHORS, KITTI_GRID
from lidar.grid import VoxelGrid
from tests.lidar.detection.scenes import BOXES, LABELS, TINY_GRID, same_heading

UNIT_GRID = VoxelGrid(
    point_range=(0, -8, -3, 16, 8, 1), voxel_size=(0.25, 0.25, 0.25)
)  # 17 x 17 places 1 m apart


def random_boxes(count: int, *, seed: int = 0, span: float = 12.8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 7, generator=generator, dtype=torch.float64)
    low = torch.tensor([0, -span / 2, -1.5, 0.5, 0.5, 1.0, -3 * math.pi])
    high = torch.tensor([span, span / 2, 0.0, 5.0, 2.0, 2.0, 3 * math.pi])
    return low + u * (high - low)


def test_kitti_anchors():
    anchors = anchor_grid(KITTI_ANCHORS, grid=KITTI_GRID, shape=(200, 176))
    assert anchors.shape == (200, 176, 3, 2, 7)
    flat = anchors.reshape(-1, 7)
    assert len(flat) == 211_200
    torch.testing.assert_close(flat[0], torch.tensor([0, -40, -1.78 + 0.78, 3.9, 1.6, 1.56, 0]))
    torch.testing.assert_close(flat[1], torch.tensor([0, -40, -1.0, 3.9, 1.6, 1.56, 1.57]))
    torch.testing.assert_close(flat[2], torch.tensor([0, -40, -0.6 + 0.865, 0.8, 0.6, 1.73, 0]))
    torch.testing.assert_close(flat[-1], torch.tensor([70.4, 40, 0.265, 1.76, 0.6, 1.73, 1.57]))
    # Order y, x, class, yaw: the second place along x comes after six anchors.
    torch.testing.assert_close(flat[6, :2], torch.tensor([70.4 / 175, -40]))
    torch.testing.assert_close(flat[6 * 176, :2], torch.tensor([0, -40 + 80 / 199]))


def test_codes_and_back():
    boxes, anchors = random_boxes(200), random_boxes(200, seed=1)
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, atol=1e-6, rtol=0)
    assert encode(boxes * torch.tensor([1, 1, 1, 0, 0, 0, 1.0]), anchors).isfinite().all()


def test_a_code_by_hand():
    anchor = torch.tensor([[1.0, 2, 3, 4, 3, 2, 0.5]])
    box = torch.tensor([[2.0, 1, 4, 4 * math.e, 3, 1, 0.75]])
    expected = torch.tensor([[1 / 5, -1 / 5, 1 / 2, 1, 0, -math.log(2), 0.25]])
    torch.testing.assert_close(encode(box, anchor), expected)


@pytest.mark.parametrize("yaw", [0.0, 1.57])
def test_directions_restore_the_heading(yaw):
    headings = torch.linspace(-math.pi, math.pi, 1001, dtype=torch.float64)[1:]
    bins = direction_bin(headings)
    assert set(bins.tolist()) == {0, 1}
    # The residual of a sine loss is known up to half turns: any of them decodes to the same heading.
    for half_turns in (-1, 0, 1):
        regressed = yaw + (headings - yaw) + half_turns * math.pi
        assert same_heading(with_direction(regressed, bins), headings, 1e-9)
    assert direction_bin(torch.tensor([0.7853, 0.7855, 0.7855 + math.pi - 3e-4])).tolist() == [1, 0, 0]


def by_definition(anchors, classes, boxes, labels):
    """The four rules, anchor by anchor."""
    flat = anchors.reshape(-1, 7)
    kinds = torch.arange(len(classes)).view(1, 1, -1, 1).expand(anchors.shape[:-1]).flatten()
    overlap = nearest_bev_iou(flat, boxes)
    state, match = [], []
    for i, kind in enumerate(kinds.tolist()):
        mine = [j for j in range(len(boxes)) if labels[j] == kind]
        best = max((float(overlap[i, j]) for j in mine), default=0.0)
        own = next((j for j in mine if float(overlap[i, j]) == best), -1)
        forced = any(
            float(overlap[i, j]) > 0 and overlap[i, j] == overlap[kinds == kind, j].max() for j in mine
        )
        if mine and (forced or best >= classes[kind].matched):
            state.append(kind)
        else:
            state.append(NEGATIVE if best < classes[kind].unmatched else IGNORED)
        match.append(own if state[-1] >= 0 else -1)
    return torch.tensor(state), match


@pytest.mark.parametrize("seed", range(4))
def test_assignment_by_definition(seed):
    anchors = anchor_grid(KITTI_ANCHORS, grid=TINY_GRID, shape=(16, 16)).double()
    boxes = torch.cat([random_boxes(5, seed=seed), BOXES[:1].double(), BOXES[:1].double() + 0.1])
    labels = torch.tensor([0, 1, 2, 1, 0, 0, 0])
    targets = assign(anchors, KITTI_ANCHORS, boxes, labels)
    state, match = by_definition(anchors, KITTI_ANCHORS, boxes, labels)
    assert torch.equal(targets.labels, state)
    assert set(targets.labels.tolist()) >= {NEGATIVE, 0, 1, 2}
    for i in targets.positive.nonzero().flatten().tolist():
        assert targets.labels[i] == labels[match[i]]
        torch.testing.assert_close(
            decode(targets.codes[i], anchors.reshape(-1, 7)[i]), boxes[match[i]], atol=1e-9, rtol=0
        )
        assert targets.directions[i] == direction_bin(boxes[match[i], 6])
    assert not targets.codes[~targets.positive].any()


def test_an_anchor_between_the_thresholds_is_ignored():
    anchors = anchor_grid(KITTI_ANCHORS[:1], grid=UNIT_GRID, shape=(17, 17))
    car = torch.tensor([[8.25, 0, -1, 3.9, 1.6, 1.56, 0]])
    targets = assign(anchors, KITTI_ANCHORS[:1], car, torch.tensor([0]))
    # Along x: offsets -0.25 and 0.75 m overlap by 0.88 and 0.68, -1.25 m by 0.51, 1.75 m by 0.38.
    along = targets.labels.view(17, 17, 2)[8, 6:11, 0]
    assert along.tolist() == [NEGATIVE, IGNORED, 0, 0, NEGATIVE]


def test_ties_are_all_kept_and_a_weak_overlap_is_enough():
    kind = AnchorClass(name="Pedestrian", size=(0.75, 0.5, 1.5), bottom=-1.5, matched=0.5, unmatched=0.35)
    anchors = anchor_grid([kind], grid=UNIT_GRID, shape=(17, 17))
    # Half way between four places: their anchors across overlap it most, and all alike.
    middle = torch.tensor([[2.5, 3.5, -0.75, 0.75, 0.5, 1.5, 0.0]])
    targets = assign(anchors, [kind], middle, torch.tensor([0]))
    found = anchors.reshape(-1, 7)[targets.positive]
    assert found[:, :2].tolist() == [[2, 3], [3, 3], [2, 4], [3, 4]]
    assert (found[:, 6] == 1.57).all()
    assert float(nearest_bev_iou(found, middle).max()) < 0.1


def test_an_object_out_of_reach_changes_nothing():
    anchors = anchor_grid(KITTI_ANCHORS, grid=TINY_GRID, shape=(16, 16))
    outside = torch.tensor([[100.0, 0, -0.8, 0.8, 0.6, 1.7, 0.0]])
    assert (assign(anchors, KITTI_ANCHORS, outside, torch.tensor([1])).labels == NEGATIVE).all()


def test_without_objects_all_are_negative():
    anchors = anchor_grid(KITTI_ANCHORS, grid=TINY_GRID, shape=(4, 4))
    none = (torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64))
    targets = assign_batch(anchors, KITTI_ANCHORS, [none, (BOXES, LABELS)])
    assert (targets.labels[0] == NEGATIVE).all()
    assert targets.positive[1].any()
    assert targets.codes.shape == (2, 4 * 4 * 6, 7)


def test_impossible_anchors_are_refused():
    with pytest.raises(ValueError, match="'Car' needs a positive size and 0 <= unmatched <= matched"):
        AnchorClass(name="Car", size=(4, 2, 1.5), bottom=0, matched=0.4, unmatched=0.6)
    with pytest.raises(ValueError, match="positive size"):
        AnchorClass(name="Car", size=(4, 0, 1.5), bottom=0, matched=0.6, unmatched=0.4)
