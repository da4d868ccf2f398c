"""Regions of interest: their frame, which are learned from, and the layers on top."""

import math

import pytest
import torch
from torch import nn

from lidar.detection.batch import GroundTruth
from lidar.detection.boxes import corners, limit_period, points_in_boxes
from lidar.detection.overlap import iou_3d
from lidar.detection.roi_frame import corner_loss, decode_from_frame, encode_in_frame, grid_points, to_frame
from lidar.detection.roi_head import FullyConnected, RoIHead, RoIOutput, RowNoise
from lidar.detection.roi_sampling import RoIs, RoISampling, RoITargets, match, sample_rois
from lidar.detection.set_abstraction import Ball
from worldmodel.nn.batch_norm import SyncedBatchNorm1d
from worldmodel.planning.noise import generators

from .test_set_abstraction import seeded


def random_boxes(count: int, seed: int, dtype=torch.float64) -> torch.Tensor:
    u = torch.rand(count, 7, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    low = torch.tensor([0, -10, -2, 0.5, 0.5, 0.5, -7], dtype=dtype)
    high = torch.tensor([20, 10, 1, 5, 3, 3, 7], dtype=dtype)
    return low + u * (high - low)


def sources(count: int, seed: int = 0) -> list[torch.Generator]:
    return generators(range(seed, seed + count), 0, torch.device("cpu"))


def test_a_box_survives_the_frame_of_any_roi():
    boxes, rois = random_boxes(500, 0), random_boxes(500, 1)
    again = decode_from_frame(encode_in_frame(boxes, rois), rois)
    torch.testing.assert_close(again[:, :6], boxes[:, :6], atol=1e-9, rtol=0)
    turn = limit_period(again[:, 6] - boxes[:, 6], offset=0.5, period=math.pi)
    torch.testing.assert_close(turn, torch.zeros_like(turn), atol=1e-9, rtol=0)
    local = to_frame(boxes, rois)[:, 6]
    assert local.min() >= -math.pi / 2
    assert local.max() < math.pi / 2


def test_the_frame_by_hand():
    roi = torch.tensor([[10.0, 5, -1, 4, 3, 2, math.pi / 2]])
    box = torch.tensor([[10.0, 7, -0.5, 4, 3, 2, -math.pi / 2 + 0.1]])
    # Two metres ahead of the RoI, half a metre up, and turned around but for 0.1.
    torch.testing.assert_close(to_frame(box, roi)[0, [0, 1, 2, 6]], torch.tensor([2.0, 0, 0.5, 0.1]))
    codes = encode_in_frame(box, roi)
    torch.testing.assert_close(codes, torch.tensor([[0.4, 0, 0.25, 0, 0, 0, 0.1]]), atol=1e-6, rtol=0)


def test_grid_points_are_cell_centres_of_the_turned_box():
    rois = random_boxes(20, 2)
    points = grid_points(rois, 6)
    assert points.shape == (20, 216, 3)
    assert points_in_boxes(points.reshape(-1, 3), rois)[
        torch.arange(20).repeat_interleave(216), torch.arange(20 * 216)
    ].all()
    torch.testing.assert_close(points.mean(1), rois[:, :3])
    forward = torch.stack([rois[:, 6].cos(), rois[:, 6].sin(), torch.zeros(20, dtype=rois.dtype)], dim=1)
    # x is the slowest axis, z the fastest: 36 points on, one cell forward.
    torch.testing.assert_close(points[:, 36] - points[:, 0], forward * rois[:, 3:4] / 6)
    up = torch.zeros(20, 3, dtype=rois.dtype)
    up[:, 2] = rois[:, 5] / 6
    torch.testing.assert_close(points[:, 1] - points[:, 0], up)


def test_the_corner_loss_takes_the_nearer_direction():
    boxes = random_boxes(30, 3)
    turned = torch.cat([boxes[:, :6], boxes[:, 6:] + math.pi], dim=1)
    torch.testing.assert_close(corner_loss(boxes, boxes), boxes.new_zeros(30))
    torch.testing.assert_close(corner_loss(turned, boxes), boxes.new_zeros(30))
    moved = boxes + torch.tensor([0, 0, 0.5, 0, 0, 0, 0], dtype=boxes.dtype)
    torch.testing.assert_close(corner_loss(moved, boxes), boxes.new_full((30,), 0.5 * 0.5**2))
    other = random_boxes(30, 4)
    front = (corners(other) - corners(boxes)).norm(dim=2)
    back = (corners(other) - corners(turned)).norm(dim=2)
    nearer = torch.minimum(front, back)
    expected = torch.where(nearer < 1, nearer**2 / 2, nearer - 0.5).mean(1)
    torch.testing.assert_close(corner_loss(other, boxes), expected)
    same = boxes.clone().requires_grad_()
    corner_loss(same, boxes).sum().backward()
    assert same.grad.isfinite().all()


def test_foreground_hard_and_easy_are_mixed_as_asked():
    sampling = RoISampling()
    iou = torch.cat([torch.full((100,), 0.7), torch.full((200,), 0.3), torch.full((200,), 0.05)])
    chosen = sampling.choose(iou, sources(1)[0])
    overlap = iou[chosen]
    assert len(chosen) == 128
    assert int((overlap > 0.55).sum()) == 64
    assert int((overlap == 0.3).sum()) == 51  # 80 % of 64, rounded down
    foreground = chosen[overlap > 0.55]
    assert len(foreground.unique()) == 64
    assert torch.equal(chosen, sampling.choose(iou, sources(1)[0]))
    assert not torch.equal(chosen, sampling.choose(iou, sources(1, seed=5)[0]))


@pytest.mark.parametrize(
    ("overlaps", "foreground", "hard"),
    [
        ([0.55] * 3, 128, 0),  # nothing but foreground: drawn again and again
        ([0.2] * 3, 0, 128),
        ([0.0] * 3, 0, 0),
        ([0.9, 0.1], 1, 127),  # no easy ones: all the rest is hard
        ([0.9, 0.0999], 1, 0),
        ([0.9, 0.2, 0.0], 1, 1),  # as many hard ones as there are at most
    ],
)
def test_what_is_missing_is_made_up_for(overlaps, foreground, hard):
    iou = torch.tensor(overlaps)
    found = iou[RoISampling().choose(iou, sources(1)[0])]
    assert len(found) == 128
    assert int((found >= 0.55).sum()) == foreground
    assert int(((found >= 0.1) & (found < 0.55)).sum()) == hard


def test_targets_of_scores_and_boxes():
    sampling = RoISampling()
    iou = torch.tensor([0.0, 0.25, 0.5, 0.55, 0.56, 0.75, 1.0])
    torch.testing.assert_close(sampling.score_target(iou), torch.tensor([0, 0, 0.5, 0.6, 0.62, 1, 1]))
    assert sampling.regressed(iou).tolist() == [False] * 4 + [True] * 3


def test_a_roi_is_matched_within_its_class():
    objects = random_boxes(6, 5).float()
    truth = GroundTruth.padded(
        [torch.zeros(0, 7), objects], [torch.zeros(0).long(), torch.tensor([0, 1, 0, 1, 0, 1])]
    )
    near = objects[[0, 1, 2]] + torch.tensor([0.1, 0, 0, 0, 0, 0, 0])
    rois = RoIs(
        boxes=torch.cat([objects[:1], near, near[:1]]),
        labels=torch.tensor([0, 0, 1, 1, 2]),
        sample=torch.tensor([0, 1, 1, 1, 1]),
    )
    targets = match(rois, truth)
    overlap = iou_3d(rois.boxes, objects)
    same = rois.labels[:, None] == truth.labels[1]
    expected = torch.where(same, overlap, 0.0).amax(1) * (rois.sample == 1)
    torch.testing.assert_close(targets.iou, expected)
    assert targets.iou[0] == 0
    assert targets.iou[1] > 0.5
    assert targets.iou[4] == 0
    torch.testing.assert_close(targets.boxes[[1, 2]], objects[[0, 1]])
    torch.testing.assert_close(targets.boxes[[0, 4]], rois.boxes[[0, 4]])


def test_what_a_sample_draws_does_not_depend_on_its_companions():
    boxes = random_boxes(40, 6).float()
    rois = RoIs(boxes=boxes, labels=torch.zeros(40).long(), sample=torch.tensor([0, 1]).repeat_interleave(20))
    truth = GroundTruth.padded([boxes[:4], boxes[20:23]], [torch.zeros(4).long(), torch.zeros(3).long()])
    sampling = RoISampling(count=16)
    both, targets = sample_rois(rois, truth, sampling=sampling, sources=sources(2))
    assert both.sample.tolist() == [0] * 16 + [1] * 16
    alone = RoIs(boxes=boxes[20:], labels=rois.labels[20:], sample=torch.zeros(20).long())
    second, its = sample_rois(
        alone,
        GroundTruth.padded([boxes[20:23]], [torch.zeros(3).long()]),
        sampling=sampling,
        sources=sources(1, seed=1),
    )
    assert torch.equal(both.boxes[16:], second.boxes)
    assert torch.equal(targets.iou[16:], its.iou)
    empty = RoIs(boxes=boxes[:0], labels=rois.labels[:0], sample=rois.sample[:0])
    assert len(sample_rois(empty, truth, sampling=sampling, sources=sources(2))[0]) == 0


def test_layers_equal_convolutions_and_dropout_is_of_the_sample():
    layers = seeded(
        lambda: FullyConnected(6, (8, 5), dropout=0.4, out_channels=3, norm=SyncedBatchNorm1d)
    ).double()
    x = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layers.eval()
    expected = x.unsqueeze(2)
    for layer in layers:
        flat = isinstance(layer, SyncedBatchNorm1d)
        expected = layer(expected.squeeze(2)).unsqueeze(2) if flat else layer(expected)
    torch.testing.assert_close(layers(x), expected.squeeze(2))

    layers.train()
    with pytest.raises(ValueError, match="noise="):
        layers(x)
    noise = RowNoise(sample=torch.tensor([0] * 4 + [1] * 5), sources=sources(2))
    uniform = noise.uniform(1000)
    alone = RowNoise(sample=torch.zeros(5).long(), sources=sources(1, seed=1))
    assert torch.equal(uniform[4:], alone.uniform(1000))
    dropout = FullyConnected(1000, (1000,), dropout=0.4, norm=lambda _: nn.Identity()).train()
    dropout[0].weight.data = torch.eye(1000).unsqueeze(2)
    kept = dropout(torch.ones(9, 1000), RowNoise(sample=noise.sample, sources=sources(2)))
    torch.testing.assert_close(kept, (uniform >= 0.4) / 0.6)


def test_roi_losses_by_hand_and_without_foreground():
    head = RoIHead(4, grid_size=2, balls=(Ball(radius=1, neighbours=2, widths=(3,)),), sampling=RoISampling())
    boxes = random_boxes(3, 7).float()
    rois = RoIs(boxes=boxes, labels=torch.zeros(3).long(), sample=torch.zeros(3).long())
    objects = boxes + torch.tensor([0, 0, 0.3, 0, 0, 0, 0])
    output = RoIOutput(
        logits=torch.tensor([0.0, 2, -1], requires_grad=True), codes=torch.zeros(3, 7, requires_grad=True)
    )
    losses = head.losses(output, rois, RoITargets(boxes=objects, iou=torch.tensor([0.5, 0.9, 0.6])))
    losses = {name: float(value.detach()) for name, value in losses.items()}
    # Score targets 0.5, 1 and 0.7.
    score = math.log(2) + math.log1p(math.exp(-2))
    score += 0.7 * math.log1p(math.exp(1)) + 0.3 * math.log1p(math.exp(-1))
    assert losses["loss/roi_score"] == pytest.approx(score / 3, rel=1e-5)
    code = 0.3 / boxes[1:, 5]
    huber = torch.where(code < 1 / 9, 4.5 * code**2, code - 1 / 18)
    assert losses["loss/roi_box"] == pytest.approx(float(huber.mean()), rel=1e-5)
    assert losses["loss/roi_corner"] == pytest.approx(0.5 * 0.3**2, rel=1e-4)
    nothing = head.losses(output, rois, RoITargets(boxes=boxes, iou=torch.zeros(3)))
    assert nothing["loss/roi_box"] == nothing["loss/roi_corner"] == 0
    sum(nothing.values()).backward()
    assert output.codes.grad.isfinite().all()
