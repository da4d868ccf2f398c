"""SECOND's head: order of the predictions, loss against its definition, decoding, several processes, overfitting."""

import math

import pytest
import torch
import torch.nn.functional as F

from lidar.detection.anchors import IGNORED, decode
from lidar.detection.batch import GroundTruth
from lidar.detection.models import KITTI_ANCHORS, second_small
from lidar.detection.second import AnchorHead, AnchorOutput
from lidar.detection.voxel_detector import Suppression
from tests.lidar.detection.overfitting import assert_finds_all, overfitted
from tests.lidar.detection.scenes import (
    BOXES,
    LABELS,
    TINY_GRID,
    TINY_OPTIONS,
    labelled_batch,
    same_heading,
)
from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process

KEEP = Suppression(score=0.1, iou=0.01, before=4096, after=500)


def make_head(*, shape=(16, 16), seed=0) -> AnchorHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AnchorHead(8, classes=KITTI_ANCHORS, grid=TINY_GRID, shape=shape, suppression=KEEP).double()


def features(samples: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, 8, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truth_of(*counts: int) -> GroundTruth:
    """So many of the scene's boxes in each sample."""
    return GroundTruth.padded([BOXES[:n] for n in counts], [LABELS[:n] for n in counts])


def test_predictions_are_in_the_order_of_the_anchors():
    head = make_head()
    x = features(2)
    out = head(x)
    assert out.logits.shape == (2, 16 * 16 * 6, 3)
    y, column, place = 5, 9, 4  # the cyclist's first anchor
    row = (y * 16 + column) * 6 + place
    for name, width in (("logits", 3), ("codes", 7), ("directions", 2)):
        layer = {"logits": head.conv_cls, "codes": head.conv_box, "directions": head.conv_dir_cls}[name]
        cell = layer(x)[1, place * width : (place + 1) * width, y, column]
        torch.testing.assert_close(getattr(out, name)[1, row], cell)


def test_an_untrained_head_is_sure_of_nothing():
    head = make_head()
    assert torch.allclose(head.conv_cls.bias, torch.tensor(-math.log(99)).double())
    assert 0.0005 < head.conv_box.weight.std() < 0.002


def test_loss_by_definition():
    head, truth = make_head(shape=(8, 8)), truth_of(3, 0, 2)
    with torch.no_grad():
        out = head(features(3)[..., :8, :8])
    targets = head.targets(truth)
    sums = torch.zeros(3, dtype=torch.float64)
    for b in range(3):
        positive = [i for i, label in enumerate(targets.labels[b].tolist()) if label >= 0]
        n = max(len(positive), 1)
        p = out.logits[b].sigmoid()
        right, wrong = -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()
        for i, label in enumerate(targets.labels[b].tolist()):
            if label != IGNORED:
                sums[0] += sum(right[i, c] if c == label else wrong[i, c] for c in range(3)) / n
        for i in positive:
            error = (out.codes[b, i] - targets.codes[b, i]).abs()
            error[6] = error[6].sin().abs()
            sums[1] += torch.where(error < 1 / 9, 4.5 * error**2, error - 1 / 18).sum() / n
            sums[2] += F.cross_entropy(out.directions[b, i], targets.directions[b, i]) / n
    loss = head.loss(out, truth)
    assert len(targets.labels) == 3
    torch.testing.assert_close(loss.total, (sums * torch.tensor([1, 2, 0.2]) / 3).sum())
    torch.testing.assert_close(loss.parts["loss/box"], sums[1] / 3)
    assert float(loss.parts["positives"]) == pytest.approx(float(targets.positive.sum()) / 3)


def test_without_objects_only_the_class_loss_remains():
    head = make_head()
    loss = head.loss(head(features(2)), truth_of(0, 0))
    assert loss.total.isfinite()
    assert float(loss.parts["loss/box"]) == float(loss.parts["loss/direction"]) == 0
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def perfect(head: AnchorHead, truth: GroundTruth) -> AnchorOutput:
    """The output that fulfils the targets, with another half turn in every residual."""
    targets = head.targets(truth)
    logits = torch.full((*targets.labels.shape, 3), -10.0)
    logits[targets.positive, targets.labels[targets.positive]] = 5.0
    codes = targets.codes + torch.tensor([0, 0, 0, 0, 0, 0, math.pi])
    return AnchorOutput(logits=logits, codes=codes, directions=F.one_hot(targets.directions, 2).float())


@pytest.mark.parametrize("turn", torch.linspace(-math.pi, math.pi, 9)[1:].tolist())
def test_the_perfect_output_is_detected_as_the_truth(turn):
    head = make_head().float()
    boxes = BOXES + torch.tensor([0, 0, 0, 0, 0, 0, turn])
    truth = GroundTruth.padded([boxes], [LABELS])
    (found,) = head.detect(perfect(head, truth))
    order = found.labels.argsort()
    assert found.labels[order].tolist() == [0, 1, 2]
    torch.testing.assert_close(found.boxes[order, :6], boxes[:, :6], atol=1e-5, rtol=0)
    assert same_heading(found.boxes[order, 6], boxes[:, 6], 1e-5)
    assert (found.scores > 0.99).all()


def test_boxes_are_the_decoded_codes():
    head = make_head()
    out = head(features(1))
    boxes, decoded = head.boxes(out), decode(out.codes, head.anchors.view(-1, 7))
    assert torch.equal(boxes[..., :6], decoded[..., :6])
    half_turns = (boxes[..., 6] - decoded[..., 6]) / math.pi
    torch.testing.assert_close(half_turns, half_turns.round(), atol=1e-9, rtol=0)


def test_a_map_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="the map is 16 x 16, the anchors stand on 8 x 16"):
        make_head(shape=(8, 16))(features(1))


def _loss(parameters, batch):
    head = make_head()
    names = [name for name, _ in head.named_parameters()]
    x, counts = batch
    out = torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (x,))
    return head.loss(out, truth_of(*counts)).total


def test_two_processes_equal_one(two_processes: TwoProcesses) -> None:
    x = features(3)
    assert_equals_one_process(
        two_processes,
        _loss,
        parameters=[p.detach() for p in make_head().parameters()],
        shares=[(x[:1], (3,)), (x[1:], (0, 2))],
        joined=(x, (3, 0, 2)),
        atol=1e-12,
    )


def test_overfits_a_scene():
    detector = overfitted(second_small(**TINY_OPTIONS), labelled_batch(), steps=50, max_lr=2e-2)
    assert_finds_all(detector, labelled_batch())
