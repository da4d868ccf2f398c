"""Masked occupancy prediction: the reconstruction baseline beside AD-L-JEPA, after Occupancy-MAE (arXiv 2206.09900).

The encoder sees the voxels of visible BEV cells; a decoder on its BEV map tells for every voxel of the grid, those of
masked cells and empty ones included, whether a point lies in it. Encoder, masks and convolutions are AD-L-JEPA's, so
that the two differ in what they predict. docs/ad_l_jepa.md tells where this differs from the authors' release.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lidar.ad_l_jepa import Predictor, split_voxels
from lidar.batch import PointCloudBatch, VoxelBatch
from lidar.encoder import SparseEncoder
from lidar.pretraining import LidarPretraining
from worldmodel.masking.bev import BEVMasks, RandomCells
from worldmodel.objectives import Loss, at_least_fp32, masked_mean

# Voxels whose logits exist at a time, 64 MiB of them in fp32: a full-size grid has 90 million per frame.
CHUNK = 2**24
# Share of occupied voxels that the untrained decoder predicts (focal loss, arXiv 1708.02002, section 3.3).
PRIOR = 0.01
# Scores are ranked in bins of 1/64 logit.
SCORE_LIMIT, SCORE_BINS = 16.0, 2048

Cells = Literal["all", "masked"]


@dataclass(frozen=True, kw_only=True)
class CellVoxels:
    """Voxels by the BEV cell whose column they lie in, sorted by cell.

    Attributes:
        cell: [N] int64, row-major index of (sample, y // stride, x // stride).
        place: [N] int64, row-major index of (z, y % stride, x % stride): the voxel within its cell.
    """

    cell: torch.Tensor
    place: torch.Tensor

    @classmethod
    def of(cls, voxels: VoxelBatch, *, stride: int, bev_shape: tuple[int, int]) -> "CellVoxels":
        """The voxels of a batch on a BEV grid of H x W cells of `stride` x `stride` voxels."""
        height, width = bev_shape
        b, z, y, x = voxels.coordinates.unbind(1)
        cell = (b * height + y // stride) * width + x // stride
        place = (z * stride + y % stride) * stride + x % stride
        cell, order = cell.sort()
        return cls(cell=cell, place=place[order])

    def between(self, start: int, stop: int) -> "CellVoxels":
        """Those of the cells start, ..., stop - 1, which become 0, ..., stop - start - 1."""
        low, high = torch.searchsorted(self.cell, self.cell.new_tensor([start, stop])).tolist()
        return CellVoxels(cell=self.cell[low:high] - start, place=self.place[low:high])


def weighted_cross_entropy(
    logits: torch.Tensor, occupied: CellVoxels, *, positive_weight: float
) -> torch.Tensor:
    """Binary cross entropy of each cell, the mean over its voxels: [n], in fp32.

    -w log p at occupied voxels, -log(1 - p) at empty ones. The few occupied ones correct a sum over all of them.

    Args:
        logits: [n, V].
        occupied: the occupied voxels of these n cells.
        positive_weight: w.
    """
    logits = at_least_fp32(logits)
    at = logits[occupied.cell, occupied.place]
    correction = positive_weight * F.softplus(-at) - F.softplus(at)
    return F.softplus(logits).sum(1).index_add(0, occupied.cell, correction) / logits.shape[1]


class OccupancyMAE(nn.Module):
    """Encoder of the visible voxels and decoder of all voxels.

    The decoder is AD-L-JEPA's predictor and a linear map to the Z x stride x stride voxels of a cell: 2,429,696
    parameters at full size. As in the release there is no mask token: the decoder is not told which cells are masked.
    Cells at the edge may reach past the grid; their voxels out there are empty ones.

    Args:
        encoder: sparse encoder, voxels to a BEV map [B, C, H, W].
        masks: draws the visible cells.
        positive_weight: weight of occupied voxels in the cross entropy; 1 in the authors' release.
        cells: whose voxels are predicted: of all cells, as in the release, or of masked ones.
        synced: BatchNorm of the decoder over all ranks.
        chunk: voxels whose logits exist at a time; they are computed again for the gradient.
    """

    def __init__(
        self,
        *,
        encoder: SparseEncoder,
        masks: RandomCells,
        positive_weight: float = 1.0,
        cells: Cells = "all",
        synced: bool = True,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__()
        if not 0 < positive_weight < math.inf:
            raise ValueError(f"positive_weight must be positive and finite, got {positive_weight}")
        if cells not in ("all", "masked"):
            raise ValueError(f"cells is all or masked, got {cells!r}")
        self.encoder, self.masks = encoder, masks
        self.positive_weight, self.cells = positive_weight, cells
        # The sparse tensor has one level more than the grid, which no point reaches.
        self.levels = encoder.input_shape[0] - 1
        self.body = Predictor(encoder.bev_channels, synced=synced)
        self.head = nn.Linear(encoder.bev_channels, self.levels * encoder.stride**2)
        nn.init.constant_(self.head.bias, -math.log(1 / PRIOR - 1))
        self.rows = max(1, chunk // self.head.out_features)

    def draw_masks(self, voxels: VoxelBatch, seeds: Sequence[int]) -> BEVMasks:
        """Split the BEV cells of a batch: the draws of AD-L-JEPA (docs/ad_l_jepa.md, step 2)."""
        return self.masks(self.encoder.occupied(voxels), seeds=seeds)

    def decode(self, voxels: VoxelBatch, masks: BEVMasks) -> torch.Tensor:
        """Features [B * H * W, C] of the cells, from visible voxels alone: what `head` reads logits [.., V] from."""
        visible, _ = split_voxels(voxels, masks, stride=self.encoder.stride)
        return self.body(self.encoder(visible)).permute(0, 2, 3, 1).flatten(0, 2)

    def chunks(self, voxels: VoxelBatch) -> Iterator[tuple[slice, CellVoxels]]:
        """Ranges of cells with at most `chunk` voxels, and the occupied voxels of each."""
        occupied = CellVoxels.of(voxels, stride=self.encoder.stride, bev_shape=self.encoder.bev_shape)
        count = voxels.batch_size * math.prod(self.encoder.bev_shape)
        for start in range(0, count, self.rows):
            stop = min(start + self.rows, count)
            yield slice(start, stop), occupied.between(start, stop)

    def cell_errors(self, voxels: VoxelBatch, masks: BEVMasks) -> torch.Tensor:
        """Cross entropy of each cell, the mean over its voxels: [B, H, W]."""

        def error(features: torch.Tensor, occupied: CellVoxels) -> torch.Tensor:
            return weighted_cross_entropy(self.head(features), occupied, positive_weight=self.positive_weight)

        features = self.decode(voxels, masks)
        errors = [
            checkpoint(error, features[cells], occupied, use_reentrant=False, preserve_rng_state=False)
            for cells, occupied in self.chunks(voxels)
        ]
        return torch.cat(errors).view(masks.visible.shape)

    def forward(self, voxels: VoxelBatch, seeds: Sequence[int], step: int) -> Loss:
        """Mean cross entropy of the voxels of all ranks; its parts are those of the cell sets of AD-L-JEPA."""
        masks = self.draw_masks(voxels, seeds)
        errors = self.cell_errors(voxels, masks)
        chosen = ~masks.visible if self.cells == "masked" else torch.ones_like(masks.visible)
        parts = {
            "loss/occupancy_m1": masked_mean(errors, masks.masked_occupied),
            "loss/occupancy_m0": masked_mean(errors, masks.masked_empty),
            "loss/occupancy_visible": masked_mean(errors, masks.visible),
        }
        return Loss.weighted({"loss/occupancy": (1.0, masked_mean(errors, chosen))}, also=parts)


def grouped_average_precision(positives: torch.Tensor, counts: torch.Tensor) -> float:
    """Average precision where groups of samples share a score: `worldmodel.probes.average_precision` from counts.

    Args:
        positives, counts: [G], positive samples and samples of each group, groups by falling score.

    Returns:
        A number in [0, 1]; NaN without positives.
    """
    hits = positives.double().cumsum(0)
    precision = hits / counts.double().cumsum(0).clamp_min(1)
    return float((positives.double() * precision).sum() / hits[-1]) if hits[-1] else math.nan


class OccupancyPretraining(LidarPretraining):
    """Task: trains an `OccupancyMAE`."""

    method = "Occupancy"
    model: OccupancyMAE

    def monitors(self, batches: Sequence[PointCloudBatch]) -> dict[str, float]:
        return {**super().monitors(batches), **self.heldout_precision(batches)}

    @torch.no_grad()
    def heldout_precision(self, batches: Sequence[PointCloudBatch]) -> dict[str, float]:
        """Average precision of the occupancy of voxels of masked cells, and that of the trivial predictor.

        The trivial predictor scores a voxel by the share of occupied voxels at its height, taken from the very voxels
        it is judged on. Masks are those of the batches' own seeds, BatchNorm has batch statistics, and scores are
        ranked in bins of 1/64 logit. On a copy: nothing is updated.
        """
        model = copy.deepcopy(self.model).train()
        by_score = torch.zeros(2, SCORE_BINS, dtype=torch.int64, device=self.device)
        by_height = torch.zeros(2, model.levels, dtype=torch.int64, device=self.device)
        for batch in batches:
            voxels = self.voxels(batch.to(self.device))
            masks = model.draw_masks(voxels, batch.seeds)
            features, masked = model.decode(voxels, masks), ~masks.visible.flatten()
            for cells, occupied in model.chunks(voxels):
                kept = masked[cells]
                logits = at_least_fp32(model.head(features[cells]))
                bins = (-logits + SCORE_LIMIT).mul_(SCORE_BINS / (2 * SCORE_LIMIT)).long()
                bins.clamp_(0, SCORE_BINS - 1)
                hits = kept[occupied.cell]
                cell, place = occupied.cell[hits], occupied.place[hits]
                by_score[0] += torch.bincount(bins[cell, place], minlength=SCORE_BINS)
                by_score[1] += torch.bincount(bins[kept].flatten(), minlength=SCORE_BINS)
                heights = place // model.encoder.stride**2
                by_height[0] += torch.bincount(heights, minlength=model.levels)
                by_height[1] += int(kept.sum()) * model.encoder.stride**2
        # Each height has as many voxels: those with as many occupied ones share a score.
        shares, group = by_height[0].unique(return_inverse=True)
        by_share = by_height.new_zeros(2, len(shares)).index_add_(1, group, by_height).flip(1)
        return {
            "occupancy_ap": grouped_average_precision(by_score[0], by_score[1]),
            "occupancy_ap_trivial": grouped_average_precision(by_share[0], by_share[1]),
        }
