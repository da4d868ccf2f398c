"""From settings to a model: the configurations of AD-L-JEPA and of its baseline, validated, and what they build."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from lidar.ad_l_jepa import ADLJEPA
from lidar.ad_l_jepa import Objective as EmbeddingObjective
from lidar.encoder import SparseEncoder
from lidar.grid import Range, VoxelGrid
from lidar.objectives import EMAVariance, SIGRegObjective
from lidar.occupancy import Cells, OccupancyMAE, OccupancyPretraining
from lidar.pretraining import ADLJEPAPretraining, LidarPretraining, Voxelizer
from lidar.sparse import Backend
from worldmodel.masking.bev import RandomCells
from worldmodel.nn.batch_norm import SyncedBatchNorm1d
from worldmodel.regularizers import SIGReg
from worldmodel.targets import EMATarget, SharedTarget


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Grid, voxel caps and encoder of a recipe (docs/ad_l_jepa.md, steps 1 and 3).

    Args:
        name: of the recipe, for reports.
        point_range: x0 y0 z0 x1 y1 z1 in metres.
        voxel_size: x y z in metres.
        widths: channels of the stem, of each stage of stride 2 and of conv_out.
        norm_momentum: of the encoder's BatchNorm.
        max_points_per_voxel, max_voxels: caps; null is no cap.
        mask_ratio: share of BEV cells to mask.
        lambda_reg: weight of the variance term for this sensor, as in the release's configs; the paper's is not known.
        in_channels: features per point.
        backend: of the sparse convolutions: auto, torch or spconv.
    """

    name: str
    point_range: Range
    voxel_size: tuple[float, float, float]
    widths: tuple[int, ...]
    norm_momentum: float
    max_points_per_voxel: int | None
    max_voxels: int | None
    mask_ratio: float
    lambda_reg: float
    in_channels: int = 4
    backend: Backend = "auto"

    @property
    def grid(self) -> VoxelGrid:
        return VoxelGrid(point_range=self.point_range, voxel_size=self.voxel_size)

    @property
    def voxelizer(self) -> Voxelizer:
        return Voxelizer(
            grid=self.grid, max_points_per_voxel=self.max_points_per_voxel, max_voxels=self.max_voxels
        )

    def encoder(self, *, synced: bool = True) -> SparseEncoder:
        """A context encoder with fresh weights; BatchNorm over all ranks if `synced`."""
        norm = SyncedBatchNorm1d if synced else nn.BatchNorm1d
        return SparseEncoder(
            in_channels=self.in_channels,
            grid=self.grid,
            widths=self.widths,
            norm=partial(norm, eps=1e-3, momentum=self.norm_momentum),
            backend=self.backend,
        )


@dataclass(frozen=True, kw_only=True)
class EMAVarianceConfig:
    """EMA target and variance hinge, the paper's objective; the arguments are those of EMAVariance and EMATarget.

    `lambda_reg` None takes the sensor's (`EncoderConfig.lambda_reg`).
    """

    lambda_jepa: float
    lambda_reg: float | None
    occupied_weight: float
    ema_momentum: float

    def build(
        self, encoder: SparseEncoder, *, sensor_lambda_reg: float, seed: int
    ) -> tuple[EMATarget, EMAVariance]:
        objective = EMAVariance(
            lambda_jepa=self.lambda_jepa,
            lambda_reg=sensor_lambda_reg if self.lambda_reg is None else self.lambda_reg,
            occupied_weight=self.occupied_weight,
        )
        return EMATarget(encoder, momentum=self.ema_momentum), objective


@dataclass(frozen=True, kw_only=True)
class SIGRegConfig:
    """SIGReg on a shared encoder in place of EMA and variance hinge; see SIGRegObjective."""

    weight: float
    samples: int
    num_slices: int
    occupied_weight: float

    def build(
        self, encoder: SparseEncoder, *, sensor_lambda_reg: float, seed: int
    ) -> tuple[SharedTarget, SIGRegObjective]:
        objective = SIGRegObjective(
            channels=encoder.bev_channels,
            sigreg=SIGReg(num_slices=self.num_slices, seed=seed),
            norm=SyncedBatchNorm1d,
            weight=self.weight,
            samples=self.samples,
            occupied_weight=self.occupied_weight,
        )
        return SharedTarget(), objective


@dataclass(frozen=True, kw_only=True)
class OccupancyConfig:
    """Masked occupancy prediction in place of joint-embedding prediction; see OccupancyMAE."""

    positive_weight: float
    cells: Cells


ObjectiveConfig = EMAVarianceConfig | SIGRegConfig | OccupancyConfig
OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "ema_variance": EMAVarianceConfig,
    "sigreg": SIGRegConfig,
    "occupancy": OccupancyConfig,
}


@dataclass(frozen=True, kw_only=True)
class CompatConfig:
    """Paper or release: where the official code differs from the paper (docs/ad_l_jepa.md lists the differences).

    Args:
        learn_tokens: False freezes the tokens, as the release does by mistake. Occupancy prediction has no tokens.
        token_std: the tokens' initial standard deviation; 1 in the release.
        nonnegative_tokens: draw the tokens without negative entries, which the predictor cannot reach.
        synced_batch_norm: statistics over all ranks; the release normalises per GPU.
    """

    learn_tokens: bool
    token_std: float
    nonnegative_tokens: bool
    synced_batch_norm: bool


def build_task(
    *,
    encoder: EncoderConfig,
    objective: ObjectiveConfig,
    compat: CompatConfig,
    collapse_std: float,
    seed: int,
) -> LidarPretraining:
    """The model with weights drawn from `seed`; the global random state is left as it was."""
    masks = RandomCells(ratio=encoder.mask_ratio)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        context_encoder = encoder.encoder(synced=compat.synced_batch_norm)
        if isinstance(objective, OccupancyConfig):
            autoencoder = OccupancyMAE(
                encoder=context_encoder,
                masks=masks,
                positive_weight=objective.positive_weight,
                cells=objective.cells,
                synced=compat.synced_batch_norm,
            )
            return OccupancyPretraining(
                model=autoencoder, voxelizer=encoder.voxelizer, collapse_std=collapse_std
            )
        target, loss = objective.build(context_encoder, sensor_lambda_reg=encoder.lambda_reg, seed=seed)
        terms: EmbeddingObjective = loss
        model = ADLJEPA(
            encoder=context_encoder,
            target=target,
            masks=masks,
            objective=terms,
            token_std=compat.token_std,
            nonnegative_tokens=compat.nonnegative_tokens,
            learn_tokens=compat.learn_tokens,
            synced=compat.synced_batch_norm,
        )
    return ADLJEPAPretraining(model=model, voxelizer=encoder.voxelizer, collapse_std=collapse_std)
