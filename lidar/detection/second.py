"""SECOND's head: one anchor per class and heading at every cell, a class, a residual and a direction for each.

Yan, Mao, Li: SECOND: Sparsely Embedded Convolutional Detection (Sensors 2018), as OpenPCDet trains it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from lidar.detection.anchors import (
    IGNORED,
    YAWS,
    AnchorClass,
    AnchorTargets,
    anchor_grid,
    assign_batch,
    decode,
    with_direction,
)
from lidar.detection.batch import Detections, GroundTruth
from lidar.detection.losses import residual_smooth_l1, sigmoid_focal
from lidar.detection.voxel_detector import Suppression
from lidar.grid import VoxelGrid
from worldmodel.distributed import at_least_fp32, mean_over_ranks
from worldmodel.objectives import Loss

PRIOR = 0.01  # probability of every class an untrained head gives


@dataclass(frozen=True, kw_only=True)
class AnchorOutput:
    """Predictions for the A anchors of each of B samples, in the order of `anchor_grid`.

    Attributes:
        logits: [B, A, C] one per class.
        codes: [B, A, 7] residuals.
        directions: [B, A, 2] logits of the half turn the heading is in.
    """

    logits: torch.Tensor
    codes: torch.Tensor
    directions: torch.Tensor


class AnchorHead(nn.Module):
    """OpenPCDet's AnchorHeadSingle: three 1x1 convolutions conv_cls, conv_box and conv_dir_cls.

    Args:
        in_channels: of the map.
        classes: the anchor of each class.
        grid: its range, over which the anchors are spread.
        shape: H, W of the map.
        suppression: of duplicates, over all classes together.
        weights: of the class, box and direction losses.
    """

    anchors: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        *,
        classes: Sequence[AnchorClass],
        grid: VoxelGrid,
        shape: tuple[int, int],
        suppression: Suppression,
        weights: tuple[float, float, float] = (1.0, 2.0, 0.2),
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.suppression = suppression
        self.weights = weights
        per_cell = len(self.classes) * len(YAWS)
        self.conv_cls = nn.Conv2d(in_channels, per_cell * len(self.classes), 1)
        self.conv_box = nn.Conv2d(in_channels, per_cell * 7, 1)
        self.conv_dir_cls = nn.Conv2d(in_channels, per_cell * 2, 1)
        nn.init.constant_(self.conv_cls.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]
        nn.init.normal_(self.conv_box.weight, std=0.001)
        # Not in the state: they follow from the settings, and OpenPCDet's files have none.
        self.register_buffer("anchors", anchor_grid(self.classes, grid=grid, shape=shape), persistent=False)

    def forward(self, features: torch.Tensor) -> AnchorOutput:
        """Predictions from a map [B, C, H, W]."""
        batch, rows, columns = features.shape[0], *features.shape[2:]
        if (rows, columns) != self.anchors.shape[:2]:
            raise ValueError(
                f"the map is {rows} x {columns}, the anchors stand on {' x '.join(map(str, self.anchors.shape[:2]))}: "
                f"build the head for the shape the BEV backbone makes"
            )

        def per_anchor(layer: nn.Module, width: int) -> torch.Tensor:
            return at_least_fp32(layer(features).permute(0, 2, 3, 1).reshape(batch, -1, width))

        return AnchorOutput(
            logits=per_anchor(self.conv_cls, len(self.classes)),
            codes=per_anchor(self.conv_box, 7),
            directions=per_anchor(self.conv_dir_cls, 2),
        )

    def targets(self, truth: GroundTruth) -> AnchorTargets:
        """What the anchors are to predict."""
        samples = [truth.of(sample) for sample in range(len(truth.labels))]
        return assign_batch(self.anchors, self.classes, samples)

    def loss(self, output: AnchorOutput, truth: GroundTruth) -> Loss:
        """Class, box and direction losses.

        Each is summed over the anchors of a sample, divided by the sample's number of positive anchors (at least 1),
        and averaged over the samples of all ranks.
        """
        targets = self.targets(truth)
        positive = targets.positive
        count = positive.sum(dim=1).clamp_min(1)
        wanted = F.one_hot(targets.labels.clamp_min(0), len(self.classes)) * positive.unsqueeze(-1)
        focal = sigmoid_focal(output.logits, wanted).sum(dim=-1)
        focal = torch.where(targets.labels == IGNORED, 0.0, focal)
        box = residual_smooth_l1(output.codes[positive], targets.codes[positive]).sum(dim=-1)
        direction = F.cross_entropy(
            output.directions[positive], targets.directions[positive], reduction="none"
        )
        share = 1 / count[positive.nonzero()[:, 0]]
        sums = torch.stack([(focal.sum(dim=1) / count).sum(), (box * share).sum(), (direction * share).sum()])
        means = mean_over_ranks(sums, len(count))
        names = ("loss/class", "loss/box", "loss/direction")
        return Loss.weighted(
            {name: (weight, mean) for name, weight, mean in zip(names, self.weights, means, strict=True)},
            also={"positives": mean_over_ranks(positive.sum().to(sums), len(count))},
        )

    def boxes(self, output: AnchorOutput) -> torch.Tensor:
        """Decoded boxes [B, A, 7], their headings in the half turn the direction logits choose."""
        boxes = decode(output.codes, self.anchors.reshape(-1, 7))
        heading = with_direction(boxes[..., 6], output.directions.argmax(dim=-1))
        return torch.cat([boxes[..., :6], heading.unsqueeze(-1)], dim=-1)

    def detect(self, output: AnchorOutput) -> tuple[Detections, ...]:
        """Boxes of each anchor's best class; duplicates suppressed whatever their classes."""
        scores, labels = output.logits.sigmoid().max(dim=-1)
        return tuple(
            self.suppression(*sample) for sample in zip(self.boxes(output), scores, labels, strict=True)
        )
