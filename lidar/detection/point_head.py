"""PV-RCNN's keypoint segmentation: which keypoints lie in an object, so that RoIs listen to these."""

import torch
from torch import nn

from lidar.detection.batch import GroundTruth
from lidar.detection.boxes import enlarged, points_in_boxes
from lidar.detection.losses import sigmoid_focal
from lidar.detection.point_set import PointSet
from lidar.encoder import Norm
from worldmodel.distributed import at_least_fp32, mean_over_ranks
from worldmodel.nn.batch_norm import SyncedBatchNorm1d

BACKGROUND, OBJECT, IGNORED = 0, 1, -1


class PointHead(nn.Module):
    """OpenPCDet's PointHeadSimple without classes: linear layers to one logit per keypoint.

    Args:
        in_channels: of the gathered features.
        widths: of the hidden layers.
        shell: metres by which a box is enlarged (half on either side); keypoints in between are not judged.
        norm: makes the normalisation of a layer from its width.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        widths: tuple[int, ...] = (256, 256),
        shell: float = 0.2,
        norm: Norm = SyncedBatchNorm1d,
    ) -> None:
        super().__init__()
        self.shell = shell
        layers: list[nn.Module] = []
        for before, width in zip((in_channels, *widths[:-1]), widths, strict=True):
            layers += [nn.Linear(before, width, bias=False), norm(width), nn.ReLU(inplace=True)]
        self.cls_layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, gathered: torch.Tensor) -> torch.Tensor:
        """Logits [K] of features [K, in_channels]."""
        return at_least_fp32(self.cls_layers(gathered).squeeze(1))

    def loss(self, logits: torch.Tensor, points: PointSet, truth: GroundTruth) -> torch.Tensor:
        """Focal loss over judged keypoints divided by the number of those in objects, both of all ranks."""
        labels = keypoint_labels(points, truth, shell=self.shell)
        focal = torch.where(labels == IGNORED, 0.0, sigmoid_focal(logits, labels == OBJECT))
        return mean_over_ranks(focal.sum(), (labels == OBJECT).sum())


def keypoint_labels(points: PointSet, truth: GroundTruth, *, shell: float) -> torch.Tensor:
    """OBJECT in a box of whatever class, IGNORED in its shell of so many metres, else BACKGROUND: [K] int64."""
    labels = torch.full_like(points.sample, BACKGROUND)
    for sample, (start, size) in enumerate(points.spans()):
        boxes, _ = truth.of(sample)
        if size == 0 or len(boxes) == 0:
            continue
        here = slice(start, start + size)
        inside, near = (
            points_in_boxes(points.xyz[here], b.to(points.xyz)).any(0)
            for b in (boxes[:, :7], enlarged(boxes[:, :7], shell))
        )
        labels[here] = torch.where(inside, OBJECT, torch.where(near, IGNORED, BACKGROUND))
    return labels
