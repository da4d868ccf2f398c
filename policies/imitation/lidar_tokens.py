"""LiDAR sweeps to tokens: the bird's-eye map of a sparse encoder, projected, with fixed positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lidar.drive_features import LidarBEVEncoder, cloud_batch
from lidar.pretraining import recalibrated_encoder
from lidar.recipe import EncoderConfig
from worldmodel.distributed import on_this_rank_only
from worldmodel.nn.decoder import map_positions


class LidarTokens(nn.Module):
    """The bird's-eye map of a sweep through a 1x1 convolution, with fixed positions, as a row of tokens.

    Args:
        backbone: sweeps to maps; its encoder is what AD-L-JEPA pretrains.
        dim: D of the tokens.
        frozen: keep the encoder as it is: no gradient, and evaluation mode for ever.
    """

    def __init__(self, *, backbone: LidarBEVEncoder, dim: int, frozen: bool = False) -> None:
        super().__init__()
        self.backbone, self.frozen = backbone, frozen
        self.project = nn.Conv2d(backbone.encoder.bev_channels, dim, 1)
        if frozen:
            self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "LidarTokens":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Sweeps [N, P, 4], rows of infinity being no points, to tokens [N, h w, D], row by row (along y, then x)."""
        maps = self.project(self.backbone(points))
        positions = map_positions(maps.shape[1], *maps.shape[2:]).to(maps)
        return maps.flatten(2).transpose(1, 2) + positions

    def recalibrate(self, sweeps: Sequence[torch.Tensor]) -> None:
        """BatchNorm statistics of whole sweeps [P, 4], on every rank by itself: pretraining shows masked ones only."""
        voxelized = [self.backbone.voxelizer(cloud_batch(sweep[None])) for sweep in sweeps]
        with on_this_rank_only():
            measured = recalibrated_encoder(self.backbone.encoder, voxelized)
        self.backbone.encoder.load_state_dict(measured.state_dict())


@dataclass(frozen=True, kw_only=True)
class LidarBackbone:
    """An encoder of pretrain_lidar.py as the LiDAR network of a policy.

    Attributes:
        encoder: the arguments of `lidar.recipe.EncoderConfig` it was pretrained with.
        pool: cells of its map per token, along either axis.
        frozen: keep it as it is.
    """

    encoder: Mapping[str, Any]
    pool: int = 8
    frozen: bool = True

    def tokens(self, dim: int) -> LidarTokens:
        """Untrained LiDAR tokens of width `dim`; load the pretrained weights into `backbone.encoder`.

        Raises:
            ValueError: if the pool does not divide the encoder's map.
        """
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.encoder.items()}
        config = EncoderConfig(**given)
        maps = LidarBEVEncoder(
            encoder=config.encoder(), voxelizer=config.voxelizer.every_voxel, pool=self.pool
        )
        return LidarTokens(backbone=maps, dim=dim, frozen=self.frozen)
