"""Typed batches of detection: labelled point clouds in, scored boxes out.

A box is (x, y, z, dx, dy, dz, heading) in the sensor frame: its centre in metres, length along the heading, width and
height, and the heading counter-clockwise from +x in radians. Two more columns, where there are any, are the velocity
(vx, vy) in m/s, NaN where it is not known.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch

from lidar.batch import PointCloudBatch
from worldmodel.objectives import Loss

PADDING = -1


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """Labelled boxes of a batch, padded to the same number.

    Attributes:
        boxes: [B, M, 7] or [B, M, 9] float32; 0 in the padding.
        labels: [B, M] int64: place of the class in the detector's classes, -1 in the padding.
    """

    boxes: torch.Tensor
    labels: torch.Tensor

    def of(self, sample: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes [m, 7 or 9] and labels [m] of one sample, without the padding."""
        there = self.labels[sample] != PADDING
        return self.boxes[sample][there], self.labels[sample][there]

    def to(self, device: torch.device | str) -> "GroundTruth":
        """The same on another device."""
        return replace(
            self,
            boxes=self.boxes.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "GroundTruth":
        """The same in page-locked memory."""
        return replace(self, boxes=self.boxes.pin_memory(), labels=self.labels.pin_memory())

    @staticmethod
    def padded(boxes: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]) -> "GroundTruth":
        """Of boxes [m, 7 or 9] and labels [m] of each sample.

        Raises:
            ValueError: if boxes and labels do not belong together, or boxes differ in width.
        """
        if len(boxes) != len(labels) or any(len(b) != len(n) for b, n in zip(boxes, labels, strict=False)):
            raise ValueError("every sample needs as many labels as boxes")
        widths = {b.shape[1] for b in boxes}
        if len(widths) != 1 or not widths <= {7, 9}:
            raise ValueError(f"boxes have 7 numbers, or 9 with velocities, all alike; got {sorted(widths)}")
        most = max((len(b) for b in boxes), default=0)
        padded = torch.zeros(len(boxes), most, widths.pop())
        names = torch.full((len(boxes), most), PADDING, dtype=torch.int64)
        for row, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            padded[row, : len(box)] = box
            names[row, : len(label)] = label
        return GroundTruth(boxes=padded, labels=names)


@dataclass(frozen=True, kw_only=True)
class DetectionBatch:
    """What a detector sees: points, already cropped to its range and shuffled, and in training what is in them."""

    points: PointCloudBatch
    truth: GroundTruth | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """One per sample."""
        return self.points.seeds

    def to(self, device: torch.device | str) -> "DetectionBatch":
        """The same batch on another device."""
        truth = None if self.truth is None else self.truth.to(device)
        return replace(self, points=self.points.to(device), truth=truth)

    def pin_memory(self) -> "DetectionBatch":
        """The same batch in page-locked memory."""
        truth = None if self.truth is None else self.truth.pin_memory()
        return replace(self, points=self.points.pin_memory(), truth=truth)


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Boxes found in one frame, best first.

    Attributes:
        boxes: [N, 7] or [N, 9] float32.
        scores: [N] float32 in 0..1.
        labels: [N] int64: place of the class in the detector's classes.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def to(self, device: torch.device | str) -> "Detections":
        """The same on another device."""
        return Detections(**{k: v.to(device) for k, v in vars(self).items()})


@runtime_checkable
class Detector(Protocol):
    """A detector: an nn.Module and a `worldmodel.protocols.Task`.

    Attributes:
        classes: names, whose place is the label.
    """

    classes: tuple[str, ...]

    def training_step(self, batch: DetectionBatch, step: int) -> Loss: ...

    def after_step(self, step: int, total_steps: int) -> dict[str, float]: ...

    def monitors(self, batches: Sequence[Any]) -> dict[str, float]: ...

    def detect(self, batch: DetectionBatch) -> tuple[Detections, ...]:
        """What is found in each sample, in evaluation mode, after suppression of duplicates."""
        ...
