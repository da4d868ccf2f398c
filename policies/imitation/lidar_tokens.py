"""LiDAR sweeps to tokens: the bird's-eye map of a sparse encoder, projected, with fixed positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lidar.drive_features import LidarBEVEncoder, cloud_batch
from lidar.pretraining import recalibrated_encoder
from lidar.recipe import EncoderConfig
from policies.imitation.map_tokens import MapTokens
from worldmodel.distributed import on_this_rank_only


class LidarTokens(MapTokens):
    """Tokens of LiDAR sweeps: cells of a bird's-eye map, row by row (along y, then x).

    Args:
        backbone: sweeps to maps; its encoder is what AD-L-JEPA pretrains.
        dim, frozen: as of `MapTokens`.
    """

    backbone: LidarBEVEncoder

    def __init__(self, *, backbone: LidarBEVEncoder, dim: int, frozen: bool = False) -> None:
        super().__init__(backbone=backbone, channels=backbone.encoder.bev_channels, dim=dim, frozen=frozen)

    def feature_map(self, x: torch.Tensor) -> torch.Tensor:
        """Sweeps [N, P, 4], rows of infinity being no points, to the encoder's map [N, C, h, w]."""
        return self.backbone(x)

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
