"""A detector on voxels: sparse encoder, BEV backbone, dense head. SECOND and CenterPoint differ in the head alone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from lidar.batch import PointCloudBatch, VoxelBatch
from lidar.detection.batch import DetectionBatch, Detections, GroundTruth
from lidar.detection.bev_backbone import BEVBackbone
from lidar.detection.nms import rotated_nms
from lidar.encoder import SparseEncoder
from lidar.pretraining import Voxelizer, in_precision
from worldmodel.objectives import Loss


class DenseHead(Protocol):
    """What a detector asks of its head, an nn.Module from a map [B, C, H, W] to its own kind of output."""

    def __call__(self, features: torch.Tensor) -> Any: ...

    def loss(self, output: Any, truth: GroundTruth) -> Loss:
        """The loss against ground truth, the same on every rank."""
        ...

    def detect(self, output: Any) -> tuple[Detections, ...]:
        """What is found in each sample, duplicates suppressed."""
        ...


@dataclass(frozen=True, kw_only=True)
class Suppression:
    """Which boxes are kept.

    Args:
        score: least score.
        iou: greatest overlap seen from above of two boxes that are both kept.
        before: look at so many of the best boxes only.
        after: keep so many at most.
    """

    score: float
    iou: float
    before: int
    after: int

    def __call__(self, boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor) -> Detections:
        """The kept among boxes [N, 7+] of scores [N] and labels [N], best first, whatever their classes."""
        good = scores >= self.score
        boxes, scores, labels = boxes[good], scores[good], labels[good]
        kept = rotated_nms(boxes, scores, threshold=self.iou, before=self.before, after=self.after)
        return Detections(boxes=boxes[kept], scores=scores[kept], labels=labels[kept])


class VoxelDetector(nn.Module):
    """`lidar.detection.batch.Detector` and `worldmodel.protocols.Task`; the names of its state are OpenPCDet's.

    Args:
        classes: names; the place is the label.
        encoder: voxels to a BEV map.
        bev_backbone: from there to the map the head reads.
        head: to boxes; an nn.Module.
        training_voxels, test_voxels: points to voxels; the caps differ.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str],
        encoder: SparseEncoder,
        bev_backbone: BEVBackbone,
        head: DenseHead,
        training_voxels: Voxelizer,
        test_voxels: Voxelizer,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.backbone_3d = encoder
        self.backbone_2d = bev_backbone
        self.dense_head = head
        self.training_voxels, self.test_voxels = training_voxels, test_voxels
        self.encoder_frozen = False
        self.encoder_rates: Mapping[str, float] = {}

    def freeze_encoder(self) -> None:
        """Keep the encoder as it is: no gradient, and evaluation mode for ever."""
        self.encoder_frozen = True
        self.backbone_3d.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "VoxelDetector":
        super().train(mode)
        if self.encoder_frozen:
            self.backbone_3d.eval()
        return self

    def learning_rate_scale(self, name: str) -> float:
        """Factor on the learning rate of a parameter, by the prefixes of `encoder_rates`; 1 for all others."""
        return next((rate for prefix, rate in self.encoder_rates.items() if name.startswith(prefix)), 1.0)

    def voxels(self, points: PointCloudBatch) -> VoxelBatch:
        """Voxels with the caps of the current mode, in the model's precision."""
        voxelizer = self.training_voxels if self.training else self.test_voxels
        return in_precision(voxelizer(points), next(self.parameters()).dtype)

    def forward(self, batch: DetectionBatch) -> Any:
        """The head's output."""
        return self.dense_head(self.backbone_2d(self.backbone_3d(self.voxels(batch.points))))

    def training_step(self, batch: DetectionBatch, step: int) -> Loss:
        truth = checked_truth(batch, self.classes)
        return self.dense_head.loss(self(batch), truth)

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        return {}

    @torch.no_grad()
    def monitors(self, batches: Sequence[DetectionBatch]) -> dict[str, float]:
        """The loss, `loss/total`, and its parts on held-out batches in evaluation mode, averaged over batches."""
        device = next(self.parameters()).device
        sums: dict[str, float] = {}
        with evaluation_mode(self):
            for batch in batches:
                loss = self.training_step(batch.to(device), 0)
                for name, value in {"loss/total": loss.total, **loss.parts}.items():
                    sums[name] = sums.get(name, 0.0) + float(value) / len(batches)
        return sums

    @torch.no_grad()
    def detect(self, batch: DetectionBatch) -> tuple[Detections, ...]:
        """What is found in each sample, in evaluation mode, after suppression of duplicates."""
        with evaluation_mode(self):
            return self.dense_head.detect(self(batch))


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in evaluation mode; afterwards every part of it is in the mode it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def checked_truth(batch: DetectionBatch, classes: Sequence[str]) -> GroundTruth:
    """The ground truth of a batch.

    Raises:
        ValueError: if there is none, a label is of no class, or a box is not finite (its velocity may be NaN).
    """
    truth = batch.truth
    if truth is None:
        raise ValueError(
            "training needs ground truth, and this batch has none: load it from a labelled data set"
        )
    if bool((truth.labels >= len(classes)).any()):
        raise ValueError(
            f"label {int(truth.labels.max())} is of no class: this detector has {len(classes)} ({', '.join(classes)})"
        )
    if not bool(truth.boxes[..., :7].isfinite().all()):
        raise ValueError(f"a ground-truth box of {batch.points.frame_ids} holds NaN or inf: check the labels")
    return truth
