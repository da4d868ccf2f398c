"""A few steps on one scene, and whether the objects are then found."""

from typing import TypeVar

import torch

from lidar.detection.batch import DetectionBatch
from lidar.detection.overlap import iou_3d
from lidar.detection.voxel_detector import VoxelDetector
from tests.lidar.detection.scenes import same_heading

Model = TypeVar("Model", bound=VoxelDetector)


def overfitted(detector: Model, batch: DetectionBatch, *, steps: int, max_lr: float = 1e-2) -> Model:
    """The detector after so many steps on one batch."""
    optimizer = torch.optim.AdamW(detector.parameters(), lr=max_lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        detector.training_step(batch, step).total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10)
        optimizer.step()
        schedule.step()
    return detector


def assert_finds_all(detector: VoxelDetector, batch: DetectionBatch) -> None:
    """Every object has a detection of its class, 3-D IoU over 0.5 and heading, and all above 0.5 are such."""
    for sample, found in enumerate(detector.detect(batch)):
        boxes, labels = batch.truth.of(sample)
        good = found.scores > 0.5
        overlap = iou_3d(boxes[:, :7], found.boxes[good, :7])
        assert overlap.shape == (len(boxes), len(boxes))
        best, which = overlap.max(dim=1)
        assert best.min() > 0.5
        assert torch.equal(found.labels[good][which], labels)
        assert same_heading(found.boxes[good][which, 6], boxes[:, 6], 0.3)
