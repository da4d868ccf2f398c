"""PV-RCNN's second stage: pool keypoints in a grid in every RoI, score the RoI and move it to its object."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from lidar.detection.point_set import PointSet
from lidar.detection.roi_frame import corner_loss, decode_from_frame, encode_in_frame, grid_points
from lidar.detection.roi_sampling import RoIs, RoISampling, RoITargets
from lidar.detection.set_abstraction import Ball, SetAbstraction
from lidar.encoder import Norm
from worldmodel.distributed import at_least_fp32, mean_over_ranks
from worldmodel.nn.batch_norm import SyncedBatchNorm1d


@dataclass(frozen=True, kw_only=True)
class RoIOutput:
    """Predictions for R regions of interest.

    Attributes:
        logits: [R] of the score.
        codes: [R, 7] residuals in the RoI's frame.
    """

    logits: torch.Tensor
    codes: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class RowNoise:
    """Random numbers for rows of several samples, each sample's from its own generator.

    Args:
        sample: [R] int64, non-decreasing.
        sources: one generator per sample, on the CPU: the numbers are the same on every device.
    """

    sample: torch.Tensor
    sources: Sequence[torch.Generator]

    def uniform(self, width: int) -> torch.Tensor:
        """[R, width] in 0..1."""
        counts = torch.bincount(self.sample, minlength=len(self.sources)).tolist()
        rows = [torch.rand(n, width, generator=g) for n, g in zip(counts, self.sources, strict=True)]
        return torch.cat(rows).to(self.sample.device)


class FullyConnected(nn.Sequential):
    """Linear layers on rows [R, C] under the names and shapes of OpenPCDet's 1x1 convolutions.

    Each is followed by normalisation and ReLU, the first also by dropout, and at the end comes a bare linear layer if
    `out_channels` is given.

    Args:
        in_channels: C.
        widths: of the layers.
        dropout: share of numbers dropped after the first layer in training.
        out_channels: of the last layer, which has a bias.
        norm: makes the normalisation of a layer from its width.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        *,
        dropout: float,
        out_channels: int | None = None,
        norm: Norm,
    ) -> None:
        layers: list[nn.Module] = []
        for number, width in enumerate(widths):
            layers += [nn.Conv1d(in_channels, width, 1, bias=False), norm(width), nn.ReLU(inplace=True)]
            if number == 0:
                layers.append(nn.Dropout(dropout))
            in_channels = width
        if out_channels is not None:
            layers.append(nn.Conv1d(in_channels, out_channels, 1))
        super().__init__(*layers)
        for layer in self:
            if isinstance(layer, nn.Conv1d):
                nn.init.xavier_normal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor, noise: RowNoise | None = None) -> torch.Tensor:
        """Rows [R, out] of rows [R, C].

        Raises:
            ValueError: in training without noise.
        """
        for layer in self:
            if isinstance(layer, nn.Conv1d):
                x = F.linear(x, layer.weight.squeeze(2), layer.bias)
            elif isinstance(layer, nn.Dropout):
                x = _dropped(x, layer.p, noise) if self.training and layer.p else x
            else:
                x = layer(x)
        return x


class RoIHead(nn.Module):
    """OpenPCDet's PVRCNNHead, one score and one box per RoI, whatever its class.

    Args:
        in_channels: of the keypoints' fused features.
        grid_size: cells along each side of a RoI.
        balls: scales at which a grid point pools keypoints.
        shared, hidden: widths of the layers before the two branches and in each.
        dropout: after the first layer of each of the three.
        sampling: which proposals are trained on.
        norm: makes the normalisation of a layer from its width.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        grid_size: int,
        balls: Sequence[Ball],
        shared: Sequence[int] = (256, 256),
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.3,
        sampling: RoISampling,
        norm: Norm = SyncedBatchNorm1d,
    ) -> None:
        super().__init__()
        self.grid_size, self.sampling = grid_size, sampling
        self.roi_grid_pool_layer = SetAbstraction(in_channels, balls=balls, norm=norm)
        for module in self.roi_grid_pool_layer.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
        pooled = self.roi_grid_pool_layer.out_channels * grid_size**3
        self.shared_fc_layer = FullyConnected(pooled, shared, dropout=dropout, norm=norm)
        self.cls_layers, self.reg_layers = (
            FullyConnected(shared[-1], hidden, dropout=dropout, out_channels=width, norm=norm)
            for width in (1, 7)
        )
        nn.init.normal_(self.reg_layers[-1].weight, std=0.001)  # type: ignore[arg-type]

    def forward(
        self, rois: RoIs, keypoints: PointSet, features: torch.Tensor, noise: RowNoise | None = None
    ) -> RoIOutput:
        """Predictions for RoIs from keypoints and their features [K, in_channels]; noise for dropout in training."""
        cells = self.grid_size**3
        centres = PointSet(
            xyz=grid_points(rois.boxes, self.grid_size).flatten(0, 1),
            sample=rois.sample.repeat_interleave(cells),
            batch_size=keypoints.batch_size,
        )
        pooled = self.roi_grid_pool_layer(keypoints, features, centres)
        # Channel slow, cell fast: the order of OpenPCDet's weights.
        pooled = pooled.unflatten(0, (-1, cells)).transpose(1, 2).flatten(1)
        shared = self.shared_fc_layer(pooled, noise)
        return RoIOutput(
            logits=at_least_fp32(self.cls_layers(shared, noise)).squeeze(1),
            codes=at_least_fp32(self.reg_layers(shared, noise)),
        )

    def losses(self, output: RoIOutput, rois: RoIs, targets: RoITargets) -> dict[str, torch.Tensor]:
        """Score, box and corner losses by name.

        Binary cross entropy of the score, averaged over RoIs; smooth L1 of the codes (beta 1/9), summed over the seven,
        and the corner loss, averaged over RoIs that are regressed; of all ranks.
        """
        score = F.binary_cross_entropy_with_logits(
            output.logits, self.sampling.score_target(targets.iou), reduction="none"
        )
        near = self.sampling.regressed(targets.iou)
        regions, codes, objects = rois.boxes[near], output.codes[near], targets.boxes[near]
        box = F.smooth_l1_loss(codes, encode_in_frame(objects, regions), reduction="none", beta=1 / 9)
        corner = corner_loss(decode_from_frame(codes, regions), objects)
        count = near.sum()
        return {
            "loss/roi_score": mean_over_ranks(score.sum(), len(score)),
            "loss/roi_box": mean_over_ranks(box.sum(), count),
            "loss/roi_corner": mean_over_ranks(corner.sum(), count),
        }


def _dropped(x: torch.Tensor, share: float, noise: RowNoise | None) -> torch.Tensor:
    if noise is None:
        raise ValueError("dropout in training needs its random numbers: pass noise=, or call eval() first")
    return x * ((noise.uniform(x.shape[1]) >= share) / (1 - share)).to(x.dtype)
