"""One training step of each head at its full size on real scans: slow, run by `pytest -m slow`."""

import resource
import time

import numpy as np
import pytest
import torch

from lidar.batch import PointCloudBatch
from lidar.datasets import KittiObject, NuScenesSweeps
from lidar.datasets.kitti_labels import read_kitti_labels
from lidar.detection.batch import DetectionBatch, GroundTruth
from lidar.detection.models import (
    KITTI_CLASSES,
    KITTI_GRID,
    NUSCENES_GRIDS,
    center_point_kitti,
    center_point_nuscenes,
    second_kitti,
)
from tests.lidar.scenes import batch_of

MEMORY_GIB = 16


def kitti_batch(root) -> DetectionBatch:
    """Two camera views with their labels, shuffled."""
    source = KittiObject(root=root, view="camera")
    rng = np.random.default_rng(0)
    clouds, boxes, labels = [], [], []
    for ref in source.frames[:2]:
        part = ref.path.parents[1]
        objects = read_kitti_labels(part / f"label_2/{ref.frame_id}.txt", part / f"calib/{ref.frame_id}.txt")
        known = [i for i, name in enumerate(objects.names) if name in KITTI_CLASSES]
        points = source.read(ref)
        clouds.append(torch.from_numpy(rng.permutation(points[KITTI_GRID.inside(points)])))
        boxes.append(torch.from_numpy(objects.boxes[known]))
        labels.append(torch.tensor([KITTI_CLASSES.index(objects.names[i]) for i in known]))
    return DetectionBatch(points=batch_of(clouds), truth=GroundTruth.padded(boxes, labels))


def nuscenes_batch(root) -> DetectionBatch:
    """One sweep, all of age 0, with a box of each class somewhere: what counts here is the size of the step."""
    source = NuScenesSweeps(root=root)
    points = source.read(source.frames[0])
    points = points[NUSCENES_GRIDS[0.075].inside(points)]
    five = np.concatenate([points, np.zeros((len(points), 1), np.float32)], axis=1)
    rng = np.random.default_rng(0)
    boxes = rng.uniform([-50, -50, -2, 1, 1, 1, -3, -5, -5], [50, 50, 0, 9, 3, 3, 3, 5, 5], (10, 9))
    truth = GroundTruth.padded([torch.tensor(boxes, dtype=torch.float32)], [torch.arange(10)])
    cloud: PointCloudBatch = batch_of([torch.from_numpy(rng.permutation(five))])
    return DetectionBatch(points=cloud, truth=truth)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "data", "batch_of_frames"),
    [
        (second_kitti, "kitti_object", kitti_batch),
        (center_point_kitti, "kitti_object", kitti_batch),
        (center_point_nuscenes, "nuscenes_demo", nuscenes_batch),
    ],
    ids=["second_kitti", "center_point_kitti", "center_point_nuscenes"],
)
def test_a_full_size_step(real_data, build, data, batch_of_frames):
    batch = batch_of_frames(real_data(data))
    detector = build(backend="torch")
    began = time.process_time()
    loss = detector.training_step(batch, 0)
    loss.total.backward()
    trained = time.process_time()
    assert loss.total.isfinite()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    found = detector.detect(batch)
    assert len(found) == batch.points.batch_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{trained - began:.1f} CPU s for the step, {time.process_time() - trained:.1f} for detection, {peak:.1f} GiB"
    )
    assert peak < MEMORY_GIB
