"""The detectors by name: parameter counts, OpenPCDet's names and shapes, settings, what is refused."""

import copy

import pytest
import torch
from torch import nn

from lidar.detection.batch import DetectionBatch, Detector, GroundTruth
from lidar.detection.models import (
    KITTI_ANCHORS,
    NUSCENES_CLASSES,
    center_point_kitti,
    center_point_nuscenes,
    center_point_small,
    center_point_waymo,
    second_kitti,
    second_once,
    second_small,
)
from lidar.grid import VoxelGrid
from tests.lidar.detection.openpcdet_center import center_head_shapes, residual_backbone_shapes
from tests.lidar.detection.scenes import BOXES, LABELS, TINY_OPTIONS, labelled_batch
from tests.lidar.openpcdet import second_state
from worldmodel.nn.batch_norm import SyncedBatchNorm1d, SyncedBatchNorm2d
from worldmodel.protocols import Task

TINY = {"second": second_small, "center_point": center_point_small}


def shapes(state):
    return {name: tuple(value.shape) for name, value in state.items()}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_second_is_openpcdets():
    detector = second_kitti()
    expected = shapes(second_state())
    del expected["global_step"]
    assert shapes(detector.state_dict()) == expected
    assert (parameters(detector), len(expected)) == (5_325_576, 162)
    assert detector.dense_head.anchors.shape == (200, 176, 3, 2, 7)


def test_center_point_on_nuscenes_is_openpcdets():
    detector = center_point_nuscenes()
    backbone = {
        name: shape for name, shape in shapes(second_state()).items() if name.startswith("backbone_2d")
    }
    expected = (
        residual_backbone_shapes(5) | backbone | center_head_shapes(512, (1, 2, 2, 1, 2, 2), velocity=True)
    )
    assert shapes(detector.state_dict()) == expected
    assert parameters(detector) == 8_941_590
    assert parameters(detector.backbone_3d) == 2_695_312
    assert detector.backbone_3d.bev_shape == (180, 180)
    assert detector.classes == NUSCENES_CLASSES


def test_center_point_on_waymo_is_openpcdets():
    detector = center_point_waymo(in_channels=5)
    plain = {n: s for n, s in shapes(second_state(in_channels=5)).items() if n.startswith("backbone")}
    assert shapes(detector.state_dict()) == plain | center_head_shapes(512, (3,), velocity=False)
    assert detector.dense_head.cells.shape == (188, 188)


def test_other_sizes():
    assert center_point_nuscenes(0.1).backbone_3d.bev_shape == (128, 128)
    assert center_point_kitti().dense_head.cells.shape == (400, 352)
    assert second_once().dense_head.anchors.shape == (188, 188, 5, 2, 7)
    assert second_small().dense_head.anchors.shape == (64, 64, 3, 2, 7)
    assert center_point_small().dense_head.cells.size == pytest.approx((0.4, 0.4))


def test_classes_may_be_chosen():
    assert second_small(classes=("Cyclist", "Car")).dense_head.classes == (KITTI_ANCHORS[2], KITTI_ANCHORS[0])
    chosen = center_point_nuscenes(classes=("pedestrian", "car"))
    assert chosen.dense_head.tasks == ((1,), (0,))
    with pytest.raises(
        ValueError, match="no anchor for Tram, only for Car, Pedestrian, Cyclist: give anchors="
    ):
        second_small(classes=("Car", "Tram"))
    with pytest.raises(ValueError, match="Tram: no task of nuScenes; its classes are car, truck"):
        center_point_nuscenes(classes=("Tram",))
    with pytest.raises(ValueError, match=r"voxel is one of 0.075, 0.1 m, got 0.2"):
        center_point_nuscenes(0.2)
    with pytest.raises(ValueError, match="classes, each once"):
        center_point_small(classes=("Car", "Car"))
    with pytest.raises(ValueError, match="13 x 16 cells cannot be made 2 times coarser"):
        second_small(grid=VoxelGrid(point_range=(0, -5.2, -3, 12.8, 5.2, 1), voxel_size=(0.2, 0.2, 0.2)))


def test_weights_follow_the_seed_and_nothing_else():
    state = torch.random.get_rng_state()
    first, second, other = (center_point_small(**TINY_OPTIONS, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [d.dense_head.shared_conv[0].weight for d in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_normalisation_over_all_ranks_where_asked():
    for build in TINY.values():
        norms = [m for m in build(synced=True).modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert not norms
        plain = [m for m in build().modules() if isinstance(m, SyncedBatchNorm1d | SyncedBatchNorm2d)]
        assert not plain


@pytest.mark.parametrize("build", TINY.values(), ids=TINY)
def test_a_detector_is_a_task_and_its_caps_follow_the_mode(build):
    detector = build(**TINY_OPTIONS, caps=(5, 100, 200))
    assert isinstance(detector, Detector)
    assert isinstance(detector, Task)
    points = labelled_batch().points
    assert len(detector.train().voxels(points).features) == 100
    assert len(detector.eval().voxels(points).features) == 200


@pytest.mark.parametrize("build", TINY.values(), ids=TINY)
def test_monitors_and_detection_leave_the_model_as_it_was(build):
    detector, batch = build(**TINY_OPTIONS), labelled_batch(samples=2)
    detector.backbone_3d.eval()
    before = copy.deepcopy(detector.state_dict())
    values = detector.monitors([batch, batch])
    found = detector.detect(batch)
    assert all(torch.equal(v, detector.state_dict()[n]) for n, v in before.items())
    assert (detector.training, detector.backbone_3d.training) == (True, False)
    loss = detector.eval().training_step(batch, 0)
    assert values["loss/total"] == pytest.approx(loss.total.item(), rel=1e-5)
    assert values.keys() == {"loss/total", *loss.parts}
    assert len(found) == 2
    assert detector.after_step(0, 10) == {}


@pytest.mark.parametrize("build", TINY.values(), ids=TINY)
def test_samples_without_points_or_objects(build):
    detector, batch = build(**TINY_OPTIONS), labelled_batch(samples=2)
    half = batch.points.batch_index == 1
    points = copy.copy(batch.points)
    object.__setattr__(points, "points", points.points[half])
    object.__setattr__(points, "batch_index", points.batch_index[half])
    empty = GroundTruth.padded([BOXES[:0]] * 2, [LABELS[:0]] * 2)
    for truth in (batch.truth, empty):
        loss = detector.training_step(DetectionBatch(points=points, truth=truth), 0)
        loss.total.backward()
        assert loss.total.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    assert len(detector.detect(DetectionBatch(points=points))) == 2


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
@pytest.mark.parametrize("build", TINY.values(), ids=TINY)
def test_other_precisions(build, precision):
    """bf16 autocast leaves losses and boxes in fp32; in fp64 everything is."""
    detector, batch = build(**TINY_OPTIONS), labelled_batch()
    if precision == "fp64":
        detector.double()
    reference = build(**TINY_OPTIONS).training_step(batch, 0).total.item()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = detector.training_step(batch, 0)
        loss.total.backward()
        (found,) = detector.detect(batch)
    expected = torch.float64 if precision == "fp64" else torch.float32
    assert loss.total.dtype == found.boxes.dtype == found.scores.dtype == expected
    assert loss.total.item() == pytest.approx(reference, rel=0.1 if precision == "bf16" else 1e-3)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


def test_unusable_ground_truth_is_refused():
    detector, batch = second_small(**TINY_OPTIONS), labelled_batch()
    with pytest.raises(ValueError, match="needs ground truth, and this batch has none"):
        detector.training_step(DetectionBatch(points=batch.points), 0)
    other = GroundTruth.padded([BOXES], [LABELS + 1])
    with pytest.raises(
        ValueError, match=r"label 3 is of no class: this detector has 3 \(Car, Pedestrian, Cyclist\)"
    ):
        detector.training_step(DetectionBatch(points=batch.points, truth=other), 0)
    broken = GroundTruth.padded([BOXES * torch.tensor([float("nan"), 1, 1, 1, 1, 1, 1])], [LABELS])
    with pytest.raises(ValueError, match=r"a ground-truth box of \('0',\) holds NaN or inf"):
        detector.training_step(DetectionBatch(points=batch.points, truth=broken), 0)
