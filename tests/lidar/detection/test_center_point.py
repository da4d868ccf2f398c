"""CenterPoint's head: codes, targets and loss against their definitions, detection, two processes, overfitting."""

import math

import pytest
import torch

from lidar.detection.batch import GroundTruth
from lidar.detection.center_point import BEVCells, CenterHead, CenterOutput, decode, encode
from lidar.detection.models import center_point_small
from lidar.detection.voxel_detector import Suppression
from tests.lidar.detection.overfitting import assert_finds_all, overfitted
from tests.lidar.detection.scenes import BOXES, LABELS, TINY_GRID, TINY_OPTIONS, labelled_batch, same_heading
from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
from worldmodel.nn.batch_norm import SyncedBatchNorm2d

NAN = float("nan")
CELLS = BEVCells.of(TINY_GRID, (16, 16))  # cells of 0.8 m
KEEP = Suppression(score=0.1, iou=0.2, before=1000, after=83)


def make_head(*, tasks=((0,), (1, 2)), velocity=True, **options) -> CenterHead:
    settings = {"centre_limits": (-5, -10, -5, 20, 10, 5), "suppression": KEEP, "regression_weight": 0.25}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CenterHead(8, tasks=tasks, cells=CELLS, velocity=velocity, width=8, **{**settings, **options})


def features(samples: int) -> torch.Tensor:
    return torch.randn(samples, 8, 16, 16, generator=torch.Generator().manual_seed(0))


def with_velocity(boxes: torch.Tensor, *velocity: float) -> torch.Tensor:
    return torch.cat([boxes, torch.tensor(velocity).expand(len(boxes), 2)], dim=1)


def truth_of(*counts: int) -> GroundTruth:
    moving = with_velocity(BOXES, 1.5, -0.5)
    return GroundTruth.padded([moving[:n] for n in counts], [LABELS[:n] for n in counts])


# ----------------------------------------------------------------------------------------------------------- codes


def test_codes_and_back():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(300, 9, generator=generator, dtype=torch.float64) * torch.tensor(
        [12.3, 12.3, 2, 5, 2, 2, 20, 5, 5]
    ) + torch.tensor([0, -6.4, -2, 0.1, 0.1, 0.1, -10, -2, -2])
    cell, offset = CELLS.locate(boxes[:, :2])
    assert ((offset >= 0) & (offset < 1)).all()
    back = decode(encode(boxes, offset), cell, CELLS)
    assert same_heading(back[:, 6], boxes[:, 6], 1e-6)
    columns = [0, 1, 2, 3, 4, 5, 7, 8]
    torch.testing.assert_close(back[:, columns], boxes[:, columns], atol=1e-6, rtol=0)


def test_a_code_by_hand():
    box = torch.tensor([[2.0, -6.0, 0.5, math.e, 1, 1, math.pi / 2, 3, 4]])
    cell, offset = CELLS.locate(box[:, :2])
    assert cell.tolist() == [[2, 0]]  # column, row
    expected = torch.tensor([[0.5, 0.5, 0.5, 1, 0, 0, 0, 1, 3, 4]])
    torch.testing.assert_close(encode(box, offset), expected, atol=1e-6, rtol=0)


def test_centres_outside_move_to_the_edge():
    cell, offset = CELLS.locate(torch.tensor([[-3.0, 0.0], [99.0, 99.0]]))
    assert cell.tolist() == [[0, 8], [15, 15]]
    torch.testing.assert_close(offset, torch.tensor([[0, 0], [0.5, 0.5]]), atol=1e-5, rtol=0)


# --------------------------------------------------------------------------------------------------- targets, loss


def test_targets():
    head, truth = make_head(), truth_of(3, 0, 1)
    car, others = head.targets(truth)
    assert car.heat.shape == (3, 1, 16, 16)
    assert others.heat.shape == (3, 2, 16, 16)
    assert (car.sample.tolist(), others.sample.tolist()) == ([0, 2], [0, 0])
    # Car at (6, 3): column 7, row 11; pedestrian at (9.1, -2.3): column 11, row 5.
    assert car.cell.tolist() == [11 * 16 + 7] * 2
    assert float(car.heat[0, 0, 11, 7]) == 1
    assert float(others.heat[0, 0, 5, 11]) == 1
    assert not others.heat[1:].any()
    # Smaller than a cell: the least radius, 2.
    assert int((others.heat[0, 0] > 0).sum()) == 25
    assert torch.equal(truth.labels, truth_of(3, 0, 1).labels), "the ground truth is left as it was"


def test_boxes_of_no_size_and_too_many_are_left_out():
    boxes = BOXES[:1].repeat(4, 1)
    boxes[1, 4] = 0
    boxes[:, 0] = torch.tensor([1.0, 3.0, 5.0, 7.0])
    truth = GroundTruth.padded([boxes], [torch.zeros(4, dtype=torch.int64)])
    (target,) = make_head(tasks=((0, 1, 2),), velocity=False, most_objects=3).targets(truth)
    assert target.cell.remainder(16).tolist() == [1, 6]


@torch.no_grad()
def test_loss_by_definition():
    head, truth = make_head().double(), truth_of(3, 0, 1)
    truth.boxes[0, 1, 7:] = NAN
    out = head(features(3).double())
    total = torch.zeros(2, dtype=torch.float64)
    weights = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2], dtype=torch.float64)
    for task, target in zip(out, head.targets(truth), strict=True):
        p = task.heat.sigmoid().clamp(1e-4, 1 - 1e-4)
        at_peak = -p.log() * (1 - p) ** 2
        elsewhere = -(1 - p).log() * p**2 * (1 - target.heat) ** 4
        peaks = target.heat == 1
        total[0] += (at_peak[peaks].sum() + elsewhere[~peaks].sum()) / peaks.sum()
        for sample, cell, code in zip(target.sample, target.cell, target.codes, strict=True):
            error = (task.codes[sample, :, cell // 16, cell % 16] - code).abs() * weights
            total[1] += error.nan_to_num(0).sum() / len(target.codes)
    loss = head.loss(out, truth)
    torch.testing.assert_close(loss.parts["loss/heat_map"], total[0])
    torch.testing.assert_close(loss.parts["loss/box"], total[1])
    torch.testing.assert_close(loss.total, total[0] + 0.25 * total[1])


@pytest.mark.parametrize("count", [0, 2])
def test_no_objects_and_unknown_velocities_are_finite(count):
    head, truth = make_head(), truth_of(count, 0)
    truth.boxes[..., 7:] = NAN
    loss = head.loss(head(features(2)), truth)
    loss.total.backward()
    assert loss.total.isfinite()
    if count == 0:
        assert float(loss.parts["loss/box"]) == 0
    for head_of_task in head.heads_list:
        velocity = head_of_task["vel"][1].weight.grad
        assert not velocity.any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_boxes_without_velocity_are_refused_where_it_is_predicted():
    truth = GroundTruth.padded([BOXES], [LABELS])
    with pytest.raises(ValueError, match="9 numbers, with NaN where the velocity is not known"):
        make_head().targets(truth)
    make_head(velocity=False).targets(truth_of(3))


# ------------------------------------------------------------------------------------------------------- detection


def perfect(head: CenterHead, truth: GroundTruth) -> tuple[CenterOutput, ...]:
    outputs = []
    for target in head.targets(truth):
        codes = torch.zeros(len(target.heat), target.codes.shape[1], 16 * 16)
        codes[target.sample, :, target.cell] = target.codes
        logits = torch.where(target.heat == 1, 5.0, -10.0)
        outputs.append(CenterOutput(heat=logits, codes=codes.unflatten(2, (16, 16))))
    return tuple(outputs)


@pytest.mark.parametrize("tasks", [((0,), (1, 2)), ((2, 0, 1),)])
def test_the_perfect_output_is_detected_as_the_truth(tasks):
    head, truth = make_head(tasks=tasks), truth_of(3, 1)
    for sample, found in enumerate(head.detect(perfect(head, truth))):
        boxes, labels = truth.of(sample)
        order = found.labels.argsort()
        assert torch.equal(found.labels[order], labels)
        columns = [0, 1, 2, 3, 4, 5, 7, 8]
        torch.testing.assert_close(found.boxes[order][:, columns], boxes[:, columns], atol=1e-5, rtol=0)
        assert same_heading(found.boxes[order, 6], boxes[:, 6], 1e-5)


def test_detections_are_best_first_and_within_the_limits():
    head = make_head(centre_limits=(0, 0, -5, 13, 10, 5))
    out = perfect(head, truth_of(3))
    out[0].heat.sub_(1)
    (found,) = head.detect(out)
    assert found.labels.tolist() == [0]  # only the car has y > 0
    head.centre_limits = (0, -10, -5, 13, 10, 5)
    (found,) = head.detect(out)
    assert found.labels.tolist()[-1] == 0
    assert (found.scores.diff() <= 0).all()


def test_duplicates_are_suppressed_within_a_task_only():
    boxes = with_velocity(BOXES[[0, 0, 0]], 0, 0)
    boxes[1, 0] += 0.8
    truth = GroundTruth.padded([boxes], [torch.tensor([0, 0, 1])])
    head = make_head()
    (found,) = head.detect(perfect(head, truth))
    assert sorted(found.labels.tolist()) == [0, 1]


def test_wrong_tasks_and_maps_are_refused():
    for tasks in (((0,), (2,)), ((0, 0),), ((0,), ())):
        with pytest.raises(ValueError, match="every label belongs to one task"):
            make_head(tasks=tasks)
    with pytest.raises(ValueError, match="the map is 8 x 16 cells, the head is for 16 x 16"):
        make_head()(features(1)[:, :, :8])


# ---------------------------------------------------------------------------------------------- several processes


def _loss(parameters, batch):
    head = make_head(norm=SyncedBatchNorm2d).double()
    names = [name for name, _ in head.named_parameters()]
    x, counts = batch
    out = torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (x,))
    return head.loss(out, truth_of(*counts)).total


def test_two_processes_equal_one(two_processes: TwoProcesses) -> None:
    x = features(3).double()
    assert_equals_one_process(
        two_processes,
        _loss,
        parameters=[p.detach().double() for p in make_head().parameters()],
        shares=[(x[:1], (3,)), (x[1:], (0, 2))],
        joined=(x, (3, 0, 2)),
        atol=1e-9,
    )


def test_overfits_a_scene():
    detector = overfitted(center_point_small(**TINY_OPTIONS), labelled_batch(), steps=80, max_lr=1e-2)
    assert_finds_all(detector, labelled_batch())
