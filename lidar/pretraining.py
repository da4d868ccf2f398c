"""Pretraining of a LiDAR encoder as a task of the training loop: points to voxels, the loss, health of the features.

`LidarPretraining` is what every objective shares; `ADLJEPAPretraining` adds the teacher of AD-L-JEPA.
"""

import copy
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import nn

from lidar.ad_l_jepa import ADLJEPA, Embeddings
from lidar.batch import PointCloudBatch, VoxelBatch
from lidar.encoder import SparseEncoder
from lidar.grid import VoxelGrid
from lidar.views import common_cells, sensor_views, spread_frames
from lidar.voxels import voxelize
from worldmodel.distributed import sum_over_ranks
from worldmodel.masking.bev import BEVMasks
from worldmodel.monitors import EmbeddingHealth, EmbeddingMonitor, LDARank, LDASummary
from worldmodel.nn.batch_norm import recalibrated
from worldmodel.objectives import Loss, unit
from worldmodel.protocols import RepresentationCollapse

# Held-out frames and views of each for LDA-rank while training: 1,300 cells and under a second in the small default.
LDA_FRAMES, LDA_VIEWS = 3, 6


class Voxelizer:
    """Points to mean voxel features with the caps of a recipe (docs/ad_l_jepa.md, step 1).

    Args:
        grid: range and voxel size.
        max_points_per_voxel, max_voxels: caps, first come first served; None is no cap.
    """

    def __init__(self, *, grid: VoxelGrid, max_points_per_voxel: int | None, max_voxels: int | None) -> None:
        self.grid, self.max_points_per_voxel, self.max_voxels = grid, max_points_per_voxel, max_voxels

    @property
    def every_voxel(self) -> "Voxelizer":
        """The same without the cap on voxels, which is for training: evaluation sees whole clouds."""
        return Voxelizer(grid=self.grid, max_points_per_voxel=self.max_points_per_voxel, max_voxels=None)

    def __call__(self, batch: PointCloudBatch) -> VoxelBatch:
        return voxelize(
            batch, self.grid, max_points_per_voxel=self.max_points_per_voxel, max_voxels=self.max_voxels
        )


def in_precision(voxels: VoxelBatch, dtype: torch.dtype) -> VoxelBatch:
    """Voxels with features of another floating type."""
    return replace(voxels, features=voxels.features.to(dtype))


@torch.no_grad()
def occupied_features(encoder: SparseEncoder, voxels: VoxelBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of non-empty BEV cells [n, C] and the occupancy [B, H, W] they come from, in row-major order."""
    occupied = encoder.occupied(voxels)
    return encoder(voxels).permute(0, 2, 3, 1)[occupied].float(), occupied


def unit_features(frozen: SparseEncoder, batches: Iterable[VoxelBatch]) -> Iterator[torch.Tensor]:
    """L2-normalised features [n, C] of the non-empty cells, batch by batch: what the monitors look at."""
    for voxels in batches:
        yield unit(occupied_features(frozen, voxels)[0])


def frozen_health(frozen: SparseEncoder, batches: Iterable[VoxelBatch]) -> EmbeddingHealth:
    """Health of the unit features of a frozen encoder."""
    monitor = EmbeddingMonitor(frozen.bev_channels)
    for features in unit_features(frozen, batches):
        monitor.update(features)
    return monitor.compute()


def encoder_health(encoder: SparseEncoder, batches: Sequence[VoxelBatch]) -> EmbeddingHealth:
    """Health of the L2-normalised features at non-empty cells of full scans, BatchNorm recalibrated on them."""
    return frozen_health(recalibrated_encoder(encoder, batches), batches)


def cell_groups(
    frozen: SparseEncoder, batch: PointCloudBatch, *, voxelizer: Voxelizer, views: int
) -> torch.Tensor:
    """L2-normalised features [n, Q, C] of the cells of a batch that are occupied in all Q views of it.

    Args:
        frozen: encoder in eval mode.
        batch: scans; their views are functions of their seeds (`lidar.views`).
        voxelizer: points to voxels.
        views: Q.
    """
    dtype = next(frozen.parameters()).dtype
    encoded = []
    for view in sensor_views(batch, views=views):
        features, occupied = occupied_features(frozen, in_precision(voxelizer(view), dtype))
        encoded.append((unit(features), occupied))
    return common_cells(encoded)


def cell_discriminant(
    frozen: SparseEncoder,
    batches: Sequence[PointCloudBatch],
    *,
    voxelizer: Voxelizer,
    frames: int = LDA_FRAMES,
    views: int = LDA_VIEWS,
) -> LDASummary:
    """LDA-rank with BEV cells as classes, of some evenly spaced scans; NaN without two cells. See `cell_groups`."""
    chosen = spread_frames(batches, frames).to(next(frozen.parameters()).device)
    groups = cell_groups(frozen, chosen, voxelizer=voxelizer, views=views)
    if len(groups) < 2:
        return LDASummary(count=len(groups), rank=math.nan, signal=math.nan)
    monitor = LDARank(frozen.bev_channels)
    monitor.update(groups)
    return monitor.compute()


def recalibrated_encoder(encoder: SparseEncoder, batches: Sequence[VoxelBatch]) -> SparseEncoder:
    """A frozen copy of the encoder with the BatchNorm statistics of full scans."""
    return recalibrated(encoder, batches, lambda module, voxels: module(voxels))  # type: ignore[return-value]


class MaskedModel(Protocol):
    """A model that learns an encoder from voxels of which it hides some: an nn.Module with these members."""

    encoder: SparseEncoder

    def draw_masks(self, voxels: VoxelBatch, seeds: Sequence[int]) -> BEVMasks:
        """Split the BEV cells of a batch; the split is a function of each sample's seed."""
        ...

    def __call__(self, voxels: VoxelBatch, seeds: Sequence[int], step: int) -> Loss:
        """Loss of one batch."""
        ...


class LidarPretraining(nn.Module):
    """Task: trains the encoder of a masked model and watches its features on held-out clouds.

    Args:
        model: the model, an nn.Module.
        voxelizer: points to voxels.
        collapse_std: std / gamma of held-out features below which the run stops as collapsed.
        collapse_rank: centred RankMe below which it does. Features that only tell which height levels of a cell are
            active have some spread but a rank near 1.
    """

    method = "masked"  # its name in reports
    against_collapse = "Lower trainer.max_lr"

    def __init__(
        self,
        *,
        model: MaskedModel,
        voxelizer: Voxelizer,
        collapse_std: float = 0.05,
        collapse_rank: float = 2.0,
    ) -> None:
        super().__init__()
        self.model: MaskedModel = model
        self.voxelizer = voxelizer
        self.collapse_std, self.collapse_rank = collapse_std, collapse_rank
        # The untrained encoder is the yardstick; in a tuple, so that it is neither trained nor saved.
        self._untrained = (copy.deepcopy(model.encoder).requires_grad_(False),)
        self._untrained_health: EmbeddingHealth | None = None

    @property
    def untrained_encoder(self) -> SparseEncoder:
        """The encoder as it was initialised."""
        return self._untrained[0]

    @property
    def device(self) -> torch.device:
        """Where the encoder's weights are."""
        return next(self.model.encoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the encoder's weights."""
        return next(self.model.encoder.parameters()).dtype

    def voxels(self, batch: PointCloudBatch) -> VoxelBatch:
        """Voxels of a batch in the model's precision."""
        return in_precision(self.voxelizer(batch), self.dtype)

    def training_step(self, batch: PointCloudBatch, step: int) -> Loss:
        loss = self.model(self.voxels(batch), batch.seeds, step)
        skipped = sum_over_ranks(loss.total.detach().new_tensor(float(len(batch.skipped))))
        return Loss(loss.total, {**loss.parts, "data/skipped": skipped})

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        return {}

    def monitors(self, batches: Sequence[PointCloudBatch]) -> dict[str, float]:
        device, dtype = self.device, self.dtype
        whole = self.voxelizer.every_voxel
        voxels = [in_precision(whole(b.to(device)), dtype) for b in batches]
        frozen = recalibrated_encoder(self.model.encoder, voxels)
        health = frozen_health(frozen, voxels)
        lda = cell_discriminant(frozen, batches, voxelizer=whole)
        for warning in (health.warning, lda.warning):
            if warning:
                warnings.warn(f"held-out frames: {warning}", stacklevel=2)
        if self._untrained_health is None:
            self._untrained_health = encoder_health(self.untrained_encoder.to(device, dtype), voxels)
            self.untrained_encoder.cpu().float()
        random = self._untrained_health
        gamma = self.model.encoder.bev_channels**-0.5
        values = {
            **health.as_dict(),
            "rankme_over_random": health.rankme / random.rankme,
            "rankme_centered_over_random": health.rankme_centered / random.rankme_centered,
            "std_over_gamma": health.std / gamma,
            "std_over_gamma_random": random.std / gamma,
            "lda_rank": lda.rank,
            "lda_signal": lda.signal,
            **self.heldout_loss(batches),
        }
        if not (health.std / gamma >= self.collapse_std and health.rankme_centered >= self.collapse_rank):
            raise RepresentationCollapse(
                f"the representation collapsed: on held-out frames std/gamma is {health.std / gamma:.3f} (limit "
                f"{self.collapse_std}), centred RankMe {health.rankme_centered:.2f} (limit {self.collapse_rank}). "
                f"{self.against_collapse}"
            )
        return values

    @torch.no_grad()
    def heldout_loss(self, batches: Sequence[PointCloudBatch]) -> dict[str, float]:
        """The loss, `loss/total`, and its parts, with the masks of the batches' own seeds and batch statistics.

        On a copy: nothing is updated.
        """
        model = copy.deepcopy(self.model).train()  # type: ignore[attr-defined]
        sums: dict[str, float] = {}
        for batch in batches:
            loss = model(self.voxels(batch.to(self.device)), batch.seeds, 0)
            for name, value in {"loss/total": loss.total, **loss.parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value) / len(batches)
        return sums


class ADLJEPAPretraining(LidarPretraining):
    """Task: trains an `ADLJEPA`, whose teacher follows after every step."""

    method = "AD-L-JEPA"
    against_collapse = "Raise objective.lambda_reg or lower trainer.max_lr"
    model: ADLJEPA

    def after_step(self, step: int, total_steps: int) -> dict[str, float]:
        momentum = self.model.target.update(self.model.encoder, progress=step / total_steps)
        return {} if momentum is None else {"ema_momentum": momentum}

    def embed(self, batch: PointCloudBatch) -> Embeddings:
        """Embeddings of a batch, for pictures."""
        voxels = self.voxels(batch)
        return self.model.embed(voxels, self.model.draw_masks(voxels, batch.seeds))
